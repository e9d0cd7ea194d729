"""`merge` and `fold`: units that go are merged into similar units that stay, in place of being cut.

Both work on the original network's weights and take what is kept of the result, so they come before other recoveries.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import nn

from cswap.linear.moments import Moments
from cswap.recovery.base import Case, step
from cswap.recovery.bias import mean_given
from cswap.recovery.walk import Walk
from cswap.structure.groups import Group, Slot
from cswap.structure.surgery import shrink_in_place
from cswap.types import FloatArray, IntArray

_VARIES = 1e-6  # of a channel's mean square


@step("fold")
def fold(case: Case) -> None:
    """Data-free: every unit that goes joins the kept unit with the nearest weights, if that is better than a cut.

    Producers (weights, biases, norms) become the mean over the units that join, consumers their sum; exact for duplicates.
    A mean leaves both units a squared weight error of ‖v − w‖²/2 in all (all that writes a unit, norms folded in), a cut
    leaves ‖v‖² of the one that goes: they join where the first is less (ours). Source: model folding
    (Wang et al., 2025, arXiv 2502.10216), with the path's units kept in the place of cluster centres.
    """
    case.refuse_changed("fold")
    merged = copy.deepcopy(case.teacher)
    joined = 0
    for name, gone in case.removed.items():
        group = case.structure[name]
        joins = _nearest_weights(case, group, gone)
        joined += len(joins)
        _fold_group(merged, case, group, joins)
    case.facts["fold"] = {"joined": joined, "removed": sum(len(g) for g in case.removed.values())}
    _take(case, merged)


@step("merge")
def merge(case: Case) -> None:
    """With data: what consumers would read of a unit that goes is given them by the kept unit that tells it best.

    On the calibration set a ≈ m + s·b, a least-squares line from the kept unit's values b to those a of the unit that goes;
    the consumers' weights of b gain s times those of a, and their constants the rest. Producers stay: with b fixed, s is the
    best a consumer can do. m is the mean by place, so that means come out right under padding too. Source: ours (Kim et al., 2020, arXiv 2006.10903, neuron merging, takes s from the weights).
    """
    case.refuse_changed("merge")
    merged = copy.deepcopy(case.teacher)
    walk = Walk(case.teacher, case.chunks(), case.memory, case.device)
    shifts: dict[str, torch.Tensor] = {}
    for name in case.readers():
        inputs = case.kept_of(name, "in")
        module: Any = merged.get_submodule(name)
        if inputs is None or getattr(module, "groups", 1) > 1 or not case.called_once(name):
            continue
        mean, products = _moments(walk, name, module)
        rest = mean.clone()
        for group in case.structure:
            for slot in (s for s in group.consumers if s.module == name and group.name in case.removed):
                gone, left = slot.of(case.removed[group.name]), np.intersect1d(slot.positions, inputs)
                _give(module, gone, left, mean, products, rest)
        shifts[name] = mean_given(case.teacher.get_submodule(name), rest, inputs, case.kept_of(name, "out"))
    _take(case, merged)
    for name, shift in shifts.items():
        if case.can_shift(name):
            case.shift(name, shift)
        else:
            case.note(f"{name} has neither a bias nor a batch norm behind it: means are not given back")
    case.note_products("merge")


def _take(case: Case, merged: nn.Module) -> None:
    """What is kept of `merged` becomes the pruned network."""
    state = shrink_in_place(merged, case.kept).state_dict()
    case.small.load_state_dict(state)


def _nearest_weights(case: Case, group: Group, gone: IntArray) -> dict[int, int]:
    """Unit that goes -> the kept unit it joins."""
    vectors = _written(case, group)
    kept = np.setdiff1d(np.arange(group.size), gone)
    square = (vectors**2).sum(1)
    apart = square[gone][:, None] + square[kept] - 2 * vectors[gone] @ vectors[kept].T
    best = apart.argmin(1)
    pairs = zip(gone, best, apart.min(1), strict=True)
    return {int(n): int(kept[b]) for n, b, d in pairs if d / 2 < square[n]}


def _written(case: Case, group: Group) -> FloatArray:
    """All that writes each unit, (size, …) float64: producers' weights, times the scale of the norm on them where each has one."""
    columns, net = [], case.teacher
    norms = [s for s in group.channelwise if getattr(net.get_submodule(s.module), "running_var", None) is not None]
    for i, slot in enumerate(group.producers):
        module: Any = net.get_submodule(slot.module)
        axis = dict(case.structure.layers[slot.module].axes["out"])["weight"]  # of an embedding the second
        weight = module.weight.detach().double().movedim(axis, 0).flatten(1).cpu().numpy()
        rows = _by_unit(weight, slot, group.size)
        columns.append(rows * _scale(net, norms[i], group.size) if len(norms) == len(group.producers) else rows)
    return np.concatenate(columns, 1)


