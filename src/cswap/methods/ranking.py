"""From scores to a path: what every method that ranks units has in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn

from cswap.causal.engine import Engine, Scores, refuse_near_chance
from cswap.causal.replay import engine_for
from cswap.data.calibration import CalibrationSet
from cswap.errors import InputError, TargetError
from cswap.methods.options import Options
from cswap.methods.path import NOTHING_LEFT, PruningPath, Silence, Sink, Start
from cswap.methods.watch import QualityWatch
from cswap.structure.groups import Structure
from cswap.structure.ledger import Ledger, check_reachable
from cswap.tasks.base import Task
from cswap.types import Decision, FloatArray, Target, UnitEffects, Verdict

_CHECKS = 20  # looks at calibration quality over a complete path


def removal_order(
    units: Structure, scores: Mapping[str, FloatArray], scope: str, per: str = "unit"
) -> list[tuple[str, int]]:
    """(group, unit), lowest score first; ties by group and index.

    scope="layer": every group shrinks at the same pace, by rank within the group. scope="global": one ranking, each
    group's scores divided by their mean so that layers of different scale compare (the usual normalisation). scope="raw":
    one ranking of the scores as they are, for scores that layers have in common. With per="params", "macs" or "latency" the scores as
    they are, divided by what a unit takes with it as the network stands at that step (ours).
    """
    own = {g.name: np.asarray(scores[g.name], dtype=np.float64) for g in units}
    for group in units:
        if own[group.name].shape != (group.size,):
            raise ValueError(f"group {group.name}: expected {group.size} scores, got shape {own[group.name].shape}")
    if per != "unit":
        if scope != "global":
            raise InputError(f"per: {per} goes with --scope global, got --scope {scope}")
        waiting = {g: [(float(s[n]), n) for n in np.argsort(s, kind="stable").tolist()] for g, s in own.items()}
        order = cheapest_first(Ledger(units), waiting, per)
        first = set(order)
        return order + [(g.name, n) for g in units for _, n in waiting[g.name] if (g.name, n) not in first]
    keyed = []
    for place, group in enumerate(units):
        score = own[group.name]
        if scope == "layer":
            key = np.empty(group.size)
            key[np.argsort(score, kind="stable")] = (np.arange(group.size) + 1) / group.size
        else:
            key = score / score.mean() if scope == "global" and score.mean() else score
        keyed += [(float(key[n]), place, n, group.name) for n in range(group.size)]
    return [(name, n) for _, _, n, name in sorted(keyed)]


def cheapest_first(
    ledger: Ledger, waiting: Mapping[str, Sequence[tuple[float, int]]], per: str
) -> list[tuple[str, int]]:
    """(group, unit): the least score a parameter, MAC or millisecond that goes (`per`) at each step, as the network stands there (ours).

    waiting: (score, unit) by group, lowest first. ledger: what is gone already; it is used up. Groups keep a unit.
    """
    units = ledger.structure
    beside: dict[str, set[str]] = {}
    for group in units:
        for slot in group.slots:
            beside.setdefault(slot.module, set()).add(group.name)
    place = {g.name: i for i, g in enumerate(units)}
    queues = {name: list(queue) for name, queue in waiting.items()}
    costs = {name: ledger.cost_of(units[name], per) for name in queues}
    order: list[tuple[str, int]] = []
    while still := [n for n, q in queues.items() if q and ledger.kept(units[n]) > 1]:
        name = min(still, key=lambda n: (queues[n][0][0] / costs[n], place[n]))
        unit = queues[name].pop(0)[1]
        if ledger.last(units[name], [unit]):
            continue
        ledger.remove(units[name], unit)
        order.append((name, unit))
        for other in {o for s in units[name].slots for o in beside[s.module]} & set(queues):
            costs[other] = ledger.cost_of(units[other], per)
    return order


@dataclass(frozen=True, eq=False)
class Ranked:
    """One unit in its place of a ranking, with what is known of it."""

    group: str
    unit: int
    reason: str
    score: float
    verdict: Verdict | None = None
    xi: float | None = None
    effects: UnitEffects | None = None


def ranking_path(
    model: nn.Module,
    units: Structure,
    calibration: CalibrationSet,
    task: Task,
    scores: Mapping[str, FloatArray],
    *,
    method: str,
    target: Target = Target("complete"),  # noqa: B008 — frozen
    options: Options = Options(),  # noqa: B008 — frozen
    start: Start = Start(),  # noqa: B008 — frozen
    sink: Sink | None = None,
    device: str = "cpu",
    memory: int = 4 << 30,
    comparable: bool = False,
) -> PruningPath:
    """Remove units from the lowest score (size,) of each group up to the target.

    comparable: the method makes scores of one scale for all groups, so a global ranking takes them as they are. The calibration set does not choose units here; it is watched for a cliff and for `max_drop`. Raises TargetError for
    `noncritical`: a ranking has no verdicts.
    """
    if target.kind == "noncritical":
        raise TargetError(f"target noncritical: {method} gives no verdicts; expected params=F, macs=F or units=F")
    check_reachable(units, target)
    sink = sink or Silence()
    engine = engine_for(model, units, calibration, task, device=device, memory=memory)
    path = PruningPath(units, method, options.as_dict(), calibration.classes, engine=engine.name)
    scope = "raw" if comparable and (options.scope, options.per) == ("global", "unit") else options.scope
    order = [
        Ranked(name, n, f"lowest {method} score", float(scores[name][n]))
        for name, n in removal_order(units, scores, scope, options.per)
    ]
    return remove_in_order(engine, path, order, target, options, start, sink)


def remove_in_order(
    engine: Engine, path: PruningPath, order: Sequence[Ranked], target: Target, options: Options, start: Start, sink: Sink,
    unpruned: Scores | None = None,
) -> PruningPath:  # fmt: skip
    """Remove units one after the other, each group keeping one, up to the target; `path` is extended and returned.

    Calibration quality is looked at now and then (with `max_drop`, after every unit). Decisions that `start` has are not
    told to the sink again. unpruned: scores of the network before anything goes, where they are known.
    """
    units, calibration = engine.structure, engine.calibration
    first = engine.scores() if unpruned is None else unpruned
    refuse_near_chance(first, calibration, engine.task)
    watch = QualityWatch(first, calibration.targets, calibration.classes, units.units, sink)
    ledger, every = Ledger(units), 1 if options.max_drop is not None else max(1, units.units // _CHECKS)
    path.ended = NOTHING_LEFT
    for i, r in enumerate(order):
        if target.reached(ledger.ratio()):
            path.ended = "target reached"
            break
        group = units[r.group]
        if ledger.last(group, [r.unit]):
            continue
        engine.remove(r.group, [r.unit])
        quality = None
        if (i + 1) % every == 0:
            now = engine.scores()
            quality = float(now.quality.mean())
            drop = watch.base - quality
            if options.max_drop is not None and drop > options.max_drop + 1e-12:
                path.ended = f"max-drop: removing the next unit would cost {drop:.4f} of calibration quality"
                break
            watch.saw(i + 1, len(path) + 1, r.group, now)
        ledger.remove(group, r.unit)
        decision = Decision(
            step=len(path) + 1, phase="rank", group=r.group, unit=r.unit, removed=True, reason=r.reason, score=r.score,
            verdict=r.verdict, xi=r.xi, effects=r.effects, ratio=ledger.ratio(), quality=quality,
        )  # fmt: skip
        path.decisions.append(decision)
        if decision.step > len(start.decisions):
            sink.decided(decision, None)
    else:
        if target.reached(ledger.ratio()):
            path.ended = "target reached"
    path.cliffs, path.notes = watch.cliffs, list(engine.notes)
    return path
