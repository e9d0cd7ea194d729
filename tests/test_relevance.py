"""All four rankings by relevance: closed forms in float64, twins that share no code with the methods, and what must not be touched."""

from __future__ import annotations

import copy
import sys

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import cswap
from cswap.causal.cut import PlainEngine
from cswap.causal.first_order import first_order, first_order_all
from cswap.errors import InputError, MissingPartError
from cswap.methods.path import Silence
from cswap.methods.ranking import removal_order
from cswap.methods.taylor import taylor_scores
from cswap.structure.check import randomise_
from cswap.structure.discover import discover
from cswap.tasks import Classification
from tests.conftest import NETS, ResidualNet
from tests.reference.twin import cut_scores
from tests.relevances import METHODS, Reused, calibration_on, random_images, scores_by
from tests.test_effects import READS


class Toy(nn.Module):
    """Every hidden activation is positive on positive inputs; under a zero input units 0 and 2 stay active, 1 and 3 do not."""

    W = ((0.5, 1.0, 0.25), (2.0, 0.25, 1.0), (0.25, 0.5, 1.5), (1.5, 1.0, 0.5))
    B = (0.75, -0.2, 2.0, -0.1)
    V = ((1.0, -0.5, 0.3, 0.2), (-0.25, 0.9, 0.1, -0.3), (0.4, 0.15, -0.35, 0.6))
    C = (0.1, -0.2, 0.3)

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.out = nn.Linear(3, 4), nn.Linear(4, 3)
        with torch.no_grad():
            for own, values in ((self.hidden.weight, self.W), (self.hidden.bias, self.B), (self.out.weight, self.V), (self.out.bias, self.C)):  # fmt: skip
                own.copy_(torch.tensor(values))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(F.relu(self.hidden(x)))


