"""Counting while units go: parameters and MACs that are left, in time proportional to the layers a unit touches."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

from cswap.errors import TargetError
from cswap.structure.groups import Group, Removed, Slot, Structure
from cswap.types import IntArray, Ratio, Target


class Ledger:
    """Which units are gone, and what fraction of parameters, MACs and units that is.

    Parameters of a tensor are the product of its dimensions; MACs of a layer are proportional to its outputs times its
    inputs (to its channels for a channel-by-channel layer, to the sum of both for an additive one), so both follow from the
    counts a side.
    """

    def __init__(self, structure: Structure) -> None:
        self.structure = structure
        self._gone: dict[str, set[int]] = {g.name: set() for g in structure}
        self._left = {name: dict(cost.sides) for name, cost in structure.layers.items()}
        # by position: a head and its inner dimensions own the same ones, and each goes once
        self._there = {
            (name, side): np.ones(size, dtype=bool)
            for name, c in structure.layers.items()
            for side, size in c.sides.items()
        }
        self._narrow = {g.name: [s for s in g.slots if len(s.by_unit) < g.size] for g in structure}
        self._gone_units = 0
        self._layer = {name: self._cost(name) for name in structure.layers}
        self.params = structure.total_params
        self.macs = float(structure.total_macs)

    def _cost(self, name: str) -> tuple[int, float]:
        cost, left = self.structure.layers[name], self._left[name]
        side_of = {axis: side for side, axes in cost.axes.items() for axis in axes}
        params = sum(
            prod(left[side_of[t, d]] if (t, d) in side_of else n for d, n in enumerate(shape))
            for t, shape in cost.tensors.items()
        )
        if cost.additive:
            return params, cost.macs * sum(left.values()) / sum(cost.sides.values())
        return params, cost.macs * prod(left[side] / n for side, n in cost.sides.items())

    def _fresh(self, slot: Slot, unit: int) -> IntArray:
        """Positions of the unit that no other unit took before."""
        positions = slot.by_unit.get(unit, np.empty(0, dtype=np.int64))
        return positions[self._there[slot.module, slot.side][positions]]

    def remove(self, group: Group, unit: int) -> None:
        """Count one unit as gone; raises TargetError when it is the last of its group or gone already."""
        gone = self._gone[group.name]
        if unit in gone:
            raise TargetError(f"unit {unit} of group {group.name} is removed already")
        if len(gone) + 1 >= group.size:
            raise TargetError(f"group {group.name} keeps at least one of its {group.size} units")
        if self.last(group, [unit]):
            raise TargetError(f"unit {unit} of group {group.name} is the last that one of its layers has")
        gone.add(unit)
        self._gone_units += 1
        touched = set()
        for slot in group.slots:
            fresh = self._fresh(slot, unit)
            self._there[slot.module, slot.side][fresh] = False
            self._left[slot.module][slot.side] -= len(fresh)
            touched.add(slot.module)
        for name in touched:
            before, after = self._layer[name], self._cost(name)
            self._layer[name] = after
            self.params += after[0] - before[0]
            self.macs += after[1] - before[1]

    def cost_of(self, group: Group, kind: str = "params") -> float:
        """Parameters or MACs (`kind`) that the next unit of the group takes with it, as the network stands, at least 1 (the
        same for each of them that owns equally many positions); or the milliseconds of so many MACs (`latency`). Raises TargetError
        for milliseconds that nobody measured."""
        if kind == "latency" and group.name not in self.structure.pace:
            raise TargetError(
                f"per latency: expected a structure with the pace of group {group.name}, got one that was not timed"
            )
        unit = next(n for n in range(group.size) if n not in self._gone[group.name])
        held = {s.module: dict(self._left[s.module]) for s in group.slots}
        total = 0.0
        for slot in group.slots:
            self._left[slot.module][slot.side] -= len(self._fresh(slot, unit))
        for name in {s.module for s in group.slots}:
            before, after = self._layer[name], self._cost(name)
            total += before[0] - after[0] if kind == "params" else before[1] - after[1]
        self._left.update(held)
        return max(1.0, total) * (self.structure.pace[group.name] if kind == "latency" else 1.0)

    def last(self, group: Group, units: Sequence[int]) -> bool:
        """Whether these cannot go together: nothing would be left of their group, or of a layer that has only some of its units."""
        if self.kept(group) <= len(units):
            return True
        return any(
            self._left[s.module][s.side] <= sum(len(self._fresh(s, n)) for n in units) for s in self._narrow[group.name]
        )

    def kept(self, group: Group) -> int:
        """How many units of the group are left."""
        return group.size - len(self._gone[group.name])

    def gone(self, group: str) -> frozenset[int]:
        """Original indices of the group's units that are gone."""
        return frozenset(self._gone[group])

    def removed(self) -> Removed:
        """All units that are gone, by group, sorted."""
        return {g: np.asarray(sorted(units), dtype=np.int64) for g, units in self._gone.items() if units}

    def ratio(self) -> Ratio:
        """Fractions of the whole network's parameters and MACs, and of its units, that are gone."""
        s = self.structure
        return Ratio(
            params=1.0 - self.params / s.total_params if s.total_params else 0.0,
            macs=1.0 - self.macs / s.total_macs if s.total_macs else 0.0,
            units=self._gone_units / s.units if s.units else 0.0,
        )


