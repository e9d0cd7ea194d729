"""Planted truth: networks whose units' roles are known, and the verdicts that must come."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import cswap
from cswap.causal.engine import refuse_near_chance
from cswap.errors import DataError, InputError, TargetError
from cswap.methods import METHODS
from cswap.methods.path import Silence
from cswap.report.explain import explanation
from cswap.structure.discover import discover
from cswap.tasks import completed
from cswap.types import Verdict
from tests.conftest import ResidualNet


class Planted(nn.Module):
    """Three input features say the class. Hidden units: 0, 1, 2 are needed by exactly one class each; 3 feeds nothing;
    4 only hurts class 1; 5 and 6 are a duplicated pair that class 2 needs one of.
    """

    def __init__(self, duplicates: bool = True) -> None:
        super().__init__()
        width = 7 if duplicates else 5
        self.hidden, self.out = nn.Linear(4, width, bias=False), nn.Linear(width, 3, bias=False)
        with torch.no_grad():
            self.hidden.weight.zero_()
            self.out.weight.zero_()
            for k in range(3):
                self.hidden.weight[k, k] = 1.0
                self.out.weight[k, k] = 3.0
            self.hidden.weight[3, 3] = 1.0  # active, and read by nothing
            self.hidden.weight[4, 1] = 1.0
            self.out.weight[1, 4] = -1.0  # only hurts class 1
            if duplicates:
                self.hidden.weight[5:7, 2] = 1.0
                self.out.weight[2, 2] = 0.0
                # saturating: either copy alone gives class 2 nearly all it needs
                self.out.weight[2, 5] = self.out.weight[2, 6] = 40.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(torch.relu(self.hidden(x))).clamp(-30, 30)


def _data(per_class: int = 40) -> TensorDataset:
    """Class k lights feature k; feature 3 is noise."""
    g = torch.Generator().manual_seed(0)
    labels = torch.arange(3).repeat(per_class)
    x = torch.zeros(len(labels), 4)
    x[torch.arange(len(labels)), labels] = 1.0 + 0.2 * torch.rand(len(labels), generator=g)
    x[:, 3] = torch.rand(len(labels), generator=g)
    return TensorDataset(x, labels)


def _path(model: nn.Module, **settings: object) -> cswap.PruningPath:
    if settings.get("method", "cswap") == "cswap":
        settings.setdefault("target", "noncritical")
    return cswap.prune_path(model, cswap.calibration_set(_data(), 40), **settings)


def test_exactly_the_planted_verdicts_and_the_class_is_named():
    path = _path(Planted(duplicates=False))
    verdicts = {d.unit: d.verdict for d in path}
    assert verdicts == {
        0: Verdict.CRITICAL, 1: Verdict.CRITICAL, 2: Verdict.CRITICAL, 3: Verdict.NEUTRAL, 4: Verdict.DETRIMENTAL,
    }  # fmt: skip
    for k in range(3):
        (story,) = explanation(path, "hidden", k)["units"]
        assert story["needed_by"] == [str(k)]
        assert not story["removed"]
    (story,) = explanation(path, "hidden", 4)["units"]
    assert (story["needed_by"], story["hurts"], story["removed"]) == ([], ["1"], True)
    assert [s["unit"] for s in explanation(path, class_="1")["units"]] == [1, 4]


def test_exactly_one_of_a_duplicated_pair_goes():
    path = _path(Planted())
    gone = {d.unit for d in path if d.removed}
    assert len(gone & {5, 6}) == 1
    assert {3, 4} <= gone
    assert not gone & {0, 1}
    kept = ({5, 6} - gone).pop()
    (story,) = explanation(path, "hidden", kept)["units"]
    assert (story["verdict"], story["needed_by"]) == ("critical", ["2"])


def test_xi_by_hand():
    """Unit 3 feeds nothing: ξ exactly 0. Unit 4 only hurts: ξ > 0. Units 0 to 2 are needed: ξ < 0."""
    xi = {d.unit: d.xi for d in _path(Planted(duplicates=False))}
    assert xi[3] == 0.0
    assert xi[4] > 0
    assert max(xi[0], xi[1], xi[2]) < 0


def test_the_buffer_goes_by_largest_signed_xi_and_a_group_keeps_one():
    path = _path(Planted(duplicates=False), target="units=0.75")
    buffer = [d for d in path if d.phase == "buffer"]
    assert buffer
    assert [d.xi for d in buffer] == sorted((d.xi for d in buffer), reverse=True)
    assert path.ratio.units == pytest.approx(0.8)
    with pytest.raises(TargetError, match="out of reach"):
        _path(Planted(duplicates=False), target="units=0.9")


def test_a_smaller_target_is_a_prefix():
    long, short = _path(Planted(), target="units=0.7"), _path(Planted(), target="units=0.3")
    key = [(d.group, d.unit, d.removed) for d in long]
    assert [(d.group, d.unit, d.removed) for d in short] == key[: len(short)]
    removed, steps, ratio = long.prefix("units=0.3")
    assert steps == len(short)
    assert ratio.units >= 0.3
    assert sum(map(len, removed.values())) == sum(d.removed for d in short)
    assert len(long.prefix("units=0")[0]) == 0
    with pytest.raises(TargetError, match="beyond the path"):
        short.prefix("units=0.7")


def test_a_path_without_a_target_is_complete():
    path = cswap.prune_path(Planted(), cswap.calibration_set(_data(), 40))
    assert path.ended == "nothing is left to remove"
    assert path.ratio.units == pytest.approx(6 / 7)
    walked = _path(Planted())
    assert path.prefix("noncritical")[0]["hidden"].tolist() == sorted(d.unit for d in walked if d.removed)
    assert path.apply(Planted(), "units=0.5")(torch.zeros(1, 4)).shape == (1, 3)
    with pytest.raises(TargetError, match="no verdicts"):
        _path(Planted(), method="magnitude", target="noncritical")


def test_options_change_what_they_say():
    everything = _path(Planted(duplicates=False), min_effect=2.0)
    assert all(d.verdict is Verdict.NEUTRAL for d in everything)
    assert [d.reason for d in everything if not d.removed] == ["last of its group"]
    backwards = [d.unit for d in _path(Planted(duplicates=False), order="reverse")]
    assert backwards == [4, 3, 2, 1, 0]
    drifting = _path(Planted(duplicates=False), min_effect=0.0, reference="original")
    assert {d.unit for d in drifting if d.removed} == {3, 4}
    careful = _path(Planted(duplicates=False), target="units=0.8", max_drop=0.05)
    assert "max-drop" in careful.ended
    assert {d.unit for d in careful if d.removed} == {3, 4}
    with pytest.raises(cswap.CswapError, match="nosuch"):
        _path(Planted(), nosuch=1)


def test_drift_is_stopped_by_the_original_reference():
    """Copies share a job: each loss alone is below min_effect, their sum is not."""

    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.hidden, self.out = nn.Linear(1, 12, bias=False), nn.Linear(12, 2)
            with torch.no_grad():
                self.hidden.weight.fill_(1.0)
                self.out.weight[0], self.out.weight[1] = -0.2, 0.2
                self.out.bias.copy_(torch.tensor([1.2, -1.2]))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.out(torch.relu(self.hidden(x)))

    labels = torch.arange(2).repeat(30)
    x = labels.float().unsqueeze(1) * (1 + 0.01 * torch.rand(60, 1, generator=torch.Generator().manual_seed(0)))
    calibration = cswap.calibration_set(TensorDataset(x, labels), 30)
    current = cswap.prune_path(Shared(), calibration, target="noncritical", min_effect=0.08)
    original = cswap.prune_path(Shared(), calibration, target="noncritical", min_effect=0.08, reference="original")
    gone = [sum(d.removed for d in path) for path in (original, current)]
    assert 0 < gone[0] < gone[1]
    assert any(d.reason == "drift" for d in original)
    assert not any(d.reason == "drift" for d in current)


def test_a_cliff_is_told_with_its_step_group_and_classes():
    heard = []

    class Ear(Silence):
        def cliff(self, cliff):
            heard.append(cliff)

    path = cswap.prune_path(
        Planted(duplicates=False), cswap.calibration_set(_data(), 40), target="units=0.75", sink=Ear()
    )
    assert len(heard) == len(path.cliffs) == 1
    assert heard[0].group == "hidden"
    assert heard[0].after < heard[0].before
    assert "fell from" in str(heard[0])


def test_a_network_near_chance_is_refused():
    model = Planted()
    model.out.weight.data = model.out.weight.data[[1, 2, 0]]  # outputs in another order
    with pytest.raises(DataError, match=r"chance.*--labels"):
        _path(model)
    assert refuse_near_chance  # the same check serves every method
    with pytest.raises(DataError, match="chance"):
        _path(model, method="magnitude")


def test_rankings_by_hand():
    structure = discover(Planted(duplicates=False), _data().tensors[0])
    from cswap.methods.magnitude import magnitude_scores
    from cswap.methods.ranking import removal_order

    model = Planted(duplicates=False)
    with torch.no_grad():
        model.hidden.weight.mul_(torch.tensor([[5.0], [4.0], [3.0], [2.0], [1.0]]))
    scores = magnitude_scores(model, structure)
    assert scores["hidden"].tolist() == [5.0, 4.0, 3.0, 2.0, 1.0]
    assert removal_order(structure, scores, "layer") == [("hidden", n) for n in (4, 3, 2, 1, 0)]
    for scope in ("layer", "global"):
        path = _path(model, method="magnitude", scope=scope, norm="l2")
        assert [d.unit for d in path] == [4, 3, 2, 1]
    orders = [[d.unit for d in _path(model, method="random", seed=s)] for s in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_a_residual_stream_s_norm_is_over_all_that_writes_it(norm):
    from cswap.methods.lamp import lamp_scores
    from cswap.methods.magnitude import magnitude_scores

    torch.manual_seed(0)
    model = ResidualNet()
    structure = discover(model, torch.randn(2, 3, 8, 8))
    streams = {frozenset(s.module for s in g.producers): g.name for g in structure if len(g.producers) > 1}
    assert set(streams) == {frozenset({"conv", "b"}), frozenset({"c", "skip"})}
    scores, lamps = magnitude_scores(model, structure, norm), lamp_scores(model, structure)
    for writers, name in streams.items():
        rows = torch.cat([model.get_submodule(w).weight.detach().double().flatten(1) for w in sorted(writers)], 1)
        found = rows.abs().sum(1) if norm == "l1" else rows.square().sum(1).sqrt()
        np.testing.assert_allclose(scores[name], found.numpy(), rtol=1e-12)
        squares = rows.square().sum(1).numpy()
        expected = [s / squares[squares >= s].sum() for s in squares]
        np.testing.assert_allclose(lamps[name], expected, rtol=1e-12)


def test_lamp_by_hand():
    """Squares 25, 16, 9, 4, 1: each beside the sum of those that are not smaller."""
    from cswap.methods.lamp import lamp_scores

    model = Planted(duplicates=False)
    structure = discover(model, _data().tensors[0])
    with torch.no_grad():
        model.hidden.weight.mul_(torch.tensor([[5.0], [4.0], [3.0], [2.0], [1.0]]))
    scores = lamp_scores(model, structure)["hidden"]
    np.testing.assert_allclose(scores, [1, 16 / 41, 9 / 50, 4 / 54, 1 / 55])
    assert [d.unit for d in _path(model, method="lamp", scope="global")] == [4, 3, 2, 1]
    with torch.no_grad():
        model.hidden.weight[3:] = 0.0
        model.hidden.weight[2] = model.hidden.weight[1]
    ties = lamp_scores(model, structure)["hidden"]
    assert ties[3] == ties[4] == 0.0
    assert ties[1] != ties[2]


def test_scores_of_one_scale_are_compared_as_they_are():
    """LAMP over two groups: 9/25 of the first is kept longer than 4/13 of the second, though not beside their means."""
    from cswap.methods.lamp import lamp_scores
    from cswap.methods.ranking import removal_order

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[3.0, 0.0], [0.0, 4.0]]))
        model[2].weight.copy_(torch.tensor([[10.0, 0.0], [20.0, 0.0], [0.0, 30.0]]))
        model[4].weight.copy_(torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]))
        for i in (0, 2, 4):
            model[i].bias.zero_()
    inputs = torch.rand(40, 2)
    structure = discover(model, inputs)
    scores = lamp_scores(model, structure)
    np.testing.assert_allclose(scores["0"], [9 / 25, 1])
    np.testing.assert_allclose(scores["2"], [1 / 14, 4 / 13, 1])
    own = [("2", 0), ("2", 1), ("0", 0)]
    assert removal_order(structure, scores, "raw")[:3] == own
    assert removal_order(structure, scores, "global")[:3] == [("2", 0), ("0", 0), ("2", 1)]
    data = TensorDataset(inputs, model(inputs).argmax(1))
    calibration = cswap.calibration_set(data, 8, allow_imbalance=True)

    def order(method: str, scope: str) -> list[tuple[str, int]]:
        path = cswap.prune_path(model, calibration, structure=structure, method=method, scope=scope)
        return [(d.group, d.unit) for d in path]

    assert order("lamp", "global") == order("lamp", "raw") == own
    assert order("magnitude", "raw")[:1] == [("0", 0)] != order("magnitude", "global")[:1]
    for scope in ("global", "raw"):  # it shares out between groups by margins or prices
        with pytest.raises(InputError, match=f"scope: {scope} is for --method magnitude or .*, got --method joint"):
            order("joint", scope)


def test_a_user_s_own_method_of_four_arguments():
    @cswap.register("mine")
    def mine(model, units, calibration, task):
        scores = {g.name: list(range(g.size)) for g in units}
        return cswap.ranking_path(model, units, calibration, task, scores, method="mine")

    try:
        assert [d.unit for d in _path(Planted(), method="mine")] == [0, 1, 2, 3, 4, 5]
    finally:
        METHODS.pop("mine")  # other tests see the registry as it ships


def test_the_model_is_untouched_by_success_failure_and_interruption():
    model = Planted().train()
    model.hidden.weight.requires_grad_(False)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = torch.get_rng_state()

    class Stop(Silence):
        def decided(self, decision, stats):
            if decision.step == 3:
                raise KeyboardInterrupt

    path = _path(model)
    path.apply(model, "noncritical")
    with pytest.raises(KeyboardInterrupt):
        _path(model, sink=Stop())
    with pytest.raises(TargetError):
        _path(model, target="units=0.99")
    assert torch.equal(state, torch.get_rng_state())
    assert model.training
    assert (model.hidden.weight.requires_grad, model.out.weight.requires_grad) == (False, True)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert not hasattr(model, "_cswap")


def test_a_path_prints_as_a_table_and_becomes_json_and_a_frame():
    path = _path(Planted(duplicates=False))
    assert "removed params" in str(path)
    told = json.loads(path.to_json())
    assert [(d["step"], d["unit"]) for d in told] == [(d.step, d.unit) for d in path]
    assert all({c["class"] for c in d["classes"]} == set(path.classes) for d in told if d["phase"] == "walk")
    frame = path.to_frame()
    assert list(frame["unit"]) == [0, 1, 2, 3, 4]
    assert frame["p:1"][4] < 0.05
    assert path[4].effects["1"].pi == 1
    assert len(path[4].effects) == 3


class ScoreAlone:
    """All that method.md asks of a task."""

    def score(self, outputs, targets):
        return outputs.double().softmax(1).gather(1, targets.view(-1, 1)).squeeze(1)


def test_a_score_alone_is_a_task():
    model, calibration = Planted(), cswap.calibration_set(_data(), 40)
    whole, alone = (
        cswap.prune_path(model, calibration, task=task, target="noncritical")
        for task in (cswap.Classification(), ScoreAlone())
    )
    assert [(d.unit, d.verdict, d.xi, d.removed) for d in whole] == [
        (d.unit, d.verdict, d.xi, d.removed) for d in alone
    ]
    small = alone.apply(model, "noncritical")
    assert cswap.recover(small, model, calibration, how="lstsq", task=ScoreAlone()) is not None
    assert copy.deepcopy(completed(ScoreAlone())).name == "ScoreAlone"
    meter = completed(ScoreAlone()).meter(4)
    logits, labels = torch.eye(3) * 5, torch.tensor([0, 1, 1])
    meter.update(logits, labels)
    figures = meter.result()
    expected = ScoreAlone().score(logits, labels)
    assert figures["score"] == pytest.approx(float(expected.mean()))
    assert figures["by_class"] == [
        pytest.approx(float(expected[0])),
        pytest.approx(float(expected[1:].mean())),
        None,
        None,
    ]


def test_what_is_no_task_is_refused_in_one_line():
    model, calibration = Planted(), cswap.calibration_set(_data(), 40)

    class Mean(ScoreAlone):
        def score(self, outputs, targets):
            return super().score(outputs, targets).mean()

    class Half(ScoreAlone):
        name, sample_quality = "half", ScoreAlone.score

    for task, error, words in (
        (object(), InputError, "score"), (Mean(), DataError, "one number a sample"), (Half(), InputError, "headline, chance, meter"),
    ):  # fmt: skip
        with pytest.raises(error, match=words):
            cswap.prune_path(model, calibration, task=task, target="noncritical")


def test_an_option_that_the_method_would_forget_is_refused_in_python_too():
    with pytest.raises(InputError, match="effects: sequential is for --method cswap, got --method cbp"):
        _path(Planted(), method="cbp", effects="sequential")
    with pytest.raises(InputError, match="per: macs goes with --scope global, got --scope raw"):
        _path(Planted(), method="taylor", per="macs", scope="raw")
