"""The path of a method for a model in memory."""

from __future__ import annotations

from typing import Any

from torch import nn

from cswap.data.calibration import CalibrationSet
from cswap.errors import InputError, StructureError
from cswap.methods import registry
from cswap.methods.options import Options
from cswap.methods.path import PruningPath, Silence, Sink, Start
from cswap.pipeline.checks import refuse_routed, refuse_unsteady, task_named
from cswap.pipeline.jobs import Machine, check_options
from cswap.pipeline.pace import paced
from cswap.structure.discover import discover
from cswap.structure.fit import copied
from cswap.structure.groups import Structure
from cswap.tasks import Task, completed
from cswap.types import Target


def prune_path(
    model: nn.Module,
    calibration: CalibrationSet,
    *,
    task: Task | None = None,
    method: str = "cswap",
    target: Target | str = Target("complete"),  # noqa: B008 — frozen
    structure: Structure | None = None,
    sink: Sink | None = None,
    device: str = "auto",
    memory: int = 4 << 30,
    **options: Any,
) -> PruningPath:
    """The path of a method for a model in memory; `model` and the random state are untouched.

    With per="latency" each group is timed first, at batch 1, where `structure` has no `pace`. By default the path is complete, so that any target lies on it; a `target` (or "noncritical") stops it there.

    `options`: fields of `Options` (alpha=0.05, vote="class", …). Raises InputError, StructureError, DataError.
    """
    try:
        chosen = Options(**options)
    except TypeError as error:
        raise InputError(f"prune_path: {error}") from None
    check_options(method, chosen)
    chosen_task = completed(task) if task is not None else task_named("classification")
    structure = _fitting(model, calibration, structure)
    if not structure.groups:
        raise StructureError("nothing can be pruned in this model")
    if chosen.per == "latency" and not structure.pace:
        structure = paced(model, structure, calibration.inputs(0, 1), device=Machine(device).torch_device)
    path = registry.call(
        method, model, structure, calibration, chosen_task, target=Target.parse(target), options=chosen, start=Start(),
        sink=sink or Silence(), device=Machine(device).torch_device, memory=memory,
    )  # fmt: skip
    path.example = calibration.some()
    return path


def _fitting(model: nn.Module, calibration: CalibrationSet, structure: Structure | None) -> Structure:
    """The structure given or found, of a network whose outputs are each sample's own. Raises ModelError, StructureError."""
    still = copied(model).eval()
    refuse_unsteady(still, calibration)
    structure = structure or discover(model, calibration.some(2))
    refuse_routed(still, structure, calibration)
    return structure
