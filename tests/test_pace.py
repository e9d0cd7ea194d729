"""`--per latency`: what a MAC of each group takes is measured once, decides what is cheap, and stays with the run."""

from __future__ import annotations

import math
import statistics
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import cswap
from cswap.compare import CompareJob
from cswap.errors import ArtifactError, InputError, TargetError
from cswap.methods.options import Options
from cswap.methods.ranking import removal_order
from cswap.pipeline import pace
from cswap.pipeline.pace import check_pace, paced
from cswap.structure.discover import discover, macs_of
from cswap.structure.groups import Structure
from cswap.structure.ledger import Ledger


@pytest.fixture
def perceptron() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 2))


@pytest.fixture
def structure(perceptron) -> Structure:
    return discover(perceptron, torch.rand(2, 4))


def test_a_price_in_time_is_macs_by_their_pace(structure):
    late, early = structure
    with pytest.raises(TargetError, match="was not timed"):
        Ledger(structure).cost_of(late, "latency")
    timed = replace(structure, pace={late.name: 0.5, early.name: 2.0})
    ledger = Ledger(timed)
    assert ledger.cost_of(late, "latency") == 0.5 * (16 + 2)
    assert ledger.cost_of(early, "latency") == 2.0 * (4 + 8)
    ledger.remove(late, 0)  # as the network stands
    assert ledger.cost_of(early, "latency") == 2.0 * (4 + 7)


def test_where_macs_are_slow_units_go_first(structure):
    late, early = structure
    scores = {g.name: np.ones(g.size) for g in structure}
    even = removal_order(replace(structure, pace=dict.fromkeys(scores, 0.01)), scores, "global", "latency")
    assert even == removal_order(structure, scores, "global", "macs")
    for slow, fast in ((late, early), (early, late)):
        order = removal_order(replace(structure, pace={slow.name: 1.0, fast.name: 0.001}), scores, "global", "latency")
        assert {name for name, _ in order[: slow.size - 1]} == {slow.name}


def test_half_of_each_group_tells_its_pace(perceptron, structure, monkeypatch):
    """On a machine whose time is known: the layers' MACs, those of the first layer ten times as slow, and some for each call."""

    def known(models: dict[str, nn.Module], sample: torch.Tensor, batch: int, **_: Any) -> dict[str, float]:
        assert batch == 3
        found = {}
        for name, model in models.items():
            first, _, second, _, third = model
            weights = [m.weight.numel() for m in (first, second, third)]
            found[name] = 1.0 + 10e-3 * weights[0] + 1e-3 * (weights[1] + weights[2])
        return found

    monkeypatch.setattr(pace, "latency_ms", known)
    found = paced(perceptron, structure, torch.rand(1, 4), batch=3)
    late, early = structure
    assert found.pace[early.name] == pytest.approx((8 * 4 * 10e-3 + 8 * 8 * 1e-3) / (8 * 4 + 8 * 8))
    assert found.pace[late.name] == pytest.approx(1e-3)
    assert macs_of(perceptron, torch.rand(1, 4))[0] == found.total_macs
    assert found.groups == structure.groups
    assert not structure.pace


def test_what_seems_to_take_no_time_is_not_free(perceptron, structure, monkeypatch):
    monkeypatch.setattr(pace, "latency_ms", lambda models, *_, **__: {n: 2.0 if n == "whole" else 2.5 for n in models})
    found = paced(perceptron, structure, torch.rand(1, 4))
    assert set(found.pace.values()) == {0.1 * 2.0 / structure.total_macs}


def test_a_wide_layer_of_a_real_clock_takes_its_share():
    """A MAC of a convolution with a large kernel and one of a small one, by the machine's own clock: positive and finite."""
    net = nn.Sequential(
        nn.Conv2d(3, 32, 5, padding=2), nn.ReLU(), nn.Conv2d(32, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 196, 2)
    )
    structure, sample = discover(net, torch.rand(2, 3, 16, 16)), torch.rand(1, 3, 16, 16)
    before = torch.get_rng_state()
    found = paced(net.train(), structure, sample)
    assert torch.equal(before, torch.get_rng_state())
    assert all(m.training for m in net.modules())
    mean = statistics.mean(found.pace.values())
    assert 0 < mean < math.inf
    assert all(v > 0 for v in found.pace.values())


def test_a_path_by_time_from_python(perceptron, structure, monkeypatch):
    g = torch.Generator().manual_seed(1)
    x = torch.rand(80, 4, generator=g)
    y = (x[:, 0] > x[:, 1]).long()
    with torch.no_grad():
        perceptron[0].weight[:2] = torch.tensor([[9.0, -9.0, 0, 0], [-9.0, 9.0, 0, 0]])
        perceptron[2].weight[:2, :2] = 3 * torch.eye(2)
        perceptron[4].weight[:, :2] = torch.tensor([[-3.0, 3.0], [3.0, -3.0]])
    calibration = cswap.calibration_set(TensorDataset(x, y), 30)
    times = iter(range(10_000))
    monkeypatch.setattr(pace, "latency_ms", lambda models, *_, **__: {n: 1e4 - next(times) for n in models})
    given = replace(structure, pace={g.name: 1.0 for g in structure})
    asked: dict[str, Any] = {"method": "joint", "margins": "0.1,0.4"}
    by_given = cswap.prune_path(perceptron, calibration, structure=given, per="latency", **asked)
    assert next(times) == 0  # a structure that is timed is not timed again
    by_macs = cswap.prune_path(perceptron, calibration, per="macs", **asked)
    assert [(d.group, d.unit) for d in by_given] == [(d.group, d.unit) for d in by_macs]
    assert "a millisecond" in by_given.decisions[0].reason
    assert cswap.prune_path(perceptron, calibration, per="latency", **asked).structure.pace
    with pytest.raises(InputError, match="prune measures it"):
        CompareJob(None, None, None, ("joint",), options=Options(per="latency"))  # type: ignore[arg-type]


def test_paces_of_other_groups_are_refused(structure):
    late, early = structure
    good = {late.name: 0.5, early.name: 2.0}
    check_pace(structure, good)
    for wrong in (
        None,
        {},
        {late.name: 0.5},
        good | {"x": 1.0},
        good | {late.name: float("nan")},
        good | {late.name: -1.0},
        good | {late.name: "1"},
    ):
        with pytest.raises(ArtifactError, match="expected the pace"):
            check_pace(structure, wrong)
