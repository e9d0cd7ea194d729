"""What was measured of a group's sets of units, and the order that groups give their units in."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cswap.causal.margins import Probe, lower_hull
from cswap.methods.ranking import Ranked, cheapest_first
from cswap.structure.groups import Group
from cswap.structure.ledger import Ledger
from cswap.types import FloatArray, IntArray

SATURATED = 0.3
"""A price that is no sum any more: most of what can change has changed."""


@dataclass(frozen=True, eq=False)
class Measured:
    """One group, or what a stage has left of it: units in order (n,), by the original's numbers, the surrogate's scores in that order (n,), joint
    cuts measured, how many units may go within each margin (ascending), and what the engine noted. `predicts`: the surrogate says what the
    error after a refit is, as in every other such group; `start`: what the network is priced at before any of them goes.
    """

    group: Group
    order: IntArray
    surrogate: FloatArray
    probes: list[Probe]
    sets: list[tuple[float, int]]
    notes: list[str] = field(default_factory=list)
    predicts: bool = False
    start: float = 0.0

    def points(self, price: str) -> list[tuple[float, float]]:
        """(units, price) of what was measured, never falling, from nothing to all of them."""
        worst = self.start
        points = [(0.0, worst)]
        for p in self.probes:
            worst = max(worst, p.loss if price == "loss" else p.change)
            points.append((float(p.units), worst))
        return [*points, (float(len(self.order)), max(1.0, worst))]

    def shares(self, first: int, last: int) -> FloatArray:
        """Where in the step from `first` to `last` units each of them lies, (last − first,) in (0, 1]: by the surrogate."""
        own = np.cumsum(np.maximum(self.surrogate[first:last], 0.0))
        even = np.arange(1, last - first + 1) / max(1, last - first)
        return own / own[-1] if last > first and own[-1] > 0 else even

    @classmethod
    def of(cls, group: Group, record: Mapping[str, Any]) -> Measured:
        """The inverse of `as_dict`."""
        return cls(
            group, np.asarray(record["order"], dtype=np.int64), np.asarray(record["surrogate"], dtype=np.float64),
            [Probe.from_dict(p) for p in record["probes"]], [(float(margin), int(k)) for margin, k in record["sets"]],
            [str(n) for n in record.get("notes", ())], bool(record.get("predicts", False)), float(record.get("start", 0.0)),
        )  # fmt: skip

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values: quality lost against how much of the group went, and all that `of` needs."""
        return {
            "size": len(self.order), "order": self.order.tolist(), "surrogate": self.surrogate.tolist(),
            "sets": [list(s) for s in self.sets],
            "probes": [{"ratio": p.units / len(self.order), **p.as_dict()} for p in self.probes], "notes": self.notes,
            **({"predicts": True} if self.predicts else {}), **({"start": self.start} if self.start else {}),
        }  # fmt: skip


def by_margin(groups: Iterable[Measured]) -> list[Ranked]:
    """Equal margin: units in the order of the margin that lets them go; within a step by the surrogate's share."""
    keyed = []
    for place, g in enumerate(groups):
        before, first = 0.0, 0
        for margin, last in [*g.sets, (1.0, len(g.order))]:
            for i, share in enumerate(g.shares(first, last)):
                key = before + (margin - before) * float(share)
                inside = margin < 1.0
                reason = f"its group's set within a margin of {margin:g}" if inside else "beyond the last margin"
                unit = int(g.order[first + i])
                keyed.append((key, place, first + i, Ranked(g.group.name, unit, reason, key)))
            before, first = margin, last
    return [r for *_, r in sorted(keyed, key=lambda k: k[:3])]


def by_price(groups: Iterable[Measured], ledger: Ledger, per: str, price: str, measured: float = 1.0) -> list[Ranked]:
    """The least `price` a parameter, MAC or millisecond at each step, as the network stands there (`ledger`, which is used up): each group's
    prices by their lower hull, shared out inside a step by the surrogate.

    price: `change`, the mean square of what a cut does to the score, which is never lost in the noise of few samples as a small mean loss is,
    and adds up over groups that change the score independently; `outputs`, the same of the outputs; or `loss`, the mean score lost. measured:
    how far prices are those measured (1), and not what the surrogate predicts (0), where it does: the product of powers measured^w · predicted^(1 − w), a step's prediction
    being scaled as all groups' are (`_scale`). Source: ours.
    """
    groups = list(groups)
    scale = _scale(groups, price) if measured < 1 else 1.0
    waiting: dict[str, list[tuple[float, int]]] = {}
    losses: dict[tuple[str, int], float] = {}
    for g in groups:
        queue, paid = list[tuple[float, int]](), g.start
        for (a, low), (b, high) in itertools.pairwise(lower_hull(g.points(price))):
            first, last = int(a), int(b)
            steps = np.diff(np.concatenate([[0.0], g.shares(first, last)])) * (high - low)
            predicted = float(np.maximum(g.surrogate[first:last], 0.0).sum()) * scale
            if measured < 1 and g.predicts and high > low and predicted > 0:
                steps *= (predicted / (high - low)) ** (1 - measured)
            for i, step in enumerate(steps.tolist()):
                unit = int(g.order[first + i])
                paid += step
                queue.append((step, unit))
                losses[g.group.name, unit] = paid
        waiting[g.group.name] = queue
    order = cheapest_first(ledger, waiting, per)
    what = {"params": "parameter", "macs": "MAC", "latency": "millisecond"}[per]
    return [Ranked(g, n, f"least joint {price} a {what}", losses[g, n]) for g, n in order]


def _scale(groups: Sequence[Measured], price: str) -> float:
    """What is measured over what surrogates predict: the median over the sets of all groups, but for those that change nearly everything."""
    found = []
    for g in groups:
        if not g.predicts:
            continue
        predicted = np.cumsum(np.maximum(g.surrogate, 0.0))
        for units, paid in g.points(price)[1:-1]:
            if 0 < units < len(g.order) - 1 and 0 < paid - g.start < SATURATED and predicted[int(units) - 1] > 0:
                found.append((paid - g.start) / float(predicted[int(units) - 1]))
    return float(np.median(found)) if found else 1.0
