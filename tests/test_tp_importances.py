"""Torch-Pruning's importances on our groups are what it says of its own."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import cswap
from cswap.methods import registry
from cswap.structure.check import randomise_
from cswap.structure.discover import discover

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
THEIRS = {"tp_lamp": "lamp", "tp_taylor": "taylor", "tp_hessian": "hessian_mended"}


@pytest.fixture(scope="module")
def modules():
    """Two benchmarks as modules, their folder being no package; the registry as it was afterwards."""
    sys.path.insert(0, str(BENCHMARKS))
    before = dict(registry.METHODS)
    try:
        yield importlib.import_module("peers"), importlib.reload(importlib.import_module("tp_importances"))
    finally:
        sys.path.remove(str(BENCHMARKS))
        registry.METHODS.clear()
        registry.METHODS.update(before)


class Bottlenecks(nn.Module):
    """A stem, a block with a depthwise convolution and a shortcut, and two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, 1, 1), nn.BatchNorm2d(8)
        self.wide, self.norm1 = nn.Conv2d(8, 12, 1), nn.BatchNorm2d(12)
        self.deep, self.norm2 = nn.Conv2d(12, 12, 3, 1, 1, groups=12), nn.BatchNorm2d(12)
        self.back, self.norm3 = nn.Conv2d(12, 8, 1), nn.BatchNorm2d(8)
        self.fc1, self.fc2 = nn.Linear(8, 10), nn.Linear(10, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        h = torch.relu(self.norm2(self.deep(torch.relu(self.norm1(self.wide(x))))))
        x = nn.functional.adaptive_avg_pool2d(x + self.norm3(self.back(h)), 1)
        out: torch.Tensor = self.fc2(torch.relu(self.fc1(x.flatten(1))))
        return out


INPUTS = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def net():
    """Says each of its two classes of half of the inputs."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        net = randomise_(Bottlenecks(), seed=3).eval()
        net.fc2.bias[0] -= (net(INPUTS) @ torch.tensor([1.0, -1.0])).median()
    return net


@pytest.fixture(scope="module")
def calibration(net):
    with torch.no_grad():
        return cswap.calibration_set(TensorDataset(INPUTS, net(INPUTS).argmax(1)), 6)


@pytest.mark.parametrize("name", THEIRS)
def test_the_scores_are_those_of_its_own_groups(modules, net, calibration, name):
    peers, ours = modules
    units = discover(net, calibration.inputs(0, 2))
    mine = ours.scores_of(
        ours.IMPORTANCES[name](), net, units, calibration, cswap.Classification(), device="cpu", memory=1 << 28
    )
    theirs = peers.scores_of(THEIRS[name], net, calibration)
    assert set(mine) == {"stem", "wide", "fc1"}
    for group in units:
        known = next(theirs[s.module] for s in group.slots if s.module in theirs)
        np.testing.assert_allclose(mine[group.name], known.double().numpy(), rtol=2e-4, err_msg=group.name)
        assert np.ptp(mine[group.name]) > 0.01


@pytest.mark.parametrize("name", ["tp_l2", *THEIRS])
def test_it_stands_in_a_path_like_every_other_method(modules, net, calibration, name):
    units = discover(net, calibration.inputs(0, 2))
    path = registry.call(
        name, net, units, calibration, cswap.Classification(), options=cswap.Options(scope="global"), memory=1 << 28
    )
    assert path.method == name
    assert len(path) == units.units - len(units)
