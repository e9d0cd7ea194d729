"""Effects against a plain float64 twin, at any number of units a batch; t and p against scipy."""

from __future__ import annotations

import copy
from functools import partial

import numpy as np
import pytest
import torch
from scipy import stats as scipy_stats
from torch import nn
from torch.utils.data import TensorDataset

from cswap.causal.cut import PlainEngine
from cswap.causal.replay import ReplayEngine, Tuning
from cswap.causal.stats import Moments, effect_stats, paired_t
from cswap.causal.verdicts import VoteRule, class_tests, corrected, holm, verdict_of
from cswap.data.calibration import calibration_set
from cswap.errors import InputError, RunError
from cswap.structure.check import randomise_
from cswap.structure.discover import discover
from cswap.structure.groups import Structure
from cswap.tasks import Classification
from cswap.types import Verdict
from tests.conftest import NETS
from tests.reference.twin import cut_scores


def _set(n: int = 24) -> TensorDataset:
    g = torch.Generator().manual_seed(5)
    return TensorDataset(torch.randn(n, 3, 8, 8, generator=g), torch.arange(n) % 4)


# which input columns of which layer read unit n, written down by hand from the networks' forward functions
READS = {
    "residual": {
        "conv": lambda n: [("a", [n]), ("c", [n]), ("skip", [n])],
        "a": lambda n: [("b", [n])],
        "c": lambda n: [("fc", [n])],
    },
    "depthwise": {
        "up": lambda n: [("squeeze", [n]), ("down", [n])],
        "squeeze": lambda n: [("excite", [n])],
        "down": lambda n: [("fc", [n])],
    },
    "concat": {
        "a": lambda n: [("b", [n]), ("c", [n])],
        "b": lambda n: [("c", [5 + n])],
        "c": lambda n: [("hidden", list(range(16 * n, 16 * n + 16)))],
        "hidden": lambda n: [("fc", [n])],
    },
}


ENGINES = {
    "plain": PlainEngine,
    "replay": ReplayEngine,
    "no difference": partial(ReplayEngine, tuning=Tuning(difference=False)),
    "no shrinking, no folding": partial(ReplayEngine, tuning=Tuning(shrink=False, fold=False)),
}


@pytest.mark.parametrize("engine_name", ENGINES)
@pytest.mark.parametrize("units_per_batch", [1, 3, 64])
def test_effects_equal_the_float64_twin(small_net, units_per_batch, engine_name):
    name = next(k for k, net in NETS.items() if isinstance(small_net, net))
    calibration = calibration_set(_set(), 6)
    structure = discover(small_net, calibration.inputs(0, 2))
    assert {g.name for g in structure} == set(READS[name])
    everything, targets = calibration.inputs(0, len(calibration)), torch.from_numpy(calibration.targets)
    for net, tolerance in ((copy.deepcopy(small_net).double(), 1e-12), (small_net, 2e-5)):
        engine = ENGINES[engine_name](net, structure, calibration, Classification(), units_per_batch=units_per_batch)
        assert engine.most_units == units_per_batch
        plain = cut_scores(small_net, [], everything, targets).numpy()
        np.testing.assert_allclose(engine.scores().sigma, plain, atol=tolerance)
        moved = 0.0
        for group in structure:
            got = engine.cut(group, [[n] for n in range(group.size)])
            for n, scores in enumerate(got):
                expected = cut_scores(small_net, READS[name][group.name](n), everything, targets).numpy()
                np.testing.assert_allclose(scores.sigma, expected, atol=tolerance)
                moved = max(moved, np.abs(expected - plain).max())
        assert moved > 1e-2  # the cut can be seen
        assert not engine.notes, "no group may fall back on full forward passes"


def test_verdicts_do_not_depend_on_the_batch(small_net):
    from cswap.methods.options import Options
    from cswap.methods.progressive import cswap

    images = torch.randn(400, 3, 8, 8, generator=torch.Generator().manual_seed(5)) * 2
    small_net.fc = nn.Linear(small_net.fc.in_features, 2)
    with torch.no_grad():  # two classes, with the labels the network itself gives: far from chance
        randomise_(small_net.fc, 1)
        scores = small_net(images)
        small_net.fc.bias -= scores.median(0).values
        labels = small_net(images).argmax(1)
    assert labels.bincount().min() >= 40
    calibration = calibration_set(TensorDataset(images, labels), 40)
    structure = discover(small_net, calibration.inputs(0, 2))
    paths = [
        cswap(small_net, structure, calibration, Classification(), options=Options(), units_per_batch=b)
        for b in (1, 3, 64)
    ]
    lines = [[(d.group, d.unit, d.verdict, d.removed, d.phase) for d in p] for p in paths]
    assert lines[0] == lines[1] == lines[2]
    assert sum(line[-1] == "walk" for line in lines[0]) == structure.units
    np.testing.assert_allclose([d.xi for d in paths[0]], [d.xi for d in paths[2]], rtol=1e-3, atol=1e-6)


