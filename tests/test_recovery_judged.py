"""What speaks for and against a recovery, and which are declined."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

import cswap
import cswap.errors
from cswap.errors import InputError
from cswap.recovery import recovered
from cswap.recovery.base import STEPS
from cswap.recovery.recover import _away, _why_not
from cswap.structure.check import randomise_
from tests.conftest import NETS
from tests.recoveries import pruned_at_random, small_calibration


def test_a_recovery_that_loses_is_declined(monkeypatch):
    net, calibration = randomise_(NETS["residual"](), seed=3).eval(), small_calibration()
    labels = net(calibration.inputs(0, 80)).argmax(1)  # a network that is right about its own labels
    calibration = cswap.calibration_set(TensorDataset(calibration.inputs(0, 80), labels), 2, classes=[str(k) for k in range(4)], allow_imbalance=True) if len(labels.unique()) == 4 else calibration  # fmt: skip
    small, _ = pruned_at_random(net, calibration, share=0.1)

    def harm(case):
        for p in case.small.parameters():
            p.data.mul_(float("nan"))

    monkeypatch.setitem(STEPS, "harm", harm)
    found = recovered(small, net, calibration, "harm")
    assert "declined" in str(found.declined)
    assert all(
        torch.equal(a, b) for a, b in zip(found.model.state_dict().values(), small.state_dict().values(), strict=True)
    )
    with pytest.warns(cswap.errors.CswapWarning, match="declined"):
        cswap.recover(small, net, calibration, "harm")
    with pytest.raises(InputError, match="recover: expected none or some of"):
        cswap.recover(small, net, calibration, "harm+nosuch")


def _scores(
    n: int, gain: float, spread: float, flips: int
) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """σ and quality of n samples before and after: σ changes by `gain` ± `spread`, the first `flips` samples turn wrong (below 0: right)."""
    rng = np.random.default_rng(0)
    sigma, right = rng.uniform(0.3, 0.7, n), np.ones(n)
    noise = rng.normal(size=n)
    later = sigma + gain + spread * (noise - noise.mean()) / noise.std(ddof=1)
    some = np.where(np.arange(n) < abs(flips), 0.0, 1.0)
    return (sigma, some if flips < 0 else right), (later, right if flips < 0 else some)


@pytest.mark.parametrize(
    ("gain", "spread", "flips", "why"),
    [
        (0.05, 0.1, 0, None),
        (-0.05, 0.1, 0, "mean score"),
        (-0.005, 0.1, 0, None),  # t = −0.35: no evidence of a loss
        (0.05, 0.1, 1, None),  # one of 50 turns wrong, and the score rises beyond doubt
        (0.005, 0.1, 1, "quality"),  # one turns wrong, and nothing speaks for the recovery
        (0.05, 0.1, 9, "quality"),  # nine of 50 turn wrong: significant by itself
        (-0.05, 0.1, -9, None),  # less sure, and right nine times more of 50: that is what counts
        (-0.05, 0.1, -1, "mean score"),  # once more proves nothing
        (float("nan"), 0.1, 0, "no finite scores"),
    ],
)
def test_what_speaks_for_and_against_a_recovery(gain, spread, flips, why):
    said = _why_not(*_scores(50, gain, spread, flips))
    assert (said is None) if why is None else (why in str(said)), said


def test_a_network_that_was_chosen_by_the_samples_is_no_better_judge_than_the_original(monkeypatch):
    """A refit that falls from a flattered score back to the original's is taken; one that falls below that is not."""
    net, calibration = randomise_(NETS["residual"](), seed=3).eval(), small_calibration()
    small, _ = pruned_at_random(net, calibration, share=0.1)
    monkeypatch.setitem(STEPS, "nothing", lambda case: None)  # so the outputs are as far from the original's as before
    noise = np.random.default_rng(0).normal(size=80) * 0.01
    noise -= noise.mean()
    for after, declined in ((0.7, False), (0.5, True)):
        right = np.ones(80)
        told = iter([(0.9 + noise, right), (after - noise, right), (0.7 + noise[::-1], right)])
        monkeypatch.setattr(sys.modules[recovered.__module__], "_measured", lambda *_, told=told: next(told))
        found = recovered(small, net, calibration, "nothing")
        assert (found.declined is not None) == declined
        assert declined or "to what the original has" in " ".join(found.notes)


def test_outputs_that_came_nearer_to_the_original_s_speak_for_a_recovery(monkeypatch):
    """The score of the network as it was cut is flattered by the samples that chose the units; its outputs are not."""
    net, calibration = randomise_(NETS["residual"](), seed=3).eval(), small_calibration()
    small, _ = pruned_at_random(net, calibration, share=0.3)
    noise = np.random.default_rng(0).normal(size=80) * 0.01
    right = np.ones(80)

    def spoil(case):
        with torch.no_grad():
            for p in case.small.fc.parameters():
                p.add_(3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))

    doubt, worse = np.where(np.arange(80) < 1, 0.0, right), np.where(np.arange(80) < 20, 0.0, right)
    for how, worked, after, declined in (
        (
            "lstsq",
            STEPS["lstsq"],
            doubt,
            False,
        ),  # one of 80 turns wrong, which proves nothing, and the outputs came nearer
        ("lstsq", STEPS["lstsq"], worse, True),  # twenty do
        ("spoil", spoil, doubt, True),  # the outputs went away
    ):
        monkeypatch.setitem(STEPS, how, worked)
        told = iter([(0.9 + noise, right), (0.9 - noise, after), (0.95 + noise[::-1] / 9, right)])
        monkeypatch.setattr(sys.modules[recovered.__module__], "_measured", lambda *_, told=told: next(told))
        found = recovered(small, net, calibration, how)
        assert (found.declined is not None) == declined, (how, after.mean())
        assert declined or "while the outputs came nearer to the original's" in " ".join(found.notes)


def test_the_distance_of_outputs_is_a_share_of_their_mean_square():
    net, calibration = randomise_(NETS["residual"](), seed=3).eval(), small_calibration(8)
    small, _ = pruned_at_random(net, calibration)
    with torch.no_grad():
        a, b = small(calibration.inputs(0, 32)).double(), net(calibration.inputs(0, 32)).double()
    expected = (a - b).square().mean(1) / b.square().mean()
    np.testing.assert_allclose(_away(small, net, calibration, "cpu"), expected.numpy(), rtol=1e-4)
