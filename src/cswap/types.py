"""The words of the product as frozen dataclasses: target, ratio, verdict, effects of a unit, decision."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from cswap.errors import TargetError

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

RATIO_KINDS = ("params", "macs", "units")
TESTS = ("walk", "test")
"""Phases in which a unit gets its verdict: while the walk prunes, or on the original network."""


class Verdict(StrEnum):
    """What the vote over classes says of a unit (method.md, "Verdict of a unit")."""

    CRITICAL = "critical"
    NEUTRAL = "neutral"
    DETRIMENTAL = "detrimental"


@dataclass(frozen=True)
class Ratio:
    """Fractions removed so far, each in [0, 1]."""

    params: float = 0.0
    macs: float = 0.0
    units: float = 0.0

    def as_dict(self) -> dict[str, float]:
        """The three fractions by name."""
        return {"params": self.params, "macs": self.macs, "units": self.units}


@dataclass(frozen=True)
class Target:
    """How much to remove: a fraction of `params`, `macs` or `units`, or all that is `noncritical`.

    `latency` is a fraction of the milliseconds a forward pass takes on this machine, found by measuring prefixes.
    `Target("complete")`, from Python only, asks for a path to the very end: one unit left in each group.

    >>> Target.parse("params=0.5")
    Target(kind='params', value=0.5)
    >>> str(Target.parse("noncritical"))
    'noncritical'
    """

    kind: Literal["params", "macs", "units", "latency", "noncritical", "complete"]
    value: float | None = None

    @classmethod
    def parse(cls, text: str | Target) -> Target:
        """Read `KIND=FRACTION` or `noncritical`; raises TargetError."""
        if isinstance(text, Target):
            return text
        expected = "expected params=F, macs=F, units=F or latency=F with 0 <= F < 1, or noncritical"
        if not isinstance(text, str):
            raise TargetError(f"target {text!r}: {expected}")
        kind, equals, number = text.strip().partition("=")
        if kind == "noncritical" and not equals:
            return cls("noncritical")
        if kind not in (*RATIO_KINDS, "latency") or not equals:
            raise TargetError(f"target {text!r}: {expected}")
        try:
            value = float(number)
        except ValueError:
            raise TargetError(f"target {text!r}: {number!r} is no number; {expected}") from None
        if not (math.isfinite(value) and 0.0 <= value < 1.0):
            raise TargetError(f"target {text!r}: the fraction REMOVED came as {number}; {expected}")
        return cls(kind, value)  # type: ignore[arg-type]

    def reached(self, ratio: Ratio) -> bool:
        """Whether `ratio` is at or past this target; never for those without a fraction, or one that has to be measured."""
        if self.value is None or self.kind == "latency":
            return False
        return ratio.as_dict()[self.kind] >= self.value - 1e-12

    def __str__(self) -> str:
        return self.kind if self.value is None else f"{self.kind}={self.value:g}"


@dataclass(frozen=True)
class ClassEffect:
    """What cutting one unit did to the score of one class.

    `mean`: mean difference σ* − σ (score units); `p`: paired two-sided t-test against 0;
    `pi`: −1 the class needs the unit, 0 no significant effect, +1 the class is better without it.
    `count` 0: the class was not asked (`--effects verdict`), `mean` and `p` are None and `pi` is 0.
    """

    index: int
    name: str
    count: int
    mean: float | None
    p: float | None
    pi: int


@dataclass(frozen=True, eq=False)
class UnitEffects(Mapping[str, ClassEffect]):
    """Effects of one unit on all K classes, by class name; arrays are (K,), NaN for a class that was not asked."""

    classes: tuple[str, ...]
    count: IntArray
    mean: FloatArray
    m2: FloatArray
    p: FloatArray
    pi: IntArray

    def __getitem__(self, name: str) -> ClassEffect:
        return self.at(self.classes.index(name))

    def __iter__(self) -> Iterator[str]:
        return iter(self.classes)

    def __len__(self) -> int:
        return len(self.classes)

    def at(self, k: int) -> ClassEffect:
        """Effect on class number k."""
        if not self.count[k]:
            return ClassEffect(k, self.classes[k], 0, None, None, 0)
        return ClassEffect(
            k, self.classes[k], int(self.count[k]), float(self.mean[k]), float(self.p[k]), int(self.pi[k])
        )

    def telling(self, most: int = 3) -> list[ClassEffect]:
        """The few classes that tell most: significant ones first, then by size of the mean effect."""
        size = np.nan_to_num(np.abs(self.mean), nan=-1.0)
        order = sorted(range(len(self.classes)), key=lambda k: (self.pi[k] == 0, -size[k], k))
        return [self.at(k) for k in order[:most] if self.count[k] or most >= len(order)]


@dataclass(frozen=True, eq=False)
class Decision:
    """One line of a pruning path: what was decided about one unit, and why."""

    step: int
    phase: str
    group: str
    unit: int
    removed: bool
    reason: str
    verdict: Verdict | None = None
    xi: float | None = None
    score: float | None = None
    ratio: Ratio = Ratio()
    quality: float | None = None
    effects: UnitEffects | None = None
    knife_edge: bool = False  # some |p − α| < 1e-4: another machine's rounding could turn it

    def as_dict(self, telling: int = 3) -> dict[str, Any]:
        """The line of `path.jsonl`: plain JSON values, with the classes that tell most."""
        line: dict[str, Any] = {
            "step": self.step,
            "phase": self.phase,
            "group": self.group,
            "unit": self.unit,
            "verdict": None if self.verdict is None else str(self.verdict),
            "xi": self.xi,
            "score": self.score,
            "removed": self.removed,
            "reason": self.reason,
            "ratio": self.ratio.as_dict(),
            "quality": self.quality,
            "knife_edge": self.knife_edge,
        }
        if self.effects is not None:
            line["classes"] = [
                {"class": e.name, "mean": e.mean, "p": e.p, "pi": None if e.p is None else e.pi}
                for e in self.effects.telling(telling)
            ]
        return line


@dataclass(frozen=True)
class Cliff:
    """Calibration quality fell early and fast while the path was built."""

    step: int
    group: str
    before: float
    after: float
    classes: tuple[str, ...]

    def __str__(self) -> str:
        return (
            f"calibration quality fell from {self.before:.3f} to {self.after:.3f} by step {self.step}, in group "
            f"{self.group}; the classes that fell most: {', '.join(self.classes) or 'none stands out'}"
        )
