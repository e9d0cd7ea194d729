"""From the scores of a cut to effects and a verdict: one way for every method."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cswap.causal.engine import Scores
from cswap.causal.stats import EffectStats, effect_stats, paired_t
from cswap.causal.verdicts import VoteRule, class_tests, verdict_of
from cswap.data.calibration import CalibrationSet
from cswap.types import UnitEffects, Verdict

KNIFE_EDGE = 1e-4


@dataclass(frozen=True, eq=False)
class Judgement:
    """Effects by class, the verdict, ξ (None where classes were not asked), and whether a p-value is within 1e-4 of α."""

    stats: EffectStats
    effects: UnitEffects
    verdict: Verdict
    xi: float | None
    knife_edge: bool


@dataclass(frozen=True, eq=False)
class Judge:
    """Judges cuts by one rule on one calibration set."""

    calibration: CalibrationSet
    rule: VoteRule
    xi_floor: float = 1e-3

    def stats(self, scores: Scores, base: Scores) -> EffectStats:
        """Effects of a cut: `scores` with it, `base` without.

        Where a sample holds several classes and the task gives one score a sample, it is the score of each of them.
        """
        before, after, members = base.by_class, scores.by_class, self.calibration.members
        if before is None and members is not None:
            before, after = (np.where(members, s.sigma[:, None], np.nan) for s in (base, scores))
        return effect_stats(
            base.sigma, scores.sigma, self.calibration.targets, len(self.calibration.classes), xi_floor=self.xi_floor,
            sigma_class=before, cut_class=after,
        )  # fmt: skip

    def verdict(self, scores: Scores, base: Scores) -> Verdict:
        """The verdict alone."""
        stats = self.stats(scores, base)
        return verdict_of(class_tests(stats, self.rule)[1], stats, self.rule)

    def judge(self, scores: Scores, base: Scores) -> Judgement:
        """All of it."""
        return judgement(self.stats(scores, base), self.rule, self.calibration.classes)


def judgement(stats: EffectStats, rule: VoteRule, classes: tuple[str, ...]) -> Judgement:
    """From the statistics of one unit."""
    moments = stats.by_class
    p, pi = class_tests(stats, rule)
    asked = moments.count > 0
    effects = UnitEffects(
        classes, moments.count, np.where(asked, moments.mean, np.nan), np.where(asked, moments.m2, np.nan),
        np.where(asked, p, np.nan), pi,
    )  # fmt: skip
    deciding = paired_t(stats.pooled)[1] if rule.vote == "pooled" else p[asked]
    edge = bool((np.abs(deciding - rule.alpha) < KNIFE_EDGE).any())
    return Judgement(stats, effects, verdict_of(pi, stats, rule), None if np.isnan(stats.xi) else float(stats.xi), edge)
