"""The certificate: bounds that hold as often as they say, on populations whose true loss is known; what is refused."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn
from torch.utils.data import TensorDataset

import cswap
from cswap.data.sources import DataPair
from cswap.errors import CswapWarning, DataError, InputError
from cswap.evaluate.bounds import BOUNDS, bernstein, betting, student
from cswap.evaluate.certificate import (
    Certificate,
    certificate_of,
    check_enough,
    class_losses,
    in_fixed_order,
    refuse_seen,
    shown,
    whole_losses,
)
from cswap.pipeline import DataChoice, Wish
from cswap.pipeline.checks import unseen_data
from cswap.tasks import Segmentation, SoftSegmentation
from cswap.tasks.base import completed


def betting_by_hand(losses, alpha: float, tau: float) -> bool:
    """Whether a gambler refutes "the mean is at least τ": sample by sample, in plain Python."""
    capital, seen = 1.0, [0.0]
    extra = 1e-3
    for loss in losses:
        mean = sum(seen) / len(seen)
        variance = (extra + sum(x * x for x in seen)) / len(seen) - mean**2
        gap = tau - mean
        bet = min(max(gap / max(variance + gap**2, 1e-12), 0.0), 0.95 / (1 - tau))
        capital *= 1 + bet * (tau - loss)
        if capital >= 1 / alpha:
            return True
        seen.append(loss)
    return False


def test_the_betting_bound_is_that_of_the_slow_gambler():
    rng = np.random.default_rng(0)
    losses = np.clip(rng.normal(0.01, 0.05, 120), -1, 1)
    bound = betting(losses, 0.05)
    assert betting_by_hand(losses, 0.05, bound + 1e-9)
    assert not betting_by_hand(losses, 0.05, bound - 1.5 / 2000)


@pytest.mark.parametrize("n", [50, 200, 1000])
def test_without_any_loss_three_in_n_can_be_said(n):
    assert 3.0 / n <= betting(np.zeros(n), 0.05) <= 3.6 / n + 1 / 2000
    assert bernstein(np.zeros(n), 0.05) > betting(np.zeros(n), 0.05)


@pytest.mark.parametrize("n", [5000, 100_000])
def test_many_samples_say_as_much_as_they_can(n):
    assert 3.0 / n <= betting(np.zeros(n), 0.05) <= 3.25 / n


@pytest.mark.filterwarnings("ignore:certify. all")
def test_what_is_printed_as_the_smallest_margin_holds():
    rng = np.random.default_rng(5)
    for n in (30, 77, 150, 500, 5000):
        for mean in (0.0, 0.002, 0.05, 0.3):
            losses = {"a": np.clip(rng.normal(mean, mean, n), -1, 1)}
            for bound in BOUNDS:
                found = certificate_of(losses, margin=0.999, bound=bound)
                printed = shown(found.smallest)
                assert printed in str(found)
                assert float(printed) - found.smallest < 1e-4
                if 0 < float(printed) < 1:
                    assert certificate_of(losses, margin=float(printed), bound=bound).holds
    exact = certificate_of({"a": np.zeros(100)}, margin=0.143)
    assert replace(exact, smallest=0.14300000000000002).holds
    assert not replace(exact, smallest=0.14301).holds
    for value, printed in (
        (0.14300000000000002, "0.1430"),
        (0.14301, "0.1431"),
        (3.1612e-5, "0.0000317"),
        (1.0, "1.0000"),
        (0.0, "0.0000"),
    ):
        assert shown(value) == printed


def test_bounds_shrink_with_samples_and_lie_above_the_mean():
    rng = np.random.default_rng(1)
    losses = np.clip(rng.normal(0.02, 0.1, 4000), -1, 1)
    for bound in BOUNDS.values():
        few, many = bound(losses[:100], 0.05), bound(losses, 0.05)
        assert many < few
        assert losses.mean() < many < 0.06
    assert student(losses, 0.05) < betting(losses, 0.05) < bernstein(losses, 0.05)


def test_the_bound_is_wrong_as_seldom_as_it_says():
    """Losses whose true mean is exactly τ, mostly small and seldom large: at most 5 % of the bounds may lie below it, and some do."""
    rng, tau, wrong, repeats = np.random.default_rng(2), 0.02, 0, 400
    for _ in range(repeats):
        losses = np.where(rng.random(600) < 0.04, 0.5, 0.0)
        wrong += betting(losses, 0.05) < tau
    assert 0 < wrong <= 0.05 * repeats + 2 * (repeats * 0.05 * 0.95) ** 0.5
    falsely = sum(student(np.where(rng.random(60) < 0.02, 1.0, 0.0), 0.05) < 0.02 for _ in range(repeats))
    assert falsely > 0.2 * repeats  # why a t bound is called approximate


def test_the_bernstein_bound_is_its_formula():
    """Maurer and Pontil (2009), theorem 4, for a range of 2: mean + √(2 V ln(2/δ)/n) + 2 · 7 ln(2/δ)/(3 (n − 1))."""
    for n, alpha in ((400, 0.05), (3000, 0.2)):
        losses = np.where(np.arange(n) < n // 4, 0.4, 0.0)  # mean 0.1, variance 0.03 n/(n − 1)
        log = math.log(2 / alpha)
        expected = 0.1 + math.sqrt(2 * 0.03 / (n - 1) * log) + 14 * log / (3 * (n - 1))
        assert bernstein(losses, alpha) == pytest.approx(expected, rel=1e-12)


def test_certificates_are_wrong_as_seldom_as_they_say_whatever_order_samples_came_in():
    """The mean loss is exactly 0.02. In ascending order the gambler would win before the first loss, nearly every time."""
    rng, repeats = np.random.default_rng(6), 200
    populations = [np.sort((rng.random(300) < 0.02).astype(float)) for _ in range(repeats)]
    wrong = sum(certificate_of({"a": v}, margin=0.02, seed=k).holds for k, v in enumerate(populations))
    assert wrong <= 0.07 * repeats
    assert sum(betting(v, 0.05) <= 0.02 for v in populations) > 0.9 * repeats


def test_every_class_must_pass():
    rng = np.random.default_rng(3)
    fine, bad = np.clip(rng.normal(0, 0.01, 300), -1, 1), np.clip(rng.normal(0.1, 0.01, 300), -1, 1)
    good = certificate_of({"a": fine, "b": fine[::-1].copy()}, margin=0.05)
    assert good.holds
    assert "no class lost more than 0.05" in str(good)
    worse = certificate_of({"a": fine, "b": bad}, margin=0.05)
    assert not worse.holds
    assert "class b" in str(worse)
    assert worse.smallest == max(worse.upper) > 0.1
    assert worse.as_dict()["upper"] == list(worse.upper)
    assert certificate_of({"a": fine, "b": bad}, margin=0.05) == worse


def test_a_chain_of_targets_is_wrong_as_seldom_as_one_of_them():
    """A target whose claim is true, then three at the edge: in order they are wrong as seldom as α, and looked at each by itself more often."""
    rng, repeats, chain, each = np.random.default_rng(7), 200, 0, 0
    for k in range(repeats):
        losses = [np.where(rng.random(600) < p, 0.5, 0.0) for p in (0.01, 0.04, 0.04, 0.04)]
        made = [certificate_of({"a": v}, margin=0.02, alpha=0.2, seed=k) for v in losses]
        chain += any(c.holds for c in in_fixed_order([lambda c=c: c for c in made])[1:])
        each += any(c.holds for c in made[1:])
    assert 0 < chain <= 0.2 * repeats < each


def test_targets_stop_at_the_first_failure():
    made = []

    def at(margin: float, loss: float):
        def make() -> Certificate:
            made.append(loss)
            return certificate_of({"a": np.full(300, loss)}, margin=margin)

        return make

    found = in_fixed_order([at(0.1, 0.0), at(0.1, 0.01), at(0.1, 0.5), at(0.1, 0.0)])
    assert [c.holds for c in found] == [True, True, False]
    assert made == [0.0, 0.01, 0.5]


def test_losses_are_by_class_and_seen_samples_are_refused(digits_case):
    model, calibration, structure = digits_case
    path = cswap.prune_path(model, calibration, structure=structure, method="random")
    small = path.apply(model, "params=0.5")
    from cswap.demo import digits

    _, held_out = digits(0)
    task = cswap.Classification()
    losses = class_losses(model, small, held_out, task, calibration.classes)
    x, y = held_out.tensors
    with torch.no_grad():
        by_hand = (model(x).double().softmax(1) - small(x).double().softmax(1)).gather(1, y.view(-1, 1)).squeeze(1)
    for k, c in enumerate(calibration.classes):
        np.testing.assert_allclose(losses[c], by_hand[y == k].numpy(), atol=1e-6)
    refuse_seen(held_out, calibration)
    with pytest.raises(DataError, match="sample 1 is one of the calibration samples"):
        refuse_seen(TensorDataset(torch.stack([x[0], calibration.inputs(3, 4)[0]]), y[:2]), calibration)


def test_a_sample_that_comes_twice_is_no_second_draw(digits_case):
    from cswap.demo import digits

    _, calibration, _ = digits_case
    x, y = digits(0)[1].tensors
    twice = torch.cat([torch.arange(20), torch.tensor([3, 5])])
    with pytest.raises(DataError, match="certify: sample 20 is sample 3 again: expected each sample once"):
        refuse_seen(TensorDataset(x[twice], y[twice]), calibration)


class _Counted(TensorDataset):
    """Counts how often each sample is read."""

    def __getitem__(self, index):
        self.read[index] += 1
        return super().__getitem__(index)


def test_the_certificate_s_samples_are_decoded_once(digits_case, monkeypatch):
    from cswap.demo import digits

    model, calibration, _ = digits_case
    counted = _Counted(*digits(0)[1].tensors)
    counted.read = np.zeros(len(counted), dtype=int)
    pair = DataPair(counted, counted, calibration.classes)
    monkeypatch.setattr(DataChoice, "open", lambda self, spec, model=None, known=None: pair)
    unseen = unseen_data(
        Wish(certify="more", margin=0.3), DataChoice("data"), None, model, calibration.classes, calibration
    )
    class_losses(model, model, unseen, cswap.Classification(), calibration.classes)
    assert len(unseen) == len(counted)
    assert (counted.read[1:] == 1).all()  # the first says how large they are


def test_a_margin_that_the_samples_cannot_reach_is_said_before(digits_case):
    from cswap.demo import digits

    x, y = digits(0)[1].tensors
    fewer = torch.cat([torch.nonzero(y != 3).flatten(), torch.nonzero(y == 3).flatten()[:40]])
    data, classes = TensorDataset(x[fewer], y[fewer]), digits_case[1].classes
    best = betting(np.zeros(40), 0.05)
    check_enough(data, classes, margin=best)
    with pytest.warns(
        CswapWarning,
        match=f"class '{classes[3]}' has 40 samples, which can say at best {shown(best)} with confidence 0.95",
    ):
        check_enough(data, classes, margin=best - 1e-4)
    check_enough(data, classes, margin=best - 1e-4, alpha=0.2)
    with pytest.warns(CswapWarning, match="bernstein"):
        check_enough(data, classes, margin=best, bound="bernstein")
    with pytest.raises(DataError, match=f"class '{classes[3]}': expected at least 2 samples, got 1"):
        check_enough(TensorDataset(x[fewer[:-39]], y[fewer[:-39]]), classes, margin=0.9)
    masks = torch.tensor([[0, 0], [0, 1], [0, 1]]).view(3, 1, 2)  # a class counts where a mask holds it
    with pytest.warns(CswapWarning, match="class 'b' has 2 samples"):
        check_enough(TensorDataset(torch.zeros(3, 3, 1, 2), masks), ("a", "b"), margin=0.5)


def test_what_the_samples_can_say_at_best_is_always_told():
    for loss in (0.0, 0.2):
        found = certificate_of({"a": np.full(300, loss), "b": np.zeros(150)}, margin=0.1)
        assert found.holds == (loss == 0)
        assert f"150 samples of a class that neither lost nor gained say {shown(betting(np.zeros(150), 0.05))}" in str(
            found
        )


def test_a_sentence_is_seen_however_wide_its_padding_is():
    def padded(rows: list[list[int]], width: int) -> torch.Tensor:
        return torch.tensor([[(r + [0] * width)[:width], ([1] * len(r) + [0] * width)[:width]] for r in rows])

    drawn = TensorDataset(padded([[5, 6, 7], [8, 9], [3, 4], [2, 5, 6]], 6), torch.tensor([0, 1, 0, 1]))
    calibration = cswap.calibration_set(drawn, 2)
    refuse_seen(TensorDataset(padded([[5, 6], [8, 9, 0]], 9), torch.tensor([0, 1])), calibration)
    with pytest.raises(DataError, match="sample 1 is one of the calibration samples"):
        refuse_seen(TensorDataset(padded([[5, 6], [8, 9]], 9), torch.tensor([0, 1])), calibration)


def test_what_cannot_be_certified_is_said():
    with pytest.raises(InputError, match="margin: expected a number between 0 and 1, got 0"):
        certificate_of({"a": np.zeros(9)}, margin=0)
    with pytest.raises(InputError, match="bound: expected one of betting, bernstein, t"):
        certificate_of({"a": np.zeros(9)}, bound="normal")
    with pytest.raises(DataError, match="class 'b': expected at least 2 samples, got 1"):
        certificate_of({"a": np.zeros(9), "b": np.zeros(1)})


@pytest.mark.filterwarnings("ignore:certify. all")
@pytest.mark.parametrize("bound", BOUNDS)
def test_losses_that_are_none_certify_nothing(bound):
    for wrong, said in ((np.nan, "nan"), (np.inf, "inf"), (-np.inf, "-inf"), (50.0, "50"), (-1.1, "-1.1")):
        with pytest.raises(
            DataError, match=rf"class 'b': expected losses from -1 to 1, got {said} \(1 of 100 samples\)"
        ):
            certificate_of({"a": np.zeros(100), "b": np.r_[np.zeros(99), wrong]}, margin=0.1, bound=bound)
    with pytest.raises(DataError, match="got nan \\(100 of 100 samples\\)"):
        certificate_of({"a": np.full(100, np.nan)}, margin=0.1, bound=bound)
    for first in (0, 50, 99):  # that is NaN, and all after it
        assert BOUNDS[bound](np.where(np.arange(100) < first, 0.0, np.nan), 0.05) == 1.0
    assert BOUNDS[bound](np.r_[np.zeros(50), np.nan, np.zeros(49)], 0.05) == 1.0
    assert certificate_of({"a": np.r_[np.zeros(99), -1 - 1e-7]}, margin=0.9, bound=bound).samples == (100,)  # rounding


def test_losses_of_masks_are_of_each_class_s_own_column():
    """The smaller network says "a" everywhere: where "b" is it loses all of it, and "a" what it claims too much."""
    masks = torch.tensor([[0, 0, 0, 1], [0, 0, 1, 1], [0, 0, 0, 0]]).view(3, 2, 2)
    logits = 9.0 * torch.nn.functional.one_hot(masks, 2).movedim(-1, 1).float()
    losses = class_losses(_Says(0.0), _Says(99.0), TensorDataset(logits, masks), Segmentation(), ("a", "b"), batch=2)
    np.testing.assert_allclose(losses["a"], [1 - 3 / 4, 1 - 2 / 4, 0])
    np.testing.assert_allclose(losses["b"], [1, 1])  # the third has none of it


class _Says(nn.Module):
    """Gives its inputs out as logits, those of one class shifted."""

    def __init__(self, shift: float) -> None:
        super().__init__()
        self.shift = shift

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x[:, :1] + self.shift, x[:, 1:]], 1)


def test_a_network_that_says_nan_loses_its_samples_of_no_class():
    """Where a class is not in a mask, it has no score of either network; a NaN of the pruned one alone is not that."""
    masks = torch.tensor([0, 0, 1, 1]).view(4, 1, 1).expand(4, 2, 2).clone()
    logits = 9.0 * torch.nn.functional.one_hot(masks, 2).movedim(-1, 1).float()
    data, task = TensorDataset(logits, masks), SoftSegmentation()
    losses = class_losses(_Says(0.0), _Says(float("nan")), data, task, ("a", "b"))
    assert [len(v) for v in losses.values()] == [2, 2]
    with pytest.raises(DataError, match="got nan"):
        certificate_of(losses, margin=0.9)


def test_data_that_hold_nan_are_refused(digits_case, monkeypatch):
    from cswap.demo import digits

    model, calibration, _ = digits_case
    x, y = digits(0)[1].tensors
    x = x.clone()
    x[4, 0, 2, 2] = float("nan")
    monkeypatch.setattr(
        DataChoice,
        "open",
        lambda self, spec, model=None, known=None: DataPair(None, TensorDataset(x, y), calibration.classes),
    )
    with pytest.raises(DataError, match="certify: sample 4: expected finite inputs, got NaN or Inf"):
        unseen_data(Wish(certify="more"), DataChoice("data"), None, model, calibration.classes, calibration)


def test_a_t_bound_of_samples_that_all_lost_the_same_is_doubted():
    with pytest.warns(CswapWarning, match="all 2 samples of class 'a' lost the same: a t bound knows no spread"):
        assert certificate_of({"a": np.zeros(2)}, margin=0.1, bound="t").holds


def test_a_task_whose_scores_have_another_range_is_not_certified():
    """Whatever losses the samples happen to show: a score of 0 to 100 may lose 100 on the next one."""

    class Percent:
        def score(self, outputs, targets):
            return 100 * outputs.softmax(1).gather(1, targets[:, None])[:, 0]

    net = torch.nn.Linear(4, 3)
    data = torch.utils.data.TensorDataset(torch.randn(30, 4), torch.arange(30) % 3)
    with pytest.raises(DataError, match="expected a task whose scores lie between 0 and 1, got "):
        class_losses(net, net, data, Percent(), ["a", "b", "c"])


def test_a_t_bound_names_no_least_margin():
    """Samples that lost nothing have no spread: it would say 0 of any number of them."""
    rng = np.random.default_rng(0)
    found = certificate_of({"a": rng.normal(0, 0.01, 40).clip(-1, 1)}, margin=0.1, bound="t")
    assert found.holds
    assert found.possible is None
    assert "neither lost nor gained" not in str(found)
    assert "neither lost nor gained" in str(certificate_of({"a": np.zeros(400)}, margin=0.1))


class _Distance:
    """A score without limits, as a user's own task may have."""

    name = "distance"

    def score(self, outputs, targets):
        return 3.0 * outputs.double()[:, 0]


def test_the_whole_of_joint_is_told_of_scores_without_limits_and_a_certificate_is_not():
    inputs = torch.randn(40, 2, generator=torch.Generator().manual_seed(1)) * 5
    calibration = cswap.calibration_set(TensorDataset(inputs, torch.arange(40) % 2), 20)
    task = completed(_Distance())
    half = nn.Linear(2, 2, bias=False)
    nn.init.eye_(half.weight)
    half.weight.data *= 0.5
    found = whole_losses(nn.Identity(), half, calibration, task, alpha=0.05)
    for k, upper in enumerate(found.upper.values()):
        lost = 1.5 * inputs[torch.arange(40) % 2 == k][:, 0].double().numpy()
        assert upper == pytest.approx(lost.mean() + stats.t.ppf(0.95, 19) * lost.std(ddof=1) / 20**0.5, abs=1e-5)
    with pytest.raises(DataError, match="scores lie between 0 and 1"):
        class_losses(nn.Identity(), half, calibration, task, calibration.classes)
