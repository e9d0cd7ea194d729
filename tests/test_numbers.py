"""Effects and verdicts on networks that hypothesis draws: against the float64 twin, and whatever batch, order or threads."""

from __future__ import annotations

import copy
import warnings

import numpy as np
import pytest
import torch
from scipy import stats as scipy_stats
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from cswap.causal.cut import PlainEngine
from cswap.causal.judge import Judge
from cswap.causal.replay import ReplayEngine
from cswap.causal.verdicts import VoteRule
from cswap.data.calibration import calibration_set
from cswap.errors import CswapWarning, DataError
from cswap.structure.check import randomise_
from cswap.structure.discover import discover
from cswap.tasks import Classification
from cswap.types import Verdict
from tests.reference.twin import cut_scores

pytest.importorskip("hypothesis", reason="hypothesis draws the networks: pip install 'cswap[dev]'")
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

QUICK = settings(
    max_examples=12, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
SIDE = 6


class Drawn(nn.Module):
    """A stem, then blocks: `plain` (a new stream), `residual`, `depthwise`, `grouped`; mean, and one or two linear layers.

    `reads[group][unit]`: which input columns of which layers read the unit, written down while the network is put together.
    """

    def __init__(self, stem: int, blocks: list[tuple[str, int, int, int]], hidden: int, classes: int) -> None:
        super().__init__()
        self.kinds, self.reads, width, stream = [], {}, stem, "stem"
        self.stem = nn.Conv2d(3, stem, 3, 1, 1)
        units = [[n] for n in range(stem)]  # columns by unit in whatever reads the stream next
        self.reads[stream] = [[] for _ in units]
        for i, (kind, size, kernel, stride) in enumerate(blocks):
            conv = lambda a, b, k=kernel, s=1, g=1: nn.Conv2d(a, b, k, s, k // 2, groups=g)  # noqa: E731
            if kind == "residual":
                self.add_module(f"a{i}", conv(width, size))
                self.add_module(f"b{i}", conv(size, width))
                self._read(stream, units, f"a{i}")
                self.reads[f"a{i}"] = [[(f"b{i}", [n])] for n in range(size)]
            elif kind == "depthwise":
                self.add_module(f"d{i}", conv(width, width, 3, 1, width))
                self.add_module(f"n{i}", nn.BatchNorm2d(width))
            elif kind == "grouped" and not width % 2 and len(units) == width and "grouped" not in self.kinds:
                self.add_module(f"g{i}", conv(width, 2 * size, 3, stride, 2))
                before, units = units, [list(range(size)), list(range(size, 2 * size))]
                half = width // 2  # a unit is one of the convolution's groups from here on, back to the stream's start
                self.reads[stream] = [
                    [read for unit in self.reads[stream][j * half : (j + 1) * half] for read in unit] for j in range(2)
                ]
                assert before == [[n] for n in range(width)]
                width = 2 * size
            else:
                kind = "plain"
                self.add_module(f"c{i}", conv(width, size, kernel, stride))
                self._read(stream, units, f"c{i}")
                width, stream, units = size, f"c{i}", [[n] for n in range(size)]
                self.reads[stream] = [[] for _ in units]
            self.kinds.append(kind)
        if hidden:
            self.hidden = nn.Linear(width, hidden)
            self._read(stream, units, "hidden")
            self.reads["hidden"] = [[("fc", [n])] for n in range(hidden)]
        else:
            self._read(stream, units, "fc")
        self.fc = nn.Linear(hidden or width, classes)

    def _read(self, stream: str, units: list[list[int]], layer: str) -> None:
        for n, columns in enumerate(units):
            self.reads[stream][n].append((layer, list(columns)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.stem(x))
        for i, kind in enumerate(self.kinds):
            layer = lambda name, i=i: getattr(self, f"{name}{i}")  # noqa: E731
            if kind == "residual":
                x = F.relu(x + layer("b")(F.relu(layer("a")(x))))
            elif kind == "depthwise":
                x = F.relu(layer("n")(layer("d")(x)))
            else:
                x = F.relu(layer("g" if kind == "grouped" else "c")(x))
        x = x.mean((2, 3))
        return self.fc(F.relu(self.hidden(x)) if hasattr(self, "hidden") else x)


block = st.tuples(
    st.sampled_from(["plain", "residual", "depthwise", "grouped"]),
    st.integers(2, 5),
    st.sampled_from([1, 3]),
    st.sampled_from([1, 2]),
)
networks = st.builds(
    Drawn, st.integers(2, 6), st.lists(block, max_size=3), st.sampled_from([0, 0, 4]), st.integers(2, 5)
)


def _made(net: Drawn, seed: int, per_class: int):
    """The network in float64, randomised, with data of all its classes."""
    classes = net.fc.out_features
    net = randomise_(net, seed).double().eval()
    g = torch.Generator().manual_seed(seed)
    data = TensorDataset(
        torch.randn(per_class * classes, 3, SIDE, SIDE, generator=g).double(),
        torch.arange(per_class * classes) % classes,
    )
    calibration = calibration_set(data, per_class)
    return net, data, calibration, discover(net, calibration.inputs(0, 2))


def _effects(engine, structure):
    """Judgements by group and unit."""
    judge = Judge(engine.calibration, VoteRule())
    return {
        (group.name, n): judge.judge(scores, base)
        for group in structure
        for n, scores, base in engine.one_by_one(group, range(group.size))
    }


def _alike(one, two, tolerance=1e-9):
    assert one.keys() == two.keys()
    for key, a in one.items():
        b = two[key]
        np.testing.assert_allclose(a.effects.mean, b.effects.mean, atol=tolerance, err_msg=str(key))
        np.testing.assert_array_equal(a.effects.count, b.effects.count)
        np.testing.assert_allclose(a.xi, b.xi, rtol=1e-6, atol=1e-6)
        if not (a.knife_edge or b.knife_edge):
            assert a.verdict is b.verdict, key


@QUICK
@given(net=networks, seed=st.integers(0, 99), per_class=st.integers(2, 5), together=st.sampled_from([1, 2, 64]))
def test_any_small_network_is_cut_as_the_twin_cuts_it(net, seed, per_class, together):
    net, _, calibration, structure = _made(net, seed, per_class)
    assert {g.name for g in structure} == set(net.reads), structure.left_out
    engine = ReplayEngine(net, structure, calibration, Classification(), units_per_batch=together)
    inputs, targets = calibration.inputs(0, len(calibration)), torch.from_numpy(calibration.targets)
    base = cut_scores(net, [], inputs, targets).numpy()
    np.testing.assert_allclose(engine.scores().sigma, base, atol=1e-12)
    for group in structure:
        assert group.size == len(net.reads[group.name])
        for n, scores, _ in engine.one_by_one(group, range(group.size)):
            expected = cut_scores(net, net.reads[group.name][n], inputs, targets).numpy()
            np.testing.assert_allclose(scores.sigma, expected, atol=1e-11, err_msg=f"{group.name} {n}")
    assert not engine.notes


def test_the_twin_sees_an_off_by_one():
    net, _, calibration, structure = _made(Drawn(4, [("residual", 3, 3, 1), ("grouped", 2, 3, 2)], 4, 3), 1, 3)
    engine = ReplayEngine(net, structure, calibration, Classification())
    inputs, targets = calibration.inputs(0, len(calibration)), torch.from_numpy(calibration.targets)
    for group in structure:
        found = [s.sigma for _, s, _ in engine.one_by_one(group, range(group.size))]
        wrong = cut_scores(net, net.reads[group.name][0], inputs, targets).numpy()
        assert np.abs(found[1] - wrong).max() > 1e-6, group.name


@QUICK
@given(net=networks, seed=st.integers(0, 99), data=st.data())
def test_batch_and_memory_do_not_move_effects(net, seed, data):
    net, _, calibration, structure = _made(net, seed, 6)
    whole = _effects(ReplayEngine(net, structure, calibration, Classification()), structure)
    together = data.draw(st.sampled_from([1, 3, 7]))
    live = max(g.size for g in structure) * SIDE * SIDE * 8 * 40
    small = ReplayEngine(
        net, structure, calibration, Classification(), units_per_batch=together, memory=max(live, 60_000)
    )
    _alike(whole, _effects(small, structure))
    _alike(whole, _effects(PlainEngine(net, structure, calibration, Classification()), structure))


@QUICK
@given(net=networks, seed=st.integers(0, 99), shuffle=st.integers(0, 99))
def test_the_order_of_samples_does_not_move_effects(net, seed, shuffle):
    net, data, calibration, structure = _made(net, seed, 6)
    order = torch.from_numpy(np.random.default_rng(shuffle).permutation(len(data)))
    other = calibration_set(TensorDataset(*(t[order] for t in data.tensors)), 6, seed=shuffle)
    assert not torch.equal(other.inputs(0, 6), calibration.inputs(0, 6))
    one, two = (_effects(ReplayEngine(net, structure, c, Classification()), structure) for c in (calibration, other))
    _alike(one, two)


@settings(QUICK, max_examples=3)
@given(net=networks, seed=st.integers(0, 99))
def test_the_number_of_threads_does_not_move_effects(net, seed):
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            made, _, calibration, structure = _made(copy.deepcopy(net), seed, 5)
            found.append(_effects(ReplayEngine(made, structure, calibration, Classification()), structure))
    finally:
        torch.set_num_threads(before)
    _alike(*found)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@settings(QUICK, max_examples=6)
@given(net=networks, seed=st.integers(0, 99))
def test_the_device_does_not_move_effects(net, seed):
    net, _, calibration, structure = _made(net, seed, 5)
    one, two = (
        _effects(ReplayEngine(net, structure, calibration, Classification(), device=d), structure)
        for d in ("cpu", "cuda")
    )
    _alike(one, two)


NET = lambda classes=4: Drawn(4, [("residual", 3, 3, 1), ("plain", 5, 3, 2)], 0, classes)  # noqa: E731


@pytest.mark.parametrize("scale", [1e3, 1e5, 1e8])
def test_scores_at_0_and_1_are_finite_and_those_of_the_twin(scale):
    """Probabilities saturate: σ is exactly 0 or 1 for some, ξ is held finite by its floor."""
    net, _, calibration, structure = _made(NET(), 3, 6)
    with torch.no_grad():
        net.fc.weight *= scale
    inputs, targets = calibration.inputs(0, len(calibration)), torch.from_numpy(calibration.targets)
    for kind in (torch.float64, torch.float32):
        engine = ReplayEngine(copy.deepcopy(net).to(kind), structure, calibration, Classification())
        sigma = engine.scores().sigma
        assert ((sigma == 0) | (sigma < 1e-30)).any()
        assert (sigma > 1 - 1e-9).any()
        for key, found in _effects(engine, structure).items():
            assert np.isfinite([found.xi, *found.effects.mean, *found.effects.p]).all(), key
            if kind is torch.float64:
                expected = cut_scores(net, net.reads[key[0]][key[1]], inputs, targets).numpy() - sigma
                means = [expected[calibration.targets == k].mean() for k in range(4)]
                np.testing.assert_allclose(found.effects.mean, means, atol=1e-6)


def test_constant_outputs_have_no_effects_and_a_run_refuses_them():
    net, _, calibration, structure = _made(NET(), 3, 6)
    with torch.no_grad():
        net.fc.weight.zero_()
        net.fc.bias.zero_()
    engine = ReplayEngine(net, structure, calibration, Classification())
    np.testing.assert_array_equal(engine.scores().sigma, 0.25)
    for found in _effects(engine, structure).values():
        assert found.verdict is Verdict.NEUTRAL
        assert found.xi == 0
        np.testing.assert_array_equal(found.effects.p, 1.0)
    from cswap.methods.options import Options
    from cswap.methods.progressive import cswap

    with pytest.raises(DataError, match="chance"):
        cswap(net, structure, calibration, Classification(), options=Options())


@pytest.mark.parametrize("counts", [(5, 6, 6, 6), (7, 6, 6, 6), (2, 6, 6, 6), (2, 3, 4, 5)])
def test_a_class_with_a_sample_more_or_less_is_tested_on_its_own(counts):
    net, *_ = _made(NET(), 5, 6)
    labels = torch.cat([torch.full((n,), k) for k, n in enumerate(counts)])
    x = torch.randn(len(labels), 3, SIDE, SIDE, generator=torch.Generator().manual_seed(2)).double()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CswapWarning)
        calibration = calibration_set(TensorDataset(x, labels), max(counts), allow_imbalance=True)
    structure = discover(net, x[:2])
    inputs, targets = calibration.inputs(0, len(calibration)), torch.from_numpy(calibration.targets)
    base = cut_scores(net, [], inputs, targets).numpy()
    for (group, n), found in _effects(ReplayEngine(net, structure, calibration, Classification()), structure).items():
        d = cut_scores(net, net.reads[group][n], inputs, targets).numpy() - base
        assert found.effects.count.tolist() == list(counts)
        for k in range(4):
            expected = scipy_stats.ttest_1samp(d[calibration.targets == k], 0.0)
            assert found.effects.mean[k] == pytest.approx(d[calibration.targets == k].mean(), abs=1e-12)
            assert found.effects.p[k] == pytest.approx(expected.pvalue, rel=1e-4)


def test_a_thousand_classes():
    net, _, calibration, structure = _made(NET(1000), 7, 2)
    assert len(calibration) == 2000
    inputs, targets = calibration.inputs(0, 2000), torch.from_numpy(calibration.targets)
    with torch.no_grad():
        net.fc.weight *= 3
    base = cut_scores(net, [], inputs, targets).numpy()
    engine = ReplayEngine(net, structure, calibration, Classification())
    group = structure.groups[0]
    for n, scores, now in engine.one_by_one(group, range(2)):
        found = Judge(calibration, VoteRule()).judge(scores, now)
        d = cut_scores(net, net.reads[group.name][n], inputs, targets).numpy() - base
        assert found.effects.mean.shape == (1000,)
        assert (found.effects.count == 2).all()
        np.testing.assert_allclose(
            found.effects.mean, [d[calibration.targets == k].mean() for k in range(1000)], atol=2e-6
        )
        assert len(found.effects.telling(3)) == 3
