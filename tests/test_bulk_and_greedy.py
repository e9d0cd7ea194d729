"""C-BP, the ideal greedy and the store of differences, against planted truth and against the walk."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.utils.data import Subset, TensorDataset

import cswap
from cswap.causal.cut import PlainEngine
from cswap.causal.store import DifferenceStore, measure_differences
from cswap.causal.verdicts import VoteRule
from cswap.demo import digits
from cswap.errors import ArtifactError, InputError, TargetError
from cswap.evaluate.quality import measure_quality
from cswap.methods.bulk import cbp
from cswap.methods.greedy import greedy
from cswap.methods.options import Options
from cswap.methods.path import Silence, Start
from cswap.structure.ledger import Ledger
from cswap.tasks import Classification
from cswap.types import Target, Verdict
from tests.test_planted import Planted, _data, _path


def test_cbp_removes_both_of_a_duplicated_pair_and_cswap_one():
    bulk = _path(Planted(), method="cbp", target="noncritical")
    assert {d.unit for d in bulk if d.removed} == {3, 4, 5, 6} | {2}
    walked = _path(Planted())
    assert len({d.unit for d in walked if d.removed} & {5, 6}) == 1


def test_cbp_ranks_what_is_not_needed_first_and_tests_on_the_original_network():
    path = _path(Planted(duplicates=False), method="cbp")
    tests, gone = [d for d in path if d.phase == "test"], [d for d in path if d.removed]
    assert [d.unit for d in tests] == [0, 1, 2, 3, 4]
    assert [d.unit for d in gone[:2]] == [4, 3]  # detrimental has the larger xi
    xi = [d.xi for d in gone[2:]]
    assert all(d.verdict is Verdict.CRITICAL for d in gone[2:])
    assert xi == sorted(xi, reverse=True)
    assert path.verdicts() == {"critical": 3, "neutral": 1, "detrimental": 1}
    assert path.prefix("noncritical")[0]["hidden"].tolist() == [3, 4]


def test_cbp_up_to_what_is_needed_says_that_more_is_left():
    path = _path(Planted(duplicates=False), method="cbp", target="noncritical")
    assert path.ended == "every unit was tested"
    with pytest.raises(TargetError, match="every unit was tested"):
        path.prefix("units=0.6")
    assert _path(Planted(duplicates=False), method="cbp").ended == "nothing is left to remove"


@pytest.mark.parametrize("method", ["cswap", "cbp", "greedy", "magnitude"])
def test_every_method_tells_of_a_cliff(method):
    path = _path(Planted(duplicates=False), method=method, target=Target("complete"))
    assert len(path.cliffs) == 1
    assert path.cliffs[0].before > path.cliffs[0].after + 0.1


@pytest.mark.parametrize("method", ["cbp", "greedy", "magnitude"])
def test_a_fall_that_is_not_gone_into_is_no_cliff(method):
    path = _path(Planted(duplicates=False), method=method, max_drop=0.05)
    assert path.ended.startswith("max-drop")
    assert path.cliffs == []


class Fallen(Silence):
    def __init__(self, step):
        self.step, self.heard = step, []

    def decided(self, decision, stats):
        if decision.step > self.step:
            raise KeyboardInterrupt
        self.heard.append(decision)


@pytest.mark.parametrize("method", [cbp, greedy])
@pytest.mark.parametrize("after", [2, 6])
def test_they_go_on_where_they_were_interrupted(method, after):
    calibration = cswap.calibration_set(_data(), 40)
    structure = cswap.discover(Planted(), calibration.inputs(0, 2))
    settings = {"target": Target("units", 0.8)}
    whole = method(Planted(), structure, calibration, Classification(), **settings)
    ear = Fallen(after)
    if after < len(whole):
        with pytest.raises(KeyboardInterrupt):
            method(Planted(), structure, calibration, Classification(), sink=ear, **settings)
        again = method(Planted(), structure, calibration, Classification(), start=Start(tuple(ear.heard)), **settings)
        assert [(d.step, d.phase, d.unit, d.removed, d.xi) for d in again] == [
            (d.step, d.phase, d.unit, d.removed, d.xi) for d in whole
        ]
    assert whole.ratio.units >= 0.8 or whole.ended == "nothing is left to remove"


def test_greedy_takes_the_best_that_is_left_every_time():
    model, data = Planted(), _data()
    path = _path(model, method="greedy")
    assert path[0].unit == 4  # the only one that gains
    net, left = Planted(), set(range(7))
    inputs, labels = data.tensors
    for d in path:  # an independent look: no other unit would have left the set better
        with torch.no_grad():
            sums = {}
            for n in left:
                held = net.out.weight[:, n].clone()
                net.out.weight[:, n] = 0
                sums[n] = net(inputs).double().softmax(1)[torch.arange(len(labels)), labels].sum().item()
                net.out.weight[:, n] = held
            assert sums[d.unit] >= max(sums.values()) - 1e-5
            net.out.weight[:, d.unit] = 0
        left.remove(d.unit)
    with pytest.raises(TargetError, match="noncritical"):
        _path(model, method="greedy", target="noncritical")


def test_greedy_weighs_a_loss_by_what_goes_parameters_or_macs(digits_case):
    model, calibration, structure = digits_case
    firsts = {}
    for per in ("unit", "params", "macs"):
        path = greedy(
            model, structure, calibration, Classification(), options=Options(per=per), target=Target("units", 0.03)
        )
        firsts[per] = [(d.group, d.unit) for d in path]
    assert firsts["macs"] not in (firsts["unit"], firsts["params"])
    engine = PlainEngine(model, structure, calibration, Classification())
    base, prices = engine.scores().sigma, {}
    for group in structure:
        for n, cut in enumerate(engine.cut(group, [[n] for n in range(group.size)])):
            change = float((cut.sigma - base).sum())
            prices[group.name, n] = (
                change < 0,
                -change / Ledger(structure).cost_of(group, "macs") if change < 0 else -change,
            )
    assert prices[firsts["macs"][0]] == min(prices.values())


@pytest.mark.slow
def test_greedy_is_at_least_as_good_as_cswap_at_every_ratio(digits_case):
    """By parameters, MACs and units, on the images it chooses by and on images never seen: no fewer are right."""
    model, _, structure = digits_case
    train, unseen = digits()
    calibration = cswap.calibration_set(train, 16)
    kept = {"seen": Subset(train, calibration.indices.tolist()), "unseen": unseen}
    targets = [f"{kind}={r / 10}" for kind in ("params", "macs", "units") for r in range(1, 9)]
    right: dict[str, dict[str, float]] = {data: {} for data in kept}
    for method in ("cswap", "greedy"):
        path = cswap.prune_path(model, calibration, structure=structure, method=method)
        small = {f"{method} {t}": path.apply(model, t) for t in targets}
        for data, found in right.items():
            quality = measure_quality(small, kept[data], Classification(), 10)
            found |= {name: q["accuracy"] for name, q in quality.items()}
    behind = {
        (data, t): (found[f"greedy {t}"], found[f"cswap {t}"])
        for data, found in right.items()
        for t in targets
        if found[f"greedy {t}"] < found[f"cswap {t}"]
    }
    assert not behind
    assert all(right["unseen"][f"greedy {k}=0.5"] > right["unseen"][f"cswap {k}=0.5"] for k in ("params", "units"))


@pytest.mark.parametrize(
    "method", ["cswap", "cbp", "joint", "taylor", "taylor2", "obs", "deeplift", "lrp", "lamp", "magnitude", "random"]
)
def test_a_complete_path_is_the_same_again(digits_case, method):
    """By every method, on a network of digits; another seed is another draw for `random` alone, on the same images."""
    model, _, structure = digits_case
    for extra in {"deeplift": ["captum"], "lrp": ["zennit"]}.get(method, []):
        pytest.importorskip(extra)
    calibration = cswap.calibration_set(digits()[0], 8)
    paths = [cswap.prune_path(model, calibration, structure=structure, method=method, seed=s) for s in (0, 0, 1)]
    told = [[(d.phase, d.group, d.unit, d.removed, d.score) for d in p] for p in paths]
    assert told[0] == told[1]
    assert (told[0] != told[2]) == (method == "random")
    gone = {(d.group, d.unit) for d in paths[0] if d.removed}
    assert len(gone) == structure.units - len(structure.groups)  # all but one of each group


@pytest.fixture(scope="module")
def store(digits_case):
    model, calibration, structure = digits_case
    return measure_differences(model, structure, calibration, Classification())


@pytest.mark.parametrize(
    "settings",
    [{}, {"alpha": 0.001}, {"vote": "pooled"}, {"correction": "holm"}, {"correction": "bh"}, {"min_effect": 0.01}],
)
def test_verdicts_from_the_store_are_those_of_the_network(digits_case, store, settings):
    model, calibration, structure = digits_case
    options = Options(**settings)
    by_network, by_store = (
        cbp(model, structure, calibration, Classification(), options=options, target=Target("noncritical"), store=s)
        for s in (None, store)
    )
    assert [(d.phase, d.group, d.unit, d.verdict) for d in by_network] == [
        (d.phase, d.group, d.unit, d.verdict) for d in by_store
    ]
    tested = [(a.xi, b.xi) for a, b in zip(by_network, by_store, strict=True) if a.phase == "test"]
    np.testing.assert_allclose(*zip(*tested, strict=True), rtol=1e-3, atol=1e-6)
    nothing = dataclasses.replace(store, differences={n: np.zeros_like(d) for n, d in store.differences.items()})
    path = cbp(
        model, structure, calibration, Classification(), options=options, target=Target("noncritical"), store=nothing
    )
    assert path.verdicts()["critical"] == 0  # it is the store that is asked


def test_fewer_samples_from_the_store_are_a_smaller_calibration_set(digits_case, store):
    from cswap.demo import digits

    model, _, structure = digits_case
    fewer = cswap.calibration_set(digits()[0], 8)
    path = cbp(model, structure, fewer, Classification(), target=Target("noncritical"))
    tests = [d for d in path if d.phase == "test"]
    for d in tests:
        found = store.judge(d.group, d.unit, VoteRule(), per_class=8)
        assert found.verdict == d.verdict
        assert found.xi == pytest.approx(d.xi, rel=1e-3, abs=1e-6)
    with pytest.raises(InputError, match="24 samples, 25"):
        store.judge("fc", 0, VoteRule(), per_class=25)


def test_a_store_is_kept_read_again_and_goes_on(digits_case, store, tmp_path):
    model, calibration, structure = digits_case
    file = tmp_path / "d.safetensors"

    def stop(text):
        if "2 of" in text:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_differences(model, structure, calibration, Classification(), file=file, tell=stop)
    told = []
    again = measure_differences(model, structure, calibration, Classification(), file=file, tell=told.append)
    assert len(told) == len(structure) - 1  # the first group was kept
    for name, d in store.differences.items():
        np.testing.assert_array_equal(again.differences[name], d)
        assert d.dtype == np.float32
        assert d.shape == (structure[name].size, len(calibration))
    assert [p.name for p in tmp_path.iterdir()] == ["d.safetensors"]
    read = DifferenceStore.load(file)
    assert read.classes == calibration.classes
    np.testing.assert_array_equal(read.sigma, store.sigma)
    other = cswap.calibration_set(TensorDataset(*(t[:600] for t in calibration.dataset.tensors)), 20)
    with pytest.raises(InputError, match="another network or other samples"):
        measure_differences(model, structure, other, Classification(), file=file)
    turned = Classification(outputs=[1, 0, *range(2, 10)])  # another score of the same outputs
    with pytest.raises(InputError, match="another network or other samples"):
        measure_differences(model, structure, calibration, turned, file=file)
    save_file({"x": torch.zeros(2)}, tmp_path / "no.safetensors")
    with pytest.raises(ArtifactError, match="no store"):
        DifferenceStore.load(tmp_path / "no.safetensors")
