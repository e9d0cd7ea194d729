"""Magnitude pruning in one shot (OMP): the norm of the weights that write a unit (Li et al., 2017, arXiv 1608.08710)."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import nn

from cswap.data.calibration import CalibrationSet
from cswap.methods.options import Options
from cswap.methods.path import PruningPath
from cswap.methods.ranking import ranking_path
from cswap.methods.registry import register
from cswap.structure.groups import Structure
from cswap.structure.surgery import prepared_copy
from cswap.tasks.base import Task
from cswap.types import FloatArray


def magnitude_scores(model: nn.Module, units: Structure, norm: str = "l1") -> dict[str, FloatArray]:
    """L1 or L2 norm, by group (size,), of all weights that write each unit, over all its producers."""
    scores, model = {}, prepared_copy(model, units)
    for group in units:
        total = np.zeros(group.size)
        for slot in group.producers:
            (tensor, dim), *_ = units.layers[slot.module].axes["out"]
            weight = model.get_submodule(slot.module).get_parameter(tensor).detach().double().cpu()
            rows = weight.movedim(dim, 0).flatten(1)
            a_row = (rows.abs() if norm == "l1" else rows**2).sum(1).numpy()
            np.add.at(total, slot.owner, a_row[slot.positions])
        scores[group.name] = total if norm == "l1" else np.sqrt(total)
    return scores


@register("magnitude")
def magnitude(
    model: nn.Module, units: Structure, calibration: CalibrationSet, task: Task, *, options: Options = Options(), **run: Any  # noqa: B008
) -> PruningPath:  # fmt: skip
    """Smallest L1 (or L2) norm first, per layer or global."""
    scores = magnitude_scores(model, units, options.norm)
    return ranking_path(model, units, calibration, task, scores, method="magnitude", options=options, **run)
