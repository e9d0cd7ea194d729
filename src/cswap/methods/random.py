"""Random pruning: the floor every method must beat."""

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
from cswap.tasks.base import Task


@register("random")
def random(
    model: nn.Module, units: Structure, calibration: CalibrationSet, task: Task, *, options: Options = Options(), **run: Any  # noqa: B008
) -> PruningPath:  # fmt: skip
    """Scores drawn uniformly with the seed, per layer or global."""
    rng = np.random.default_rng(options.seed)
    scores = {g.name: rng.random(g.size) for g in units}
    return ranking_path(model, units, calibration, task, scores, method="random", options=options, **run)
