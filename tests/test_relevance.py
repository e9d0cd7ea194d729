"""Rankings by relevance: closed forms in float64, twins that share no code with the methods, and what must not be touched."""

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
from cswap.methods.deeplift import attributions, deeplift_scores
from cswap.methods.lrp import lrp_scores, relevances
from cswap.methods.path import Silence
from cswap.methods.ranking import removal_order
from cswap.methods.taylor import taylor_scores
from cswap.structure.check import randomise_
from cswap.structure.discover import discover
from cswap.tasks import Classification
from tests.conftest import NETS, DepthwiseNet, ResidualNet
from tests.reference.twin import cut_scores
from tests.test_effects import READS

METHODS = ("taylor", "taylor2", "deeplift", "lrp")


def _calibration(x: torch.Tensor, classes: int = 4) -> cswap.CalibrationSet:
    return cswap.calibration_set(TensorDataset(x, torch.arange(len(x)) % classes), len(x) // classes)


def _images(n: int = 12, side: int = 8) -> torch.Tensor:
    return torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(4))


def _scores(method: str, model: nn.Module, calibration: cswap.CalibrationSet, **settings: int) -> dict[str, np.ndarray]:
    task, units = Classification(), discover(model, calibration.inputs(0, 2))
    if method == "deeplift":
        return deeplift_scores(model, units, calibration, task, **settings)[0]
    if method == "lrp":
        return lrp_scores(model, units, calibration, task, **settings)
    return taylor_scores(model, units, calibration, task, method=method, **settings)


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
    model, calibration = Toy().double(), _calibration(x, 3)
    scores = _scores(method, model, calibration)
    expected = _toy_by_hand(method, calibration.inputs(0, 30).numpy(), calibration.targets)
    np.testing.assert_allclose(scores["hidden"], expected, rtol=1e-9)
    order = [n for _, n in removal_order(discover(model, x[:2]), scores, "layer")]
    assert order == np.argsort(expected).tolist() != sorted(order)


def test_taylor_is_the_slope_of_the_score_in_the_weights_that_read_a_unit(small_net):
    """σ when every weight that reads a unit is scaled by s has the slope Σ a · ∂σ/∂a at s = 1."""
    name = next(k for k, net in NETS.items() if isinstance(small_net, net))
    model, calibration = copy.deepcopy(small_net).double(), _calibration(_images().double())
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
        for group, score in _scores(method, model, calibration).items():
            np.testing.assert_allclose(score, (np.abs(changes[group]) ** power).mean(0), rtol=1e-12)


def test_one_pass_serves_all_groups():
    model, calibration = randomise_(ResidualNet(), 3).eval(), _calibration(_images())
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


