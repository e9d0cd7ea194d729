"""Taylor ranking: what the score loses, to first order, when a unit's activations go to zero.

`taylor`: mean over samples of |Σ a · ∂σ/∂a|, over all places where a weight reads the unit (Molchanov et al., 2017,
arXiv 1611.06440). `taylor2`: mean of the squares (Molchanov et al., 2019, arXiv 1906.10771). σ is the task's score, where
the papers take the loss; all calibration samples are used.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import nn

from cswap.causal.cut import PlainEngine
from cswap.causal.first_order import first_order_batches
from cswap.data.calibration import CalibrationSet
from cswap.methods.options import Options
from cswap.methods.path import PruningPath
from cswap.methods.ranking import ranking_path
from cswap.methods.registry import register
from cswap.methods.relevance import mean_scores
from cswap.structure.groups import Structure
from cswap.tasks.base import Task
from cswap.types import FloatArray


def taylor_scores(
    model: nn.Module,
    units: Structure,
    calibration: CalibrationSet,
    task: Task,
    *,
    method: str = "taylor",
    device: str = "cpu",
    memory: int = 4 << 30,
) -> dict[str, FloatArray]:
    """First-order scores by group (size,): absolute for `taylor`, squared for `taylor2`; `model` is untouched.

    One forward and backward pass over the calibration set. Raises MethodError when σ has no gradient on any sample, and for what is not laid out by samples.
    """
    engine = PlainEngine(model, units, calibration, task, device=device, memory=memory)
    changes = first_order_batches(engine, units.groups, np.arange(len(calibration)))
    return mean_scores(method, units, (c for _, c in changes), power=2 if method == "taylor2" else 1)


def _path(
    method: str, model: nn.Module, units: Structure, calibration: CalibrationSet, task: Task, options: Options, device: str, memory: int, run: Any
) -> PruningPath:  # fmt: skip
    machine: dict[str, Any] = {"device": device, "memory": memory}
    scores = taylor_scores(model, units, calibration, task, method=method, **machine)
    return ranking_path(model, units, calibration, task, scores, method=method, options=options, **machine, **run)


@register("taylor")
def taylor(
    model: nn.Module, units: Structure, calibration: CalibrationSet, task: Task, *, options: Options = Options(), device: str = "cpu", memory: int = 4 << 30, **run: Any  # noqa: B008
) -> PruningPath:  # fmt: skip
    """Smallest mean |first-order change of σ| first, per layer or global."""
    return _path("taylor", model, units, calibration, task, options, device, memory, run)


@register("taylor2")
def taylor2(
    model: nn.Module, units: Structure, calibration: CalibrationSet, task: Task, *, options: Options = Options(), device: str = "cpu", memory: int = 4 << 30, **run: Any  # noqa: B008
) -> PruningPath:  # fmt: skip
    """Smallest mean square of the first-order change of σ first, per layer or global."""
    return _path("taylor2", model, units, calibration, task, options, device, memory, run)