def _toy_by_hand(method: str, inputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The four definitions, written out for two linear layers."""
    w, b, v, c = (np.asarray(a, dtype=np.float32).astype(np.float64) for a in (Toy.W, Toy.B, Toy.V, Toy.C))
    total = np.zeros(4)
    for x, k in zip(inputs, labels, strict=True):
        a = w @ x + b
        assert (a > 0).all()
        logits = v @ a + c
        p = np.exp(logits) / np.exp(logits).sum()
        for n in range(4):
            first_order_change = a[n] * p[k] * (v[k, n] - sum(p[j] * v[j, n] for j in range(3)))
            total[n] += {
                "taylor": abs(first_order_change),
                "taylor2": first_order_change**2,
                "deeplift": abs((a[n] - max(b[n], 0.0)) * v[k, n]),
                "lrp": abs(a[n] * v[k, n] / (logits[k] + 1e-6 * (1 if logits[k] >= 0 else -1)) * logits[k]),
            }[method]
    return total / len(inputs)


@pytest.mark.parametrize("method", METHODS)
def test_values_and_ranks_of_a_toy_are_those_of_the_closed_form(method):
    x = torch.rand(30, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.2
    model, calibration = Toy().double(), calibration_on(x, 3)
    scores = scores_by(method, model, calibration)
    expected = _toy_by_hand(method, calibration.inputs(0, 30).numpy(), calibration.targets)
    np.testing.assert_allclose(scores["hidden"], expected, rtol=1e-9)
    order = [n for _, n in removal_order(discover(model, x[:2]), scores, "layer")]
    assert order == np.argsort(expected).tolist() != sorted(order)


def test_taylor_is_the_slope_of_the_score_in_the_weights_that_read_a_unit(small_net):
    """σ when every weight that reads a unit is scaled by s has the slope Σ a · ∂σ/∂a at s = 1."""
    name = next(k for k, net in NETS.items() if isinstance(small_net, net))
    model, calibration = copy.deepcopy(small_net).double(), calibration_on(random_images().double())
    everything, targets = calibration.inputs(0, 12), torch.from_numpy(calibration.targets)
    units = discover(model, everything[:2])
    engine = PlainEngine(model, units, calibration, Classification())
    changes = first_order_all(engine, units.groups, np.arange(12))
    assert set(changes) == set(READS[name])

    def scaled(reads: list[tuple[str, list[int]]], s: float) -> np.ndarray:
        net = copy.deepcopy(model)
        with torch.no_grad():
            for layer, columns in reads:
                net.get_submodule(layer).weight[:, columns] *= s
        return cut_scores(net, [], everything, targets).numpy()

    moved = 0.0
    for group in units:
        for n in range(group.size):
            reads = READS[name][group.name](n)
            slope = (scaled(reads, 1 + 1e-5) - scaled(reads, 1 - 1e-5)) / 2e-5
            np.testing.assert_allclose(changes[group.name][:, n], -slope, atol=1e-7)
            moved = max(moved, np.abs(slope).max())
    assert moved > 1e-2
    for method, power in (("taylor", 1), ("taylor2", 2)):
        for group, score in scores_by(method, model, calibration).items():
            np.testing.assert_allclose(score, (np.abs(changes[group]) ** power).mean(0), rtol=1e-12)


def test_one_pass_serves_all_groups():
    model, calibration = randomise_(ResidualNet(), 3).eval(), calibration_on(random_images())
    units = discover(model, calibration.inputs(0, 2))
    engine = PlainEngine(model, units, calibration, Classification())
    passes = []
    # of all three samples: the probe that finds where the samples lie is of two
    engine.net.register_forward_hook(lambda _m, args, _o: passes.append(1) if len(args[0]) == 3 else None)
    numbers = np.array([7, 2, 3])  # any samples, in any order
    together = first_order_all(engine, units.groups, numbers)
    assert len(passes) == 1
    assert together["conv"].shape == (3, 6)
    for group in units:
        np.testing.assert_allclose(first_order(engine, group, numbers), together[group.name], rtol=1e-5, atol=1e-8)
    assert np.abs(together["conv"][0] - together["conv"][1]).max() > 1e-3
    assert len(passes) == 1 + len(units)


def test_a_convolution_called_twice_is_read_at_both_calls():
    """The first call's input is the stem's alone, so an engine that saw only one call would miss part of the relevance."""
    model, calibration = randomise_(Reused(), 3).eval().double(), calibration_on(random_images().double())
    units = discover(model, calibration.inputs(0, 2))
    (stem,) = [g for g in units if any(s.module == "twice" for s in g.consumers)]
    scores = {m: scores_by(m, model, calibration)[stem.name] for m in METHODS}

    class Unrolled(Reused):
        def __init__(self) -> None:
            super().__init__()
            self.again = nn.Conv2d(6, 6, 3, 1, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = F.max_pool2d(self.stem(x), 3, 2, 1)
            x = F.relu(x + self.twice(F.relu(x)))
            x = x + self.again(x)
            x = x + self.outer(F.relu(self.inner(F.relu(self.bn(x)))))
            return self.fc(F.relu(x).mean((2, 3)))

    plain = Unrolled().double().eval()
    plain.load_state_dict(model.state_dict() | {f"again.{n}": p for n, p in model.twice.state_dict().items()})
    for method, score in scores.items():
        unrolled = scores_by(method, plain, calibration)
        assert np.abs(score).max() > 1e-6
        np.testing.assert_allclose(score, unrolled[stem.name], rtol=1e-9)


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("method", METHODS)
def test_complete_paths_of_a_trained_network(digits_case, method, scope):
    model, calibration, structure = digits_case
    paths = [cswap.prune_path(model, calibration, method=method, scope=scope, structure=structure) for _ in range(2)]
    lines = [[(d.group, d.unit, d.score) for d in p] for p in paths]
    assert lines[0] == lines[1]
    assert paths[0].ended == "nothing is left to remove"
    assert paths[0].method == method
    assert not paths[0].notes
    assert {d.reason for d in paths[0]} == {f"lowest {method} score"}
    for group in structure:
        own = [d for d in paths[0] if d.group == group.name]
        assert len({d.unit for d in own}) == len(own) == group.size - 1
        assert [d.score for d in own] == sorted(d.score for d in own)


@pytest.mark.parametrize("method", METHODS)
def test_batches_do_not_matter(method):
    model, calibration = randomise_(ResidualNet(), 3).eval(), calibration_on(random_images())
    whole, parts = (scores_by(method, model, calibration, memory=m) for m in (4 << 30, 300_000))
    engine = PlainEngine(model, discover(model, random_images()[:2]), calibration, Classification(), memory=300_000)
    assert engine.memory // 4 // (3 * engine.all_bytes) < 12  # several batches
    for group in whole:
        np.testing.assert_allclose(parts[group], whole[group], rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("method", METHODS)
def test_the_model_is_untouched(method):
    model = randomise_(Reused(), 3).train()
    model.stem.weight.requires_grad_(False)
    before, state = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    modules = [n for n, _ in model.named_modules()]
    scores = scores_by(method, model, calibration_on(random_images()))
    assert max(s.max() for s in scores.values()) > 0
    assert torch.equal(state, torch.get_rng_state())
    assert model.training
    assert model.relu.inplace
    assert [n for n, _ in model.named_modules()] == modules
    assert (model.stem.weight.requires_grad, model.fc.weight.requires_grad) == (False, True)
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    assert not any(getattr(m, h) for m in model.modules() for h in hooks)


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 6), nn.Linear(6, 8)
        self.fc = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.norm(x + self.down(F.gelu(self.up(self.norm(x))))))


def test_what_has_no_rule_is_said():
    x = torch.randn(40, 8, generator=torch.Generator().manual_seed(0))
    model = randomise_(Normed(), 1).eval()
    labels = model(x).argmax(1)
    kept = torch.cat([torch.nonzero(labels == k).flatten()[:3] for k in range(4)])
    assert len(kept) == 12
    calibration = cswap.calibration_set(TensorDataset(x[kept], labels[kept]), 3)
    heard = []

    class Ear(Silence):
        def note(self, text):
            heard.append(text)

    path = cswap.prune_path(model, calibration, method="deeplift", sink=Ear())
    assert path.notes == [n for n in heard if n.startswith("deeplift: attributions miss")]
    assert len(path.notes) == 1
    assert cswap.prune_path(model, calibration, method="lrp").notes == []


def test_a_score_without_a_gradient_and_a_network_without_a_graph_are_refused():
    class Hits(Classification):
        def score(self, outputs, targets):
            return self.sample_quality(outputs, targets)

    class Counts(ResidualNet):
        def forward(self, x):
            return super().forward(x.float())

    class Forks(ResidualNet):
        def forward(self, x):
            return super().forward(x if x.sum() > -1e9 else -x)

    calibration = calibration_on(random_images())
    model = randomise_(ResidualNet(), 3).eval()
    units = discover(model, calibration.inputs(0, 2))
    with pytest.raises(InputError, match="taylor: every unit's score is 0"):
        taylor_scores(model, units, calibration, Hits())
    forks = randomise_(Forks(), 3).eval()
    assert scores_by("taylor", forks, calibration)["conv"].max() > 0
    for method in ("deeplift", "lrp"):
        with pytest.raises(InputError, match=f"method {method}: this network cannot be had as a graph"):
            scores_by(method, forks, calibration)
        whole = TensorDataset(torch.ones(4, 3, 8, 8, dtype=torch.int64), torch.arange(4) // 2)
        with pytest.raises(InputError, match=f"method {method}: expected inputs of a floating type, got torch.int64"):
            scores_by(method, Counts().eval(), cswap.calibration_set(whole, 2))


@pytest.mark.parametrize(("method", "library"), [("deeplift", "captum"), ("lrp", "zennit")])
def test_a_missing_library_is_named_with_what_installs_it(monkeypatch, method, library):
    for name in [n for n in sys.modules if n.split(".")[0] == library]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(MissingPartError, match=rf"needs {library}: pip install 'cswap\[{method}\]'"):
        scores_by(method, ResidualNet().eval(), calibration_on(random_images()))


def test_a_library_that_is_there_and_does_not_import_says_so():
    need, other = "hf: models need x", ModuleNotFoundError("No module named 'y'", name="y")
    absent = MissingPartError.of(ModuleNotFoundError("No module named 'x'", name="x"), need, "hf", "x")
    assert str(absent) == "hf: models need x: pip install 'cswap[hf]'"
    for error in (ImportError("x>=2 is required"), other):
        assert f"importing it: {error}" in str(MissingPartError.of(error, need, "hf", "x"))
