"""Networks whose output does not follow from the sample alone are refused in one line, before anything is measured."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import cswap
from cswap.errors import ModelError
from cswap.pipeline import check_fits
from cswap.structure.check import randomise_
from cswap.tasks import Classification


class Net(nn.Module):
    """Two convolutions, and what is done between them."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.a, self.b, self.fc = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 5, 3), nn.Linear(5, 2)
        self.norm = nn.BatchNorm2d(6, track_running_stats=how != "batch statistics")
        self.drop = nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.drop(F.relu(self.norm(self.a(x))))
        if self.how == "always dropout":
            x = F.dropout(x, 0.3)
        if self.how == "mixing":
            x = x + 0.2 * x.mean(0, keepdim=True)
        return self.fc(F.relu(self.b(x)).mean((2, 3)))


def _case(how: str):
    net = randomise_(Net(how), seed=1)
    x = torch.randn(24, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():  # right about its own labels
        out = net.eval()(x)
        net.fc.bias -= out.median(0).values
        labels = (out - out.median(0).values).argmax(1)
    per_class = min(int(n) for n in labels.bincount(minlength=2))
    assert per_class >= 2
    return net, cswap.calibration_set(TensorDataset(x, labels), per_class, classes=["a", "b"])


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("always dropout", "got another one each time"),
        ("batch statistics", "depends on the other samples"),
        ("mixing", "depends on the other samples"),
    ],
)
def test_they_are_refused(how, words):
    net, calibration = _case(how)
    state = torch.random.get_rng_state()
    with pytest.raises(ModelError, match=words):
        cswap.prune_path(net.train(), calibration, method="magnitude")
    with pytest.raises(ModelError, match=words):
        check_fits(net.eval(), calibration, Classification())
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_network_in_training_mode_is_measured_as_it_is_used():
    net, calibration = _case("plain")
    check_fits(net, calibration, Classification())
    expected, found = (cswap.prune_path(m, calibration, method="taylor") for m in (net.eval(), net.train()))
    assert [(d.group, d.unit, d.score) for d in found] == [(d.group, d.unit, d.score) for d in expected]
    assert net.training
