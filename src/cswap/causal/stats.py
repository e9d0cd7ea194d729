"""Mergeable sums of differences and the paired t-test. Knows no network: numbers in, numbers out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import special

from cswap.types import FloatArray, IntArray

NOISE_FLOOR = 1e-6
"""|d| at or below this counts as 0, so that one rounding step is no effect (method.md, decided)."""

_SPREAD_IS_ROUNDING = 64 * np.finfo(np.float64).eps


@dataclass(frozen=True, eq=False)
class Moments:
    """Count, mean and M2 (sum of squared deviations) in float64, any shape; merges pairwise without cancelling."""

    count: IntArray
    mean: FloatArray
    m2: FloatArray

    @classmethod
    def of(cls, values: FloatArray, axis: int = -1) -> Moments:
        """Moments along `axis`, ignoring NaN (a class absent from a sample)."""
        values = np.asarray(values, dtype=np.float64)
        seen = ~np.isnan(values)
        count = seen.sum(axis=axis)
        n = np.maximum(count, 1)
        filled = np.where(seen, values, 0.0)
        mean = filled.sum(axis=axis) / n
        deviation = np.where(seen, filled - np.expand_dims(mean, axis), 0.0)
        return cls(np.asarray(count, dtype=np.int64), mean, (deviation**2).sum(axis=axis))

    def merge(self, other: Moments) -> Moments:
        """Moments of both sets together (Chan, Golub and LeVeque, 1979)."""
        count = self.count + other.count
        n = np.maximum(count, 1)
        delta = other.mean - self.mean
        mean = self.mean + delta * other.count / n
        m2 = self.m2 + other.m2 + delta**2 * self.count * other.count / n
        return Moments(count, mean, m2)


@dataclass(frozen=True, eq=False)
class EffectStats:
    """All that verdicts need of one or more units: moments of d by class (…, K) and pooled (…), and ξ (…)."""

    by_class: Moments
    pooled: Moments
    xi: FloatArray


def floored(differences: FloatArray, noise: float = NOISE_FLOOR) -> FloatArray:
    """Differences with those within rounding set to exactly 0."""
    return np.where(np.abs(differences) <= noise, 0.0, differences)


def effect_stats(
    sigma: FloatArray,
    cut: FloatArray,
    targets: IntArray,
    classes: int,
    *,
    xi_floor: float = 1e-3,
    sigma_class: FloatArray | None = None,
    cut_class: FloatArray | None = None,
) -> EffectStats:
    """Effects of one cut. sigma, cut: (M,) scores without and with it; targets: (M,) class numbers.

    With `sigma_class`, `cut_class` (M, K; NaN where a class is absent) class k is tested on its own column.
    ξ = mean of d / max(σ, xi_floor) (method.md, "Effect of a unit"). A sample whose cut score is NaN was not evaluated:
    its class counts without it, and ξ is NaN.
    """
    d = floored(np.asarray(cut, dtype=np.float64) - sigma)
    if sigma_class is not None and cut_class is not None:
        by_class = Moments.of(floored(cut_class - sigma_class), axis=0)
    else:
        parts = [Moments.of(d[targets == k]) for k in range(classes)]
        by_class = Moments(
            np.array([p.count for p in parts], dtype=np.int64),
            np.array([p.mean for p in parts]),
            np.array([p.m2 for p in parts]),
        )
    xi = np.asarray((d / np.maximum(sigma, xi_floor)).mean())
    return EffectStats(by_class, Moments.of(d), xi)


def upper_mean(moments: Moments, alpha: float) -> FloatArray:
    """One-sided t bound of the mean at confidence 1 − alpha, from above; +inf for fewer than two samples."""
    safe = np.maximum(moments.count, 2)
    spread = np.sqrt(moments.m2 / (safe - 1) / safe)
    return np.where(moments.count < 2, np.inf, moments.mean + special.stdtrit(safe - 1, 1 - alpha) * spread)


def paired_t(moments: Moments) -> tuple[FloatArray, FloatArray]:
    """t and two-sided p of the mean difference against 0, count − 1 degrees of freedom.

    Zero variance: mean 0 gives p = 1, otherwise p = 0 (method.md, decided). Fewer than two samples: p = 1, t = 0.
    """
    n = moments.count
    safe = np.maximum(n, 2)
    rounding = safe * (np.abs(moments.mean) * _SPREAD_IS_ROUNDING) ** 2
    flat = moments.m2 <= rounding
    error = np.sqrt(np.where(flat, 1.0, moments.m2) / (safe - 1) / safe)
    t = np.where(flat, np.copysign(np.inf, moments.mean), moments.mean / error)
    t = np.where((moments.mean == 0) | (n < 2), 0.0, t)
    p = np.where(np.isinf(t), 0.0, 2.0 * special.stdtr(safe - 1, -np.abs(t)))
    return t, np.where(n < 2, 1.0, p)
