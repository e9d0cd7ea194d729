"""The ideal greedy: score every unit again after each removal, remove the best. O(m·N): for small networks (method.md)."""

from __future__ import annotations

from torch import nn

from cswap.causal.compensation import forget
from cswap.causal.engine import Scores, refuse_near_chance
from cswap.causal.judge import Judge, Judgement
from cswap.causal.replay import engine_for
from cswap.data.calibration import CalibrationSet
from cswap.errors import TargetError
from cswap.methods.options import Options
from cswap.methods.path import NOTHING_LEFT, PruningPath, Silence, Sink, Start
from cswap.methods.registry import register
from cswap.methods.watch import QualityWatch
from cswap.structure.groups import Structure
from cswap.structure.ledger import Ledger, check_reachable
from cswap.tasks.base import Task
from cswap.types import Decision, Target


@register("greedy")
def greedy(
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
    """Remove, one after the other, the unit whose cut leaves the calibration set the best on the network as it stands.

    Best: least loss of the summed score, with `--per params` or `macs` a parameter or MAC that goes with the unit (ours); a unit
    whose cut loses nothing goes before any that does, the largest gain first; a decision's `score` is that gain. Ties
    by group and index. Raises DataError, TargetError (`noncritical`: verdicts change with every removal).
    """
    if target.kind == "noncritical":
        raise TargetError("target noncritical: greedy has no fixed verdicts; expected params=F, macs=F or units=F")
    check_reachable(units, target)
    sink = sink or Silence()
    engine = engine_for(
        model,
        units,
        calibration,
        task,
        device=device,
        memory=memory,
        vote_score=options.vote_score,
        amp=options.amp,
        cut=options.cut,
    )
    path = PruningPath(units, "greedy", options.as_dict(), calibration.classes, engine=engine.name, ended=NOTHING_LEFT)
    sink.note(engine.name)
    original = engine.scores()
    refuse_near_chance(original, calibration, task)
    watch = QualityWatch(original, calibration.targets, calibration.classes, units.units, sink)
    ledger, judge = Ledger(units), Judge(calibration, options.rule, options.xi_floor)
    for d in start.decisions:
        path.decisions.append(d)
        ledger.remove(units[d.group], d.unit)
        engine.remove(d.group, [d.unit])
        forget(engine)
    if start.decisions and start.kept is not None:
        watch.restore(start.kept.watched)
    elif start.decisions:
        watch.restart(len(start.decisions), engine.scores())
        watch.cliffs = list(start.cliffs)
    while not target.reached(ledger.ratio()):
        best: tuple[tuple[bool, float], str, int, Judgement, Scores] | None = None  # key: loses, gain
        for group in units:
            gone = ledger.gone(group.name)
            left = [n for n in range(group.size) if n not in gone and not ledger.last(group, [n])]
            if not left:
                continue
            engine.enter(group)
            base = engine.scores(group)
            cost = 1.0 if options.per == "unit" else ledger.cost_of(group, options.per)
            for n, scores in zip(left, engine.cut(group, [[n] for n in left]), strict=True):
                change = float((scores.sigma - base.sigma).sum())
                key = (change < 0, change / cost if change < 0 else change)
                if best is None or (key[0], -key[1]) < (best[0][0], -best[0][1]):
                    best = key, group.name, n, judge.judge(scores, base), scores
        if best is None:
            break
        (_, gain), name, n, found, after = best
        quality = float(after.quality.mean())
        drop = watch.base - quality
        if options.max_drop is not None and drop > options.max_drop + 1e-12:
            path.ended = f"max-drop: removing the next unit would cost {drop:.4f} of calibration quality"
            break
        ledger.remove(units[name], n)
        engine.remove(name, [n])
        forget(engine)  # compensation is of the network as it stands
        decision = Decision(
            step=len(path) + 1, phase="pick", group=name, unit=n, removed=True, reason="best of all that were left",
            verdict=found.verdict, xi=found.xi, score=gain, effects=found.effects, ratio=ledger.ratio(), quality=quality,
            knife_edge=found.knife_edge,
        )  # fmt: skip
        path.decisions.append(decision)
        watch.saw(decision.step, decision.step, name, after)
        sink.keep(decision.step, after, watch.state())
        sink.decided(decision, found.stats)
    else:
        path.ended = "target reached"
    path.cliffs, path.notes = watch.cliffs, list(engine.notes)
    return path
