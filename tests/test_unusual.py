"""Networks that are legal and unusual: each was once answered wrongly, or with a traceback."""

from __future__ import annotations

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
from cswap.methods.obs import output_importance
from cswap.recovery import recovered, reestimated
from cswap.structure.check import randomise_
from cswap.structure.discover import discover
from cswap.tasks import Classification
from tests.odd_nets import Net, fitted, shifted


def _lenet(channels: int) -> Net:
    """Maps become rows by `view`, which takes no map whose channels lie last."""
    return Net(
        lambda s, x: s.fc(F.relu(s.b(F.max_pool2d(F.relu(s.a(x)), 2))).view(x.size(0), -1)),
        a=nn.Conv2d(channels, 7, 3, padding=1), b=nn.Conv2d(7, 6, 3, padding=1), fc=nn.Linear(96, 3),
    )  # fmt: skip


@pytest.mark.parametrize("channels", [1, 3])
def test_maps_become_rows_by_view(channels):
    calibration = shifted(channels, 8, 8)
    net = fitted(_lenet(channels), calibration)
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

    calibration = shifted(3, 8, 8)
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
    calibration = shifted(5)
    net = fitted(
        Net(
            lambda s, x: s.fc(F.relu(s.b(F.relu(s.a(x))))), a=nn.Linear(5, 16), b=nn.Linear(16, 12), fc=nn.Linear(12, 3)
        ),
        calibration,
    )
    small = cswap.prune_path(net.to(dtype), calibration, method="magnitude").apply(net, "units=0.3")
    assert next(small.parameters()).dtype == dtype
    assert small(calibration.inputs(0, 4).to(dtype)).shape == (4, 3)


def test_norms_that_bring_their_activation_are_norms():
    layers = pytest.importorskip("timm.layers", reason="timm is not installed")
    net = Net(
        lambda s, x: s.fc(s.norm(s.b(F.relu(s.a(x)))).mean((2, 3))),
        a=nn.Conv2d(3, 7, 3), b=nn.Conv2d(7, 6, 3, bias=False), norm=layers.BatchNormAct2d(6), fc=nn.Linear(6, 3),
    )  # fmt: skip
    calibration = shifted(3, 8, 8)
    fitted(net, calibration, steps=2)
    net.norm.reset_running_stats()
    with torch.no_grad():
        expected = net.b(F.relu(net.a(calibration.inputs(0, 24)))).mean((0, 2, 3))
    torch.testing.assert_close(reestimated(net, calibration).norm.running_mean, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("per_class", [2, 3, 4])
def test_a_network_that_is_always_right_is_not_near_chance(per_class):
    calibration = shifted(5, per_class=per_class, classes=2)
    net = fitted(Net(lambda s, x: s.fc(F.relu(s.a(x))), a=nn.Linear(5, 6), fc=nn.Linear(6, 2)), calibration, steps=300)
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

    calibration = shifted(5)
    net = Net(lambda s, x: s.fc(s.keep(F.relu(s.a(x)))), a=nn.Linear(5, 6), keep=Keeps(), fc=nn.Linear(6, 3))
    fitted(net, calibration)
    del net.keep.scale
    for method in ("taylor", "obs"):
        cswap.prune_path(net, calibration, method=method)
    data = TensorDataset(calibration.inputs(0, 24), torch.from_numpy(calibration.targets))
    measure_quality({"net": net}, data, Classification(), 3)
    F.cross_entropy(net(calibration.inputs(0, 24)), torch.from_numpy(calibration.targets)).backward()


def test_engines_agree_on_maps_that_become_rows():
    calibration = shifted(1, 8, 8)
    net = fitted(_lenet(1), calibration)
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
    net = fitted(net, calibration).train()
    with pytest.raises(StructureError, match="calls c for some samples"):
        cswap.prune_path(net, calibration)
    assert net.training


@pytest.mark.parametrize("method", ["obs", "joint"])
def test_attention_that_is_asked_for_its_weights_is_ranked(method):
    """Which is what torch's own attention is asked for unless it is told not to."""
    net = Net(
        lambda s, x: s.fc(s.att(s.a(x), s.a2(x), s.a2(x))[0].mean(1)),
        a=nn.Linear(5, 8), a2=nn.Linear(5, 8), att=nn.MultiheadAttention(8, 2, batch_first=True), fc=nn.Linear(8, 3),
    )  # fmt: skip
    calibration = shifted(4, 5)
    path = cswap.prune_path(fitted(net, calibration), calibration, method=method)
    assert {"att.q#heads", "att.v#v0", "att.v#v1"} <= {d.group for d in path}
