"""What speaks for and against a recovery, and which are declined."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

import cswap
import cswap.errors
from cswap.errors import InputError
from cswap.recovery import recovered
from cswap.recovery.base import STEPS
from cswap.recovery.recover import Outputs, _decided, _measured, _why_not
from cswap.structure.check import randomise_
from cswap.tasks import Classification
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
    said = _why_not(*_scores(50, gain, spread, flips), Outputs(np.ones(50), np.ones(50)))
    assert (said is None) if why is None else (why in str(said)), said


NOISE = np.random.default_rng(0).normal(size=80) * 0.01
NOISE -= NOISE.mean()
RIGHT, DOUBT, WORSE = (np.where(np.arange(80) < wrong, 0.0, 1.0) for wrong in (0, 1, 20))
NEARER, ALIKE, FURTHER = (Outputs(np.ones(80), np.exp(m + NOISE)) for m in (-0.5, -5e-5, 0.5))


@pytest.mark.parametrize(
    ("after", "whole", "outputs", "said"),
    [
        # a refit that falls from a flattered score back to the original's is taken; one that falls below that is not
        ((0.7 - NOISE, RIGHT), 0.7, NEARER, "not significantly below what the original has"),
        ((0.5 - NOISE, RIGHT), 0.7, NEARER, None),
        ((0.7 - NOISE, RIGHT), 0.7, ALIKE, None),  # nor one whose outputs came no nearer
        # nothing falls, and nothing shows that anything was given back: not on a guess
        ((0.9 + NOISE[::-1], RIGHT), 0.95, ALIKE, None),
        ((0.9 + NOISE[::-1], RIGHT), 0.95, NEARER, ""),
        # one of 80 turns wrong, which proves nothing, and the outputs came nearer; twenty do
        ((0.9 - NOISE, DOUBT), 0.95, NEARER, "while the outputs came nearer"),
        ((0.9 - NOISE, WORSE), 0.95, NEARER, None),
        ((0.9 - NOISE, DOUBT), 0.95, FURTHER, None),
    ],
)
def test_what_is_taken_though_a_figure_falls(after, whole, outputs, said):
    """The score of the network as it was cut is flattered by the samples that chose the units; its outputs are not."""
    declined, back = _decided((0.9 + NOISE, RIGHT), after, (whole + NOISE[::-1] / 9, RIGHT), outputs)
    assert (declined is None) == (said is not None), declined
    assert (said or "") in back


@pytest.mark.parametrize(("gain", "flips", "declined"), [(0.0, 0, True), (0.05, 0, False), (0.0, -9, False)])
def test_outputs_that_go_away_speak_against_what_gains_nothing(gain, flips, declined):
    before, after = _scores(50, gain, 0.1, flips)
    why = _why_not(before, after, FURTHER)
    assert (why is not None) == declined, why
    assert why is None or "times as far from the original's" in why
    assert _why_not(before, after, NEARER) is None


def test_a_few_outputs_that_went_very_far_do_not_hide_the_others():
    """The mean rises beyond doubt only by factors: one of eight has nearly all of it."""
    before, after = np.ones(8), np.array([30.0, 4, 5, 3, 6, 1e6, 4, 5])
    assert Outputs(before, after).further
    assert not Outputs(before, after).nearer
    assert not Outputs(before, np.full(8, np.nan)).further
    assert not Outputs(np.full(8, 1e-12), np.full(8, 1e-9)).further  # rounding


def test_the_distance_of_outputs_is_a_share_of_their_mean_square():
    net, calibration = randomise_(NETS["residual"](), seed=3).eval(), small_calibration(8)
    small, _ = pruned_at_random(net, calibration)
    with torch.no_grad():
        a, b = small(calibration.inputs(0, 32)).double(), net(calibration.inputs(0, 32)).double()
    expected = (a - b).square().mean(1) / b.square().mean()
    figures, (away,) = _measured((small, net), calibration, Classification(), "cpu")
    np.testing.assert_allclose(away[:32], expected.numpy(), rtol=1e-4)
    for model, (score, quality) in zip((small, net), figures, strict=True):
        with torch.no_grad():
            sigma = model(calibration.inputs(0, 32)).double().softmax(1)
        right = torch.from_numpy(calibration.targets[:32]).long()
        np.testing.assert_allclose(score[:32], sigma.gather(1, right[:, None])[:, 0].numpy(), rtol=1e-5)
        np.testing.assert_array_equal(quality[:32], (sigma.argmax(1) == right).numpy())
