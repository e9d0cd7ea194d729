"""`joint` in stages: the smaller network's structure, outputs and their gradients, trials and paths; against what is made anew or by hand."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

import cswap
from cswap.causal.cut import PlainEngine
from cswap.causal.engine import Job
from cswap.causal.margins import Probe
from cswap.causal.replay import engine_for
from cswap.errors import InputError
from cswap.methods import obs as obs_method
from cswap.methods import registry
from cswap.methods.joint import NO_OUTPUTS
from cswap.methods.obs import output_importance
from cswap.methods.options import Options, stages_of
from cswap.methods.path import Surgery
from cswap.methods.sets import Measured, by_price
from cswap.methods.stages import Case, first_stage, gone, next_stage
from cswap.recovery.recover import recovered
from cswap.structure.check import random_half, randomise_
from cswap.structure.discover import discover
from cswap.structure.groups import Structure
from cswap.structure.ledger import Ledger
from cswap.structure.shrunk import shrunk
from cswap.structure.surgery import count_params, kept_indices, pruned_copy
from cswap.tasks import Classification
from cswap.types import Target
from tests.reference.stages import away_by_hand, outputs_by_hand, squared_gradients_by_hand

NETWORKS: dict[str, Any] = {
    "resnet": lambda: torchvision.models.resnet18(num_classes=5),
    "mobilenet": lambda: torchvision.models.mobilenet_v2(num_classes=5, width_mult=0.25),
    "densenet": lambda: torchvision.models.DenseNet(8, (2, 2), 16, num_classes=5),
    "vit": lambda: torchvision.models.VisionTransformer(32, 16, 2, 2, 32, 64, num_classes=5),
}


@pytest.mark.parametrize("name", list(NETWORKS))
def test_the_structure_of_what_is_left_is_that_of_the_smaller_network(name):
    torch.manual_seed(0)
    model = NETWORKS[name]().eval()
    randomise_(model)
    inputs = torch.randn(2, 3, 32, 32)
    structure = discover(model, inputs)
    removed = random_half(structure, 0)
    small, original = shrunk(structure, removed)
    net = pruned_copy(model, structure, removed)
    assert small.total_params == count_params(net)
    again: Structure = structure if name == "vit" else discover(net, inputs)
    if name != "vit":  # what stands for its attention is not found again; the cut below is for it too
        assert small.total_macs == again.total_macs
        assert {g.name: g.size for g in small} == {g.name: g.size for g in again}
        for group in small:
            theirs = {(s.module, s.side): s for s in again[group.name].slots}
            for slot in group.slots:
                own = theirs[slot.module, slot.side]
                assert {u: p.tolist() for u, p in slot.by_unit.items()} == {
                    u: p.tolist() for u, p in own.by_unit.items()
                }
    for group in small:
        assert len(original[group.name]) == group.size
        assert not set(original[group.name].tolist()) & set(removed.get(group.name, np.empty(0)).tolist())
    more = {g.name: np.arange(max(1, g.size // 3)) for g in small if g.size > 3}
    both = {g.name: removed.get(g.name, np.empty(0, dtype=np.int64)) for g in structure}
    both = {n: np.sort(np.concatenate([r, original[n][more[n]]])) if n in more else r for n, r in both.items()}
    with torch.no_grad():
        twice, once = pruned_copy(net, small, more)(inputs), pruned_copy(model, structure, both)(inputs)
    assert torch.allclose(twice, once, atol=1e-5 * max(1.0, float(once.abs().max())))
    assert not torch.allclose(twice, net(inputs), atol=1e-3)


def _randomised(model: nn.Module) -> nn.Module:
    """A copy whose outputs are others."""
    found = copy.deepcopy(model)
    with torch.no_grad():
        for p in found.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    return found


@pytest.mark.parametrize("cut", ["plain", "compensated"])
def test_how_far_outputs_moved_is_their_squared_distance(digits_case, cut):
    model, calibration, structure = digits_case
    task = Classification()
    engine = engine_for(model, structure, calibration, task, cut=cut)
    seen = engine.outputs_seen()
    assert seen is not None
    by_hand = outputs_by_hand(model, calibration.inputs(0, len(calibration)))
    assert np.allclose(seen, by_hand, atol=1e-4)
    assert engine.mean_square(seen) == pytest.approx(float((by_hand**2).sum(1).mean()), rel=1e-5)
    other = outputs_by_hand(_randomised(model), calibration.inputs(0, len(calibration)))
    assert engine.scores().moved is None
    engine.compare_with(other.astype(np.float32))
    group = structure.groups[-1]
    engine.enter(group)
    (found,) = engine.run(group, [Job((0, 1), 3, 17)])
    assert found.moved is not None
    if cut == "plain":
        masked = cswap.structure.surgery.masked_copy(model, structure, {group.name: np.array([0, 1])})
        mine = outputs_by_hand(masked, calibration.inputs(3, 17))
        assert np.allclose(found.moved, ((mine - other[3:17]) ** 2).sum(1), rtol=1e-3, atol=1e-4)
    whole = engine.scores()
    assert np.allclose(whole.moved, ((by_hand - other) ** 2).sum(1), rtol=1e-3, atol=1e-4)  # type: ignore[arg-type]
    engine.compare_with(None)
    assert engine.scores().moved is None


def test_outputs_that_do_not_fit_are_not_kept(digits_case):
    model, calibration, structure = digits_case
    engine = PlainEngine(model, structure, calibration, Classification(), memory=1 << 30)
    engine.memory = 4 * len(calibration) * 10 * 8 - 1
    assert engine.outputs_seen() is None
    engine.memory += 1
    assert engine.outputs_seen() is not None


def test_importance_for_outputs_is_their_squared_jacobian(digits_case, monkeypatch):
    """By so many signed sums that they stand for all outputs."""
    model, calibration, structure = digits_case
    few = calibration.part(np.arange(0, len(calibration), 16))
    monkeypatch.setattr(obs_method, "_DRAWS", 400)
    found = output_importance(model, structure, few, Classification(), outputs=True)
    for name, own in found.items():
        by_hand = squared_gradients_by_hand(model, name, few.inputs(0, len(few)))
        assert np.allclose(own.numpy(), by_hand, rtol=0.35, atol=0.02 * by_hand.max())
        assert float(own.sum()) == pytest.approx(float(by_hand.sum()), rel=0.1)


def _staged(case: tuple[Any, Any, Any], target: Target, **options: Any) -> Any:
    model, calibration, structure = case
    chosen = Options(**{"per": "params", "price": "outputs", "stages": "0.3,0.5", "margins": "0.05,0.2"} | options)
    return registry.call("joint", model, structure, calibration, Classification(), target=target, options=chosen)


def test_a_path_in_stages_is_whole_and_tests_what_is_left(digits_case):
    _, _, structure = digits_case
    path = _staged(digits_case, Target("complete"))
    assert len({(d.group, d.unit) for d in path}) == len(path) == structure.units - len(structure)
    held = path.sensitivity
    assert [s["at"] for s in held["stages"]] == [0.3, 0.5]
    for stage in (held, *held["stages"][:-1]):
        away = stage["tried"]["away"]
        assert stage["tried"]["chosen"] == min(away, key=away.get)
    for stage in held["stages"]:
        assert stage["ratio"]["params"] >= stage["at"]
        before = [d for d in path if d.ratio.params <= stage["ratio"]["params"] + 1e-12]
        went = {(d.group, d.unit) for d in before}
        for group in structure:
            left = {n for n in range(group.size) if (group.name, n) not in went}
            assert set(stage["groups"][group.name]["order"]) == left
    once = _staged(digits_case, Target("complete"), stages="")
    assert [(d.group, d.unit) for d in once] != [(d.group, d.unit) for d in path]
    assert "stages" not in once.sensitivity


class _NoVectors(Classification):
    """A task that says nothing of its outputs."""

    outputs_vector = property()  # type: ignore[assignment]


@pytest.mark.parametrize("per", ["unit", "macs"])
def test_stages_of_a_task_without_vectors_of_outputs(digits_case, per):
    """Are priced and tried by the score, and said to be; by equal margin nothing is tried."""
    model, calibration, structure = digits_case
    assert not hasattr(_NoVectors(), "outputs_vector")
    chosen = Options(per=per, price="outputs" if per == "macs" else "change", stages="0.3,0.5", margins="0.05,0.2")
    path = registry.call("joint", model, structure, calibration, _NoVectors(), options=chosen)
    assert len(path) == structure.units - len(structure)
    assert (NO_OUTPUTS in path.notes) == (per == "macs")
    assert ("tried" in path.sensitivity) == (per == "macs")
    assert len(path.sensitivity["stages"]) == 2
    case = Case(model, structure, calibration, _NoVectors(), "cpu", 4 << 30)
    other, judges = _randomised(model), case.judges
    sigma = [
        Classification().score(
            torch.from_numpy(outputs_by_hand(net, judges.inputs(0, len(judges)))), torch.as_tensor(judges.targets)
        )
        for net in (model, other)
    ]
    assert case.away(other) == pytest.approx(float(((sigma[0] - sigma[1]) ** 2).mean()), rel=1e-3)


def test_a_target_within_the_first_stage_needs_no_other(digits_case):
    path = _staged(digits_case, Target.parse("params=0.2"))
    assert "stages" not in path.sensitivity
    whole = _staged(digits_case, Target("complete"))
    assert [(d.group, d.unit) for d in path] == [(d.group, d.unit) for d in list(whole)[: len(path)]]


def test_a_stage_is_the_refitted_network_and_its_distance_that_by_hand(digits_case):
    model, calibration, structure = digits_case
    case = Case(model, structure, calibration, Classification(), "cpu", 4 << 30)
    once = _staged(digits_case, Target.parse("params=0.4"), stages="")
    order = [d for d in once if d.removed]
    ledger = gone(structure, order, "params", 0.4)  # type: ignore[arg-type]
    stage = next_stage(case, first_stage(case), 0.4, ledger, [])
    removed = ledger.removed()
    small: Any = pruned_copy(model, structure, removed)
    small._cswap = Surgery(
        Target("params", 0.4), ledger.ratio(), len(order), removed, kept_indices(structure, removed), structure
    )
    refitted = recovered(small, model, calibration, "lstsq", task=Classification()).model
    inputs = calibration.inputs(0, 50)
    with torch.no_grad():
        assert torch.equal(stage.net(inputs), refitted(inputs))
    judges = case.judges.inputs(0, len(case.judges))
    assert 0 < len(case.judges) < len(calibration)
    assert case.away(stage.net) == pytest.approx(away_by_hand(model, refitted, judges), rel=1e-4)
    assert case.away(stage.net) > 1e-6


def test_measured_and_predicted_prices_are_told_apart(digits_case):
    """Two groups alike but for what is measured: by the prices predicted neither goes first."""
    _, _, structure = digits_case
    few, many = sorted(structure, key=lambda g: g.size)[:2]
    dear = {few.name: 0.2, many.name: 0.02}

    def measured(group: Any) -> Measured:
        size = group.size
        k = size // 2
        adds = np.full(size, 0.1 / size)
        probes = [Probe(k, 0.1, 0.0, np.zeros(1), change=dear[group.name])]
        return Measured(group, np.arange(size), adds, probes, [(0.1, k)], predicts=True)

    def price(group: Any, weight: float) -> float:
        ranked = by_price([measured(g) for g in (few, many)], Ledger(structure), "params", "change", weight)
        return next(r.score for r in ranked if r.group == group.name)

    apart = [price(few, w) * few.size / (price(many, w) * many.size) for w in (1.0, 0.5, 0.0)]
    assert apart[0] == pytest.approx(10.0)
    assert apart[1] == pytest.approx(10.0**0.5)
    assert apart[2] == pytest.approx(1.0)


def test_stages_are_read_or_refused():
    assert stages_of("") == ()
    assert stages_of("0.3, 0.5") == (0.3, 0.5)
    for bad in ("0.5,0.3", "0.3,0.3", "0", "1", "a", "0.3,,0.5"):
        with pytest.raises(InputError, match="stages: expected ascending fractions"):
            stages_of(bad)
