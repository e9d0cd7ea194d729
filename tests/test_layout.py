"""Networks that read their samples in another dimension than the first are ranked as those that read them there."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import cswap
from cswap.causal.compensation import CompensatedPlainEngine
from cswap.causal.cut import PlainEngine
from cswap.causal.first_order import classes_in_order, first_order_all
from cswap.causal.layout import CONSTANT, TURNS, by_samples, sample_dims
from cswap.causal.replay import engine_for
from cswap.errors import InputError, MethodError
from cswap.methods.deeplift import deeplift_scores
from cswap.methods.lrp import lrp_scores
from cswap.methods.taylor import taylor_scores
from cswap.report.activations import most_active
from cswap.structure.check import randomise_
from cswap.structure.discover import discover
from cswap.tasks import Classification


class Tokens(nn.Module):
    """An MLP on every token; how the tokens lie is the same to the outputs."""

    def __init__(self, how: str = "first") -> None:
        super().__init__()
        self.how = how
        self.up, self.down, self.head = nn.Linear(5, 7), nn.Linear(7, 6), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, length = x.shape[:2]
        if self.how != "first":
            x = x.transpose(0, 1)
        if self.how == "turns":
            x = x.reshape(length * n, -1)
        x = F.relu(self.down(F.relu(self.up(x))))
        if self.how == "turns":
            x = x.reshape(length, n, -1)
        return self.head(x.mean(1 if self.how == "first" else 0))


class Mixing(Tokens):
    """Every sample sees the others."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x + x.mean(0, keepdim=True))


def _with_data(how: str, length: int = 4, cls: type[Tokens] = Tokens):
    net = cls(how).eval()
    randomise_(net, 3)
    x = torch.randn(12, length, 5, generator=torch.Generator().manual_seed(2))
    calibration = cswap.calibration_set(TensorDataset(x, torch.arange(12) % 3), 4)
    return net, discover(net, calibration.inputs(0, 2)), calibration


def _scores(method: str, how: str, length: int) -> dict[str, np.ndarray]:
    net, units, calibration = _with_data(how, length)
    assert len(units.groups) == 2
    if method == "lrp":
        pytest.importorskip("zennit")
        return lrp_scores(net, units, calibration, Classification(), memory=1 << 14)
    return taylor_scores(net, units, calibration, Classification(), method=method, memory=1 << 14)


@pytest.mark.parametrize("length", [1, 2, 4])
@pytest.mark.parametrize("method", ["taylor", "taylor2", "lrp"])
def test_a_unit_has_the_same_score_however_its_tokens_lie(method, length):
    expected = _scores(method, "first", length)
    for how in ("second", "turns"):
        found = _scores(method, how, length)
        for group, values in expected.items():
            np.testing.assert_allclose(found[group], values, rtol=1e-4, err_msg=f"{how} {group}")


def test_each_samples_own_share_is_found():
    first, second, turns = (_with_data(how) for how in ("first", "second", "turns"))
    numbers = np.arange(12)
    found = [
        first_order_all(PlainEngine(net, units, c, Classification()), units.groups, numbers)
        for net, units, c in (first, second, turns)
    ]
    for group, values in found[0].items():
        assert (values.std(0) > 0).any()  # rows that were mixed up would be told apart
        np.testing.assert_allclose(found[1][group], values, rtol=1e-4, atol=1e-7)
        np.testing.assert_allclose(found[2][group], values, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("length", [1, 2, 4])
@pytest.mark.parametrize("cut", ["plain", "compensated"])
@pytest.mark.parametrize("replay", [False, True])
def test_a_unit_has_the_same_effect_however_its_tokens_lie(replay, cut, length):
    """Cut sets share a batch where samples come first; they may not where samples take turns."""
    expected: dict[str, np.ndarray] = {}
    for how in ("first", "second", "turns"):
        net, units, calibration = _with_data(how, length)
        make = engine_for if replay else {"plain": PlainEngine, "compensated": CompensatedPlainEngine}[cut]
        engine = make(net, units, calibration, Classification(), **({"cut": cut} if replay else {}))
        for group in units:
            engine.enter(group)
            found = np.stack(
                [(after.sigma - before.sigma) for _, after, before in engine.one_by_one(group, range(group.size))]
            )
            assert (np.abs(found).max(1) > 1e-3).any()
            np.testing.assert_allclose(
                found, expected.setdefault(group.name, found), atol=1e-6, err_msg=f"{how} {group.name}"
            )


def test_the_most_active_samples_are_the_same_however_tokens_lie():
    first, *others = (_with_data(how) for how in ("first", "second", "turns"))
    expected = most_active(*first, most=4)
    for case in others:
        for group, found in most_active(*case, most=4).items():
            np.testing.assert_array_equal(found.samples, expected[group].samples)
            np.testing.assert_allclose(found.values, expected[group].values, rtol=1e-5)
    with pytest.raises(InputError, match="images: .* not laid out by samples"):
        most_active(*_with_data("first", cls=Mixing))


@pytest.mark.parametrize(("how", "dim"), [("first", 0), ("second", 1), ("turns", TURNS)])
def test_the_dimension_of_the_samples_is_found(how, dim):
    net, _, calibration = _with_data(how)
    found = sample_dims(net, ["up", "down"], calibration.inputs(0, 1), calibration.inputs(11, 12))
    assert found == {"up": dim, "down": dim}


@pytest.mark.parametrize("how", ["first", "second", "turns"])
def test_positions_that_are_the_same_in_every_sample_tell_nothing(how):
    """Blank leading rows, padding on the left: what does not change with a sample must not be read as its place."""
    net, _, calibration = _with_data(how)
    one, other = (calibration.inputs(i, i + 1).clone() for i in (0, 11))
    for x in (one, other):
        x[:, :2] = 0.0
    expected = {"first": 0, "second": 1, "turns": TURNS}[how]
    assert sample_dims(net, ["up", "down"], one, other) == {"up": expected, "down": expected}
    assert sample_dims(net, ["up", "down"], one, one) == {"up": CONSTANT, "down": CONSTANT}


def test_by_samples_puts_each_sample_together():
    x = torch.arange(24).reshape(2, 3, 4)  # samples, positions, channels
    assert torch.equal(by_samples(x, 0, 2), x)
    assert torch.equal(by_samples(x.transpose(0, 1), 1, 2), x)
    assert torch.equal(by_samples(x.transpose(0, 1).reshape(6, 4), TURNS, 2), x)


def test_samples_that_see_each_other_are_refused():
    net, units, calibration = _with_data("first", cls=Mixing)
    with pytest.raises(MethodError, match="not laid out by samples"):
        taylor_scores(net, units, calibration, Classification())
    engine = PlainEngine(net, units, calibration, Classification())
    order = classes_in_order(engine, units.groups[0])
    assert order.tolist() == [[0, 1, 2]] * units.groups[0].size


def test_deeplift_refuses_what_it_would_mix_up():
    pytest.importorskip("captum")
    net, units, calibration = _with_data("second")
    with pytest.raises(MethodError, match="read samples first, up does not|read samples first, down does not"):
        deeplift_scores(net, units, calibration, Classification())
    net, units, calibration = _with_data("first")
    assert deeplift_scores(net, units, calibration, Classification())[1] < 0.01
