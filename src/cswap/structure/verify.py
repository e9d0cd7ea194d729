"""Groups are kept only where a masked and a pruned copy agree: on values that show, all together."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from cswap.errors import pass_on_out_of_memory
from cswap.structure.check import agreement, random_half, randomise_
from cswap.structure.groups import LeftOut, Structure

_NARROW = 16  # a half of fewer units may happen to be symmetric, as a flip of the channels is: another half goes too


def verified(work: nn.Module, structure: Structure, inputs: torch.Tensor, seed: int) -> Structure:
    """`structure` without the groups that cannot be pruned, which are left out with the reason; `work` is randomised.

    A random half of all groups goes. Where that does not agree, groups are accepted by halves, each next to all that were
    accepted before, so that what is kept has agreed together.
    """
    randomise_(work, seed, inputs).requires_grad_(False)
    bad = _bad(work, structure, inputs, seed, [], [g.name for g in structure])
    kept = tuple(g for g in structure if g.name not in bad)
    left = structure.left_out + tuple(LeftOut.group(structure[n], why) for n, why in bad.items())
    return replace(structure, groups=kept, left_out=left)


def _bad(
    model: nn.Module, structure: Structure, inputs: torch.Tensor, seed: int, accepted: list[str], names: list[str]
) -> dict[str, str]:
    """Those of the named groups that cannot be pruned next to the accepted ones, with the reason."""
    why = _disagreement(model, structure, inputs, seed, [*accepted, *names])
    if why is None or len(names) == 1:
        return {} if why is None else {names[0]: why}
    middle = len(names) // 2
    bad = _bad(model, structure, inputs, seed, accepted, names[:middle])
    accepted = [*accepted, *(n for n in names[:middle] if n not in bad)]
    return bad | _bad(model, structure, inputs, seed, accepted, names[middle:])


def _disagreement(
    model: nn.Module, structure: Structure, inputs: torch.Tensor, seed: int, names: list[str]
) -> str | None:
    """Why half of these groups cannot be removed safely, or None."""
    narrow = [n for n in names if structure[n].size <= _NARROW]
    halves = [random_half(structure, seed, names), *([random_half(structure, seed + 1, narrow)] if narrow else [])]
    try:
        results = [agreement(model, structure, half, inputs) for half in halves]
    except Exception as error:  # noqa: BLE001 — whatever the pruned network raises is the reason to leave it alone
        pass_on_out_of_memory(error)
        return f"the pruned network does not run ({type(error).__name__}: {(str(error).splitlines() or [''])[0][:160]})"
    wrong = next((r for r in results if not r.ok), None)
    return None if wrong is None else f"masked and pruned networks disagree: {wrong}"
