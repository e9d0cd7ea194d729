"""Recovery of modules that no path of ours made: attention, recurrent layers, transposed convolutions."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset
from torchvision.models import VisionTransformer

import cswap
from cswap.errors import InputError
from cswap.recovery import recovered
from cswap.structure.check import randomise_
from cswap.structure.discover import discover
from cswap.structure.surgery import prepared_copy, pruned_copy
from cswap.structure.twins import removed_units
from tests.conftest import NETS

GONE, LEFT = [1, 4], [0, 2, 3, 5, 6, 7]


def _calibration(shape: tuple[int, ...]) -> cswap.CalibrationSet:
    x = torch.randn(40, *shape, generator=torch.Generator().manual_seed(0))
    return cswap.calibration_set(TensorDataset(x, torch.arange(40) % 4), 10)


def _narrowed(first: nn.Linear, second: nn.Linear) -> None:
    """As a tool would that knows two linear layers."""
    first.weight, first.bias = nn.Parameter(first.weight[LEFT]), nn.Parameter(first.bias[LEFT])
    second.weight = nn.Parameter(second.weight[:, LEFT])
    first.out_features = second.in_features = len(LEFT)


class Reader(nn.Module):
    """A recurrent layer, and an MLP behind it."""

    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.rnn = nn.LSTM(3, 5, batch_first=True, bias=bias)
        self.up, self.fc = nn.Linear(5, 8), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(torch.relu(self.up(self.rnn(x)[0][:, -1])))


def _vit() -> nn.Module:
    return VisionTransformer(8, 4, 2, 2, 16, 8, num_classes=4)


@pytest.mark.parametrize(("build", "shape", "layers"), [
    (_vit, (3, 8, 8), ("encoder.layers.encoder_layer_0.mlp.0", "encoder.layers.encoder_layer_0.mlp.3")),
    (Reader, (6, 3), ("up", "fc")),
])  # fmt: skip
def test_networks_with_replaced_layers_are_recovered_from_any_module(build, shape, layers):
    torch.manual_seed(0)
    net, calibration = randomise_(build(), seed=3).eval(), _calibration(shape)
    small = copy.deepcopy(net)
    _narrowed(*(small.get_submodule(n) for n in layers))
    small.get_submodule(layers[0]).train()
    found = recovered(small, net, calibration, "lstsq")
    assert found.facts["lstsq"][layers[1]]["strength"] is not None
    x = calibration.inputs(0, 40)
    with torch.no_grad():
        whole, cut, back = (m.eval()(x) for m in (net, small, found.raw))
    assert (back - whole).square().mean() < 0.9 * (cut - whole).square().mean()
    again = recovered(small.train(), net, calibration, "lstsq").model
    assert again.training
    assert all(m.training for m in again.modules())


def test_another_layout_is_one_line():
    net, calibration = randomise_(_vit(), seed=3).eval(), _calibration((3, 8, 8))
    other = copy.deepcopy(net)
    other.encoder.layers.encoder_layer_0.self_attention = nn.Identity()
    with pytest.raises(InputError, match="not laid out as the original: expected an attention module"):
        recovered(other, net, calibration, "lstsq")


def _upwards() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 5, 3, padding=1), nn.ReLU(), nn.ConvTranspose2d(5, 8, 2, 2), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4),
    )  # fmt: skip


def test_units_that_a_transposed_convolution_writes_are_found():
    net, calibration = randomise_(_upwards(), seed=3).eval(), _calibration((3, 6, 6))
    structure = discover(net, calibration.inputs(0, 2))
    assert "2" in [g.name for g in structure]
    small = pruned_copy(net, structure, {"2": torch.tensor(GONE).numpy()})
    assert not hasattr(small, "_cswap")
    assert {g: n.tolist() for g, n in removed_units(small, net, structure).items()} == {"2": GONE}
    assert "5" in recovered(small, net, calibration, "lstsq").facts["lstsq"]


@pytest.mark.parametrize(("build", "shape", "group"), [
    (NETS["concat"], (3, 8, 8), "a"),  # the norm behind the concat holds units of another group too
    (Reader, (6, 3), "rnn.l0.ih"),  # whose biases have a row a gate
])  # fmt: skip
def test_units_are_told_by_what_is_theirs_alone(build, shape, group):
    torch.manual_seed(0)
    net, calibration = randomise_(build(), seed=3).eval(), _calibration(shape)
    structure = discover(net, calibration.inputs(0, 2))
    small = pruned_copy(net, structure, {group: np.array([1, 3])})
    found = removed_units(small, prepared_copy(net, structure), structure)
    assert {g: n.tolist() for g, n in found.items()} == {group: [1, 3]}
    assert recovered(small, net, calibration, "lstsq").facts["lstsq"]