def test_engine_chunks_to_the_memory_budget_and_refuses_one_sample_too_many():
    net = NETS["residual"]().eval()
    calibration = calibration_set(_set(), 6)
    structure = discover(net, calibration.inputs(0, 2))
    wide = PlainEngine(net, structure, calibration, Classification())
    tight = PlainEngine(net, structure, calibration, Classification(), memory=40_000)
    assert tight.rows(None) < len(calibration) < wide.rows(None)
    np.testing.assert_allclose(tight.scores().sigma, wide.scores().sigma, atol=1e-6)
    with pytest.raises(InputError, match="memory"):
        PlainEngine(net, structure, calibration, Classification(), memory=1000)


def test_a_nan_in_the_network_is_an_error():
    net = NETS["residual"]().eval()
    calibration = calibration_set(_set(), 6)
    structure = discover(net, calibration.inputs(0, 2))
    torch.nn.init.constant_(net.fc.bias, float("nan"))
    with pytest.raises(RunError, match="not finite"):
        PlainEngine(net, structure, calibration, Classification()).scores()


def test_t_and_p_equal_scipy():
    rng = np.random.default_rng(0)
    for n in (2, 3, 8, 128):
        d = rng.normal(0.1, 1.0, size=(5, n))
        t, p = paired_t(Moments.of(d))
        expected = scipy_stats.ttest_1samp(d, 0.0, axis=1)
        np.testing.assert_allclose(t, expected.statistic, rtol=1e-10)
        np.testing.assert_allclose(p, expected.pvalue, rtol=1e-10)


def test_zero_variance_as_decided():
    _, p = paired_t(Moments.of(np.array([[0.0] * 4, [0.3] * 4, [-1e-3] * 4])))
    assert p.tolist() == [1.0, 0.0, 0.0]
    assert paired_t(Moments.of(np.array([[0.5]])))[1].tolist() == [1.0]  # one sample proves nothing


def test_moments_merge_like_one_set_even_far_from_zero():
    d = np.random.default_rng(1).normal(1e6, 1e-3, size=(3, 90))
    parts = [Moments.of(d[:, i : i + 17]) for i in range(0, 90, 17)]
    merged = parts[0]
    for part in parts[1:]:
        merged = merged.merge(part)
    whole = Moments.of(d)
    np.testing.assert_allclose(merged.mean, whole.mean, rtol=1e-14)
    np.testing.assert_allclose(merged.m2, whole.m2, rtol=1e-5)
    assert (merged.count == 90).all()


def test_xi_and_the_noise_floor_by_hand():
    sigma, cut = np.array([0.5, 1e-9, 0.2]), np.array([0.4, 0.1 + 1e-9, 0.2 + 5e-7])
    stats = effect_stats(sigma, cut, np.array([0, 1, 1]), 2)
    assert stats.xi == pytest.approx((-0.1 / 0.5 + 0.1 / 1e-3 + 0.0) / 3)
    assert stats.by_class.mean.tolist() == pytest.approx([-0.1, 0.05])


def test_class_scores_test_each_class_on_its_own_column():
    nan = float("nan")
    base = np.array([[0.5, nan], [0.6, 0.4], [0.7, 0.4]])
    after = np.array([[0.5, nan], [0.6, 0.1], [0.7, 0.15]])
    stats = effect_stats(np.ones(3), np.ones(3), np.array([0, 1, 1]), 2, sigma_class=base, cut_class=after)
    assert stats.by_class.count.tolist() == [3, 2]
    assert stats.by_class.mean.tolist() == pytest.approx([0.0, -0.275])


def _stats(means: list[float], spread: float = 0.01, n: int = 20):
    d = np.stack([m + spread * np.resize([1.0, -1.0], n) for m in means])
    moments = Moments.of(d)
    return type("S", (), {"by_class": moments, "pooled": Moments.of(d.reshape(-1)), "xi": np.asarray(0.0)})()


def test_the_vote():
    rule = VoteRule()
    for means, expected in (
        ([0.0, 0.0], Verdict.NEUTRAL), ([0.1, 0.0], Verdict.DETRIMENTAL), ([0.1, -0.1], Verdict.CRITICAL),
        ([0.0, -0.1], Verdict.CRITICAL),
    ):  # fmt: skip
        stats = _stats(means)
        assert verdict_of(class_tests(stats, rule)[1], stats, rule) is expected
    both = _stats([0.3, -0.1])
    pooled = VoteRule(vote="pooled")
    assert verdict_of(class_tests(both, pooled)[1], both, pooled) is Verdict.DETRIMENTAL
    deaf = VoteRule(min_effect=0.2)
    assert verdict_of(class_tests(_stats([-0.1]), deaf)[1], _stats([-0.1]), deaf) is Verdict.NEUTRAL


def test_corrections_by_hand():
    p = np.array([0.01, 0.04, 0.03])
    assert holm(p).tolist() == pytest.approx([0.03, 0.06, 0.06])
    assert corrected(p, "bh").tolist() == pytest.approx([0.03, 0.04, 0.04])
    assert corrected(p, "none") is p


@pytest.mark.parametrize(
    "bad", [{"alpha": 0.0}, {"alpha": 1.5}, {"vote": "x"}, {"correction": "x"}, {"min_effect": -1.0}]
)
def test_a_rule_that_cannot_be_is_refused(bad):
    with pytest.raises(InputError, match="expected"):
        VoteRule(**bad)


def test_structure_survives_json(small_net, inputs):
    structure = discover(small_net, inputs)
    again = Structure.from_dict(structure.as_dict())
    assert again.as_dict() == structure.as_dict()
