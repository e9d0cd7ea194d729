"""A pruned module and its original, from anywhere: which units went, found by comparing their tensors."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from cswap.errors import InputError
from cswap.structure.groups import Group, Removed, Structure
from cswap.types import IntArray


def removed_units(small: nn.Module, original: nn.Module, structure: Structure) -> Removed:
    """Units of `original` that `small` lacks, by group.

    One-dimensional tensors of the layers that write a unit (biases, norms) tell it apart; where there are none, sums over
    a weight's rows cannot, because inputs went too, so the group must be whole. Kept units must be in their order and
    unchanged. Raises InputError when a group cannot be matched.
    """
    removed: Removed = {}
    for group in structure:
        if not _shrank(small, original, group, structure):
            continue
        mark, seen = (_marks(net, original, group, structure) for net in (original, small))
        if mark is None or seen is None:
            raise InputError(
                f"recover: group {group.name} shrank and no bias or norm tells its units apart; pass a module of path.apply"
            )
        kept = _in_order(mark, seen)
        if kept is None:
            raise InputError(f"recover: group {group.name} of the pruned module is no part of the original's")
        if not _alone(mark, seen, kept):
            raise InputError(
                f"recover: units of group {group.name} are alike in biases and norms; pass a module of path.apply"
            )
        removed[group.name] = np.setdiff1d(np.arange(group.size), kept).astype(np.int64)
    return removed


def _shrank(small: nn.Module, original: nn.Module, group: Group, structure: Structure) -> bool:
    """Whether the dimension that the first producer writes is smaller; a group may live on a part of it."""
    slot = group.producers[0]
    (tensor, dim), *_ = structure.layers[slot.module].axes[slot.side]
    left, whole = (getattr(net.get_submodule(slot.module), tensor).shape[dim] for net in (small, original))
    return bool(left != whole)


def _marks(net: nn.Module, original: nn.Module, group: Group, structure: Structure) -> torch.Tensor | None:
    """Biases and norms of the group's units, a recurrent unit's in every gate, side by side: (units, marks). Tensors that hold
    other units of `original` too, as of a norm behind a concat, are not among them."""
    found = []
    for slot in (*group.producers, *group.channelwise):
        if len(slot.positions) != group.size or not np.array_equal(slot.positions, np.arange(group.size)):
            continue
        axes = dict(structure.layers[slot.module].axes["out"])
        for tensor in ("bias", "running_mean", "running_var") + (("weight",) if slot.role == "channelwise" else ()):
            value, whole = (getattr(m.get_submodule(slot.module), tensor, None) for m in (net, original))
            if not isinstance(value, torch.Tensor) or not isinstance(whole, torch.Tensor) or tensor not in axes:
                continue
            if whole.shape[axes[tensor]] == group.size:
                value = value.detach().double().cpu().movedim(axes[tensor], 0)
                found.append(value.reshape(len(value), -1))
    return torch.cat(found, 1) if found else None


def _in_order(mark: torch.Tensor, seen: torch.Tensor) -> IntArray | None:
    """Rows of `mark` that `seen` are, ascending; None when they are not all there in order."""
    kept, at = [], 0
    for row in seen:
        while at < len(mark) and not torch.equal(mark[at], row):
            at += 1
        if at == len(mark):
            return None
        kept.append(at)
        at += 1
    return np.asarray(kept, dtype=np.int64)


def _alone(mark: torch.Tensor, seen: torch.Tensor, kept: IntArray) -> bool:
    """Whether no other rows would do: the first that fit, found from the end, are the same."""
    last = _in_order(mark.flip(0), seen.flip(0))
    return last is not None and np.array_equal(len(mark) - 1 - last[::-1], kept)
