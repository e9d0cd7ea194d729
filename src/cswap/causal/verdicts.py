"""From statistics to verdicts: tests by class, corrections, the vote. Knows no network."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from cswap.causal.stats import EffectStats, Moments, paired_t
from cswap.errors import InputError
from cswap.types import FloatArray, IntArray, Verdict

CORRECTIONS = ("none", "holm", "bh")
VOTES = ("class", "pooled")


@dataclass(frozen=True)
class VoteRule:
    """How a unit is judged. The defaults are the paper's (method.md, "Verdict of a unit").

    `vote="pooled"` is general inference: one test over all samples. `correction` over classes and `min_effect` (score
    units) are ours, and off by default.
    """

    alpha: float = 0.05
    vote: str = "class"
    correction: str = "none"
    min_effect: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 < self.alpha < 1.0:
            raise InputError(f"alpha: expected a number between 0 and 1, got {self.alpha}")
        if self.vote not in VOTES:
            raise InputError(f"vote: expected one of {', '.join(VOTES)}, got {self.vote!r}")
        if self.correction not in CORRECTIONS:
            raise InputError(f"correction: expected one of {', '.join(CORRECTIONS)}, got {self.correction!r}")
        if not 0.0 <= self.min_effect < math.inf:
            raise InputError(f"min-effect: expected a finite number of at least 0, got {self.min_effect}")


def holm(p: FloatArray) -> FloatArray:
    """Holm's step-down adjusted p-values along the last axis (Holm, 1979)."""
    k = p.shape[-1]
    order = np.argsort(p, axis=-1, kind="stable")
    stepped = np.take_along_axis(p, order, -1) * np.arange(k, 0, -1)
    adjusted = np.minimum(np.maximum.accumulate(stepped, axis=-1), 1.0)
    back = np.empty_like(adjusted)
    np.put_along_axis(back, order, adjusted, -1)
    return back


def corrected(p: FloatArray, correction: str) -> FloatArray:
    """p-values adjusted over the K classes on the last axis."""
    if correction == "holm":
        return holm(p)
    if correction == "bh":
        from scipy import stats as scipy_stats  # here: it takes a second to import

        return np.asarray(scipy_stats.false_discovery_control(p, axis=-1, method="bh"))
    return p


def signs(mean: FloatArray, p: FloatArray, rule: VoteRule) -> IntArray:
    """π: 0 where not significant (or smaller than `min_effect`), otherwise the sign of the mean difference."""
    counts = (p < rule.alpha) & (np.abs(mean) >= rule.min_effect)
    return np.where(counts, np.sign(mean), 0).astype(np.int64)


def class_needs(d: FloatArray, rule: VoteRule) -> bool:
    """Whether a class's own test says that it needs the unit. d: (n,) differences of its samples, NaN where not evaluated."""
    moments = Moments.of(d[None])
    return bool((signs(moments.mean, paired_t(moments)[1], rule) < 0).any())


def class_tests(stats: EffectStats, rule: VoteRule) -> tuple[FloatArray, IntArray]:
    """p (adjusted where asked) and π by class, each (K,)."""
    p = corrected(paired_t(stats.by_class)[1], rule.correction)
    return p, signs(stats.by_class.mean, p, rule)


def verdict_of(pi: IntArray, stats: EffectStats, rule: VoteRule) -> Verdict:
    """The vote: critical if any class needs the unit, neutral if none is moved, detrimental otherwise."""
    if rule.vote == "pooled":
        _, p = paired_t(stats.pooled)
        pi = signs(np.atleast_1d(stats.pooled.mean), np.atleast_1d(p), rule)
    if (pi < 0).any():
        return Verdict.CRITICAL
    return Verdict.DETRIMENTAL if (pi > 0).any() else Verdict.NEUTRAL
