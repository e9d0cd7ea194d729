"""What a MAC of each group takes on this machine: what `--per latency` divides by."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from cswap.errors import ArtifactError
from cswap.evaluate.cost import latency_ms
from cswap.structure.discover import untouched_rng
from cswap.structure.fit import copied
from cswap.structure.groups import Group, Structure
from cswap.structure.ledger import Ledger
from cswap.structure.surgery import pruned_copy
from cswap.types import IntArray

_SECONDS = 1.0  # that each group is timed for
_LEAST = 0.1  # of the network's mean: what seems to take no time is noise, or would be cut for nothing


def paced(
    model: nn.Module, structure: Structure, sample: torch.Tensor, *, batch: int = 1, device: str = "cpu"
) -> Structure:
    """The structure with `pace`, milliseconds a MAC by group: timed in turns with a copy that lacks half of the group (ours).

    sample: (1, …). `model` is untouched, whatever its mode. At least a tenth of what a MAC takes in the mean of the whole network.
    """
    paces, net = dict[str, float](), copied(model).eval()
    with untouched_rng():
        for group in structure:
            saved, half = _half_of(structure, group)
            if not len(half):
                paces[group.name] = 0.0
                continue
            nets = {"whole": net, "half": pruned_copy(net, structure, {group.name: half}).eval()}
            times = latency_ms(nets, sample, batch, device=device, budget_s=_SECONDS)
            paces[group.name] = (times["whole"] - times["half"]) / saved
        whole = latency_ms({"whole": net}, sample, batch, device=device, budget_s=_SECONDS)["whole"]
    least = (
        _LEAST * max(whole, 1e-3) / max(1, structure.total_macs)
    )  # a clock that shows nothing is no price of nothing
    return replace(structure, pace={name: max(pace, least) for name, pace in paces.items()})


def _half_of(structure: Structure, group: Group) -> tuple[float, IntArray]:
    """MACs that half of the group takes with it, and which units that is; none where it cannot be halved."""
    ledger, gone = Ledger(structure), list[int]()
    for unit in range(group.size):
        if len(gone) < group.size // 2 and not ledger.last(group, [unit]):
            ledger.remove(group, unit)
            gone.append(unit)
    saved = structure.total_macs - ledger.macs
    return saved, np.asarray(gone if saved > 0 else [], dtype=np.int64)


def check_pace(structure: Structure, held: Any) -> None:
    """Raises ArtifactError where the paces that a run began with are not those of the structure's groups."""
    names = [g.name for g in structure]
    numbers = isinstance(held, dict) and all(type(v) is float and math.isfinite(v) and v > 0 for v in held.values())
    if not numbers or sorted(held) != sorted(names):
        raise ArtifactError(
            f"resume: expected the pace of each of {len(names)} groups, got {str(held)[:80]}; nothing was changed"
        )
