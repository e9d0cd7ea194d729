"""From a path to an artifact: surgery → check → recovery → evaluation → save."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cswap.artifacts.folder import save
from cswap.data.calibration import CalibrationSet
from cswap.evaluate.certificate import Certificate, certificate_of, class_losses
from cswap.evaluate.cost import measure_cost
from cswap.evaluate.quality import measure_quality
from cswap.methods.path import PruningPath
from cswap.pipeline.aim import aimed
from cswap.pipeline.jobs import DataChoice, Source, Wish
from cswap.pipeline.watch import Clock, Watcher
from cswap.recovery import recovered
from cswap.recovery.base import steps_of
from cswap.structure.check import Agreement
from cswap.tasks import Task
from cswap.types import Target

REACHED = "target reached"
UNCOMPENSATED = "joint tested its sets with the layers behind them compensated, and here they are cut alone: --recover lstsq makes the network that was tested"


@dataclass(frozen=True, eq=False)
class Finished:
    """A path and all that is needed to turn it into an artifact."""

    model: nn.Module
    path: PruningPath
    task: Task
    held_out: Any
    calibration: CalibrationSet
    source: Source
    data: DataChoice
    run: dict[str, Any]
    wish: Wish = Wish()
    memory: int = 4 << 30
    unseen: Any = None


def verified_copy(
    model: nn.Module, path: PruningPath, target: Target, inputs: torch.Tensor, round_to: int = 1
) -> tuple[nn.Module, Agreement]:
    """The pruned module and how well it agrees with the masked one; raises MismatchError when it does not."""
    path.example = inputs
    small: Any = path.apply(model, target, round_to)
    agreed: Agreement = small._cswap.agreement
    return small, agreed


def certified(done: Finished, small: nn.Module, device: str) -> Certificate:
    """The certificate of a pruned network, on data that nothing was chosen by. Raises DataError, InputError."""
    classes, options = done.path.classes, done.path.options
    losses = class_losses(done.model, small, done.unseen, done.task, classes, device=device)
    return certificate_of(
        losses, margin=done.wish.margin, alpha=float(options.get("alpha", 0.05)), bound=done.wish.bound,
        seed=int(options.get("seed", 0)),
    )  # fmt: skip


def finish(done: Finished, target: Target, out: Path, device: str, clock: Clock, watcher: Watcher) -> dict[str, Any]:
    """Surgery, check, evaluation, artifact; returns the summary."""
    path, reached, wish = done.path, done.path.ended, done.wish
    sample = done.calibration.inputs(0, 1)
    with clock.phase("aim"):
        aim = aimed(done.model, path, target, sample, round_to=wish.round_to, batch=wish.latency_batch, device=device)
    if target.kind == "latency":
        target_used, reached = aim.target, REACHED
    elif target.value is not None and wish.round_to == 1 and not target.reached(path.ratio):
        reached = f"stopped before the target: {path.ended}"
        target_used = Target("units", path.ratio.units)
    else:
        target_used = target
    with clock.phase("surgery"):
        watcher.phase("surgery")
        inputs = done.calibration.some()
        small, agreed = verified_copy(done.model, path, target_used, inputs, wish.round_to)
    surgery: Any = small._cswap
    if target.value is not None and target.kind != "latency" and target.reached(surgery.ratio):
        reached = REACHED
    if path.method == "joint" and "lstsq" not in steps_of(wish.recover) and surgery.steps:
        path.notes.append(UNCOMPENSATED)
        watcher.note(UNCOMPENSATED)
    recovery = None
    if steps_of(wish.recover) and surgery.steps:
        with clock.phase("recovery"):
            watcher.phase("recovery")
            recovery = recovered(
                small, done.model, done.calibration, wish.recover, task=done.task, device=device, memory=done.memory
            )
            small = recovery.model
    with clock.phase("evaluation"):
        watcher.phase("evaluation")
        models = {"baseline": done.model, "pruned": small}
        quality = measure_quality(models, done.held_out, done.task, len(path.classes), device=device)
    with clock.phase("cost"):
        watcher.phase("cost")
        cost = measure_cost(models, sample, device=device)
    certificate = None
    if done.unseen is not None:
        with clock.phase("certificate"):
            watcher.phase("certificate")
            certificate = certified(done, small, device).as_dict() | {"data": wish.certify}
    summary = {
        "method": path.method,
        "engine": path.engine,
        "notes": path.notes,
        "target": str(target),
        "ended": reached,
        "ratio": surgery.ratio.as_dict(),
        "verdicts": path.verdicts(),
        "classes": list(path.classes),
        **{n: {"quality": quality[n], **cost[n]} for n in models},
        "held_out_samples": len(done.held_out),
        "calibration_samples": len(done.calibration),
        "max_abs_difference": agreed.difference,
        "recovery": None if recovery is None else recovery.as_dict(),
        "round_to": wish.round_to,
        "aim": {"batch": wish.latency_batch, "measured": aim.measured} if aim.measured else None,
        "certificate": certificate,
        "cliffs": [{"step": c.step, "group": c.group, "before": c.before, "after": c.after, "classes": list(c.classes)}
                   for c in path.cliffs],
        "seconds": clock.seconds,
    }  # fmt: skip
    points = [
        {"ratio": {"params": 0.0, "macs": 0.0, "units": 0.0}, **summary["baseline"]},
        {"ratio": summary["ratio"], **summary["pruned"]},
    ]
    save(
        small, out, path=path, factory=done.source.spec, force=True, summary=summary, curve={"points": points},
        details={
            "run": done.run, "source": done.source.as_dict(),
            "data": {k: str(v) if isinstance(v, Path) else v for k, v in vars(done.data).items()},
            "task": done.task.name, "recovery": summary["recovery"], "round_to": wish.round_to, "certificate": certificate,
            "sensitivity": path.sensitivity,
        },
    )  # fmt: skip
    return summary
