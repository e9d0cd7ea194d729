"""C-SWAP: progressive pruning from the output to the input (arXiv 2510.18636; method.md, "Progressive pruning")."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import nn

from cswap.causal.compensation import forget
from cswap.causal.engine import Engine, Scores, refuse_near_chance
from cswap.causal.evaluation import Evaluation, FirstCritical, Full
from cswap.causal.judge import Judge, Judgement
from cswap.causal.replay import engine_for
from cswap.causal.sequential import Sequential
from cswap.causal.stats import EffectStats
from cswap.data.calibration import CalibrationSet
from cswap.errors import ArtifactError
from cswap.methods.buffer import ordered
from cswap.methods.options import Options
from cswap.methods.path import NOTHING_LEFT, PruningPath, Silence, Sink, Start
from cswap.methods.registry import register
from cswap.methods.watch import QualityWatch
from cswap.structure.groups import Group, Structure
from cswap.structure.ledger import Ledger, check_reachable
from cswap.tasks.base import Task
from cswap.types import Decision, Target, Verdict

LAST = "last of its group"
SCORED = "scored for the buffer, on the network as the walk left it"
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
    start: Start = Start(),  # noqa: B008 — frozen
    sink: Sink | None = None,
    device: str = "cpu",
    memory: int = 4 << 30,
    units_per_batch: int | None = None,
    engine: Callable[..., Engine] = engine_for,
) -> PruningPath:
    """Walk the groups from the output to the input, removing what is neutral or detrimental at once; then the buffer.

    `start`: what an interrupted run decided, which is not decided again. `engine`: makes the engine, by default the
    fastest that fits the model. Raises DataError for a network near chance and TargetError for a target out of reach.
    """
    check_reachable(units, target)
    made = engine(
        model, units, calibration, task, device=device, memory=memory, units_per_batch=units_per_batch,
        vote_score=options.vote_score, amp=options.amp, **({} if options.cut == "plain" else {"cut": options.cut}),
    )  # fmt: skip
    return _Walk(made, units, calibration, target, options, sink or Silence()).run(start)


def _evaluation(engine: Engine, options: Options) -> Evaluation:
    if options.effects == "verdict":
        return FirstCritical(engine, options.rule)
    return Sequential(engine, options.rule, options.alpha) if options.effects == "sequential" else Full(engine)


class _Walk:
    """The state of one walk: the network as pruned so far, its scores σ, the path, and the buffer of critical units."""

    def __init__(
        self,
        engine: Engine,
        units: Structure,
        calibration: CalibrationSet,
        target: Target,
        options: Options,
        sink: Sink,
    ) -> None:
        self.engine, self.units, self.calibration = engine, units, calibration
        self.target, self.options, self.sink = target, options, sink
        self.evaluation = _evaluation(engine, options)
        self.judge = Judge(calibration, options.rule, options.xi_floor)
        self.ledger = Ledger(units)
        self.path = PruningPath(units, "cswap", options.as_dict(), calibration.classes, engine=engine.name)
        self._told = 0
        sink.note(engine.name)
        self.original = engine.scores()
        refuse_near_chance(self.original, calibration, engine.task)
        self.current = self.original
        self._caught_up = False
        self.stale = False  # whether `current` is older than the last removal: only while a journal is read
        self.watch = QualityWatch(self.original, calibration.targets, calibration.classes, units.units, sink)

    def run(self, start: Start) -> PruningPath:
        self.start, self.watch.cliffs = start, list(start.cliffs)
        try:
            if not start.decisions:
                self._check_target()
            for group in self.units:
                self._walk_group(group)
            if self.target.kind == "noncritical":
                for d in start.decisions[len(self.path) :]:
                    self._recall([d])
                raise _Done("every unit was tested")
            self._buffer()
            self.path.ended = NOTHING_LEFT
        except _Done as reason:
            self.path.ended = str(reason)
        if not self._caught_up and start.kept is not None:
            self.watch.restore(start.kept.watched)  # nothing new was decided
        self.path.cliffs, self.path.notes = self.watch.cliffs, list(self.engine.notes)
        return self.path

    def _known(self, phase: str, group: str | None = None) -> list[Decision]:
        return [d for d in self.start.decisions if d.phase == phase and group in (None, d.group)]

    def _order(self, group: Group) -> list[int]:
        if self.options.order == "reverse":
            return list(range(group.size))[::-1]
        if self.options.order == "random":
            place = [g.name for g in self.units].index(group.name)
            return np.random.default_rng([self.options.seed, place]).permutation(group.size).tolist()  # type: ignore[no-any-return]
        return list(range(group.size))

    def _enter(self, group: Group) -> None:
        """Have the engine at this group; σ is measured anew by it, so that rounding is the same with and without a cut."""
        self.engine.enter(group)
        for note in self.engine.notes[self._told :]:
            self.sink.note(note)
        self._told = len(self.engine.notes)
        self.evaluation.enter(group)
        self.current, self.stale = self.engine.scores(group), False

    def _pieces(self, group: Group) -> list[list[int]]:
        """What is judged together: single units, or blocks of consecutive ones."""
        order, size = self._order(group), self.options.block
        return [order[i : i + size] for i in range(0, len(order), size)]

    def _walk_group(self, group: Group) -> None:
        """Judge pieces one after the other; a batch guesses that each goes the way of the one before.

        A guess costs nothing but time: scores made under a wrong guess are thrown away, so every piece is judged on the
        network as pruned so far, whatever the batch. What comes next follows from the decisions alone, so a resumed run
        makes the very same batches.
        """
        todo, known = self._pieces(group), self._known("walk", group.name)
        decided = -(-len(known) // self.options.block)
        if decided == len(todo):
            if self.engine.enters_known:
                self._enter(group)
            for first in range(0, len(known), self.options.block):
                self._recall(known[first : first + self.options.block])
            return
        self._enter(group)
        size, removing, place = 1, False, 0
        while place < len(todo):
            if self.engine.stale(group):
                self._enter(group)
            guess = removing and self.evaluation.nests
            batch = todo[place : place + min(size, self.evaluation.together(group))]
            scores = self.evaluation.batch(group, batch, guess, lambda: self.current)
            if guess and place < decided < place + len(batch):
                scores[0]()  # as the run did: before anything of this batch is removed
            for i, piece in enumerate(batch):
                if place < decided:
                    first = place * self.options.block
                    removing = self._recall(known[first : first + len(piece)], piece)
                else:
                    self._catch_up(group)
                    removing = self._judge(group, piece, scores[i]())
                place += 1
                if removing != guess:
                    break
            size = 2 * size if removing == guess else 1

    def _recall(self, piece: Sequence[Decision], units: Sequence[int] | None = None) -> bool:
        """Take the decisions on units judged together from the journal; returns whether they went."""
        group, removed, came = piece[0].group, piece[0].removed, [d.unit for d in piece]
        if units is not None and came != list(units):
            raise ArtifactError(f"the journal does not fit: units {units} of group {group} come next, it has {came}")
        self.path.decisions.extend(piece)
        if removed:
            for unit in came:
                self.ledger.remove(self.units[group], unit)
            self.engine.remove(group, came)
            self.stale = True
        if len(self.path) == len(self.start.decisions):
            self._check_target()
        return removed

    def _catch_up(self, group: Group | None) -> None:
        """Before the first new decision: the watch on quality, and σ after the last removal, as the run left them."""
        kept, gone = self.start.kept, [d.step for d in self.path if d.removed]
        if not self._caught_up and kept is not None:
            self.watch.restore(kept.watched)
        elif not self._caught_up and gone:
            self.watch.restart(len(gone), self.engine.scores())
        self._caught_up = True
        if self.stale and group is not None:
            self.current = kept.scores if kept is not None and kept.step == gone[-1] else self.engine.scores(group)
        self.stale = False

    def _judge(self, group: Group, piece: list[int], scores: Scores) -> bool:
        """One decision a unit, the same for all of the piece; returns whether they went."""
        found = self.judge.judge(scores, self.current)
        remove, reason = self._may_go(group, piece, found.verdict, scores)
        if remove:
            self.engine.remove(group.name, piece)
            self.current = scores
        quality = float(self.current.quality.mean())
        for unit in piece:
            if remove:
                self.ledger.remove(group, unit)
            whole = remove and unit == piece[-1]  # only then are these the scores of the network after it
            self._decide("walk", group.name, unit, remove, reason, found, scores if whole else None, quality)
        if remove:
            self._check_target()
        return remove

    def _may_go(self, group: Group, piece: list[int], verdict: Verdict, scores: Scores) -> tuple[bool, str]:
        if verdict is Verdict.CRITICAL:
            return False, "a class needs it"
        if self.ledger.last(group, piece):
            return False, LAST
        drifts = self.options.reference == "original" and self.judge.verdict(scores, self.original) is Verdict.CRITICAL
        if drifts:
            return False, "drift"
        self._check_drop(scores)
        return True, "no class needs it" if verdict is Verdict.NEUTRAL else "a class is better without it"

    def _decide(
        self, phase: str, group: str, unit: int, removed: bool, reason: str, found: Judgement, scores: Scores | None,
        quality: float | None,
    ) -> None:  # fmt: skip
        """Note a decision. `scores`: those of the network after it, where they are known and it changed."""
        decision = Decision(
            step=len(self.path.decisions) + 1, phase=phase, group=group, unit=unit, removed=removed, reason=reason,
            verdict=found.verdict, xi=found.xi, score=found.xi, ratio=self.ledger.ratio(), quality=quality,
            effects=found.effects, knife_edge=found.knife_edge,
        )  # fmt: skip
        self._note(decision, found.stats, scores)

    def _note(self, decision: Decision, stats: EffectStats | None, scores: Scores | None) -> None:
        self.path.decisions.append(decision)
        if decision.removed and scores is not None:
            gone = round(decision.ratio.units * self.units.units)
            self.watch.saw(gone, decision.step, decision.group, scores)
            self.sink.keep(decision.step, scores, self.watch.state())
        self.sink.decided(decision, stats)

    def _check_target(self) -> None:
        if self.target.reached(self.ledger.ratio()):
            raise _Done("target reached")

    def _waiting(self) -> list[Decision]:
        """The buffer, in order of removal: by the walk's ξ, or where it was skipped, by one made now."""
        waiting = [d for d in self.path.decisions if d.phase == "walk" and d.verdict is Verdict.CRITICAL]
        if any(d.xi is None for d in waiting):
            waiting = list(self._scored({(d.group, d.unit) for d in waiting}))
        return ordered(waiting, self.ledger, self.options)

    def _scored(self, waiting: set[tuple[str, int]]) -> Iterator[Decision]:
        """Effects of the buffer's units on all classes, on the network as the walk left it."""
        for group in self.units:
            todo = [p for p in self._pieces(group) if (group.name, p[0]) in waiting]
            known = {d.unit: d for d in self._known("score", group.name)}
            if any(n not in known for p in todo for n in p):
                self._enter(group)
            size = self.engine.units_together(group)
            for first in range(0, len(todo), size):
                batch = todo[first : first + size]
                found = self.engine.cut(group, batch) if any(n not in known for p in batch for n in p) else []
                for i, piece in enumerate(batch):
                    for n in piece:
                        if n in known:
                            self._recall([known[n]], [n])
                        else:
                            self._catch_up(None)
                            now = self.judge.judge(found[i], self.current)
                            why = f"{SCORED} ({now.verdict} there)"
                            walked = replace(now, verdict=Verdict.CRITICAL)  # its verdict is the walk's
                            self._decide("score", group.name, n, False, why, walked, None, None)
                        yield self.path.decisions[-1]

    def _buffer(self) -> None:
        """Critical units by largest signed ξ (or smallest |ξ|), until the target is met."""
        forget(self.engine)  # the walk went on after their moments were taken
        queue = self._waiting()
        self.engine.leave()
        done = {(d.group, d.unit): d for d in self._known("buffer")}
        every = 1 if self.options.max_drop is not None else max(1, len(queue) // _CHECKS_IN_BUFFER)
        for i, d in enumerate(queue):
            group = self.units[d.group]
            if (d.group, d.unit) in done:
                self._recall([done[d.group, d.unit]])
                continue
            self._catch_up(None)
            last = self.ledger.last(group, [d.unit])
            scores = None
            if not last:
                if (i + 1) % every == 0:
                    scores = self.engine.once(group, [d.unit])
                    self._check_drop(scores)
                self.ledger.remove(group, d.unit)
                self.engine.remove(d.group, [d.unit])
            went = replace(
                d, step=len(self.path) + 1, phase="buffer", removed=not last, ratio=self.ledger.ratio(), knife_edge=False,
                reason=LAST if last else "hurts least of the critical",
                quality=None if scores is None else float(scores.quality.mean()),
            )  # fmt: skip
            self._note(went, None, scores)
            if not last:
                self._check_target()

    def _check_drop(self, scores: Scores) -> None:
        drop = float(self.original.quality.mean() - scores.quality.mean())
        if self.options.max_drop is not None and drop > self.options.max_drop + 1e-12:
            raise _Done(f"max-drop: removing the next unit would cost {drop:.4f} of calibration quality")


def plain_engine(*args: Any, **settings: Any) -> Engine:
    """For `cswap(…, engine=plain_engine)`: every cut by a full forward pass."""
    from cswap.causal.cut import PlainEngine

    return PlainEngine(*args, **settings)
