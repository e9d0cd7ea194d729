"""Non-inferiority: by how much each class may have got worse, and the largest set whose joint cut stays within a margin.

Knows no network: numbers in, numbers out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cswap.causal.stats import EffectStats, Moments, upper_mean
from cswap.errors import InputError
from cswap.types import FloatArray

STEPS = 32
"""The largest set is found to a 32nd of the group's width (exactly, where it has at most 32 units)."""


def worst_loss(moments: Moments, alpha: float) -> FloatArray:
    """Upper bound of the mean loss of score of each class, (K,): a paired one-sided t bound at confidence 1 − alpha.

    moments: of the differences σ* − σ by class. A class without spread is bounded by its mean; one with fewer than two
    samples by +inf, one that was not asked (count 0) by −inf.
    """
    bound = upper_mean(Moments(moments.count, -moments.mean, moments.m2), alpha)
    return np.where(moments.count == 0, -np.inf, bound)


def surely_lost(moments: Moments, alpha: float) -> FloatArray:
    """Lower bound of the mean loss of score of each class, (K,), as `worst_loss` bounds it from above."""
    return np.where(moments.count == 0, -np.inf, -upper_mean(moments, alpha))


@dataclass(frozen=True, eq=False)
class Probe:
    """What cutting a group's first `units` units together did, after compensation.

    margin: the largest of the classes' bounds, the smallest τ within which the cut is non-inferior; loss: mean loss of score
    over all samples that were looked at; by_class (K,): mean losses; change: their mean squared change of score, or of their outputs as a share
    of the outputs' mean square; samples: how many were looked at (0: not said).
    """

    units: int
    margin: float
    loss: float
    by_class: FloatArray
    change: float = 0.0
    samples: int = 0

    @classmethod
    def of(cls, units: int, stats: EffectStats, alpha: float, moved: float | None = None) -> Probe:
        """From the statistics of the joint cut; moved: the change of the outputs, where that is what sets are priced by."""
        margin = float(worst_loss(stats.by_class, alpha).max())
        by_class = np.where(stats.by_class.count > 0, -stats.by_class.mean, np.nan)
        mean, count = float(stats.pooled.mean), int(stats.pooled.count)
        change = mean**2 + float(stats.pooled.m2) / max(1, count)
        return cls(units, margin, -mean, by_class, change if moved is None else moved, count)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Probe:
        """The inverse of `as_dict`."""
        by_class = np.asarray([np.nan if x is None else x for x in data["by_class"]], dtype=np.float64)
        return cls(data["units"], data["margin"], data["loss"], by_class, data["change"], data["samples"])

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        by_class = [None if np.isnan(x) else float(x) for x in self.by_class]
        return {
            "units": self.units,
            "margin": self.margin,
            "loss": self.loss,
            "by_class": by_class,
            "change": self.change,
            "samples": self.samples,
        }


@dataclass(eq=False)
class Profile:
    """One group's joint cuts measured so far, by how many units went. `measure`: a joint cut of the first k units."""

    size: int
    measure: Callable[[int], Probe]
    probes: dict[int, Probe] = field(default_factory=dict)

    def at(self, units: int) -> Probe:
        """The joint cut of the first `units`, measured once."""
        if units not in self.probes:
            self.probes[units] = self.measure(units)
        return self.probes[units]

    def largest(self, margin: float, start: int = 0) -> int:
        """The most units, at least `start`, whose joint cut is within the margin, to a `STEPS`th of the width: bisection between
        what is known to be within it and what is known not to be. One unit stays.
        """
        most = self.size - 1
        within = max([start, *(k for k, p in self.probes.items() if p.margin <= margin)])
        beyond = min([most + 1, *(k for k, p in self.probes.items() if k > within and p.margin > margin)])
        while beyond - within > max(1, self.size // STEPS):
            middle = (within + beyond) // 2
            if self.at(middle).margin <= margin:
                within = middle
            else:
                beyond = middle
        return within

    def sorted(self) -> list[Probe]:
        """By how many units went."""
        return [self.probes[k] for k in sorted(self.probes)]


def rising(text: str) -> tuple[float, ...]:
    """Numbers separated by commas, ascending, above 0 and below 1; none where the text is anything else."""
    try:
        found = tuple(float(v) for v in text.split(","))
    except ValueError:
        return ()
    return found if list(found) == sorted(set(found)) and 0 < found[0] <= found[-1] < 1 else ()


def margins_of(text: str) -> tuple[float, ...]:
    """Margins separated by commas, ascending, above 0 and below 1. Raises InputError."""
    found = rising(text)
    if not found:
        raise InputError(f"margins: expected ascending numbers between 0 and 1, separated by commas, got {text!r}")
    return found


def lower_hull(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The lower convex hull of points (x, y) with ascending x: where losses are bought at the least price."""
    hull: list[tuple[float, float]] = []
    for p in points:
        while len(hull) > 1 and _turns_down(hull[-2], hull[-1], p):
            hull.pop()
        hull.append(p)
    return hull


def _turns_down(a: tuple[float, float], b: tuple[float, float], c: tuple[float, float]) -> bool:
    return (b[0] - a[0]) * (c[1] - a[1]) <= (b[1] - a[1]) * (c[0] - a[0])
