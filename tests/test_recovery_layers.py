"""Which layers a recovery refits, and which it leaves with a note."""

from __future__ import annotations

import copy
from types import MethodType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import cswap
from cswap.causal.replay import engine_for
from cswap.errors import InputError
from cswap.linear.patches import refusal
from cswap.recovery import recovered
from cswap.recovery.walk import Walk
from cswap.structure.check import randomise_
from cswap.structure.discover import discover
from cswap.tasks import Classification
from cswap.types import Target
from tests.conftest import path_of
from tests.odd_nets import Net, fitted, shifted
from tests.recoveries import noisy, padded, pruned_to, without


class Tied(nn.Module):
    """An output layer whose weights are those of another layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.into, self.out = nn.Linear(12, 9), nn.Linear(9, 6), nn.Linear(6, 4), nn.Linear(6, 4)
        self.out.weight = self.into.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.b(torch.relu(self.a(x))))
        return self.into(x) + self.out(torch.sin(x))


def test_weights_that_two_layers_share_are_left_with_a_note():
    torch.manual_seed(0)
    net, calibration = randomise_(Tied(), seed=1).eval(), noisy((12,), 20)
    small, _ = without(net, calibration, {"a": [1, 4]})
    found = recovered(small, net, calibration, "lstsq")
    assert torch.equal(found.raw.into.weight, net.into.weight)
    assert "b" in found.facts["lstsq"]
    assert {
        "into shares its weights with out: left as it is",
        "out shares its weights with into: left as it is",
    } <= set(found.notes)


def test_a_transposed_reader_is_left_with_a_note():
    net = randomise_(
        nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.ConvTranspose2d(8, 6, 3, padding=1), nn.Flatten(), nn.Linear(384, 4)),
        seed=1,
    ).eval()  # fmt: skip
    calibration = noisy()
    small, _ = without(net, calibration, {"0": [1, 4]})
    for how in ("bias", "merge", "lstsq"):
        notes = recovered(small, net, calibration, how).notes
        assert any(n.startswith("2: a transposed convolution") for n in notes), how
        assert not any("by a product" in n for n in notes), how


def test_every_module_keeps_its_mode_and_another_precision_is_refused():
    net, calibration = randomise_(padded(), seed=1).train(), noisy()
    net[1].eval()  # frozen statistics inside a module in training
    small, _ = without(net, calibration, {"0": [1]})
    small.train()
    small[1].eval()
    found = recovered(small, net, calibration, "bias").model
    assert [m.training for m in found.modules()] == [m.training for m in small.modules()]
    with pytest.raises(InputError, match="expected networks in torch.float32.*got torch.float64"):
        recovered(copy.deepcopy(small).double(), net.double(), calibration, "bias")


class _Scaled(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, 3 * self.weight, self.bias)


class _Cast(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x.to(self.weight.dtype), self.weight, self.bias)


def test_a_layer_that_scales_its_weights_is_not_refitted():
    assert refusal(_Cast(4, 3)) is None
    assert refusal(nn.Conv2d(4, 4, 3, padding=1, groups=2, padding_mode="circular")) is None
    assert "does not use its weights as they are" in str(refusal(_Scaled(4, 3)))
    calibration = shifted(5)
    net = fitted(
        Net(lambda s, x: s.fc(F.relu(s.b(F.relu(s.a(x))))), a=nn.Linear(5, 7), b=_Scaled(7, 6), fc=nn.Linear(6, 3)),
        calibration,
    )
    structure = discover(net, calibration.inputs(0, 2))
    engine = engine_for(net, structure, calibration, Classification(), cut="compensated")
    group = structure["a"]
    engine.enter(group)
    (cut,) = engine.cut(group, [[0]])
    engine.remove("a", [0])
    np.testing.assert_allclose(engine.scores().sigma, cut.sigma, atol=1e-5)  # the cut is what the removal does
    assert any("does not use its weights" in n for n in engine.notes)


@pytest.mark.parametrize("how", ["bias", "merge"])
def test_a_layer_that_scales_its_weights_gets_nothing_back_and_a_note(how):
    calibration = shifted(5, per_class=20)
    net = fitted(
        Net(lambda s, x: s.fc(F.relu(s.b(F.relu(s.a(x))))), a=nn.Linear(5, 7), b=_Scaled(7, 6), fc=nn.Linear(6, 3)),
        calibration,
    )
    small, _ = pruned_to(net, discover(net, calibration.inputs(0, 2)), calibration, {"a": [0, 2]})
    found = recovered(small, net, calibration, how)
    assert "does not use its weights as they are" in found.notes[0]
    assert torch.equal(found.raw.b.weight, small.b.weight)
    assert torch.equal(found.raw.b.bias, small.b.bias)


def _twice(_m: nn.Module, _args: Any, out: torch.Tensor) -> torch.Tensor:
    return 2 * out + 1


def _thrice(_m: nn.Module, args: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
    return (3 * args[0],)


def _scaled(layer: Any, x: torch.Tensor) -> torch.Tensor:
    return 3 * F.conv2d(x, layer.weight, layer.bias)


@pytest.mark.parametrize("kind", ["out", "in", "forward", "look"])
def test_a_layer_whose_hooks_change_it_is_left_with_a_note(kind):
    seen = []
    net = Net(
        lambda s, x: s.fc(F.relu(s.b(F.relu(s.a(x)))).mean((2, 3))),
        a=nn.Conv2d(3, 7, 3), b=nn.Conv2d(7, 6, 3), fc=nn.Linear(6, 3),
    )  # fmt: skip
    calibration = shifted(3, 8, 8)
    net = fitted(net, calibration)
    if kind == "out":
        net.b.register_forward_hook(_twice)
    elif kind == "in":
        net.b.register_forward_pre_hook(_thrice)
    elif kind == "forward":
        net.b.forward = MethodType(_scaled, net.b)
    else:
        net.b.register_forward_hook(lambda _m, _i, out: seen.append(out.shape))
    structure = discover(net, calibration.inputs(0, 2))
    if kind != "look":
        assert refusal(net.b) is not None
        engine = engine_for(net, structure, calibration, Classification(), cut="compensated")
        engine.enter(structure["a"])
        (cut,) = engine.cut(structure["a"], [[0, 2]])
        engine.remove("a", [0, 2])
        np.testing.assert_allclose(engine.scores().sigma, cut.sigma, atol=1e-5)  # the cut is what the removal does
        assert any(n.startswith("b is cut without compensation") for n in engine.notes)
    path = path_of(structure, {"a": [0, 2, 3]}, calibration.inputs(0, 4))
    small = path.apply(net, Target("units", path.ratio.units))
    for how in ("bias", "merge", "lstsq"):
        if kind == "forward" and how != "lstsq":
            continue
        found = recovered(small, net, calibration, how)
        left = torch.equal(found.raw.b.weight, small.b.weight) and torch.equal(found.raw.b.bias, small.b.bias)
        assert left == (kind != "look"), how
        assert any(n.startswith("b: ") for n in found.notes) == left, how


def test_a_layer_that_reads_a_view_of_a_parameter_is_refitted():
    """A view of a parameter asks for gradients even where there are none."""
    net = Net(
        lambda s, x: s.fc((F.relu(s.b(F.relu(s.a(x)))).unsqueeze(1) * s.c(s.table.expand(len(x), -1, -1))).mean(1)),
        a=nn.Linear(5, 7), b=nn.Linear(7, 6), c=nn.Linear(4, 6), fc=nn.Linear(6, 3),
    )  # fmt: skip
    net.table = nn.Parameter(torch.randn(1, 3, 4))
    calibration = shifted(5)
    net = fitted(net, calibration)
    structure = discover(net, calibration.inputs(0, 2))
    path = path_of(structure, {"a": [0, 2, 3]}, calibration.inputs(0, 4))
    small = path.apply(net, Target("units", path.ratio.units))
    found = recovered(small, net, calibration, "lstsq")
    assert {"b", "c"} <= set(found.facts["lstsq"])
    torch.testing.assert_close(found.raw.c.weight, net.c.weight, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("memory", [4 << 30, 1000])
def test_a_later_layer_that_is_called_by_keyword_is_refitted(memory):
    net = Net(
        lambda s, x: s.fc(input=F.relu(s.b(F.relu(s.a(x))))), a=nn.Linear(5, 7), b=nn.Linear(7, 6), fc=nn.Linear(6, 3)
    )
    calibration = shifted(5)
    net = fitted(net, calibration)
    path = path_of(discover(net, calibration.inputs(0, 2)), {"a": [0, 2]}, calibration.inputs(0, 4))
    small = path.apply(net, Target("units", path.ratio.units))
    plain = Net(lambda s, x: s.fc(F.relu(s.b(F.relu(s.a(x))))), **dict(net.named_children()))
    shrunk = path.apply(plain.eval(), Target("units", path.ratio.units))
    found, expected = (recovered(s, n, calibration, "lstsq").raw for s, n in ((small, net), (shrunk, plain)))
    read = next(Walk(net, [calibration.inputs(0, 24)], memory).inputs("fc"))
    torch.testing.assert_close(read, F.relu(net.b(F.relu(net.a(calibration.inputs(0, 24))))))
    for a, b in zip(found.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


class _Mean(nn.Module):
    """Keeps a mean and perhaps a variance, and subtracts the mean or only looks at it."""

    def __init__(self, channels: int, subtracts: bool, variance: bool) -> None:
        super().__init__()
        self.subtracts = subtracts
        self.register_buffer("running_mean", torch.zeros(channels))
        if variance:
            self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x - self.running_mean.view(1, -1, 1, 1) if self.subtracts else x * 1.0


@pytest.mark.parametrize(("subtracts", "variance"), [(True, False), (False, True), (False, False)])
def test_a_constant_is_kept_in_a_norm_that_subtracts_its_mean_alone(subtracts, variance):
    """A module that keeps a mean is no batch norm yet: constants that it does not subtract were lost."""
    net = Net(
        lambda s, x: s.fc(F.relu(s.n(s.b(F.relu(s.a(x))))).mean((2, 3))), a=nn.Conv2d(3, 8, 3, padding=1),
        b=nn.Conv2d(8, 6, 3, padding=1, bias=False), n=_Mean(6, subtracts, variance), fc=nn.Linear(6, 3),
    )  # fmt: skip
    calibration = shifted(3, 6, 6, per_class=20)
    net = fitted(net, calibration)
    structure = discover(net, calibration.inputs(0, 2))
    small, _ = pruned_to(net, structure, calibration, {"a": [0, 3, 5]})
    x = calibration.inputs(0, 60)

    @torch.no_grad()
    def off(model: nn.Module) -> torch.Tensor:
        return (model.n(model.b(F.relu(model.a(x)))) - net.n(net.b(F.relu(net.a(x))))).mean((0, 2, 3)).abs().max()

    found = recovered(small, net, calibration, "bias")
    if subtracts:
        assert float(off(found.raw)) < 1e-5 < 1e-2 < float(off(small))
    else:
        assert "neither a bias nor a batch norm" in found.notes[0]
        assert float(off(found.raw)) == float(off(small))
    assert float(off(recovered(small, net, calibration, "lstsq").raw)) < float(off(small))
    engine = engine_for(net, structure, calibration, Classification(), cut="compensated")
    engine.enter(structure["a"])
    (cut,) = engine.cut(structure["a"], [[0, 3, 5]])
    engine.remove("a", [0, 3, 5])
    np.testing.assert_allclose(engine.scores().sigma, cut.sigma, atol=1e-5)


def test_a_layer_of_two_names_is_recovered():
    calibration = shifted(5)
    net = Net(lambda s, x: s.fc(F.relu(s.b(F.relu(s.a(x))))), a=nn.Linear(5, 7), b=nn.Linear(7, 6), fc=nn.Linear(6, 3))
    net = fitted(net, calibration)
    net.blocks = nn.ModuleList([net.a, net.b])
    small = cswap.prune_path(net, calibration, method="magnitude").apply(net, "units=0.3")
    for how in ("bias", "lstsq", "merge", "fold"):
        assert torch.isfinite(recovered(small, net, calibration, how).raw(calibration.inputs(0, 4))).all()
