"""What tests of the rankings by relevance share."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import cswap
from cswap.methods.deeplift import deeplift_scores
from cswap.methods.lrp import lrp_scores
from cswap.methods.taylor import taylor_scores
from cswap.structure.discover import discover
from cswap.tasks import Classification

METHODS = ("taylor", "taylor2", "deeplift", "lrp")


def calibration_on(x: torch.Tensor, classes: int = 4) -> cswap.CalibrationSet:
    return cswap.calibration_set(TensorDataset(x, torch.arange(len(x)) % classes), len(x) // classes)


def random_images(n: int = 12, side: int = 8) -> torch.Tensor:
    return torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(4))


def scores_by(
    method: str, model: nn.Module, calibration: cswap.CalibrationSet, **settings: int
) -> dict[str, np.ndarray]:
    task, units = Classification(), discover(model, calibration.inputs(0, 2))
    if method == "deeplift":
        return deeplift_scores(model, units, calibration, task, **settings)[0]
    if method == "lrp":
        return lrp_scores(model, units, calibration, task, **settings)
    return taylor_scores(model, units, calibration, task, method=method, **settings)


class Reused(nn.Module):
    """One ReLU for everything, in place; a convolution that is called twice; adds; overlapping pools; a pre-activation whose
    input is read twice.
    """

    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU(inplace=True)
        self.stem, self.twice = nn.Conv2d(3, 6, 3, 1, 1), nn.Conv2d(6, 6, 3, 1, 1)
        self.bn, self.inner = nn.BatchNorm2d(6), nn.Conv2d(6, 5, 3, 1, 1)
        self.outer, self.fc = nn.Conv2d(5, 6, 3, 1, 1), nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(self.stem(x), 3, 2, 1)
        x = x + self.twice(torch.relu(x))
        x = self.relu(x)
        x = x + self.twice(x)
        x = x + self.outer(self.relu(self.inner(self.relu(self.bn(x)))))
        return self.fc(F.adaptive_avg_pool2d(x.relu(), 1).flatten(1))