def highest_ratio(structure: Structure, round_to: int = 1) -> Ratio:
    """The ratio with one unit left in every group, or one multiple of `round_to`: no target can lie beyond it."""
    ledger = RoundedLedger(structure, round_to)
    for group in structure:
        for unit in range(group.size - 1):
            if not ledger.last(group, unit):
                ledger.remove(group, unit)
    return ledger.ratio()


def check_reachable(structure: Structure, target: Target, round_to: int = 1) -> None:
    """Raise TargetError when even one unit a group, or widths of one multiple of `round_to`, would not reach the target."""
    if target.value is None or target.kind == "latency":
        return
    highest = highest_ratio(structure, round_to)
    if not target.reached(highest):
        left = "one unit" if round_to == 1 else f"the smallest width that is a multiple of {round_to}"
        raise TargetError(
            f"target {target} is out of reach: with {left} left in each of the {len(structure)} groups "
            f"{target.kind}={highest.as_dict()[target.kind]:.4f} would be removed; `cswap support` says what is left out"
        )


class RoundedLedger:
    """A ledger in which units go only when what is left of their group has a width that is a multiple of `multiple`.

    Units wait until enough of their group have gone before them; those that still wait at the end stay. A group's width is
    counted in its positions in each layer that makes or reads it; one that cannot have such widths, or is smaller, stays as it is.
    """

    def __init__(self, structure: Structure, multiple: int) -> None:
        self.ledger, self.multiple = Ledger(structure), multiple
        self.waiting: dict[str, list[int]] = {}
        self._each = {g.name: _positions_each(g) for g in structure}  # of one unit

    def remove(self, group: Group, unit: int) -> None:
        """Note that a unit would go."""
        waiting = self.waiting.setdefault(group.name, [])
        waiting.append(unit)
        left = self.ledger.kept(group) - len(waiting)
        fits = left > 0 and all(left * each % self.multiple == 0 for each in self._each[group.name])
        if fits and not self.ledger.last(group, waiting):
            for n in waiting:
                self.ledger.remove(group, n)
            waiting.clear()

    def last(self, group: Group, unit: int) -> bool:
        """Whether the unit cannot go after those that wait before it (`Ledger.last`)."""
        return self.ledger.last(group, [*self.waiting.get(group.name, ()), unit])

    def removed(self) -> Removed:
        """Units gone, by group."""
        return self.ledger.removed()

    def ratio(self) -> Ratio:
        """What they amount to."""
        return self.ledger.ratio()


def _positions_each(group: Group) -> set[int]:
    """Positions of one unit in the layers that have all of them; 1 in those where units differ."""
    sizes = [{len(p) for p in s.by_unit.values()} for s in group.slots if len(s.by_unit) == group.size]
    return {own.pop() if len(own) == 1 else 1 for own in sizes} or {1}
