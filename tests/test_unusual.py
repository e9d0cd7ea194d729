"""Networks that are legal and unusual: each was once answered wrongly, or with a traceback."""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import cswap
from cswap.causal.cut import PlainEngine
from cswap.causal.replay import engine_for
from cswap.data.text import is_tokens
from cswap.errors import DataError, StructureError
from cswap.evaluate.quality import measure_quality
from cswap.linear.patches import refusal
from cswap.methods.obs import output_importance
from cswap.recovery import recovered, reestimated
from cswap.recovery.base import Case
from cswap.recovery.merge import _written
from cswap.recovery.walk import Walk
from cswap.structure.check import randomise_
from cswap.structure.discover import discover
from cswap.tasks import Classification
from cswap.types import Target
from tests.conftest import path_of
from tests.recoveries import pruned_to


class Net(nn.Module):
    """Layers, and a function of them and the inputs."""

    def __init__(self, forward: Callable[[Any, torch.Tensor], torch.Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.how = forward
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.how(self, x)


def _calibration(*shape: int, per_class: int = 8, classes: int = 3, dtype: torch.dtype = torch.float32) -> Any:
    generator, targets = torch.Generator().manual_seed(0), torch.arange(classes).repeat_interleave(per_class)
    x = torch.randn(len(targets), *shape, generator=generator) + 0.8 * targets.view(-1, *[1] * len(shape))
    return cswap.calibration_set(TensorDataset(x.to(dtype), targets), per_class)


def _fitted(net: nn.Module, calibration: Any, steps: int = 60) -> nn.Module:
    torch.manual_seed(0)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.3)
    optimiser = torch.optim.Adam(net.parameters(), 0.02)
    for _ in range(steps):
        optimiser.zero_grad()
        F.cross_entropy(net(calibration.inputs(0, len(calibration))), torch.from_numpy(calibration.targets)).backward()
        optimiser.step()
    return net.eval()


def _lenet(channels: int) -> Net:
    """Maps become rows by `view`, which takes no map whose channels lie last."""
    return Net(
        lambda s, x: s.fc(F.relu(s.b(F.max_pool2d(F.relu(s.a(x)), 2))).view(x.size(0), -1)),
        a=nn.Conv2d(channels, 7, 3, padding=1), b=nn.Conv2d(7, 6, 3, padding=1), fc=nn.Linear(96, 3),
    )  # fmt: skip


@pytest.mark.parametrize("channels", [1, 3])
def test_maps_become_rows_by_view(channels):
    calibration = _calibration(channels, 8, 8)
    net = _fitted(_lenet(channels), calibration)
    free = Net(lambda s, x: s.fc(F.relu(s.b(F.max_pool2d(F.relu(s.a(x)), 2))).flatten(1)), **dict(net.named_children()))
    structure = discover(net, calibration.inputs(0, 2))
    assert [g.size for g in structure] == [6, 7]
    for method in ("cswap", "taylor", "obs"):
        paths = [cswap.prune_path(m.eval(), calibration, structure=structure, method=method) for m in (net, free)]
        assert [(d.group, d.unit, str(d.verdict)) for d in paths[0]] == [
            (d.group, d.unit, str(d.verdict)) for d in paths[1]
        ]
    small = paths[0].apply(net, "units=0.4")
    data = TensorDataset(calibration.inputs(0, 24), torch.from_numpy(calibration.targets))
    measure_quality({"small": small}, data, Classification(), 3)
    for how in ("bias", "bn", "lstsq", "merge", "fold"):
        raw = recovered(small, net, calibration, how).raw
        assert torch.isfinite(raw(calibration.inputs(0, 24))).all()


def test_layers_that_are_followed_in_place_have_the_same_importance():
    def layers(in_place: bool) -> nn.Module:
        convs = [
            nn.Conv2d(3, 6, 3),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.Conv2d(6, 5, 3),
            nn.ReLU(in_place),
            nn.Conv2d(5, 4, 3),
        ]
        return nn.Sequential(*convs, nn.ReLU(in_place), nn.Flatten(), nn.Linear(16, 3)).eval()

    calibration = _calibration(3, 8, 8)
    plain, in_place = layers(False), layers(True)
    in_place.load_state_dict(randomise_(plain, 1).state_dict())
    structure = discover(plain, calibration.inputs(0, 2))
    expected, found = (output_importance(m, structure, calibration, Classification()) for m in (plain, in_place))
    assert list(found) == list(expected) != []
    for name, values in expected.items():
        assert values.max() > 0
        torch.testing.assert_close(found[name], values, rtol=1e-6, atol=0)


def test_a_unit_that_nothing_reads_is_no_unit():
    def forward(s: Any, x: torch.Tensor) -> torch.Tensor:
        first, others = torch.split(F.relu(s.a(x)), [1, s.a.out_channels - 1], 1)
        return s.fc(F.relu(s.b(torch.cat([others, first], 1))).mean((2, 3)))

    net = randomise_(Net(forward, a=nn.Conv2d(3, 6, 3), b=nn.Conv2d(6, 5, 1), fc=nn.Linear(5, 3)), 1).eval()
    structure = discover(net, torch.randn(2, 3, 8, 8))
    for group in structure:
        assert set(np.concatenate([s.owner for s in group.consumers])) == set(range(group.size))
    assert [g.name for g in structure] == ["b"]


@pytest.mark.parametrize("mirror", [4, 6, 8])
@pytest.mark.parametrize("seed", range(6))
def test_a_mirrored_reader_is_not_taken_for_a_plain_one(mirror, seed):
    """A random half of few units may be symmetric; then a flip of the channels does not show."""
    net = Net(
        lambda s, x: s.fc(F.relu(s.b(F.relu(s.a(x)).flip(1))).mean((2, 3))),
        a=nn.Conv2d(3, mirror, 3), b=nn.Conv2d(mirror, 5, 1), fc=nn.Linear(5, 3),
    )  # fmt: skip
    structure = discover(randomise_(net, seed).eval(), torch.randn(2, 3, 8, 8), seed=seed)
    for group in structure:
        if group.name == "a":  # where it is kept, it must be read mirrored
            (reader,) = group.consumers
            assert reader.owner[np.argsort(reader.positions)].tolist() == list(range(mirror))[::-1]


def test_a_layer_that_is_called_by_keyword_is_left_out():
    net = Net(
        lambda s, x: s.fc(F.relu(s.b(input=F.relu(s.a(x))))), a=nn.Linear(5, 7), b=nn.Linear(7, 6), fc=nn.Linear(6, 3)
    )
    structure = discover(randomise_(net, 1).eval(), torch.randn(2, 5))
    assert [g.name for g in structure] == ["b"]
    assert "b is called by keyword" in next(x.reason for x in structure.left_out if x.name == "a")


def test_what_cannot_be_taken_apart_is_told():
    grouped = Net(
        lambda s, x: s.fc(F.relu(s.t(F.relu(s.a(x)))).mean((2, 3))),
        a=nn.Conv2d(3, 6, 3), t=nn.ConvTranspose2d(6, 6, 3, groups=2), fc=nn.Linear(6, 3),
    )  # fmt: skip
    structure = discover(randomise_(grouped, 1).eval(), torch.randn(2, 3, 8, 8))
    assert not structure.groups
    assert "a" in {n for x in structure.left_out for n in (x.name, *x.layers)}
    with pytest.raises(StructureError, match="has no shape yet"):
        discover(nn.Sequential(nn.LazyLinear(4), nn.ReLU(), nn.Linear(4, 3)), torch.randn(2, 5))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_a_network_of_another_type_than_its_data_is_pruned(dtype):
    calibration = _calibration(5)
    net = _fitted(
        Net(
            lambda s, x: s.fc(F.relu(s.b(F.relu(s.a(x))))), a=nn.Linear(5, 16), b=nn.Linear(16, 12), fc=nn.Linear(12, 3)
        ),
        calibration,
    )
    small = cswap.prune_path(net.to(dtype), calibration, method="magnitude").apply(net, "units=0.3")
    assert next(small.parameters()).dtype == dtype
    assert small(calibration.inputs(0, 4).to(dtype)).shape == (4, 3)


def test_the_mean_is_given_back_however_samples_lie():
    """81 samples are chunks of 64 and 17; a sum over the first dimension would be one over places."""
    net = Net(
        lambda s, x: s.fc(F.relu(s.b(F.relu(s.a(x.transpose(0, 1)))).mean(0))),
        a=nn.Linear(5, 7),
        b=nn.Linear(7, 6),
        fc=nn.Linear(6, 3),
    )
    calibration = _calibration(4, 5, per_class=27)
    net = _fitted(net, calibration)
    path = cswap.prune_path(net, calibration, method="magnitude")
    small = path.apply(net, "units=0.3")
    found = recovered(small, net, calibration, "bias").raw
    x = calibration.inputs(0, 81)
    with torch.no_grad():
        read = F.relu(net.a(x)).double().mean((0, 1))
        gone = [d.unit for d in path if d.group == "a" and d.step <= path.prefix("units=0.3")[1]]
        kept = [
            n
            for n in range(6)
            if n not in [d.unit for d in path if d.group == "b" and d.step <= path.prefix("units=0.3")[1]]
        ]
        expected = net.b.bias + (net.b.weight[:, gone].double() @ read[gone]).float()
    assert gone
    torch.testing.assert_close(found.b.bias, expected[kept])


def test_norms_that_bring_their_activation_are_norms():
    layers = pytest.importorskip("timm.layers", reason="timm is not installed")
    net = Net(
        lambda s, x: s.fc(s.norm(s.b(F.relu(s.a(x)))).mean((2, 3))),
        a=nn.Conv2d(3, 7, 3), b=nn.Conv2d(7, 6, 3, bias=False), norm=layers.BatchNormAct2d(6), fc=nn.Linear(6, 3),
    )  # fmt: skip
    calibration = _calibration(3, 8, 8)
    _fitted(net, calibration, steps=2)
    net.norm.reset_running_stats()
    with torch.no_grad():
        expected = net.b(F.relu(net.a(calibration.inputs(0, 24)))).mean((0, 2, 3))
    torch.testing.assert_close(reestimated(net, calibration).norm.running_mean, expected, rtol=1e-4, atol=1e-5)


def test_a_layer_of_two_names_is_recovered():
    calibration = _calibration(5)
    net = Net(lambda s, x: s.fc(F.relu(s.b(F.relu(s.a(x))))), a=nn.Linear(5, 7), b=nn.Linear(7, 6), fc=nn.Linear(6, 3))
    net = _fitted(net, calibration)
    net.blocks = nn.ModuleList([net.a, net.b])
    small = cswap.prune_path(net, calibration, method="magnitude").apply(net, "units=0.3")
    for how in ("bias", "lstsq", "merge", "fold"):
        assert torch.isfinite(recovered(small, net, calibration, how).raw(calibration.inputs(0, 4))).all()


@pytest.mark.parametrize("per_class", [2, 3, 4])
def test_a_network_that_is_always_right_is_not_near_chance(per_class):
    calibration = _calibration(5, per_class=per_class, classes=2)
    net = _fitted(Net(lambda s, x: s.fc(F.relu(s.a(x))), a=nn.Linear(5, 6), fc=nn.Linear(6, 2)), calibration, steps=300)
    cswap.prune_path(net, calibration, method="cswap")
    with torch.no_grad():
        net.fc.weight.zero_()
        net.fc.bias.zero_()
    with pytest.raises(DataError, match="chance"):
        cswap.prune_path(net, calibration, method="cswap")


def test_two_series_of_numbers_are_no_tokens():
    series = torch.randint(0, 2, (24, 2, 10), generator=torch.Generator().manual_seed(0))
    series[:, 1, -4:] = 0
    assert not is_tokens(series)
    tokens = torch.stack([torch.arange(10), (torch.arange(10) < 6).long()]).expand(3, 2, 10)
    assert is_tokens(tokens)
    assert is_tokens(tokens.flip(2))


def test_a_module_that_keeps_a_tensor_is_not_left_unable_to_learn():
    """What a pass under inference mode keeps cannot be used by a backward pass."""

    class Keeps(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if not hasattr(self, "scale"):
                self.scale = x.new_full((), 2.0)
            return x * self.scale

    calibration = _calibration(5)
    net = Net(lambda s, x: s.fc(s.keep(F.relu(s.a(x)))), a=nn.Linear(5, 6), keep=Keeps(), fc=nn.Linear(6, 3))
    _fitted(net, calibration)
    del net.keep.scale
    for method in ("taylor", "obs"):
        cswap.prune_path(net, calibration, method=method)
    data = TensorDataset(calibration.inputs(0, 24), torch.from_numpy(calibration.targets))
    measure_quality({"net": net}, data, Classification(), 3)
    F.cross_entropy(net(calibration.inputs(0, 24)), torch.from_numpy(calibration.targets)).backward()


def test_engines_agree_on_maps_that_become_rows():
    calibration = _calibration(1, 8, 8)
    net = _fitted(_lenet(1), calibration)
    structure = discover(net, calibration.inputs(0, 2))
    found = []
    for make in (PlainEngine, engine_for):
        engine = make(net, structure, calibration, Classification())
        group = structure["a"]
        engine.enter(group)
        found.append(np.stack([after.sigma - before.sigma for _, after, before in engine.one_by_one(group, range(7))]))
    assert np.abs(found[0]).max() > 1e-3
    np.testing.assert_allclose(found[1], found[0], atol=1e-6)


def test_layers_that_run_for_some_classes_alone_are_refused():
    """Structure is found with two samples; a layer that neither reaches would go on reading what is gone."""

    def forward(s: Any, x: torch.Tensor) -> torch.Tensor:
        h, out = F.relu(s.a(x)), x.new_zeros(len(x), 6)
        middle = (x[:, 0] - 0.8).abs() < 0.6
        for expert, mask in ((s.b, ~middle), (s.c, middle)):
            rows = mask.nonzero().flatten()
            if len(rows):
                out = out.index_add(0, rows, expert(h[rows]))
        return s.fc(F.relu(out))

    layers = {"a": nn.Linear(5, 7), "b": nn.Linear(7, 6), "c": nn.Linear(7, 6), "fc": nn.Linear(6, 3)}
    net = Net(forward, **layers)
    x = torch.randn(24, 5, generator=torch.Generator().manual_seed(0))
    targets = torch.arange(3).repeat_interleave(8)
    x[:, 0] = 2.0 * targets - 1.2
    x[targets == 1, 0] = 0.8
    calibration = cswap.calibration_set(TensorDataset(x, targets), 8)
    net = _fitted(net, calibration).train()
    with pytest.raises(StructureError, match="calls c for some samples"):
        cswap.prune_path(net, calibration)
    assert net.training


class _Scaled(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, 3 * self.weight, self.bias)


class _Cast(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x.to(self.weight.dtype), self.weight, self.bias)


def test_a_layer_that_scales_its_weights_is_not_refitted():
    assert refusal(_Cast(4, 3)) is None
    assert refusal(nn.Conv2d(4, 4, 3, padding=1, groups=2, padding_mode="circular")) is None
    assert "does not use its weights as they are" in str(refusal(_Scaled(4, 3)))
    calibration = _calibration(5)
    net = _fitted(
        Net(lambda s, x: s.fc(F.relu(s.b(F.relu(s.a(x))))), a=nn.Linear(5, 7), b=_Scaled(7, 6), fc=nn.Linear(6, 3)),
        calibration,
    )
    structure = discover(net, calibration.inputs(0, 2))
    engine = engine_for(net, structure, calibration, Classification(), cut="compensated")
    group = structure["a"]
    engine.enter(group)
    (cut,) = engine.cut(group, [[0]])
    engine.remove("a", [0])
    np.testing.assert_allclose(engine.scores().sigma, cut.sigma, atol=1e-5)  # the cut is what the removal does
    assert any("does not use its weights" in n for n in engine.notes)


def _twice(_m: nn.Module, _args: Any, out: torch.Tensor) -> torch.Tensor:
    return 2 * out + 1


def _thrice(_m: nn.Module, args: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
    return (3 * args[0],)


def _scaled(layer: Any, x: torch.Tensor) -> torch.Tensor:
    return 3 * F.conv2d(x, layer.weight, layer.bias)


@pytest.mark.parametrize("kind", ["out", "in", "forward", "look"])
def test_a_layer_whose_hooks_change_it_is_left_with_a_note(kind):
    seen = []
    net = Net(
        lambda s, x: s.fc(F.relu(s.b(F.relu(s.a(x)))).mean((2, 3))),
        a=nn.Conv2d(3, 7, 3), b=nn.Conv2d(7, 6, 3), fc=nn.Linear(6, 3),
    )  # fmt: skip
    calibration = _calibration(3, 8, 8)
    net = _fitted(net, calibration)
    if kind == "out":
        net.b.register_forward_hook(_twice)
    elif kind == "in":
        net.b.register_forward_pre_hook(_thrice)
    elif kind == "forward":
        net.b.forward = MethodType(_scaled, net.b)
    else:
        net.b.register_forward_hook(lambda _m, _i, out: seen.append(out.shape))
    structure = discover(net, calibration.inputs(0, 2))
    if kind != "look":
        assert refusal(net.b) is not None
        engine = engine_for(net, structure, calibration, Classification(), cut="compensated")
        engine.enter(structure["a"])
        (cut,) = engine.cut(structure["a"], [[0, 2]])
        engine.remove("a", [0, 2])
        np.testing.assert_allclose(engine.scores().sigma, cut.sigma, atol=1e-5)  # the cut is what the removal does
        assert any(n.startswith("b is cut without compensation") for n in engine.notes)
    path = path_of(structure, {"a": [0, 2, 3]}, calibration.inputs(0, 4))
    small = path.apply(net, Target("units", path.ratio.units))
    for how in ("bias", "merge", "lstsq"):
        if kind == "forward" and how != "lstsq":
            continue
        found = recovered(small, net, calibration, how)
        left = torch.equal(found.raw.b.weight, small.b.weight) and torch.equal(found.raw.b.bias, small.b.bias)
        assert left == (kind != "look"), how
        assert any(n.startswith("b: ") for n in found.notes) == left, how


def test_a_layer_that_reads_a_view_of_a_parameter_is_refitted():
    """A view of a parameter asks for gradients even where there are none."""
    net = Net(
        lambda s, x: s.fc((F.relu(s.b(F.relu(s.a(x)))).unsqueeze(1) * s.c(s.table.expand(len(x), -1, -1))).mean(1)),
        a=nn.Linear(5, 7), b=nn.Linear(7, 6), c=nn.Linear(4, 6), fc=nn.Linear(6, 3),
    )  # fmt: skip
    net.table = nn.Parameter(torch.randn(1, 3, 4))
    calibration = _calibration(5)
    net = _fitted(net, calibration)
    structure = discover(net, calibration.inputs(0, 2))
    path = path_of(structure, {"a": [0, 2, 3]}, calibration.inputs(0, 4))
    small = path.apply(net, Target("units", path.ratio.units))
    found = recovered(small, net, calibration, "lstsq")
    assert {"b", "c"} <= set(found.facts["lstsq"])
    torch.testing.assert_close(found.raw.c.weight, net.c.weight, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["obs", "joint"])
def test_attention_that_is_asked_for_its_weights_is_ranked(method):
    """Which is what torch's own attention is asked for unless it is told not to."""
    net = Net(
        lambda s, x: s.fc(s.att(s.a(x), s.a2(x), s.a2(x))[0].mean(1)),
        a=nn.Linear(5, 8), a2=nn.Linear(5, 8), att=nn.MultiheadAttention(8, 2, batch_first=True), fc=nn.Linear(8, 3),
    )  # fmt: skip
    calibration = _calibration(4, 5)
    path = cswap.prune_path(_fitted(net, calibration), calibration, method=method)
    assert {"att.q#heads", "att.v#v0", "att.v#v1"} <= {d.group for d in path}


@pytest.mark.parametrize("memory", [4 << 30, 1000])
def test_a_later_layer_that_is_called_by_keyword_is_refitted(memory):
    net = Net(
        lambda s, x: s.fc(input=F.relu(s.b(F.relu(s.a(x))))), a=nn.Linear(5, 7), b=nn.Linear(7, 6), fc=nn.Linear(6, 3)
    )
    calibration = _calibration(5)
    net = _fitted(net, calibration)
    path = path_of(discover(net, calibration.inputs(0, 2)), {"a": [0, 2]}, calibration.inputs(0, 4))
    small = path.apply(net, Target("units", path.ratio.units))
    plain = Net(lambda s, x: s.fc(F.relu(s.b(F.relu(s.a(x))))), **dict(net.named_children()))
    shrunk = path.apply(plain.eval(), Target("units", path.ratio.units))
    found, expected = (recovered(s, n, calibration, "lstsq").raw for s, n in ((small, net), (shrunk, plain)))
    read = next(Walk(net, [calibration.inputs(0, 24)], memory).inputs("fc"))
    torch.testing.assert_close(read, F.relu(net.b(F.relu(net.a(calibration.inputs(0, 24))))))
    for a, b in zip(found.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


class _Mean(nn.Module):
    """Keeps a mean and perhaps a variance, and subtracts the mean or only looks at it."""

    def __init__(self, channels: int, subtracts: bool, variance: bool) -> None:
        super().__init__()
        self.subtracts = subtracts
        self.register_buffer("running_mean", torch.zeros(channels))
        if variance:
            self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x - self.running_mean.view(1, -1, 1, 1) if self.subtracts else x * 1.0


@pytest.mark.parametrize(("subtracts", "variance"), [(True, False), (False, True), (False, False)])
def test_a_constant_is_kept_in_a_norm_that_subtracts_its_mean_alone(subtracts, variance):
    """A module that keeps a mean is no batch norm yet: constants that it does not subtract were lost."""
    net = Net(
        lambda s, x: s.fc(F.relu(s.n(s.b(F.relu(s.a(x))))).mean((2, 3))), a=nn.Conv2d(3, 8, 3, padding=1),
        b=nn.Conv2d(8, 6, 3, padding=1, bias=False), n=_Mean(6, subtracts, variance), fc=nn.Linear(6, 3),
    )  # fmt: skip
    calibration = _calibration(3, 6, 6, per_class=20)
    net = _fitted(net, calibration)
    structure = discover(net, calibration.inputs(0, 2))
    small, _ = pruned_to(net, structure, calibration, {"a": [0, 3, 5]})
    x = calibration.inputs(0, 60)

    @torch.no_grad()
    def off(model: nn.Module) -> torch.Tensor:
        return (model.n(model.b(F.relu(model.a(x)))) - net.n(net.b(F.relu(net.a(x))))).mean((0, 2, 3)).abs().max()

    found = recovered(small, net, calibration, "bias")
    if subtracts:
        assert float(off(found.raw)) < 1e-5 < 1e-2 < float(off(small))
    else:
        assert "neither a bias nor a batch norm" in found.notes[0]
        assert float(off(found.raw)) == float(off(small))
    assert float(off(recovered(small, net, calibration, "lstsq").raw)) < float(off(small))
    engine = engine_for(net, structure, calibration, Classification(), cut="compensated")
    engine.enter(structure["a"])
    (cut,) = engine.cut(structure["a"], [[0, 3, 5]])
    engine.remove("a", [0, 3, 5])
    np.testing.assert_allclose(engine.scores().sigma, cut.sigma, atol=1e-5)


@pytest.mark.parametrize("how", ["bias", "merge"])
def test_a_layer_that_scales_its_weights_gets_nothing_back_and_a_note(how):
    calibration = _calibration(5, per_class=20)
    net = _fitted(
        Net(lambda s, x: s.fc(F.relu(s.b(F.relu(s.a(x))))), a=nn.Linear(5, 7), b=_Scaled(7, 6), fc=nn.Linear(6, 3)),
        calibration,
    )
    small, _ = pruned_to(net, discover(net, calibration.inputs(0, 2)), calibration, {"a": [0, 2]})
    found = recovered(small, net, calibration, how)
    assert "does not use its weights as they are" in found.notes[0]
    assert torch.equal(found.raw.b.weight, small.b.weight)
    assert torch.equal(found.raw.b.bias, small.b.bias)


def test_fold_scales_what_writes_a_unit_by_the_norm_behind_it_whatever_is_called_first():
    """Weights and norms were paired by the order of their calls."""

    def two(s: Any, x: torch.Tensor) -> torch.Tensor:
        a, b = s.c1(x), s.n2(s.c2(x))
        return s.fc(F.relu(s.o(F.relu(s.n1(a) + b))).mean((2, 3)))

    layers = {"c1": nn.Conv2d(3, 8, 3, padding=1), "c2": nn.Conv2d(3, 8, 1), "n1": nn.BatchNorm2d(8), "n2": nn.BatchNorm2d(8),
              "o": nn.Conv2d(8, 6, 1), "fc": nn.Linear(6, 3)}  # fmt: skip
    net = randomise_(Net(two, **layers), seed=3).eval()
    calibration = _calibration(3, 6, 6)
    structure = discover(net, calibration.inputs(0, 2))
    group = structure["c1"]
    assert [s.module for s in group.producers] == ["c1", "c2"]
    small, _ = pruned_to(net, structure, calibration, {"c1": [0]})
    case = Case(small, net, calibration, structure, small._cswap.removed, small._cswap.kept)
    scaled = []
    for c, n in ((net.c1, net.n1), (net.c2, net.n2)):
        scaled.append((c.weight.flatten(1) * (n.weight / (n.running_var + n.eps).sqrt())[:, None]).detach().double())
    np.testing.assert_allclose(_written(case, group), torch.cat(scaled, 1).numpy(), rtol=1e-5)
