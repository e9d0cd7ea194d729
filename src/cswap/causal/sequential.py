"""Group-sequential tests: a unit's effect on a quarter, a half, then all of each class's samples, until one class needs it."""

from __future__ import annotations

from collections.abc import Callable

from cswap.causal.engine import Engine, Job, Scores
from cswap.causal.evaluation import class_spans
from cswap.causal.stats import floored
from cswap.causal.verdicts import VoteRule, class_needs
from cswap.structure.groups import Group

STAGES = ((0.25, 0.2), (0.5, 0.2), (1.0, 0.6))
"""Fraction of a class's samples that has been seen, and the fraction of α spent there; the fractions of α add up to 1."""


class Sequential:
    """Every class at once, stage by stage (`--effects sequential`, ours).

    A class that needs the unit at a stage, at that stage's share of α, ends the test: critical. Any other verdict takes all
    samples, tested at the last share. By the union bound over stages a class without an effect is said to have one with
    probability at most α, whatever the correlation of the stages (α spending: Lan and DeMets, 1983). Samples that were not asked
    stay NaN.
    """

    nests = False

    def __init__(self, engine: Engine, rule: VoteRule, alpha: float) -> None:
        self.own = class_spans(engine, "effects sequential")
        self.engine, self.rule, self.alpha = engine, rule, alpha
        self.spans: list[list[tuple[int, int]]] = [[] for _ in STAGES]
        for a, b in self.own:
            before = a
            for stage, (seen, _) in enumerate(STAGES):
                until = b if seen == 1.0 else min(b, a + max(2, round(seen * (b - a))))
                self.spans[stage].append((before, until))
                before = until

    def enter(self, group: Group) -> None:
        """Nothing to prepare."""

    def together(self, group: Group) -> int:
        return self.engine.units_together(group, sum(b - a for a, b in self.spans[0]))

    def batch(
        self, group: Group, pieces: list[list[int]], removing: bool, base: Callable[[], Scores]
    ) -> list[Callable[[], Scores]]:
        first: list[Scores] = []

        def jobs(piece: list[int], stage: int) -> list[Job]:
            return [Job(tuple(piece), a, b) for a, b in self.spans[stage] if b > a]

        def give(i: int) -> Scores:
            now = base()
            if not first:
                first.extend(self.engine.run(group, [j for p in pieces for j in jobs(p, 0)]))
            per = len(jobs(pieces[0], 0))
            scores = Scores.unknown(len(now.sigma), None)
            for stage, (_, share) in enumerate(STAGES):
                asked = jobs(pieces[i], stage)
                found = first[i * per : (i + 1) * per] if stage == 0 else self.engine.run(group, asked)
                for job, part in zip(asked, found, strict=True):
                    scores.put(part, slice(job.start, job.stop))
                if self._needed(scores, now, share * self.alpha):
                    break
            return scores

        return [lambda i=i: give(i) for i in range(len(pieces))]  # type: ignore[misc]

    def _needed(self, scores: Scores, base: Scores, level: float) -> bool:
        """Whether some class needs the unit, by the samples seen so far."""
        d = floored(scores.sigma - base.sigma)
        rule = VoteRule(level, min_effect=self.rule.min_effect)
        return any(class_needs(d[a:b], rule) for a, b in self.own)