def _scale(net: nn.Module, slot: Slot, size: int) -> FloatArray:
    """What a batch norm multiplies each unit by, (size, 1)."""
    norm: Any = net.get_submodule(slot.module)
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.detach().double()
    return _by_unit(scale.cpu().unsqueeze(1).numpy(), slot, size)[:, :1]


def _by_unit(rows: FloatArray, slot: Slot, size: int) -> FloatArray:
    """Rows (positions, …) side by side for each unit; units with fewer rows are padded with zeros."""
    most = max(len(p) for p in slot.by_unit.values())
    found = np.zeros((size, most, rows.shape[1]))
    for unit, places in slot.by_unit.items():
        found[unit, : len(places)] = rows[places]
    return found.reshape(size, -1)


def _fold_group(merged: nn.Module, case: Case, group: Group, joins: dict[int, int]) -> None:
    """Means over the units that join in all that writes them, sums in all that reads them."""
    members: dict[int, list[int]] = {}
    for n, k in joins.items():
        members.setdefault(k, [k]).append(n)
    for slot in group.slots:
        axes = case.structure.layers[slot.module].axes["in" if slot.role == "consumer" else "out"]
        module = merged.get_submodule(slot.module)
        for tensor, dim in axes:
            value = getattr(module, tensor).data
            if not value.is_floating_point():
                continue  # numbers of heads: those of what stays
            for units in members.values():
                places = [slot.by_unit.get(u, np.empty(0, dtype=np.int64)) for u in units]
                if len({len(p) for p in places}) != 1 or not len(places[0]):
                    continue
                index = [torch.from_numpy(p).to(value.device) for p in places]
                stacked = torch.stack([value.index_select(dim, i) for i in index])
                joined = stacked.sum(0) if slot.role == "consumer" else stacked.mean(0)
                value.index_copy_(dim, index[0], joined)


def _moments(walk: Walk, name: str, module: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean input over samples (1, …), and centred second moments (C, C) of its channels over samples and places; float64."""
    total, samples, linear = torch.zeros(()), 0, isinstance(module, nn.Linear)
    moments = Moments.empty(
        1, module.weight.shape[1], 0
    )  # about the first block's mean: a large mean rounds nothing away
    for x in walk.inputs(name):
        flat = x.reshape(-1, x.shape[-1]) if linear else x.movedim(1, -1).reshape(-1, x.shape[1])
        total = total + (flat if linear else x).double().sum(0, keepdim=True).cpu()
        moments.add_rows(flat.unsqueeze(1), flat.new_zeros((len(flat), 1, 0)))
        samples += len(flat) if linear else len(x)
    return total / samples, moments.centred()[0][0].cpu() / moments.rows


def _give(
    module: Any, gone: IntArray, left: IntArray, mean: torch.Tensor, products: torch.Tensor, rest: torch.Tensor
) -> None:
    """Move the weights of what goes to what tells it best; what is left of its mean, place by place, is written into `rest`.

    gone, left: inputs of one group; of a head that goes with dimensions of its own none is left there, and the group of heads
    moves it. mean, rest: (1, C, …): a line's constant is the mean of what it leaves, which at the borders of an image is another.

    A kept channel that hardly varies beside its size tells nothing: its variance is what rounding makes of a constant.
    """
    away, kept = torch.from_numpy(gone), torch.from_numpy(left)
    if not len(away) or not len(kept):
        return
    shared, variance = products[kept][:, away], products.diagonal()[kept]
    means = mean.flatten(2).mean((0, 2)) if mean.dim() > 2 else mean.flatten()
    varies = variance > _VARIES * (means[kept] ** 2 + variance)
    slope = torch.where(
        varies.unsqueeze(1), shared / variance.where(varies, torch.ones_like(variance)).unsqueeze(1), 0.0
    )
    best = (shared * slope).argmax(0)
    s, into = slope.gather(0, best.unsqueeze(0)).squeeze(0), kept[best]
    weight = module.weight.data
    shape = [1, -1] + [1] * (weight.dim() - 2)
    moved = weight.index_select(1, away.to(weight.device)) * s.to(weight).view(shape)
    weight.index_add_(1, into.to(weight.device), moved)
    scale = s.view([1, -1] + [1] * (rest.dim() - 2))
    rest.index_copy_(1, away, mean.index_select(1, away) - scale * mean.index_select(1, into))
