"""C-SWAP: progressive pruning from the output to the input (arXiv 2510.18636; method.md, "Progressive pruning")."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import nn

from cswap.causal.cut import CutEngine, Scores, refuse_near_chance
from cswap.causal.stats import EffectStats, effect_stats
from cswap.causal.verdicts import class_tests, verdict_of
from cswap.data.calibration import CalibrationSet
from cswap.methods.options import Options
from cswap.methods.path import PruningPath, Silence, Sink
from cswap.methods.registry import register
from cswap.methods.watch import QualityWatch
from cswap.structure.groups import Group, Structure
from cswap.structure.ledger import Ledger, check_reachable
from cswap.tasks.base import Task
from cswap.types import Decision, Target, UnitEffects, Verdict

LAST = "last of its group"
_CHECKS_IN_BUFFER = 100  # looks at calibration quality over a whole buffer phase


class _Done(Exception):
    """The target is reached, or may not be pursued; the message says which."""


@register("cswap")
def cswap(
    model: nn.Module,
    units: Structure,
    calibration: CalibrationSet,
    task: Task,
    *,
    target: Target = Target("complete"),  # noqa: B008 — frozen
    options: Options = Options(),  # noqa: B008 — frozen
    start: Sequence[Decision] = (),
    sink: Sink | None = None,
    device: str = "cpu",
    memory: int = 4 << 30,
    units_per_batch: int | None = None,
) -> PruningPath:
    """Walk the groups from the output to the input, removing what is neutral or detrimental at once; then the buffer.

    `start`: decisions of an interrupted run, which are replayed and not made again. Raises DataError for a network near
    chance and TargetError for a target out of reach.
    """
    check_reachable(units, target)
    engine = CutEngine(
        model, units, calibration, task, device=device, memory=memory, units_per_batch=units_per_batch,
        vote_score=options.vote_score,
    )  # fmt: skip
    walk = _Walk(engine, units, calibration, target, options, sink or Silence())
    return walk.run(start)


class _Walk:
    """The state of one walk: the network as pruned so far, its scores σ, the path, and the buffer of critical units."""

    def __init__(
        self,
        engine: CutEngine,
        units: Structure,
        calibration: CalibrationSet,
        target: Target,
        options: Options,
        sink: Sink,
    ) -> None:
        self.engine, self.units, self.calibration = engine, units, calibration
        self.target, self.options, self.sink = target, options, sink
        self.ledger = Ledger(units)
        self.path = PruningPath(units, "cswap", options.as_dict(), calibration.classes)
        self.original = engine.scores()
        refuse_near_chance(self.original, calibration, engine.task)
        self.current = self.original
        self.watch = QualityWatch(self.original, calibration.targets, calibration.classes, units.units, sink)

    def run(self, start: Sequence[Decision]) -> PruningPath:
        try:
            self._replay(start)
            self._check_target()
            judged = {(d.group, d.unit) for d in start if d.phase == "walk"}
            for group in self.units:
                todo = [n for n in self._order(group) if (group.name, n) not in judged]
                self._walk_group(group, todo)
            if self.target.kind == "noncritical":
                raise _Done("every unit was tested")
            self._buffer()
            self.path.ended = "nothing is left to remove"
        except _Done as reason:
            self.path.ended = str(reason)
        self.path.cliffs = self.watch.cliffs
        return self.path

    def _replay(self, start: Sequence[Decision]) -> None:
        gone: dict[str, list[int]] = {}
        for d in start:
            self.path.decisions.append(d)
            if d.removed:
                self.ledger.remove(self.units[d.group], d.unit)
                gone.setdefault(d.group, []).append(d.unit)
        for name, removed in gone.items():
            self.engine.remove(name, removed)
        if gone:
            self.current = self.engine.scores()
            self.watch.restart(sum(d.removed for d in start), self.current)

    def _order(self, group: Group) -> list[int]:
        if self.options.order == "reverse":
            return list(range(group.size))[::-1]
        if self.options.order == "random":
            place = [g.name for g in self.units].index(group.name)
            return np.random.default_rng([self.options.seed, place]).permutation(group.size).tolist()  # type: ignore[no-any-return]
        return list(range(group.size))

    def _walk_group(self, group: Group, todo: list[int]) -> None:
        """Judge units one after the other; a batch guesses that each goes the way of the one before.

        A guess costs nothing but time: scores made under a wrong guess are thrown away, so every unit is judged on the
        network as pruned so far, whatever the batch.
        """
        size, removing, place = 1, False, 0
        while place < len(todo):
            batch = todo[place : place + min(size, self.engine.units_per_batch)]
            cuts = [batch[: i + 1] if removing else [n] for i, n in enumerate(batch)]
            for i, scores in enumerate(self.engine.cut(group, cuts)):
                guess = removing
                removing = self._judge(group, batch[i], scores)
                place += 1
                if removing != guess:
                    break
            size = 2 * size if removing == guess else 1

    def _stats(self, scores: Scores, base: Scores) -> EffectStats:
        return effect_stats(
            base.sigma, scores.sigma, self.calibration.targets, len(self.calibration.classes),
            xi_floor=self.options.xi_floor, sigma_class=base.by_class, cut_class=scores.by_class,
        )  # fmt: skip

    def _judge(self, group: Group, unit: int, scores: Scores) -> bool:
        """One decision; returns whether the unit went."""
        stats, rule = self._stats(scores, self.current), self.options.rule
        p, pi = class_tests(stats, rule)
        verdict = verdict_of(pi, stats, rule)
        effects = UnitEffects(
            self.calibration.classes, stats.by_class.count, stats.by_class.mean, stats.by_class.m2, p, pi
        )
        remove, reason = self._may_go(group, verdict, scores)
        if remove:
            self.ledger.remove(group, unit)
            self.engine.remove(group.name, [unit])
            self.current = scores
        self._decide("walk", group.name, unit, remove, reason, verdict, float(stats.xi), effects, stats, scores)
        if remove:
            self._check_target()
        return remove

    def _may_go(self, group: Group, verdict: Verdict, scores: Scores) -> tuple[bool, str]:
        if verdict is Verdict.CRITICAL:
            return False, "a class needs it"
        if self.ledger.kept(group) == 1:
            return False, LAST
        if self.options.reference == "original":
            drift = self._stats(scores, self.original)
            if verdict_of(class_tests(drift, self.options.rule)[1], drift, self.options.rule) is Verdict.CRITICAL:
                return False, "drift"
        self._check_drop(scores)
        return True, "no class needs it" if verdict is Verdict.NEUTRAL else "a class is better without it"

    def _decide(
        self, phase: str, group: str, unit: int, removed: bool, reason: str, verdict: Verdict | None,
        xi: float | None, effects: UnitEffects | None, stats: EffectStats | None, scores: Scores | None,
    ) -> None:  # fmt: skip
        quality = float(self.current.quality.mean()) if scores is not None else None
        decision = Decision(
            step=len(self.path.decisions) + 1, phase=phase, group=group, unit=unit, removed=removed, reason=reason,
            verdict=verdict, xi=xi, score=xi, ratio=self.ledger.ratio(), quality=quality, effects=effects,
        )  # fmt: skip
        self.path.decisions.append(decision)
        self.sink.decided(decision, stats)
        if removed and scores is not None:
            gone = round(decision.ratio.units * self.units.units)
            self.watch.saw(gone, decision.step, group, scores)

    def _check_target(self) -> None:
        if self.target.reached(self.ledger.ratio()):
            raise _Done("target reached")

    def _buffer(self) -> None:
        """Critical units by largest signed ξ (or smallest |ξ|), as judged during the walk, until the target is met."""
        gone = {(d.group, d.unit) for d in self.path.decisions if d.removed}
        waiting = [d for d in self.path.decisions if d.phase == "walk" and d.verdict is Verdict.CRITICAL]
        key = (lambda d: -(d.xi or 0.0)) if self.options.buffer_order == "signed" else (lambda d: abs(d.xi or 0.0))
        done = {(d.group, d.unit) for d in self.path.decisions if d.phase == "buffer"}
        queue = [d for d in sorted(waiting, key=key) if (d.group, d.unit) not in gone | done]
        every = 1 if self.options.max_drop is not None else max(1, len(waiting) // _CHECKS_IN_BUFFER)
        for i, d in enumerate(queue):
            group = self.units[d.group]
            last = self.ledger.kept(group) == 1
            scores = None
            if not last:
                if (i + 1) % every == 0:
                    scores = self.engine.cut(group, [[d.unit]])[0]
                    self._check_drop(scores)
                self.ledger.remove(group, d.unit)
                self.engine.remove(d.group, [d.unit])
            reason = LAST if last else "hurts least of the critical"
            if scores is not None:
                self.current = scores
            self._decide("buffer", d.group, d.unit, not last, reason, d.verdict, d.xi, d.effects, None, scores)
            if not last:
                self._check_target()

    def _check_drop(self, scores: Scores) -> None:
        drop = float(self.original.quality.mean() - scores.quality.mean())
        if self.options.max_drop is not None and drop > self.options.max_drop + 1e-12:
            raise _Done(f"max-drop: removing the next unit would cost {drop:.4f} of calibration quality")
