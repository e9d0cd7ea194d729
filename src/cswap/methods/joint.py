"""`joint`: what goes is tested together, after compensation, against the ORIGINAL network, within a margin for every class."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from torch import nn

from cswap.causal.compensation import compensation_of, forget
from cswap.causal.engine import Engine, Job, Scores, refuse_near_chance
from cswap.causal.evaluation import class_spans
from cswap.causal.judge import Judge
from cswap.causal.margins import Probe, Profile, lower_hull, margins_of, surely_lost
from cswap.causal.replay import engine_for
from cswap.data.calibration import CalibrationSet
from cswap.errors import DataError, InputError, TargetError
from cswap.linear.elimination import Inverse
from cswap.methods.options import Options
from cswap.methods.path import PruningPath, Silence, Sink, Start
from cswap.methods.ranking import Ranked, cheapest_first, remove_in_order
from cswap.methods.registry import register
from cswap.methods.surrogate import Order, orders_of
from cswap.structure.groups import Group, Structure
from cswap.structure.ledger import Ledger, check_reachable
from cswap.tasks.base import Task
from cswap.types import FloatArray, IntArray, Target

FEWEST = 8
"""Samples of a class that a first look needs."""
SURE = 1e-3
"""Error rate at which the first look, alone, says that a class loses more than the largest margin."""


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
) -> PruningPath:
    """A surrogate (`options.surrogate`) puts each group's units in order; bisection finds the largest prefix whose JOINT compensated cut costs
    no class more than τ of mean score for each of `margins`, from what the one before it gave: the one-sided paired t bound at 1 − alpha, on the
    samples that the order and the compensation came from too, so a rule that chooses and no claim (with few samples a class the true loss may be
    larger).

    Between groups: equal margin (`per` unit), or the measured `price` a parameter, MAC or millisecond (`per`): see `by_price`. A cut that a quarter of the samples shows to be far beyond the last margin is not looked at on the others.
    Units beyond the last margin follow by the same rule, and a note says of how many groups. Effects are of a group at a time; what groups do to each
    other, and what new samples lose, is for `--certify` to bound. `max_drop` and cliffs are of the network as it is cut. Source: ours.
    Raises TargetError for `noncritical`, DataError, InputError.
    """
    if target.kind == "noncritical":
        raise TargetError("target noncritical: joint tests sets of units; expected params=F, macs=F or units=F")
    check_reachable(units, target)
    sink = sink or Silence()
    kept: dict[str, Inverse] = {}
    known = {name: _read(units[name], found) for name, found in start.tested.items()}
    began, orders = time.perf_counter(), dict[str, Order]()
    if len(known) < len(units):
        orders = orders_of(model, units, calibration, task, options, device=device, memory=memory, kept=kept)
    engine = engine_for(
        model, units, calibration, task, device=device, memory=memory, vote_score=options.vote_score, amp=options.amp,
        cut="compensated",
    )  # fmt: skip
    compensation = compensation_of(engine)
    if compensation is not None:
        compensation.known = kept  # the same moments, of the same network
        if options.folds > 1:
            compensation.split(_folds(engine, options.folds))
    base = engine.scores()
    refuse_near_chance(base, calibration, task)
    sink.note(engine.name)
    found: list[Measured] = []
    # from the input to the output: what a group's cuts are replayed from is near what the one before it was
    for group in reversed(units.groups):
        if group.name not in known:
            told = len(engine.notes)
            measured = _measured(engine, base, group, *orders[group.name], options)
            known[group.name] = replace(measured, notes=engine.notes[told:])
            now = time.perf_counter()
            record = known[group.name].as_dict() | {"seconds": round(now - began, 3)}
            sink.tested(group.name, record, len(found) + 1, len(units))
            began = now
        else:
            engine.notes += [n for n in known[group.name].notes if n not in engine.notes]
        found.insert(0, known[group.name])
    engine.leave()
    kept.clear()
    plain = engine_for(model, units, calibration, task, device=device, memory=memory, vote_score=options.vote_score)
    path = PruningPath(units, "joint", options.as_dict(), calibration.classes, engine=engine.name)
    path.sensitivity = {
        "margins": list(margins_of(options.margins)), "alpha": options.alpha, "samples": len(calibration),
        "groups": {g.group.name: g.as_dict() for g in found},
    }  # fmt: skip
    order = by_margin(found) if options.per == "unit" else by_price(found, units, options.per, options.price)
    # in another precision than `plain`'s they would be no baseline for `max_drop`
    unpruned = None if options.amp else base
    remove_in_order(plain, path, order, target, options, start, sink, unpruned=unpruned)
    path.notes = list(dict.fromkeys([*engine.notes, *path.notes]))
    if target.kind != "complete":
        path.notes += _beyond(path, found)
    return path


def _beyond(path: PruningPath, groups: Iterable[Measured]) -> list[str]:
    """What to say where groups gave more units than any set that was within a margin."""
    gone = Counter(d.group for d in path if d.removed)
    last = [(g.group, *g.sets[-1]) for g in groups]
    more = [(group.name, gone[group.name], most) for group, _, most in last if gone[group.name] > most]
    if not more:
        return []
    name, units, most = max(more, key=lambda m: m[1] - m[2])
    return [
        f"{len(more)} of {len(last)} groups give more units than their largest set within the last margin, {last[0][1]:g} (most {name}: {units}, the set {most}): "
        "no joint test says that their classes keep their score"
    ]


@dataclass(frozen=True, eq=False)
class Measured:
    """One group: units in order (size,), the surrogate's scores in that order (size,), joint cuts measured, how many
    units may go within each margin (ascending), and what the engine noted."""

    group: Group
    order: IntArray
    surrogate: FloatArray
    probes: list[Probe]
    sets: list[tuple[float, int]]
    notes: list[str] = field(default_factory=list)

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
            [str(n) for n in record.get("notes", ())],
        )  # fmt: skip

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values: quality lost against how much of the group went, and all that `of` needs."""
        return {
            "size": self.group.size, "order": self.order.tolist(), "surrogate": self.surrogate.tolist(),
            "sets": [list(s) for s in self.sets],
            "probes": [{"ratio": p.units / self.group.size, **p.as_dict()} for p in self.probes], "notes": self.notes,
        }  # fmt: skip


