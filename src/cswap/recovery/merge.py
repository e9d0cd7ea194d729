"""`merge` and `fold`: units that go are merged into similar units that stay, in place of being cut.

Both work on the original network's weights and take what is kept of the result, so they come before other recoveries.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from cswap.linear.moments import Moments, too_large
from cswap.recovery.base import Case, step
from cswap.recovery.bias import mean_given
from cswap.recovery.walk import Walk
from cswap.structure.groups import Group, Slot
from cswap.structure.surgery import shrink_in_place
from cswap.types import FloatArray, IntArray

_VARIES = 1e-6  # of a channel's mean square
STRENGTHS = (0, 1, 3, 10, 30, 100, 300, 1000)
"""Of the ridge: how many samples' worth of the kept channels' mean square is added to each of theirs, which few samples may have seen awake."""
UNJUDGED = 30
"""The strength where no samples choose one."""


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

    a ≈ m + s·b: the line from the kept unit's values b to those a of the unit that goes, fitted by ridge regression towards
    s = 0; the consumers' weights of b gain s times those of a, and their constants the rest. Producers stay: with b fixed, s is
    the best a consumer can do. m is the mean by place, so that means come out right under padding too; a consumer that takes no
    constant gets a line through the origin. The last fifth of each class's samples, which does not fit, chooses the strength
    of the ridge for each group and consumer, and which units are told well enough by any: the others are cut, and their mean given back.
    Source: ours (Kim et al., 2020, arXiv 2006.10903, neuron merging, takes s from the weights).
    """
    case.refuse_changed("merge")
    merged = copy.deepcopy(case.teacher)
    chunks, own = case.chunks(case.fitting, case.held), len(case.chunks(case.fitting))
    walk = Walk(case.teacher, chunks, case.memory, case.device)
    shifts: dict[str, torch.Tensor] = {}
    moved, removed = 0, 0
    for name in case.readers():
        inputs = case.kept_of(name, "in")
        module: Any = merged.get_submodule(name)
        if inputs is None or getattr(module, "groups", 1) > 1 or not case.linear(name):
            continue
        if (large := too_large(module.weight.shape[1], case.memory)) is not None:
            case.note(f"{name}: {large}: nothing is merged there")
            continue
        told = _told(case, walk, name, own)
        rest = told.mean.clone()
        for group in case.structure:
            for slot in (s for s in group.consumers if s.module == name and group.name in case.removed):
                gone, left = slot.of(case.removed[group.name]), np.intersect1d(slot.positions, inputs)
                moved, removed = moved + _give(module, gone, left, told, rest), removed + len(gone)
        if case.can_shift(name):
            shifts[name] = mean_given(case.teacher.get_submodule(name), rest, inputs, case.kept_of(name, "out"))
        else:
            case.note(f"{name} has neither a bias nor a batch norm known to be behind it: means are not given back")
    _take(case, merged)
    case.facts["merge"] = {"moved": moved, "removed": removed}  # inputs of consumers
    for name, shift in shifts.items():
        case.shift(name, shift)
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
    """All that writes each unit, (size, …) float64: producers' weights, times the scale of the norm known to be behind each."""
    columns, net = [], case.teacher
    norms = {
        s.module: s for s in group.channelwise if getattr(net.get_submodule(s.module), "running_var", None) is not None
    }
    for slot in group.producers:
        module: Any = net.get_submodule(slot.module)
        axis = dict(case.structure.layers[slot.module].axes["out"])["weight"]  # of an embedding the second
        weight = module.weight.detach().double().movedim(axis, 0).flatten(1).cpu().numpy()
        rows = _by_unit(weight, slot, group.size)
        behind = norms.get(case.norm_behind(slot.module) or "")
        columns.append(rows if behind is None else rows * _scale(net, behind, group.size))
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


@dataclass(frozen=True, eq=False)
class _Told:
    """What channels tell of each other: mean input over samples (1, …), and mean products (C, C) over samples and places of the
    samples that fit and of those that choose; float64. About the means, or about 0 for a layer that takes no constant.
    """

    mean: torch.Tensor
    fit: torch.Tensor
    judge: torch.Tensor | None  # None: no samples choose
    varies: torch.Tensor  # (C,): a channel that hardly varies beside its size tells nothing but rounding
    samples: int  # how many fit


