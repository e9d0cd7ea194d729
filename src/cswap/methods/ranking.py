"""From scores to a path: what every method that ranks units has in common."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import nn

from cswap.causal.engine import refuse_near_chance
from cswap.causal.replay import engine_for
from cswap.data.calibration import CalibrationSet
from cswap.errors import TargetError
from cswap.methods.options import Options
from cswap.methods.path import PruningPath, Silence, Sink, Start
from cswap.methods.watch import QualityWatch
from cswap.structure.groups import Structure
from cswap.structure.ledger import Ledger, check_reachable
from cswap.tasks.base import Task
from cswap.types import Decision, FloatArray, Target

_CHECKS = 50  # looks at calibration quality over a complete path


def removal_order(units: Structure, scores: Mapping[str, FloatArray], scope: str) -> list[tuple[str, int]]:
    """(group, unit), lowest score first; ties by group and index.

    scope="layer": every group shrinks at the same pace, by rank within the group. scope="global": one ranking, each
    group's scores divided by their mean so that layers of different scale compare (ours; the usual normalisation).
    """
    keyed = []
    for place, group in enumerate(units):
        own = np.asarray(scores[group.name], dtype=np.float64)
        if own.shape != (group.size,):
            raise ValueError(f"group {group.name}: expected {group.size} scores, got shape {own.shape}")
        if scope == "layer":
            rank = np.empty(group.size)
            rank[np.argsort(own, kind="stable")] = (np.arange(group.size) + 1) / group.size
            key = rank
        else:
            key = own / own.mean() if own.mean() else own
        keyed += [(float(key[n]), place, n, group.name) for n in range(group.size)]
    return [(name, n) for _, _, n, name in sorted(keyed)]


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
) -> PruningPath:
    """Remove units from the lowest score (size,) of each group up to the target.

    The calibration set does not choose units here; it is watched for a cliff and for `max_drop`. Raises TargetError for
    `noncritical`: a ranking has no verdicts.
    """
    if target.kind == "noncritical":
        raise TargetError(f"target noncritical: {method} gives no verdicts; expected params=F, macs=F or units=F")
    check_reachable(units, target)
    sink = sink or Silence()
    engine = engine_for(model, units, calibration, task, device=device, memory=memory)
    first = engine.scores()
    refuse_near_chance(first, calibration, task)
    watch = QualityWatch(first, calibration.targets, calibration.classes, units.units, sink)
    path = PruningPath(
        units, method, options.as_dict(), calibration.classes, ended="nothing is left to remove", engine=engine.name
    )
    ledger, every = Ledger(units), 1 if options.max_drop is not None else max(1, units.units // _CHECKS)
    known = {(d.group, d.unit): d for d in start.decisions}
    for i, (name, unit) in enumerate(removal_order(units, scores, options.scope)):
        if target.reached(ledger.ratio()):
            path.ended = "target reached"
            break
        group = units[name]
        if ledger.kept(group) == 1:
            continue
        engine.remove(name, [unit])
        quality = None
        if (i + 1) % every == 0:
            now = engine.scores()
            drop = watch.saw(i + 1, len(path) + 1, name, now)
            quality = float(now.quality.mean())
            if options.max_drop is not None and drop > options.max_drop + 1e-12:
                path.ended = f"max-drop: removing the next unit would cost {drop:.4f} of calibration quality"
                break
        ledger.remove(group, unit)
        decision = Decision(
            step=len(path) + 1, phase="rank", group=name, unit=unit, removed=True, reason=f"lowest {method} score",
            score=float(scores[name][unit]), ratio=ledger.ratio(), quality=quality,
        )  # fmt: skip
        path.decisions.append(decision)
        if (name, unit) not in known:
            sink.decided(decision, None)
    path.cliffs = watch.cliffs
    return path
