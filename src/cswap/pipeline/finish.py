"""From a path to an artifact: surgery → check → recovery → evaluation → save."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cswap.artifacts.folder import save
from cswap.data.calibration import CalibrationSet
from cswap.errors import TargetError
from cswap.evaluate.certificate import (
    Certificate,
    Together,
    certificate_of,
    class_losses,
    in_fixed_order,
    shown,
    whole_losses,
)
from cswap.evaluate.cost import measure_cost
from cswap.evaluate.quality import measure_quality
from cswap.methods.path import PruningPath
from cswap.pipeline.aim import Aim, aimed
from cswap.pipeline.jobs import DataChoice, Source, Wish
from cswap.pipeline.unlabelled import PREDICTED
from cswap.pipeline.watch import Clock, Watcher
from cswap.recovery import Recovery, recovered
from cswap.recovery.base import steps_of
from cswap.structure.check import Agreement
from cswap.tasks import Task
from cswap.types import Target

REACHED = "target reached"
UNCOMPENSATED = "joint tested its sets with the layers behind them compensated, and here they are cut alone: --recover lstsq refits those layers"


DECLINED = (
    "joint tested its sets with the layers behind them compensated; the recovery was declined, so they are cut alone"
)
WATCHED = "cliffs and --max-drop are of the network as it is cut, before anything is given back"


@dataclass(frozen=True, eq=False)
class Finished:
    """A path and all that is needed to turn it into an artifact."""

    model: nn.Module
    path: PruningPath
    task: Task
    held_out: Any
    calibration: CalibrationSet
    recovering: CalibrationSet  # what recoveries are made from: as many samples as were wished
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


def _aimed(done: Finished, target: Target, device: str) -> Aim:
    """What is counted for a target: itself, what a latency was found to take, or the end of a path that stopped before it."""
    path, wish = done.path, done.wish
    if target.kind == "latency":
        first = done.calibration.inputs(0, 1)
        return aimed(done.model, path, target, first, round_to=wish.round_to, batch=wish.latency_batch, device=device)
    if target.value is None:
        return Aim(target, [])
    end = path.prefix(Target("complete"), wish.round_to)[2]
    only_widths = target.reached(path.ratio) and not path.stopped_by_quality  # what `apply` refuses, with what helps
    if target.reached(end) or only_widths:
        return Aim(target, [])
    return Aim(Target("units", end.units), [], reached=False)


@dataclass(frozen=True, eq=False)
class Made:
    """One network of a path: what was asked, how it ended, what was measured on the way, and what is claimed of it."""

    target: Target
    ended: str
    small: nn.Module
    surgery: Any
    agreed: Agreement
    aim: Aim
    recovery: Recovery | None = None
    certificate: Certificate | None = None

    def as_dict(self) -> dict[str, Any]:
        """What is told of it beside others, as plain JSON values."""
        claimed = None if self.certificate is None else self.certificate.as_dict()
        return {"target": str(self.target), "ratio": self.surgery.ratio.as_dict(), "certificate": claimed}


def made(done: Finished, target: Target, device: str, clock: Clock, watcher: Watcher, *, short: bool = True) -> Made:
    """Surgery, check and recovery for one target, and its certificate where one is asked for.

    short: whether the end of a path that stopped before the target may stand for it. Raises TargetError.
    """
    path, wish = done.path, done.wish
    with clock.phase("aim"):
        aim = _aimed(done, target, device)
    if not (aim.reached or short):
        raise TargetError(f"target {target} was not tested: the path stopped before it ({path.ended})")
    with clock.phase("surgery"):
        watcher.phase("surgery")
        small, agreed = verified_copy(done.model, path, aim.target, done.calibration.some(), wish.round_to)
    surgery: Any = small._cswap
    if not aim.reached:
        ended = f"stopped before the target: {path.ended}"
    else:
        ended = path.ended if target.value is None else REACHED
    recovery = None
    if steps_of(wish.recover) and surgery.steps:
        with clock.phase("recovery"):
            watcher.phase("recovery")
            recovery = recovered(
                small, done.model, done.recovering, wish.recover, task=done.task, device=device, memory=done.memory
            )
            small = recovery.model
    found = Made(target, ended, small, surgery, agreed, aim, recovery)
    if done.unseen is None:
        return found
    with clock.phase("certificate"):
        watcher.phase("certificate")
        return replace(found, certificate=certified(done, small, device))


def as_far_as_certified(
    done: Finished, target: Target, device: str, clock: Clock, watcher: Watcher
) -> tuple[Made, list[dict[str, Any]]]:
    """The largest network that is certified, or the smallest where none is, and what is told of all that were tested: from
    the smallest fraction asked for up to and with the first that fails.

    A fraction after the first that the path does not reach ends it too, with a note: no network is tested twice. Raises
    TargetError where nothing can be made of the first.
    """
    kept: list[Made] = []  # one network at a time: the others are told of only
    told: list[dict[str, Any]] = []

    def test(goal: Target) -> Certificate:
        now = made(done, goal, device, clock, watcher, short=not kept)
        assert now.certificate is not None  # several targets go with one
        told.append(now.as_dict())
        if not kept or now.certificate.holds:
            kept[:] = [now]
        return now.certificate

    try:
        in_fixed_order([partial(test, goal) for goal in done.wish.up_to(target)])
    except TargetError as error:
        if not kept:
            raise
        done.path.notes.append(str(error))
        watcher.note(str(error))
    return kept[0], told


def _said_together(found: Together, path: PruningPath) -> str:
    """The whole network's test beside the margins of its sets."""
    name, bound = found.worst
    margins = (path.sensitivity or {}).get("margins") or [0.0]
    inside = next((m for m in margins if bound <= m), None)
    place = f"beyond the last margin, {margins[-1]:g}" if inside is None else f"within the margin {inside:g}"
    return (
        f"all sets together, as the network is written: no class loses more than {shown(bound)} of mean score ({name}; t bound at "
        f"{1 - found.alpha:g}, {found.samples} calibration samples), {place}; they chose it, so --certify is for the claim"
    )