def _told(case: Case, walk: Walk, name: str, own: int) -> _Told:
    """Of the layer's inputs: the first `own` chunks fit, the others choose."""
    module: Any = case.teacher.get_submodule(name)
    total, rows, linear = torch.zeros(()), 0, isinstance(module, nn.Linear)
    # about the first block's mean: a large mean rounds nothing away
    fit, held = (Moments.empty(1, module.weight.shape[1], 0) for _ in range(2))
    for i, x in enumerate(walk.inputs(name)):
        flat = x.reshape(-1, x.shape[-1]) if linear else x.movedim(1, -1).reshape(-1, x.shape[1])
        (fit if i < own else held).add_rows(flat.unsqueeze(1), flat.new_zeros((len(flat), 1, 0)))
        if i < own:
            total = total + (flat if linear else x).double().sum(0, keepdim=True).cpu()
            rows += len(flat) if linear else len(x)
    about, shifts = fit.mean()[0].cpu(), case.can_shift(name)  # the line's constant is of the samples that fit
    products, judge = (_products(m, about, shifts) if m.rows else None for m in (fit, held))
    assert products is not None
    diagonal, of_mean = products.diagonal(), about.square()
    variance = diagonal if shifts else diagonal - of_mean
    varies = variance > _VARIES * (variance + of_mean)
    return _Told(total / rows, products, judge, varies, len(case.fitting))


def _products(moments: Moments, about: torch.Tensor, constant: bool) -> torch.Tensor:
    """Mean products (C, C) of channels, about the means `about` (C,) or about 0."""
    products, off = moments.centred()[0][0].cpu().div_(moments.rows), moments.mean()[0].cpu()
    off = off - about if constant else off
    return products.addr_(off, off)


def _give(module: Any, gone: IntArray, left: IntArray, told: _Told, rest: torch.Tensor) -> int:
    """Move the weights of what goes to what tells it best; what is left of its mean, place by place, is written into `rest`.
    Returns how many inputs were moved.

    gone, left: inputs of one group; of a head that goes with dimensions of its own none is left there, and the group of heads
    moves it. A line's constant is the mean of what it leaves, which at the borders of an image is another.
    """
    away, kept = torch.from_numpy(gone), torch.from_numpy(left)
    if not len(away) or not len(kept):
        return 0
    shared, own = told.fit[kept][:, away], told.fit.diagonal()[kept]
    weight = module.weight.data
    matters = weight.index_select(1, away.to(weight.device)).double().square().transpose(0, 1).flatten(1).sum(1).cpu()
    at, s = torch.zeros(len(away), dtype=torch.int64), torch.zeros(len(away), dtype=torch.float64)
    most = 0.0
    for strength in STRENGTHS if told.judge is not None else (UNJUDGED,):
        ridge = strength / told.samples * own.mean()
        slope = shared / (own + ridge).clamp_min(1e-300).unsqueeze(1)
        slope = torch.where(told.varies[kept].unsqueeze(1), slope, 0.0)
        explained = (2 * shared - own.unsqueeze(1) * slope) * slope
        best = explained.argmax(0, keepdim=True)
        line = slope.gather(0, best)[0]
        if told.judge is None:
            gain = explained.gather(0, best)[0]
        else:  # on samples where it was not fitted
            into = kept[best[0]]
            gain = (2 * told.judge[into, away] - told.judge[into, into] * line) * line
        if (whole := float((gain * matters).sum())) > most:
            at, s, most = best[0], torch.where(gain > 0, line, 0.0), whole
    into = kept[at]
    shape = [1, -1] + [1] * (weight.dim() - 2)
    moved = weight.index_select(1, away.to(weight.device)) * s.to(weight).view(shape)
    weight.index_add_(1, into.to(weight.device), moved)
    scale = s.view([1, -1] + [1] * (rest.dim() - 2))
    rest.index_copy_(1, away, told.mean.index_select(1, away) - scale * told.mean.index_select(1, into))
    return int((s != 0).sum())
