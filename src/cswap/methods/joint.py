"""`joint`: what goes is tested together, after compensation, against the ORIGINAL network, within a margin for every class."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from torch import nn

from cswap.causal.compensation import compensation_of, forget
from cswap.causal.engine import Engine, Job, Scores, refuse_near_chance
from cswap.causal.evaluation import class_spans
from cswap.causal.judge import Judge
from cswap.causal.margins import Probe, Profile, margins_of, surely_lost
from cswap.causal.replay import engine_for
from cswap.data.calibration import CalibrationSet
from cswap.errors import DataError, InputError, TargetError
from cswap.linear.elimination import Inverse
from cswap.methods.options import Options, stages_of
from cswap.methods.path import PruningPath, Silence, Sink, Start
from cswap.methods.ranking import Ranked, remove_in_order
from cswap.methods.registry import register
from cswap.methods.sets import Measured, by_margin, by_price
from cswap.methods.stages import TRIED, Case, Stage, first_stage, gone, next_stage, tried, until
from cswap.methods.surrogate import Order, orders_of
from cswap.structure.groups import Group, Structure
from cswap.structure.ledger import check_reachable
from cswap.tasks.base import Task
from cswap.types import FloatArray, IntArray, Target

FEWEST = 8
"""Samples of a class that a first look needs."""
SURE = 1e-3
"""Error rate at which the first look, alone, says that a class loses more than the largest margin."""
NO_OUTPUTS = "price: this task has no vectors of outputs, or they do not fit the memory: sets are priced by their change of score"


@register("joint")
def joint(
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
    refit: CalibrationSet | None = None,
) -> PruningPath:
    """A surrogate (`options.surrogate`) puts each group's units in order; bisection finds the largest prefix whose JOINT compensated cut costs
    no class more than τ of mean score for each of `margins`, from what the one before it gave: the one-sided paired t bound at 1 − alpha, on the
    samples that the order and the compensation came from too, so a rule that chooses and no claim (with few samples a class the true loss may be
    larger).

    Between groups: equal margin (`per` unit), or the measured `price` a parameter, MAC or millisecond (`per`): see `by_price`. A cut that a quarter of the samples shows to be far beyond the last margin is not looked at on the others.
    `stages`: where so much is gone, the network without it is refitted as `lstsq` does (from the samples `refit`, those of the analysis where there are
    no others), and what is left is ordered and tested anew on that network, against the original. Between groups a stage tries
    the prices measured, those that the surrogate predicts, and between the two, and keeps what ends nearest to the original once it is refitted.
    Units beyond the last margin follow by the same rule, and a note says of how many groups. Effects are of a group at a time; what groups do to each
    other, and what new samples lose, is for `--certify` to bound. `max_drop` and cliffs are of the network as it is cut. Source: ours.
    Raises TargetError for `noncritical`, DataError, InputError.
    """
    if target.kind == "noncritical":
        raise TargetError("target noncritical: joint tests sets of units; expected params=F, macs=F or units=F")
    check_reachable(units, target)
    bounds = stages_of(options.stages)
    machine: dict[str, Any] = {"device": device, "memory": memory}
    case = Case(model, units, refit or calibration, task, **machine)
    tests = _Tests(case, calibration, options, dict(start.tested), sink or Silence())
    kind, share = _COUNTED[options.per], 1.0
    order, stage = list[Ranked](), first_stage(case)
    for bound in (*bounds, None):
        found = tests.of(stage)
        if options.per == "unit":
            orders = {"margin": by_margin(found)}
        else:
            shares = TRIED if bound is not None and any(g.predicts for g in found) else {"measured": share}
            orders = {n: by_price(found, gone(units, order), options.per, options.price, w) for n, w in shares.items()}
        if bound is None:
            order += next(iter(orders.values()))
            break
        chosen = tests.tried(stage, order, orders, kind, bound)
        share = TRIED.get(chosen, 1.0)
        order += until(units, order, orders[chosen], kind, bound)
        ledger = gone(units, order)
        if target.reached(ledger.ratio()) or ledger.ratio().as_dict()[kind] < bound:
            break
        stage = next_stage(case, stage, bound, ledger, tests.notes)
    plain = engine_for(model, units, calibration, task, vote_score=options.vote_score, **machine)
    path = PruningPath(units, "joint", options.as_dict(), calibration.classes, engine=tests.engine or plain.name)
    path.sensitivity = tests.sensitivity()
    # in another precision than `plain`'s they would be no baseline for `max_drop`
    unpruned = None if options.amp else tests.base
    remove_in_order(plain, path, order, target, options, start, tests.sink, unpruned=unpruned)
    path.notes = list(dict.fromkeys([*tests.notes, *path.notes]))
    if target.kind != "complete":
        path.notes += _beyond(path, tests.latest.values())
    return path


_COUNTED = {"unit": "units", "params": "params", "macs": "macs", "latency": "macs"}
"""What the bounds of stages count, by what a price is of."""


@dataclass(eq=False)
class _Tests:
    """What joint cuts gave, stage by stage: known from an earlier run, or measured and told."""

    case: Case
    calibration: CalibrationSet
    options: Options
    known: dict[str, Mapping[str, Any]]
    sink: Sink
    engine: str = ""
    base: Scores | None = None
    notes: list[str] = field(default_factory=list)
    latest: dict[str, Measured] = field(default_factory=dict)
    stages: list[dict[str, Any]] = field(default_factory=list)
    _outputs: tuple[FloatArray, float] | None = None

    def of(self, stage: Stage) -> list[Measured]:
        """Every group of the stage, from the output to the input."""
        read = {g.name: self._read(stage, g) for g in stage.units}
        found = {name: m for name, m in read.items() if m is not None}
        if self.base is None or len(found) < len(read):
            self._measure(stage, found)
        for group in reversed(stage.units.groups):  # in the order of the tests, whoever made them
            self.notes += [n for n in found[group.name].notes if n not in self.notes]
        self.latest |= found
        at = {"at": stage.bound, "ratio": stage.ratio.as_dict()} if stage.number else {}
        self.stages.append(at | {"groups": {g.name: found[g.name].as_dict() for g in stage.units}})
        return [found[g.name] for g in stage.units]

    def _read(self, stage: Stage, group: Group) -> Measured | None:
        """What an earlier run measured, or None. Raises InputError."""
        key, whole = stage.key(group.name), self.case.units[group.name]
        if key not in self.known:
            return None
        try:
            found = Measured.of(whole, self.known[key])
            if sorted(found.order.tolist()) != stage.original[group.name].tolist():
                raise ValueError("tests of other units")
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"resume: the tests of {key} cannot be read ({error!r}); --force starts again") from None
        return found

    def _measure(self, stage: Stage, found: dict[str, Measured]) -> None:
        """Those groups of the stage that are not in `found`, put there and told; and the original's scores, where nobody asked for them."""
        case, options, calibration = self.case, self.options, self.calibration
        machine: dict[str, Any] = {"device": case.device, "memory": case.memory}
        outputs = options.price == "outputs" and hasattr(case.task, "outputs_vector")
        kept: dict[str, Inverse] = {}
        began, orders, predicts = time.perf_counter(), dict[str, Order](), frozenset[str]()
        if len(found) < len(stage.units):
            orders, predicts = orders_of(
                stage.net, stage.units, calibration, case.task, options, kept=kept, outputs=outputs, **machine
            )
        engine = engine_for(
            stage.net, stage.units, calibration, case.task, vote_score=options.vote_score, amp=options.amp,
            cut="compensated", **machine,
        )  # fmt: skip
        compensation = compensation_of(engine)
        if compensation is not None:
            compensation.known = kept  # the same moments, of the same network
            if options.folds > 1:
                compensation.split(_folds(engine, options.folds))
        if self.base is None:
            self.base, self.engine, self.notes = engine.scores(), engine.name, [*self.notes, *engine.notes]
            refuse_near_chance(self.base, calibration, case.task)
            self.sink.note(engine.name)
            if outputs and (seen := engine.outputs_seen()) is not None:
                self._outputs = seen, engine.mean_square(seen)
            elif options.price == "outputs":
                self.notes.append(NO_OUTPUTS)
        if self._outputs is not None:
            engine.compare_with(self._outputs[0])
        scale = None if self._outputs is None else self._outputs[1]
        start = 0.0
        if stage.number:
            judge, now = Judge(calibration, options.rule, options.xi_floor), engine.scores()
            at_first = Probe.of(0, judge.stats(now, self.base), options.alpha, _moved(now, scale))
            start = max(0.0, at_first.loss if options.price == "loss" else at_first.change)
        # from the input to the output: what a group's cuts are replayed from is near what the one before it was
        for group in reversed(stage.units.groups):
            if group.name in found:
                continue
            told = len(engine.notes)
            own = _measured(engine, self.base, group, *orders[group.name], options, first=not stage.number, scale=scale)
            own = replace(
                own, group=case.units[group.name], order=stage.original[group.name][own.order], notes=engine.notes[told:],
                predicts=group.name in predicts, start=start,
            )  # fmt: skip
            found[group.name] = own
            now_at = time.perf_counter()
            record = own.as_dict() | {"seconds": round(now_at - began, 3)}
            self.sink.tested(stage.key(group.name), record, len(found), len(stage.units))
            began = now_at
        engine.leave()

    def tried(
        self, stage: Stage, before: Sequence[Ranked], orders: Mapping[str, Sequence[Ranked]], kind: str, bound: float
    ) -> str:
        """The allocation whose network, refitted, is nearest to the original at the end of the stage; told, and known to a run that goes on."""
        if len(orders) == 1:
            return next(iter(orders))
        known = self.known.get(stage.trial, {}).get("away")
        if not isinstance(known, dict) or set(known) != set(orders):
            began = time.perf_counter()
            known = tried(self.case, before, orders, kind, bound)
            record = {"away": known, "seconds": round(time.perf_counter() - began, 3)}
            self.sink.tested(stage.trial, record, len(stage.units), len(stage.units))
        chosen = min(known, key=lambda n: float(known[n]))
        self.stages[-1]["tried"] = {"until": bound, "away": known, "chosen": chosen}
        return chosen

    def sensitivity(self) -> dict[str, Any]:
        """All of it as plain JSON values: of the original network, and of every later stage."""
        options, (first, *later) = self.options, self.stages
        return {
            "margins": list(margins_of(options.margins)), "alpha": options.alpha, "samples": len(self.calibration), **first,
            **({"stages": later} if later else {}),
        }  # fmt: skip


