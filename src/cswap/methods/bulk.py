"""C-BP: causal bulk pruning. Every unit is tested on the ORIGINAL network, ranked, and removed in bulk (method.md)."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from cswap.causal.engine import Engine
from cswap.causal.judge import Judge, Judgement
from cswap.causal.replay import engine_for
from cswap.causal.store import DifferenceStore
from cswap.data.calibration import CalibrationSet
from cswap.methods.buffer import ordered
from cswap.methods.options import Options
from cswap.methods.path import NOTHING_LEFT, PruningPath, Silence, Sink, Start
from cswap.methods.ranking import Ranked, remove_in_order
from cswap.methods.registry import register
from cswap.structure.groups import Group, Structure
from cswap.structure.ledger import Ledger, check_reachable
from cswap.tasks.base import Task
from cswap.types import Decision, Target, Verdict


@register("cbp")
def cbp(
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
    store: DifferenceStore | None = None,
) -> PruningPath:
    """Non-critical units first, then by largest signed ξ (or smallest |ξ|, `buffer_order`); ties by group and index.

    `store`: differences measured before, so that the tests need no network. Of a duplicated pair of units each alone is not
    needed, so both go: what C-SWAP is there to avoid. Raises DataError, TargetError.
    """
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
    path = PruningPath(units, "cbp", options.as_dict(), calibration.classes, engine=engine.name)
    sink.note(engine.name)
    known = {(d.group, d.unit): d for d in start.decisions if d.phase == "test"}
    judge = Judge(calibration, options.rule, options.xi_floor)
    for group in units:
        todo = [n for n in range(group.size) if (group.name, n) not in known]
        if engine.enters_known and not todo:
            engine.enter(group)
        path.decisions += [known[group.name, n] for n in range(group.size) if (group.name, n) in known]
        for n, found in _judged(engine, judge, group, todo, store):
            decision = Decision(
                step=len(path) + 1, phase="test", group=group.name, unit=n, removed=False, reason="tested on the original network",
                verdict=found.verdict, xi=found.xi, score=found.xi, effects=found.effects, knife_edge=found.knife_edge,
            )  # fmt: skip
            path.decisions.append(decision)
            sink.decided(decision, found.stats)
    engine.leave()
    place = {g.name: i for i, g in enumerate(units)}
    # what no class needs by gain, as without a choice of order; what some class needs as the buffer goes
    tested = sorted(path.decisions, key=lambda d: (place[d.group], d.unit))
    free = sorted((d for d in tested if d.verdict is not Verdict.CRITICAL), key=lambda d: -(d.xi or 0.0))
    ledger = Ledger(units)
    for d in free:
        if not ledger.last(units[d.group], [d.unit]):
            ledger.remove(units[d.group], d.unit)
    order = free + ordered([d for d in tested if d.verdict is Verdict.CRITICAL], ledger, options)
    if target.kind == "noncritical":
        order = [d for d in order if d.verdict is not Verdict.CRITICAL]
    ranked = [Ranked(d.group, d.unit, _why(d), d.xi or 0.0, d.verdict, d.xi, d.effects) for d in order]
    path = remove_in_order(engine, path, ranked, target, options, start, sink)
    if target.kind == "noncritical" and path.ended == NOTHING_LEFT:
        path.ended = "every unit was tested"  # those that some class needs are left, and a larger target goes on
    return path


def _judged(
    engine: Engine, judge: Judge, group: Group, todo: list[int], store: DifferenceStore | None
) -> Iterator[tuple[int, Judgement]]:
    """Effects of units on the network as it stands, batch by batch."""
    if store is not None:
        yield from ((n, store.judge(group.name, n, judge.rule, xi_floor=judge.xi_floor)) for n in todo)
        return
    for n, scores, base in engine.one_by_one(group, todo):
        yield n, judge.judge(scores, base)


def _why(d: Decision) -> str:
    return "hurts least of the critical" if d.verdict is Verdict.CRITICAL else f"{d.verdict} on the original network"
