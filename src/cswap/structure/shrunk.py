"""The structure of a network that lost units, from that of the original: nothing is analysed again."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from cswap.structure.groups import Group, LayerCost, Removed, Slot, Structure
from cswap.structure.ledger import Ledger
from cswap.types import IntArray


def shrunk(structure: Structure, removed: Removed) -> tuple[Structure, dict[str, IntArray]]:
    """The structure of `pruned_copy(model, structure, removed)`, and by group which unit of the original each of its units is, (size,).

    A group of which nothing is left by itself, as the dimensions of heads that all went, is none there. Nothing is to be replaced: it is already.
    """
    ledger, there = Ledger(structure), dict[tuple[str, str], IntArray]()
    for name, units in removed.items():
        for unit in units.tolist():
            ledger.remove(structure[name], unit)
    for module, cost in structure.layers.items():
        for side, size in cost.sides.items():
            there[module, side] = np.arange(size, dtype=np.int64)
    for name, units in removed.items():
        for slot in structure[name].slots:
            key = (slot.module, slot.side)
            there[key] = np.setdiff1d(there[key], slot.of(units))
    groups, kept = [], dict[str, IntArray]()
    for group in structure:
        left = [_left(slot, there[slot.module, slot.side], removed.get(group.name)) for slot in group.slots]
        units = np.unique(np.concatenate([s.owner for s in left]))
        if not len(units):
            continue
        kept[group.name] = units
        slots = tuple(replace(s, owner=np.searchsorted(units, s.owner)) for s in left)
        groups.append(Group(group.name, len(units), slots))
    layers = {name: _smaller(cost, name, there) for name, cost in structure.layers.items()}
    small = replace(
        structure, groups=tuple(groups), layers=layers, total_params=ledger.params, total_macs=round(ledger.macs), replaced={}
    )  # fmt: skip
    return small, kept


def _left(slot: Slot, there: IntArray, gone: IntArray | None) -> Slot:
    """The slot's positions that are left, as they are numbered now; owners as they were."""
    stays = np.isin(slot.positions, there)
    if gone is not None:
        stays &= ~np.isin(slot.owner, gone)
    return replace(slot, positions=np.searchsorted(there, slot.positions[stays]), owner=slot.owner[stays])


def _smaller(cost: LayerCost, name: str, there: dict[tuple[str, str], IntArray]) -> LayerCost:
    sides = {side: len(there[name, side]) for side in cost.sides}
    shapes = {t: list(shape) for t, shape in cost.tensors.items()}
    for side, axes in cost.axes.items():
        for tensor, dim in axes:
            if tensor in shapes:  # a buffer that says whose each position is counts for nothing
                shapes[tensor][dim] = sides[side]
    share = np.array([sides[s] / n for s, n in cost.sides.items()])
    whole = sum(sides.values()) / sum(cost.sides.values()) if cost.additive else share.prod()
    tensors = {t: tuple(shape) for t, shape in shapes.items()}
    return replace(cost, tensors=tensors, macs=round(cost.macs * float(whole)), sides=sides)
