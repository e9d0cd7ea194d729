"""Batch norms estimated again, against a computation by hand."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset
from torchvision.ops import FrozenBatchNorm2d

import cswap
import cswap.errors
from cswap.errors import InputError
from cswap.recovery import recovered, reestimated
from cswap.structure.check import randomise_
from tests.recoveries import pruned_at_random, small_calibration


def test_batch_norms_are_estimated_again_as_by_hand():
    g = torch.Generator().manual_seed(0)
    net = (
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2)).double().eval()
    )
    data = TensorDataset(torch.randn(40, 3, 8, 8, generator=g).double() * 3 + 1, torch.arange(2).repeat(20))
    calibration = cswap.calibration_set(data, 20)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    again = reestimated(net, calibration)
    seen = net[0](calibration.inputs(0, 40))
    assert torch.allclose(again[1].running_mean, seen.mean((0, 2, 3)))
    assert torch.allclose(again[1].running_var, seen.var((0, 2, 3), unbiased=True))
    assert (again[1].momentum, again.training, again[1].training) == (0.1, False, False)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_batch_norms_one_behind_the_other_are_estimated_as_by_hand():
    net = randomise_(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5)), seed=2
    ).double()
    images = torch.randn(12, 3, 8, 8, generator=torch.Generator().manual_seed(4)).double() * 3 + 1
    calibration = cswap.calibration_set(TensorDataset(images, torch.arange(2).repeat(6)), 6)
    # classes are mixed: in class order each batch would have the statistics of one class
    x = calibration.inputs(0, 12)[torch.randperm(12, generator=torch.Generator().manual_seed(0))]
    reference = copy.deepcopy(net)
    first, second = [], []
    for part in (x[:4], x[4:8], x[8:]):
        a = reference[0](part).detach()
        first.append((a.mean((0, 2, 3)), a.var((0, 2, 3), unbiased=True)))
        shape = (1, -1, 1, 1)
        scaled = (a - first[-1][0].view(shape)) / (a.var((0, 2, 3), unbiased=False).view(shape) + net[1].eps).sqrt()
        b = reference[3](torch.relu(scaled * net[1].weight.view(shape) + net[1].bias.view(shape))).detach()
        second.append((b.mean((0, 2, 3)), b.var((0, 2, 3), unbiased=True)))
    again = reestimated(net, calibration, batch=5)
    for norm, seen in ((again[1], first), (again[4], second)):
        means, variances = zip(*seen, strict=True)
        np.testing.assert_allclose(norm.running_mean, torch.stack(means).mean(0), rtol=1e-12, atol=1e-13)
        np.testing.assert_allclose(norm.running_var, torch.stack(variances).mean(0), rtol=1e-12)
        assert norm.momentum == 0.1
    assert not torch.allclose(again[1].running_mean, net[1].running_mean)
    assert not any(m.training for m in again.modules())
    assert all(
        torch.equal(p, q) for p, q in zip(net.state_dict().values(), reference.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, FrozenBatchNorm2d, nn.Identity])
def test_bn_says_where_there_is_nothing_to_estimate(norm):
    layers = [nn.Conv2d(3, 6, 3), norm(6), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(80, 4)]
    net, calibration = randomise_(nn.Sequential(*layers), seed=0).eval(), small_calibration()
    small, _ = pruned_at_random(net, calibration)
    found = recovered(small, net, calibration, "bn")
    same = all(
        torch.equal(a, b) for a, b in zip(found.raw.state_dict().values(), small.state_dict().values(), strict=True)
    )
    assert same == any("no batch norm" in n for n in found.notes) == (norm is not nn.BatchNorm2d)


def test_bn_of_a_single_sample_is_refused_in_a_line():
    net = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2)).eval()
    calibration = cswap.calibration_set(TensorDataset(torch.randn(8, 4), torch.arange(2).repeat(4)), 4)
    with pytest.raises(
        InputError, match="recover bn: expected more samples to estimate batch norms from, got 1: Expected"
    ):
        reestimated(net, calibration.part(np.array([0])))