def _unlike_joint(path: PruningPath, wish: Wish, recovery: Recovery | None) -> list[str]:
    """Where the network that is written, or what its path was watched by, is not what `joint` tested."""
    notes = []
    if "lstsq" not in steps_of(wish.recover):
        notes.append(UNCOMPENSATED)
    elif recovery is not None and recovery.declined:
        notes.append(DECLINED)
    if path.cliffs or path.options.get("max_drop") is not None:
        notes.append(WATCHED)
    return notes


def finish(done: Finished, target: Target, out: Path, device: str, clock: Clock, watcher: Watcher) -> dict[str, Any]:
    """Surgery, check, evaluation, artifact; returns the summary. Of several targets the largest that is certified is kept,
    and the smallest where none is."""
    path, wish, sample = done.path, done.wish, done.calibration.inputs(0, 1)
    if wish.smaller:
        kept, told = as_far_as_certified(done, target, device, clock, watcher)
    else:
        kept, told = made(done, target, device, clock, watcher), []
    small, surgery, recovery, together = kept.small, kept.surgery, kept.recovery, None
    if path.method == "joint" and surgery.steps:
        with clock.phase("together"):
            alpha = float(path.options.get("alpha", 0.05))
            together = whole_losses(done.model, small, done.calibration, done.task, alpha=alpha, device=device)
        for note in [*_unlike_joint(path, wish, recovery), _said_together(together, path)]:
            path.notes.append(note)
            watcher.note(note)
    if done.data.unlabelled and PREDICTED not in path.notes:
        path.notes.append(PREDICTED)
        watcher.note(PREDICTED)
    with clock.phase("evaluation"):
        watcher.phase("evaluation")
        models = {"baseline": done.model, "pruned": small}
        quality = measure_quality(models, done.held_out, done.task, len(path.classes), device=device)
    with clock.phase("cost"):
        watcher.phase("cost")
        cost = measure_cost(models, sample, device=device)
    certificate = None
    if kept.certificate is not None:
        certificate = kept.certificate.as_dict() | {"data": wish.certify}
        if wish.smaller:
            certificate |= {"asked": [str(t) for t in wish.up_to(target)], "targets": told}
    summary = {
        "method": path.method,
        "engine": path.engine,
        "notes": path.notes,
        "target": str(kept.target),
        "ended": kept.ended,
        "ratio": surgery.ratio.as_dict(),
        "verdicts": path.verdicts(),
        "classes": list(path.classes),
        **{n: {"quality": quality[n], **cost[n]} for n in models},
        "held_out_samples": len(done.held_out),
        "calibration_samples": len(done.calibration),
        "max_abs_difference": kept.agreed.difference,
        "recovery": None if recovery is None else recovery.as_dict() | {"per_class": wish.recover_per_class},
        "round_to": wish.round_to,
        "aim": {"batch": wish.latency_batch, "measured": kept.aim.measured} if kept.aim.measured else None,
        "certificate": certificate,
        "together": None if together is None else together.as_dict(),
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