def _moved(scores: Scores, scale: float | None) -> float | None:
    """The mean squared change of the outputs of the samples that were looked at, as a share of the outputs' mean square."""
    return None if scale is None or scores.moved is None else float(np.nanmean(scores.moved)) / scale


def _beyond(path: PruningPath, groups: Iterable[Measured]) -> list[str]:
    """What to say where groups gave more units than any set that was within a margin, as the network stood when it was tested last."""
    went = Counter(d.group for d in path if d.removed)
    last = [(g.group, g.sets[-1][0], g.group.size - len(g.order) + g.sets[-1][1]) for g in groups]
    more = [(group.name, went[group.name], most) for group, _, most in last if went[group.name] > most]
    if not more:
        return []
    name, units, most = max(more, key=lambda m: m[1] - m[2])
    return [
        f"{len(more)} of {len(last)} groups give more units than their largest set within the last margin, {last[0][1]:g} (most {name}: {units}, the set {most}): "
        "no joint test says that their classes keep their score"
    ]


def _spans(engine: Engine) -> list[tuple[int, int]]:
    """Each class's samples, or all of them where they hold several classes."""
    try:
        return class_spans(engine, "joint")
    except InputError:
        return [(0, len(engine.calibration))]


def _looks(engine: Engine) -> list[list[tuple[int, int]]]:
    """Which samples a joint cut is looked at on, one look after the other: a quarter of each class first, where that is enough
    of them to tell a cut that is far beyond every margin.
    """
    m = len(engine.calibration)
    spans = _spans(engine)
    if len(spans) == 1:  # samples hold several classes
        return [[(0, m)]]
    if min((b - a for a, b in spans), default=0) < 4 * FEWEST:
        return [[(0, m)]]
    middles = [a + (b - a) // 4 for a, b in spans]
    return [
        [(a, c) for (a, _), c in zip(spans, middles, strict=True)],
        [(c, b) for (_, b), c in zip(spans, middles, strict=True)],
    ]


def _folds(engine: Engine, folds: int) -> list[IntArray]:
    """Sample numbers of each part, alike of every class. Raises DataError where a class has fewer samples."""
    spans = _spans(engine)
    for k, (a, b) in enumerate(spans):
        if 0 < b - a < folds:
            name = engine.calibration.classes[k] if len(spans) > 1 else "all"
            raise DataError(f"folds: expected at least {folds} samples of class {name!r}, got {b - a}")
    ends = [np.linspace(a, b, folds + 1).round().astype(np.int64) for a, b in spans]
    return [np.concatenate([np.arange(e[f], e[f + 1]) for e in ends]) for f in range(folds)]


def _within(spans: list[tuple[int, int]], numbers: IntArray) -> list[tuple[int, int]]:
    """What of the spans lies among the ascending sample numbers, as spans."""
    found = []
    for a, b in spans:
        own = numbers[(numbers >= a) & (numbers < b)]
        for run in np.split(own, np.flatnonzero(np.diff(own) > 1) + 1):
            if len(run):
                found.append((int(run[0]), int(run[-1]) + 1))
    return found


def _measured(
    engine: Engine, base: Scores, group: Group, order: IntArray, surrogate: FloatArray, options: Options, *, first: bool = True,
    scale: float | None = None,
) -> Measured:  # fmt: skip
    """Joint cuts of the group alone, on the network as the stage has it (`first`: the original), against the original's scores `base`; `scale`: see `_moved`."""
    engine.enter(group)
    if engine.amp and first:
        base = engine.scores(group)  # by the same replay as the cuts: in bfloat16 a whole pass rounds otherwise
    judge = Judge(engine.calibration, options.rule, options.xi_floor)
    beyond = margins_of(options.margins)[-1]
    looks, compensation = _looks(engine), compensation_of(engine)
    folds = list(enumerate(compensation.folds)) if compensation is not None else []

    def run(cut: tuple[int, ...], spans: list[tuple[int, int]], scores: Scores) -> None:
        found = engine.run(group, [Job(cut, a, b) for a, b in spans])
        for (a, b), part in zip(spans, found, strict=True):
            scores.put(part, slice(a, b))

    def measure(k: int) -> Probe:
        cut = tuple(int(n) for n in order[:k])
        scores = Scores.unknown(
            len(base.sigma), None if base.by_class is None else base.by_class.shape[1], engine.reference is not None
        )
        for i, spans in enumerate(looks, 1):
            for fold, own in folds:
                assert compensation is not None  # who has folds
                compensation.use(fold)
                if inside := _within(spans, own):
                    run(cut, inside, scores)
            if not folds:
                run(cut, spans, scores)
            stats = judge.stats(scores, base)
            if i < len(looks) and surely_lost(stats.by_class, SURE).max() > beyond:
                break
        return Probe.of(k, stats, options.alpha, _moved(scores, scale))

    profile = Profile(group.size, measure)
    sets: list[tuple[float, int]] = []
    for margin in margins_of(options.margins):
        sets.append((margin, profile.largest(margin, sets[-1][1] if sets else 0)))
    if options.per != "unit":
        profile.at(group.size - 1)  # the price of the rest
    forget(engine)
    return Measured(group, order, surrogate, profile.sorted(), sets)
