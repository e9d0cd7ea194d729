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

CONSTANT = -2  # the same for both samples, so that it cannot be told; taken for samples first
TURNS = -1  # position by position in dimension 0, the samples of each side by side
_ROUNDING = 1e-4


def sample_dims(net: nn.Module, names: Iterable[str], one: torch.Tensor, other: torch.Tensor) -> dict[str, int]:
    """By layer the dimension of its input, channels moved last, that holds the samples (`TURNS`, `CONSTANT`: see there).

    one, other: (1, …) different samples. A layer that one pass does not reach is left out. Raises MethodError for a layer
    whose input is not laid out by samples, or not alike in all its calls.
    """
    names = tuple(names)
    runs = [_read(net, names, torch.cat(pair)) for pair in ((one, other), (one, one), (other, other))]
    if any([n for n, _ in run] != [n for n, _ in runs[0]] for run in runs):
        raise MethodError("other samples go through other layers, so a unit's share of one sample is not known")
    found: dict[str, int] = {}
    for (name, both), (_, other_second), (_, other_first) in zip(*runs, strict=True):
        dim = _dim_of(both, other_second, other_first)
        if dim is None or (found.setdefault(name, dim) != dim and CONSTANT not in (dim, found[name])):
            raise MethodError(
                f"what {name} reads is not laid out by samples, so a unit's share of one sample is not known"
            )
        found[name] = max(dim, found[name])
    return found


def _read(net: nn.Module, names: Iterable[str], inputs: torch.Tensor) -> list[tuple[str, torch.Tensor]]:
    """What every call of these layers reads, channels last."""
    seen: list[tuple[str, torch.Tensor]] = []

    def see(name: str, dim: int) -> Any:
        return lambda _module, args: seen.append((name, args[0].movedim(dim, -1).clone()))

    modules = ((n, net.get_submodule(n)) for n in names)
    handles = [m.register_forward_pre_hook(see(n, channel_dim(m))) for n, m in modules]
    run_hooked(net, inputs, handles)
    return seen


def _dim_of(both: torch.Tensor, other_second: torch.Tensor, other_first: torch.Tensor) -> int | None:
    """The dimension along which each of two samples changes its own part alone, when it is exchanged; None where there is none."""
    if both.dim() < 2 or not both.numel() or not both.shape == other_second.shape == other_first.shape:
        return None
    least = _ROUNDING * both.abs().max()
    second, first = (((x - both).abs() > least).any(-1) for x in (other_second, other_first))
    if not second.any() and not first.any():
        return CONSTANT
    rows = both.shape[0]
    if not rows % 2 and not second[: rows // 2].any() and not first[rows // 2 :].any():
        return 0
    if not rows % 2 and not second[::2].any() and not first[1::2].any():
        return TURNS
    for dim in range(1, second.dim()):
        if second.shape[dim] == 2 and not second.select(dim, 0).any() and not first.select(dim, 1).any():
            return dim
    return None


def by_samples(at: torch.Tensor, dim: int, rows: int) -> torch.Tensor:
    """(…, C) of `rows` samples that lie in `dim` → (rows, positions, C)."""
    if dim == TURNS:
        at, dim = at.reshape(-1, rows, *at.shape[1:]), 1
    return at.movedim(max(dim, 0), 0).reshape(rows, -1, at.shape[-1])
