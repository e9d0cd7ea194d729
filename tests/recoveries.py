"""What tests of recoveries start from: calibration samples, and networks that lost units."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.utils.data import TensorDataset

import cswap
import cswap.errors
from cswap.methods.path import PruningPath
from cswap.structure.ledger import Ledger
from cswap.types import Decision, Target
from tests.conftest import path_of


def small_calibration(per_class: int = 20, seed: int = 0) -> cswap.CalibrationSet:
    g = torch.Generator().manual_seed(seed)
    images = (
        torch.randn(4 * per_class, 3, 8, 8, generator=g) + torch.arange(4).repeat(per_class).view(-1, 1, 1, 1) * 0.3
    )
    return cswap.calibration_set(TensorDataset(images, torch.arange(4).repeat(per_class)), per_class)


def pruned_at_random(net: nn.Module, calibration: cswap.CalibrationSet, share: float = 0.4, seed: int = 0):
    """A random share of each group gone, through a path, so that the module knows what it lacks."""
    structure = cswap.discover(net, calibration.inputs(0, 2))
    rng = np.random.default_rng(seed)
    path = PruningPath(structure, "random", {"seed": 0}, calibration.classes)
    ledger = Ledger(structure)
    for group in structure:
        for unit in sorted(rng.permutation(group.size)[: max(1, int(share * group.size))].tolist()):
            if ledger.kept(group) > 1:
                ledger.remove(group, unit)
                path.decisions.append(
                    Decision(len(path) + 1, "rank", group.name, unit, True, "test", ratio=ledger.ratio())
                )
    return path.apply(net, Target("units", path.ratio.units)), structure


def pruned_to(net, structure, calibration, removed: dict[str, list[int]]):
    path = PruningPath(structure, "random", {"seed": 0}, calibration.classes)
    ledger = Ledger(structure)
    for name, units in removed.items():
        for unit in units:
            ledger.remove(structure[name], unit)
            path.decisions.append(Decision(len(path) + 1, "rank", name, unit, True, "test", ratio=ledger.ratio()))
    return path.apply(net, Target("units", path.ratio.units)), path


def noisy(shape=(3, 8, 8), per_class=10, dtype=torch.float32, seed=0) -> cswap.CalibrationSet:
    g = torch.Generator().manual_seed(seed)
    labels = torch.arange(4).repeat_interleave(per_class)
    x = torch.randn(len(labels), *shape, generator=g) + labels.view(-1, *[1] * len(shape)) * 0.3
    return cswap.calibration_set(TensorDataset(x.to(dtype), labels), per_class)


def without(net: nn.Module, calibration: cswap.CalibrationSet, removed: dict[str, list[int]]):
    structure = cswap.discover(net, calibration.inputs(0, 2))
    path = path_of(structure, removed, calibration.inputs(0, 4))
    return path.apply(net, Target("units", path.ratio.units)), structure


def padded() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 5, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(5, 4),
    )  # fmt: skip
