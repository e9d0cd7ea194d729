"""LAMP (Lee et al., 2021, arXiv 2010.07611), by units: a squared norm beside those of the group that are not smaller."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import nn

from cswap.data.calibration import CalibrationSet
from cswap.methods.magnitude import magnitude_scores
from cswap.methods.options import Options
from cswap.methods.path import PruningPath
from cswap.methods.ranking import ranking_path
from cswap.methods.registry import register
from cswap.structure.groups import Structure
from cswap.tasks.base import Task
from cswap.types import FloatArray


def lamp_scores(model: nn.Module, units: Structure) -> dict[str, FloatArray]:
    """‖w_u‖² / Σ ‖w_v‖² over the v of u's group with ‖w_v‖ ≥ ‖w_u‖, by group (size,): 1 for the largest of a group, so that a
    global ranking compares groups of any scale. w_u: all weights that write a unit. Equal norms count in the order of units.
    """
    scores = {}
    for name, norms in magnitude_scores(model, units, "l2").items():
        order = np.argsort(norms, kind="stable")[::-1]
        squares = norms[order] ** 2
        total = np.cumsum(squares)
        score = np.empty_like(norms)
        score[order] = np.divide(squares, total, out=np.zeros_like(squares), where=total > 0)
        scores[name] = score
    return scores


@register("lamp")
def lamp(
    model: nn.Module, units: Structure, calibration: CalibrationSet, task: Task, *, options: Options = Options(), **run: Any  # noqa: B008
) -> PruningPath:  # fmt: skip
    """Smallest LAMP score first, per layer or global (what it is made for: scores of all groups as they are)."""
    return ranking_path(
        model,
        units,
        calibration,
        task,
        lamp_scores(model, units),
        method="lamp",
        options=options,
        comparable=True,
        **run,
    )