def _read(group: Group, found: Mapping[str, Any]) -> Measured:
    """What an earlier run measured. Raises InputError."""
    try:
        return Measured.of(group, found)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"resume: the tests of {group.name} cannot be read ({error!r}); --force starts again"
        ) from None


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
    engine: Engine, base: Scores, group: Group, order: IntArray, surrogate: FloatArray, options: Options
) -> Measured:
    """Joint cuts of the group alone, on the original network, whose scores are `base`."""
    engine.enter(group)
    if engine.amp:
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
        scores = Scores.unknown(len(base.sigma), None if base.by_class is None else base.by_class.shape[1])
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
        return Probe.of(k, stats, options.alpha)

    profile = Profile(group.size, measure)
    sets: list[tuple[float, int]] = []
    for margin in margins_of(options.margins):
        sets.append((margin, profile.largest(margin, sets[-1][1] if sets else 0)))
    if options.per != "unit":
        profile.at(group.size - 1)  # the price of the rest
    forget(engine)
    return Measured(group, order, surrogate, profile.sorted(), sets)


def by_margin(groups: Iterable[Measured]) -> list[Ranked]:
    """Equal margin: units in the order of the margin that lets them go; within a step by the surrogate's share."""
    keyed = []
    for place, g in enumerate(groups):
        before, first = 0.0, 0
        for margin, last in [*g.sets, (1.0, g.group.size)]:
            for i, share in enumerate(g.shares(first, last)):
                key = before + (margin - before) * float(share)
                inside = margin < 1.0
                reason = f"its group's set within a margin of {margin:g}" if inside else "beyond the last margin"
                unit = int(g.order[first + i])
                keyed.append((key, place, first + i, Ranked(g.group.name, unit, reason, key)))
            before, first = margin, last
    return [r for *_, r in sorted(keyed, key=lambda k: k[:3])]


def by_price(groups: Iterable[Measured], units: Structure, per: str, price: str) -> list[Ranked]:
    """The least `price` a parameter, MAC or millisecond at each step, as the network stands there: each group's prices by their lower
    hull, shared out inside a step by the surrogate.

    price: `change`, the mean square of what a cut does to the score, which is never lost in the noise of few samples as a small mean loss is,
    and adds up over groups that change the score independently; or `loss`, the mean score lost. Source: ours.
    """
    waiting: dict[str, list[tuple[float, int]]] = {}
    losses: dict[tuple[str, int], float] = {}
    for g in groups:
        worst, points = 0.0, [(0.0, 0.0)]
        for p in g.probes:
            worst = max(worst, p.change if price == "change" else p.loss)
            points.append((float(p.units), worst))
        hull = lower_hull([*points, (float(g.group.size), max(1.0, worst))])
        queue = waiting[g.group.name] = []
        for (a, low), (b, high) in itertools.pairwise(hull):
            first, last = int(a), int(b)
            steps = np.diff(np.concatenate([[0.0], g.shares(first, last)])) * (high - low)
            for i, step in enumerate(steps.tolist()):
                unit = int(g.order[first + i])
                queue.append((step, unit))
                losses[g.group.name, unit] = low + float(steps[: i + 1].sum())
    order = cheapest_first(Ledger(units), waiting, per)
    what = {"params": "parameter", "macs": "MAC", "latency": "millisecond"}[per]
    return [Ranked(g, n, f"least joint {price} a {what}", losses[g, n]) for g, n in order]
