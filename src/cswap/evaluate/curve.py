"""Quality against what was removed, and the area under it."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import nn
from torch.utils.data import Dataset

from cswap.errors import DataError, TargetError
from cswap.evaluate.quality import measure_quality
from cswap.methods.path import PruningPath
from cswap.tasks.base import Task
from cswap.types import Target


def sauce(removed: list[float], quality: list[float], unpruned: float, end: float = 0.8) -> float:
    """Area under quality against parameters removed from 0 to `end`, over `end × unpruned`; 1.0: nothing was lost.

    Trapezoids; the curve must reach `end` (method.md, "Metrics", decided).
    """
    x, y = np.asarray(removed, dtype=np.float64), np.asarray(quality, dtype=np.float64)
    if len(x) < 2 or x[0] > 1e-9 or x[-1] < end - 1e-9 or (np.diff(x) < 0).any() or unpruned <= 0:
        raise DataError(
            f"SAUCE needs a curve from 0 to {end:g} in ascending order, got {[round(v, 3) for v in removed]}"
        )
    grid = np.unique(np.concatenate([x[x <= end], [end]]))
    return float(np.trapezoid(np.interp(grid, x, y), grid) / (end * unpruned))


def quality_curve(
    model: nn.Module, path: PruningPath, dataset: Dataset[Any], task: Task, ratios: list[float], *,
    kind: str = "params", device: str = "cpu",
) -> list[dict[str, Any]]:  # fmt: skip
    """Points of the curve: asked and actual ratios, and quality on held-out data; a ratio beyond the path is left out."""
    small: dict[str, nn.Module] = {}
    points: list[dict[str, Any]] = []
    for ratio in ratios:
        target = Target.parse(f"{kind}={ratio:g}")
        try:
            _, steps, reached = path.prefix(target)
        except TargetError:
            continue
        small[str(len(points))] = path.apply(model, target)
        points.append({"asked": ratio, "steps": steps, "ratio": reached.as_dict()})
    measured = measure_quality(small, dataset, task, len(path.classes), device=device)
    for i, point in enumerate(points):
        point["quality"] = measured[str(i)]
    return points
