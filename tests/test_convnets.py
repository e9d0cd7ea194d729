"""Convolutional networks of every wiring: masked equals pruned, saved and loaded elsewhere, engines agree."""

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
from cswap.errors import ArtifactError
from cswap.structure.check import agreement, random_half, randomise_
from cswap.structure.discover import count_params, discover, macs_of
from cswap.structure.layers import rule_of
from cswap.structure.ledger import Ledger
from cswap.structure.surgery import masked_copy, pruned_copy
from cswap.tasks import Classification
from tests.conftest import off_by_one, saved_and_loaded_elsewhere
from tests.convnet_factory import NETS, build

# groups of each network, and what is left out besides the output
EXPECTED = {
    "grouped": 3, "multiplier": 2, "squeeze": 4, "eca": 1, "cbam": 3, "groupnorm": 1, "frozen": 2, "transposed": 2,
    "twice": 1, "shuffle": 1, "layerscale": 2, "dense": 3, "aux": 2,
}  # fmt: skip


def _inputs(n: int = 6) -> torch.Tensor:
    return torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", sorted(NETS))
def test_masked_equals_pruned_and_an_off_by_one_is_caught(name):
    x = _inputs()
    net = randomise_(build(name), 3, x).eval()
    structure = discover(net, x)
    assert len(structure) == EXPECTED[name], (list(structure.layers), structure.left_out)
    removed = random_half(structure, 4)
    result = agreement(net, structure, removed, x)
    assert result.ok, str(result)
    assert result.visible
    ledger = Ledger(structure)
    for group, units in removed.items():
        for n in units:
            ledger.remove(structure[group], int(n))
    small = pruned_copy(net, structure, removed)
    assert ledger.params == count_params(small)
    assert round(ledger.macs) == macs_of(small, x)[0]
    exact, wrong = net.double(), off_by_one(structure)
    for group in structure:
        off = 0.0
        for seed in range(5):  # dead neighbours may hide one, not all
            alone = random_half(structure, seed, [group.name])
            with torch.no_grad():
                masked, crossed = (
                    f(exact, s, alone)(x.double()) for f, s in ((masked_copy, structure), (pruned_copy, wrong))
                )
            off = max(off, float((masked - crossed).abs().max()))
        assert off > 1e-6, group.name


@pytest.mark.parametrize("name", sorted(NETS))
def test_engines_agree(name):
    x = _inputs(24)
    net = randomise_(build(name), 3, x).eval().double()
    calibration = cswap.calibration_set(TensorDataset(x, torch.arange(24) % 4), 6)
    structure = discover(net, x[:2])
    fast = ReplayEngine(net, structure, calibration, Classification())
    plain = PlainEngine(net, structure, calibration, Classification())
    for group in structure:
        fast.enter(group)
        cuts = [[0], [1], [0, 1]]
        for a, b in zip(fast.cut(group, cuts), plain.cut(group, cuts), strict=True):
            np.testing.assert_allclose(a.sigma, b.sigma, atol=1e-12)
        if group.size > 2:
            for engine in (fast, plain):
                engine.remove(group.name, [1])
        np.testing.assert_allclose(fast.scores().sigma, plain.scores().sigma, atol=1e-12)
    assert not fast.notes


@pytest.mark.parametrize("name", ["grouped", "frozen", "squeeze", "cbam", "groupnorm", "transposed", "twice"])
def test_saved_and_loaded_in_a_new_process(name, tmp_path):
    x = _inputs()
    net = randomise_(build(name), 3, x).eval()
    structure = discover(net, x)
    removed = random_half(structure, 4)
    small = saved_and_loaded_elsewhere(
        net, structure, removed, x, tmp_path, "tests/convnet_factory.py:build", {"name": name}
    )
    assert count_params(small) < count_params(net)


def test_a_grouped_convolution_loses_whole_groups():
    x = _inputs()
    net = randomise_(build("grouped"), 3, x).eval()
    structure = discover(net, x)
    group = next(g for g in structure if any(s.module == "mid" for s in g.slots))
    assert group.size == net.mid.groups == 4
    assert {(s.module, s.role) for s in group.slots} == {
        ("up", "producer"), ("norm", "channelwise"), ("mid", "channelwise"), ("down", "consumer"),
    }  # fmt: skip
    small = pruned_copy(net, structure, {group.name: np.array([1, 2])})
    assert (small.mid.groups, small.mid.in_channels, small.mid.out_channels) == (2, 4, 6)
    assert small.up.out_channels == 4
    assert small.down.in_channels == 6
    torn = build("grouped").mid
    torn.weight = nn.Parameter(torn.weight[:5])
    with pytest.raises(ArtifactError, match="cannot keep 5 channels"):
        rule_of(torn).refit(torn)


def test_a_shared_weight_is_left_out():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c, self.fc = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
            self.c.weight = self.b.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(torch.relu(self.c(torch.relu(self.b(torch.relu(self.a(x)))))))

    structure = discover(randomise_(Tied()).eval(), torch.randn(3, 4))
    assert len(structure) == 0
    assert any("share a weight" in o.reason for o in structure.left_out)


@pytest.mark.parametrize("name", ["mnasnet0_5", "shufflenet_v2_x0_5"])
def test_torchvision_saved_and_loaded(name, tmp_path):
    """MNASNet changes a state dict without version numbers; ShuffleNet is seen by chains."""
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.random.fork_rng():
        net = randomise_(torchvision.models.get_model(name, weights=None), 3, x).eval()
    structure = discover(net, x)
    assert len(structure) > 10
    removed = random_half(structure, 4)
    saved_and_loaded_elsewhere(net, structure, removed, x, tmp_path, f"torchvision:{name}")
