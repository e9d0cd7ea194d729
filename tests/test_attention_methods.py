"""Attention in both engines, in every method and recovery."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torchvision
from torch import nn
from torch.utils.data import TensorDataset

import cswap
from cswap.causal.cut import PlainEngine
from cswap.causal.replay import ReplayEngine
from cswap.recovery import recovered
from cswap.structure.check import agreement, random_half, randomise_
from cswap.structure.discover import count_params, discover
from cswap.tasks import Classification
from cswap.types import Target
from tests.attention_nets import (
    images_of,
    made,
)
from tests.conftest import path_of


@pytest.mark.parametrize("name", ["vit", "swin", "timm_vit"])
def test_both_engines_agree_while_units_of_every_kind_go(name):
    model, x = made(name)
    model, calibration = model.double(), images_of(x.shape[-1])
    structure = discover(model, x)
    some = [g.name for g in structure if "#" in g.name][:: 1 if name == "vit" else 5]
    structure = structure.select((*some, "*0*mlp*"))
    fast = ReplayEngine(model, structure, calibration, Classification())
    plain = PlainEngine(model, structure, calibration, Classification())
    moved = 0.0
    for group in structure:
        fast.enter(group)
        cuts = [[n] for n in range(min(group.size, 6))] + [[0, 1]]
        for a, b in zip(fast.cut(group, cuts), plain.cut(group, cuts), strict=True):
            np.testing.assert_allclose(a.sigma, b.sigma, atol=1e-10)
            moved = max(moved, float(np.abs(a.sigma - plain.scores().sigma).max()))
        for n in range(0, group.size - 1, 2):
            for engine in (fast, plain):
                engine.remove(group.name, [n])
        np.testing.assert_allclose(fast.scores(group).sigma, plain.scores().sigma, atol=1e-10)
        np.testing.assert_allclose(fast.scores().sigma, plain.scores().sigma, atol=1e-10)
    assert not fast.notes
    assert moved > 1e-4


@pytest.fixture(scope="module")
def confident():
    """A tiny ViT with data whose labels are what it says."""
    model, _ = made("vit")
    x = torch.randn(200, 3, 32, 32, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        model.heads.head.bias -= model(x).mean(0)
        labels = model(x).argmax(1)
    return model, cswap.calibration_set(TensorDataset(x, labels), 8)


@pytest.mark.parametrize("method", ["cswap", "magnitude", "taylor", "taylor2", "deeplift", "lrp", "random"])
def test_every_method_takes_heads(method, confident):
    model, calibration = confident
    structure = discover(model, calibration.inputs(0, 2)).select(("*layer_1*",))
    path = cswap.prune_path(model, calibration, structure=structure, method=method, target="units=0.3")
    assert path.ratio.units >= 0.3
    assert {d.group.partition("#")[2][:1] for d in path} & {"h", "q", "v"}  # units of attention, of some kind
    removed, _, ratio = path.prefix("units=0.3")
    assert agreement(model, structure, removed, calibration.inputs(0, 4)).ok
    assert 1 - count_params(path.apply(model, "units=0.3")) / structure.total_params == pytest.approx(ratio.params)


class _Planted(nn.Module):
    """One attention layer over 4 tokens of 4 features; head h carries feature h alone, which only class h needs."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 4, batch_first=True)
        self.hidden, self.fc = nn.Linear(4, 8), nn.Linear(8, 4)
        with torch.no_grad():
            self.attention.in_proj_weight.zero_()
            self.attention.in_proj_weight[8:].copy_(torch.eye(4))
            self.attention.out_proj.weight.copy_(torch.eye(4))
            self.hidden.weight.copy_(torch.cat([torch.eye(4), -torch.eye(4)]))
            self.fc.weight.copy_(torch.cat([3 * torch.eye(4), 0 * torch.eye(4)], 1))
            for linear in (self.attention.out_proj, self.hidden, self.fc):
                linear.bias.zero_()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(torch.relu(self.hidden(self.attention(x, x, x, need_weights=False)[0].mean(1))))


def test_a_planted_head_is_needed_by_its_class_alone():
    g, n = torch.Generator().manual_seed(0), 64
    labels = torch.arange(n) % 4
    x = torch.zeros(n, 4, 4)
    x[torch.arange(n), :, labels] = 1.0 + 0.2 * torch.rand(n, 4, generator=g)
    calibration = cswap.calibration_set(TensorDataset(x, labels), 16)
    model = _Planted().eval()
    structure = discover(model, calibration.inputs(0, 2)).select(("attention.q#heads",))
    path = cswap.prune_path(model, calibration, structure=structure, method="cbp")
    tested = [d for d in path if d.phase == "test"]
    assert len(tested) == 4
    for d in tested:
        assert d.verdict == "critical"
        assert [e.pi for e in d.effects.values()].count(-1) == 1
        assert d.effects.at(d.unit).pi == -1  # the others gain: a rival logit of theirs is gone, or nothing is


@pytest.mark.parametrize("how", ["merge", "fold", "lstsq"])
def test_a_pruned_transformer_is_recovered(how):
    """Merging averages weights, and leaves the numbers of the heads as they are."""
    torch.manual_seed(0)
    net = randomise_(torchvision.models.VisionTransformer(8, 4, 2, 2, 16, 24, num_classes=4), seed=0).eval()
    x, y = torch.randn(48, 3, 8, 8), torch.arange(4).repeat(12)
    calibration = cswap.calibration_set(TensorDataset(x, y), 12)
    structure = discover(net, x[:2])
    path = path_of(structure, random_half(structure, 0), x[:2])
    small = path.apply(net, Target("units", path.ratio.units))
    found = recovered(small, net, calibration, how).raw
    for (name, a), b in zip(small.state_dict().items(), found.state_dict().values(), strict=True):
        assert a.shape == b.shape
        assert a.is_floating_point() or torch.equal(a, b), name