def _residual_twin(
    net: ResidualNet, x: torch.Tensor, base: torch.Tensor, labels: torch.Tensor
) -> dict[str, np.ndarray]:
    """DeepLIFT by hand: each ReLU becomes the straight line from the baseline's value to the sample's."""
    reads: list[tuple[str, torch.Tensor, torch.Tensor]] = []

    def read(name: str, pair: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        own = pair[0] * 1.0
        own.retain_grad()
        reads.append((name, own, pair[1]))
        return net.get_submodule(name)(own), net.get_submodule(name)(pair[1])

    def line(z: torch.Tensor, under: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        slope = ((z.relu() - under.relu()) / (z - under)).detach()
        return slope * (z - under) + under.relu(), under.relu()

    h = line(*(net.bn(net.conv(v)) for v in (x, base)))
    inner = line(*read("a", h))
    h = line(*(p + q for p, q in zip(h, read("b", inner), strict=True)))
    h = line(*(p + q for p, q in zip(read("c", h), read("skip", h), strict=True)))
    logits, _ = read("fc", tuple(v.mean((2, 3)) for v in h))
    logits.gather(1, labels.view(-1, 1)).sum().backward()
    found = {"a": ("b",), "conv": ("a", "c", "skip"), "c": ("fc",)}
    by_layer = {n: ((own - under) * own.grad).flatten(2).sum(2) if own.dim() == 4 else (own - under) * own.grad for n, own, under in reads}  # fmt: skip
    return {g: sum(by_layer[n] for n in layers).abs().mean(0).detach().numpy() for g, layers in found.items()}


def test_deeplift_of_a_residual_net_equals_a_twin_by_hand():
    model, calibration = randomise_(ResidualNet(), 3).eval().double(), _calibration(_images().double())
    x = calibration.inputs(0, 12).clone().requires_grad_()
    expected = _residual_twin(model, x, torch.zeros_like(x), torch.from_numpy(calibration.targets))
    scores = _scores("deeplift", model, calibration)
    assert set(scores) == set(expected)
    for group, score in scores.items():
        np.testing.assert_allclose(score, expected[group], rtol=1e-6)
    other = _residual_twin(model, x, torch.ones_like(x), torch.from_numpy(calibration.targets))
    assert np.abs(other["conv"] - expected["conv"]).max() > 0.01  # the baseline can be seen


class Reused(nn.Module):
    """One ReLU for everything, in place; a convolution that is called twice; adds; overlapping pools; a pre-activation whose
    input is read twice.
    """

    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU(inplace=True)
        self.stem, self.twice = nn.Conv2d(3, 6, 3, 1, 1), nn.Conv2d(6, 6, 3, 1, 1)
        self.bn, self.inner = nn.BatchNorm2d(6), nn.Conv2d(6, 5, 3, 1, 1)
        self.outer, self.fc = nn.Conv2d(5, 6, 3, 1, 1), nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(self.stem(x), 3, 2, 1)
        x = x + self.twice(torch.relu(x))
        x = self.relu(x)
        x = x + self.twice(x)
        x = x + self.outer(self.relu(self.inner(self.relu(self.bn(x)))))
        return self.fc(F.adaptive_avg_pool2d(x.relu(), 1).flatten(1))


@pytest.mark.parametrize("net", [*NETS.values(), Reused])
def test_deeplift_attributions_add_up_to_the_difference_from_the_baseline(net):
    model, calibration = randomise_(net(), seed=3).eval(), _calibration(_images())
    units = discover(model, calibration.inputs(0, 2))
    engine = PlainEngine(model, units, calibration, Classification())
    ((sums, check),) = attributions(engine, units)
    with torch.no_grad():
        x, labels = calibration.inputs(0, 12), torch.from_numpy(calibration.targets).view(-1, 1)
        difference = (model(x) - model(torch.zeros_like(x))).gather(1, labels).squeeze(1).numpy()
    assert np.abs(difference).min() > 1e-3
    np.testing.assert_allclose(check[:, 1], difference, atol=1e-4)
    np.testing.assert_allclose(check[:, 0], difference, atol=1e-3)
    last = next(g for g in units if [s.module for s in g.consumers][-1] == "fc")
    at_fc = sums[last.name].sum(1)
    if len(last.consumers) == 1:  # everything the classifier reads
        np.testing.assert_allclose(at_fc, difference, atol=1e-3)
    assert deeplift_scores(model, units, calibration, Classification())[1] < 1e-4


def test_a_convolution_called_twice_is_read_at_both_calls():
    """The first call's input is the stem's alone, so an engine that saw only one call would miss part of the relevance."""
    model, calibration = randomise_(Reused(), 3).eval().double(), _calibration(_images().double())
    units = discover(model, calibration.inputs(0, 2))
    (stem,) = [g for g in units if any(s.module == "twice" for s in g.consumers)]
    scores = {m: _scores(m, model, calibration)[stem.name] for m in METHODS}

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
        unrolled = _scores(method, plain, calibration)
        assert np.abs(score).max() > 1e-6
        np.testing.assert_allclose(score, unrolled[stem.name], rtol=1e-9)


class _Registered(nn.Module):
    """An input norm, or none, registered beside a convolution that is called after the stem."""

    def __init__(self, norm: bool, late_first: bool) -> None:
        super().__init__()
        late = nn.ModuleDict({"norm": nn.BatchNorm2d(3) if norm else nn.ReLU(), "two": nn.Conv2d(6, 8, 3, padding=1)})
        stem = nn.Conv2d(3, 6, 3, padding=1)
        for name, module in [("enc", late), ("stem", stem)] if late_first else [("stem", stem), ("enc", late)]:
            self.add_module(name, module)
        self.fc = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.stem(self.enc["norm"](x)))
        return self.fc(F.relu(self.enc["two"](x)).mean((2, 3)))


@pytest.mark.parametrize("norm", [True, False])
def test_lrp_goes_by_what_is_called_not_by_what_is_registered_first(norm):
    one, other = _Registered(norm, late_first=True), _Registered(norm, late_first=False)
    randomise_(one, 6)
    other.load_state_dict(one.state_dict())
    calibration = _calibration(_images(8).double())
    scores = [_scores("lrp", net.eval().double(), calibration) for net in (one, other)]
    for name, score in scores[0].items():
        np.testing.assert_allclose(score, scores[1][name], rtol=1e-9)
        assert len(set(score.round(12))) == len(score)  # a flat rule would give all of them the same


def test_lrp_of_a_torchvision_resnet_equals_zennit_s_own_canonizer():
    from torchvision.models.resnet import BasicBlock, ResNet
    from zennit.composites import EpsilonPlusFlat
    from zennit.torchvision import ResNetCanonizer

    model = randomise_(ResNet(BasicBlock, [1, 1, 1, 1], num_classes=4), 5).eval().double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 1e-14  # zennit's merged norms still divide by sqrt(1 + eps)
    calibration = _calibration(_images(8, 32).double())
    units = discover(model, calibration.inputs(0, 2))
    scores = lrp_scores(model, units, calibration, Classification())
    theirs, x = copy.deepcopy(model), calibration.inputs(0, 8).clone().requires_grad_()
    held: dict[str, torch.Tensor] = {}
    for name in {s.module for g in units for s in g.consumers}:

        def hold(_m: nn.Module, args: tuple[torch.Tensor], name: str = name) -> tuple[torch.Tensor]:
            held[name] = args[0] * 1.0
            held[name].retain_grad()
            return (held[name],)

        theirs.get_submodule(name).register_forward_pre_hook(hold)
    with EpsilonPlusFlat(canonizers=[ResNetCanonizer()]).context(theirs):
        logit = theirs(x).gather(1, torch.from_numpy(calibration.targets).view(-1, 1))
        logit.backward(logit.detach())
    for group in units:
        total = sum(held[s.module].grad.flatten(2).sum(2) if held[s.module].dim() == 4 else held[s.module].grad for s in group.consumers)  # fmt: skip
        expected = total.abs().mean(0).numpy()
        assert expected.max() > 0
        np.testing.assert_allclose(scores[group.name], expected, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("net", [ResidualNet, DepthwiseNet])
def test_lrp_hands_down_all_of_the_logit_where_no_bias_takes_any(net):
    model, calibration = randomise_(net(), 3).eval().double(), _calibration(_images().double())
    with torch.no_grad():
        model.bn.running_mean.zero_()
        for name, p in model.named_parameters():
            if name.endswith("bias"):
                p.zero_()
            elif p.dim() == 4 and name not in ("conv.weight", "up.weight", "dw.weight"):
                p.abs_()  # z⁺ drops relevance where nothing positive arrives
    units = discover(model, calibration.inputs(0, 2))
    (sums,) = relevances(PlainEngine(model, units, calibration, Classification()), units)
    labels = torch.from_numpy(calibration.targets).view(-1, 1)
    logits = model(calibration.inputs(0, 12)).gather(1, labels).squeeze(1).detach().numpy()
    last = "c" if net is ResidualNet else "down"
    np.testing.assert_allclose(sums[last].sum(1), logits, rtol=1e-4)
    if net is ResidualNet:  # c and skip read the whole stream; a reads what its branch gets besides the identity
        branch = sums["a"].sum(1)
        assert (np.abs(branch) > 0.05 * np.abs(logits)).all()
        np.testing.assert_allclose(sums["conv"].sum(1), logits + branch, rtol=1e-4)
    else:  # the gate's factor takes half
        np.testing.assert_allclose(sums["squeeze"].sum(1), logits / 2, rtol=1e-4)


class Gained(nn.Module):
    """A norm that no layer stands right before, and constants that scale."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.norm, self.fc = (
            nn.Linear(3, 4),
            nn.Linear(4, 4),
            nn.BatchNorm1d(4),
            nn.Linear(4, 3),
        )
        self.gain = nn.Parameter(torch.tensor([0.5, 2.0, 3.0, 0.25]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.norm(self.gain * F.relu(self.second(F.relu(self.first(x)))) / 2.0))


def test_lrp_through_a_norm_that_stays_and_constants_by_hand():
    x = torch.rand(30, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    model, calibration = randomise_(Gained(), 2).eval().double(), _calibration(x, 3)
    scores = _scores("lrp", model, calibration)
    weight, norm = {n: p.detach().numpy() for n, p in model.named_parameters()}, model.norm
    scale = weight["norm.weight"] / np.sqrt(norm.running_var.numpy() + norm.eps)
    shift = weight["norm.bias"] - norm.running_mean.numpy() * scale
    total = np.zeros(4)
    for v, k in zip(calibration.inputs(0, 30).numpy(), calibration.targets, strict=True):
        a = np.maximum(weight["first.weight"] @ v + weight["first.bias"], 0)
        z = weight["second.weight"] @ a + weight["second.bias"]
        h = weight["gain"] * np.maximum(z, 0) / 2
        relevance = (scale * h + shift) * weight["fc.weight"][k]  # of what the classifier reads
        relevance = relevance * scale * h / (scale * h + shift)  # the norm keeps what its shift is due
        total += np.abs(a * (weight["second.weight"] * (relevance / z)[:, None]).sum(0))
    assert np.abs(shift).min() > 1e-3
    assert (total > 0).sum() >= 3  # one is never active
    np.testing.assert_allclose(scores["first"], total / 30, rtol=1e-3)


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
    model, calibration = randomise_(ResidualNet(), 3).eval(), _calibration(_images())
    whole, parts = (_scores(method, model, calibration, memory=m) for m in (4 << 30, 300_000))
    engine = PlainEngine(model, discover(model, _images()[:2]), calibration, Classification(), memory=300_000)
    assert engine.memory // 4 // (3 * engine.all_bytes) < 12  # several batches
    for group in whole:
        np.testing.assert_allclose(parts[group], whole[group], rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("method", METHODS)
def test_the_model_is_untouched(method):
    model = randomise_(Reused(), 3).train()
    model.stem.weight.requires_grad_(False)
    before, state = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    modules = [n for n, _ in model.named_modules()]
    scores = _scores(method, model, _calibration(_images()))
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

    calibration = _calibration(_images())
    model = randomise_(ResidualNet(), 3).eval()
    units = discover(model, calibration.inputs(0, 2))
    with pytest.raises(InputError, match="taylor: every unit's score is 0"):
        taylor_scores(model, units, calibration, Hits())
    forks = randomise_(Forks(), 3).eval()
    assert _scores("taylor", forks, calibration)["conv"].max() > 0
    for method in ("deeplift", "lrp"):
        with pytest.raises(InputError, match=f"method {method}: this network cannot be had as a graph"):
            _scores(method, forks, calibration)
        whole = TensorDataset(torch.ones(4, 3, 8, 8, dtype=torch.int64), torch.arange(4) // 2)
        with pytest.raises(InputError, match=f"method {method}: expected inputs of a floating type, got torch.int64"):
            _scores(method, Counts().eval(), cswap.calibration_set(whole, 2))


@pytest.mark.parametrize(("method", "library"), [("deeplift", "captum"), ("lrp", "zennit")])
def test_a_missing_library_is_named_with_what_installs_it(monkeypatch, method, library):
    for name in [n for n in sys.modules if n.split(".")[0] == library]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(MissingPartError, match=rf"needs {library}: pip install 'cswap\[{method}\]'"):
        _scores(method, ResidualNet().eval(), _calibration(_images()))


def test_a_library_that_is_there_and_does_not_import_says_so():
    need, other = "hf: models need x", ModuleNotFoundError("No module named 'y'", name="y")
    absent = MissingPartError.of(ModuleNotFoundError("No module named 'x'", name="x"), need, "hf", "x")
    assert str(absent) == "hf: models need x: pip install 'cswap[hf]'"
    for error in (ImportError("x>=2 is required"), other):
        assert f"importing it: {error}" in str(MissingPartError.of(error, need, "hf", "x"))
