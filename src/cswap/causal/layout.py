"""Where what a layer reads has its samples: first, in another dimension, or taking turns (ours).

Found by a probe: of two samples one is exchanged, and what that changes belongs to it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from cswap.errors import MethodError
from cswap.structure.calls import run_hooked
from cswap.structure.layers import channel_dim

TURNS = -1  # position by position in dimension 0, the samples of each side by side
_ROUNDING = 1e-4


def sample_dims(net: nn.Module, names: Iterable[str], one: torch.Tensor, other: torch.Tensor) -> dict[str, int]:
    """By layer the dimension of its input, channels moved last, that holds the samples (`TURNS`: see there).

    one, other: (1, …) different samples. A layer that one pass does not reach is left out. Raises MethodError for a layer
    whose input is not laid out by samples, or not alike in all its calls.
    """
    names = tuple(names)
    runs = [_read(net, names, torch.cat([one, second])) for second in (other, one)]
    if [n for n, _ in runs[0]] != [n for n, _ in runs[1]]:
        raise MethodError("other samples go through other layers, so a unit's share of one sample is not known")
    found: dict[str, int] = {}
    for (name, exchanged), (_, same) in zip(*runs, strict=True):
        dim = _dim_of(exchanged, same)
        if dim is None or found.setdefault(name, dim) != dim:
            raise MethodError(
                f"what {name} reads is not laid out by samples, so a unit's share of one sample is not known"
            )
    return found


def _read(net: nn.Module, names: Iterable[str], inputs: torch.Tensor) -> list[tuple[str, torch.Tensor]]:
    """What every call of these layers reads, channels last."""
    seen: list[tuple[str, torch.Tensor]] = []

    def see(name: str, dim: int) -> Any:
        return lambda _module, args: seen.append((name, args[0].movedim(dim, -1).clone()))

    handles = [net.get_submodule(n).register_forward_pre_hook(see(n, channel_dim(net.get_submodule(n)))) for n in names]
    run_hooked(net, inputs, handles)
    return seen


def _dim_of(exchanged: torch.Tensor, same: torch.Tensor) -> int | None:
    """The dimension along which only the second of two samples changed."""
    if exchanged.shape != same.shape or exchanged.dim() < 2:
        return None
    changed = ((exchanged - same).abs() > _ROUNDING * same.abs().max()).any(-1)
    half, odd = divmod(changed.shape[0], 2)
    if not odd and not changed[:half].any():
        return 0
    for dim in range(1, changed.dim()):
        if changed.shape[dim] == 2 and not changed.select(dim, 0).any():
            return dim
    return TURNS if not odd and not changed[::2].any() else None


def by_samples(at: torch.Tensor, dim: int, rows: int) -> torch.Tensor:
    """(…, C) of `rows` samples that lie in `dim` → (rows, positions, C)."""
    if dim == TURNS:
        at, dim = at.reshape(-1, rows, *at.shape[1:]), 1
    return at.movedim(dim, 0).reshape(rows, -1, at.shape[-1])
