"""`bias`, `merge` and `fold` number by number: means at borders, lines of what is merged, means and sums of what is folded."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset
from torchvision.models import VisionTransformer

import cswap
from cswap.recovery import recovered
from cswap.recovery.base import Case, choosing
from cswap.recovery.merge import STRENGTHS as MERGES
from cswap.recovery.merge import _written
from cswap.structure.check import randomise_
from cswap.structure.discover import discover
from cswap.structure.surgery import prepared_copy
from tests.odd_nets import Net, fitted, shifted
from tests.recoveries import noisy, padded, pruned_to, without
from tests.reference.least_squares import lines_by_hand


def test_merge_gives_each_unit_to_the_line_that_tells_it_best():
    net = randomise_(padded(), seed=1).double().eval()
    calibration = noisy(per_class=20, dtype=torch.float64)
    gone, kept = [1, 4], [0, 2, 3, 5, 6, 7]
    small, _ = without(net, calibration, {"0": gone})
    raw = recovered(small, net, calibration, "merge").raw
    held = choosing(calibration)
    fits = np.setdiff1d(np.arange(80), held)
    with torch.no_grad():
        read = net[:3](calibration.inputs(0, 80))
    rows, judge = (read[n].movedim(1, -1).reshape(-1, 8) for n in (fits, held))
    matters = [float(net[3].weight.detach()[:, u].square().sum()) for u in gone]
    lines = lines_by_hand(rows, judge, kept, gone, matters, len(fits), MERGES)
    weight, rest, mean = (
        net[3].weight.detach().clone(),
        torch.zeros(1, 8, 8, 8, dtype=torch.float64),
        read[fits].mean(0),
    )
    for unit, (k, s) in zip(gone, lines, strict=True):
        weight[:, k] += s * weight[:, unit]
        rest[:, unit] = mean[unit] - s * mean[k]  # a border has another mean
    assert any(abs(s) > 0.02 and abs(s - 1) > 0.02 for _, s in lines)
    torch.testing.assert_close(raw[3].weight, weight[:, kept], rtol=1e-7, atol=1e-10)
    only = torch.zeros_like(net[3].weight)
    only[:, gone] = net[3].weight.detach()[:, gone]
    constant = F.conv2d(rest, only, padding=1).mean((0, 2, 3))  # with the borders that padding makes
    assert float(constant.abs().max()) > 0.01
    torch.testing.assert_close(raw[3].bias, net[3].bias + constant, rtol=1e-7, atol=1e-10)


def test_merge_moves_each_input_once_and_to_one_that_stays():
    """A head that goes owns its dimensions too, some of which went before; another head keeps a part of its own."""
    torch.manual_seed(0)
    net = randomise_(VisionTransformer(8, 4, 2, 3, 24, 24, num_classes=4), seed=3).double().eval()
    calibration = noisy(dtype=torch.float64)
    structure = cswap.discover(net, calibration.inputs(0, 2))
    attention = next(g.name for g in structure if g.name.endswith("#heads")).removesuffix(".q#heads")
    small, _ = without(
        net, calibration, {f"{attention}.v#v0": [1, 4], f"{attention}.v#v1": [0, 2, 3], f"{attention}.q#heads": [0]}
    )
    whole, name = prepared_copy(net, structure), f"{attention}.out"
    layer, seen = whole.get_submodule(name), []
    layer.register_forward_hook(lambda _m, i, _o: seen.append(i[0].detach()))
    whole(calibration.inputs(0, len(calibration)))
    held = choosing(calibration)
    fits = np.setdiff1d(np.arange(len(calibration)), held)
    read = next(s for s in seen if s.shape[0] == len(calibration) or s.shape[1] == len(calibration))
    read = read if read.shape[0] == len(calibration) else read.transpose(0, 1)
    rows, judge = read[fits].flatten(0, 1), read[held].flatten(0, 1)
    kept = [i for i in range(8, 24) if i not in (8, 10, 11)]
    assert small._cswap.kept[f"{name}.weight"][1].tolist() == kept
    old = layer.weight.detach()
    weight, bias = old.clone(), layer.bias.detach().clone()
    # the group of heads is asked with all that is kept; what went with its head is told by what the head keeps
    for gone, own in ((list(range(8)), kept), ([8, 10, 11], [i for i in kept if i < 16])):
        matters = [float(old[:, u].square().sum()) for u in gone]
        for unit, (k, s) in zip(gone, lines_by_hand(rows, judge, own, gone, matters, len(fits), MERGES), strict=True):
            weight[:, k] += s * old[:, unit]
            bias += (rows[:, unit].mean() - s * rows[:, k].mean()) * old[:, unit]
    raw = recovered(small, net, calibration, "merge").raw.get_submodule(name)
    torch.testing.assert_close(raw.weight.detach(), weight[:, kept], rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(raw.bias.detach(), bias, rtol=1e-7, atol=1e-9)


class Sparse(nn.Module):
    """A wide layer whose units are seldom awake."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(30, 600), nn.Linear(600, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(torch.relu(self.a(x)))


@pytest.mark.parametrize("per_class", [2, 16, 64])
def test_units_that_are_seldom_awake_tell_no_more_than_was_seen(per_class):
    """A line through one sample in which both are awake has any slope; `merge` once took it, eightyfold weights and all."""
    torch.manual_seed(0)
    net = randomise_(Sparse(), seed=3).double().eval()
    with torch.no_grad():
        x = torch.randn(6000, 30).double()
        net.a.bias.copy_(-2.0 * net.a(x[:500]).std(0))
        net.b.bias.sub_(net(x).mean(0))
        labels = net(x).argmax(1)
    few = torch.cat([torch.nonzero(labels[:3000] == k)[:per_class, 0] for k in range(4)])
    calibration = cswap.calibration_set(TensorDataset(x[few], labels[few]), per_class)
    small, _ = without(net, calibration, {"a": list(range(0, 600, 3))})
    for how in ("merge", "merge+lstsq"):
        found = recovered(small, net, calibration, how)
        with torch.no_grad():
            far = {k: float((m(x[3000:]) - net(x[3000:])).square().mean()) for k, m in (("cut", small), ("raw", found.raw), ("given", found.model))}  # fmt: skip
        assert far["given"] <= 1.1 * far["cut"], far
        if how == "merge":
            assert far["raw"] <= 1.5 * far["cut"], far
            assert float(found.raw.b.weight.detach().abs().max()) < 2 * float(net.b.weight.detach().abs().max())


def test_a_reader_that_takes_no_constant_gets_lines_through_the_origin():
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 8, bias=False), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 4))  # fmt: skip
    net = randomise_(net, seed=3).double().eval()
    calibration = noisy(shape=(12,), per_class=40, dtype=torch.float64)
    gone = list(range(0, 24, 3))
    kept = [i for i in range(24) if i not in gone]
    small, _ = without(net, calibration, {"0": gone})
    held = choosing(calibration)
    fits = np.setdiff1d(np.arange(160), held)
    with torch.no_grad():
        read = net[:2](calibration.inputs(0, 160))
    old = net[2].weight.detach()
    weight, matters = old.clone(), [float(old[:, u].square().sum()) for u in gone]
    lines = lines_by_hand(read[fits], read[held], kept, gone, matters, len(fits), MERGES, constant=False)
    for unit, (k, s) in zip(gone, lines, strict=True):
        weight[:, k] += s * old[:, unit]
    found = recovered(small, net, calibration, "merge")
    torch.testing.assert_close(found.raw[2].weight.detach(), weight[:, kept], rtol=1e-7, atol=1e-10)
    with torch.no_grad():
        errors = [float((m[:3](calibration.inputs(0, 160)) - net[:3](calibration.inputs(0, 160))).square().mean()) for m in (small, found.raw)]  # fmt: skip
    assert errors[1] < 0.7 * errors[0]


@pytest.mark.parametrize("gamma", [0.0, 1e-4])
@pytest.mark.parametrize("beta", [1.0, 3000.0])
def test_a_kept_channel_that_hardly_varies_tells_nothing(gamma, beta):
    net = randomise_(padded(), seed=0).eval()
    with torch.no_grad():
        net[1].weight[2], net[1].bias[2] = gamma, beta
        net[3].weight[:, 2] /= beta
    calibration = noisy(per_class=40)
    small, _ = without(net, calibration, {"0": [4, 5, 7]})
    x = calibration.inputs(0, 160)

    @torch.no_grad()
    def error(how: str) -> float:
        return float((recovered(small, net, calibration, how).raw(x) - net(x)).square().mean())

    assert error("merge") <= 1.5 * error("bias")  # it was 1e9 times that


def test_fold_takes_means_of_what_writes_and_sums_of_what_reads():
    net = randomise_(padded(), seed=1).double().eval()
    with torch.no_grad():  # 4 is near 1 once the norm's scale is counted, and far before
        scale = [float(net[1].weight[n] / (net[1].running_var[n] + net[1].eps).sqrt()) for n in range(8)]
        net[1].weight[4] *= 5 * scale[1] / scale[4]
        net[0].weight[4] = net[0].weight[1] / 5 * 1.05
        net[0].weight[6] = net[0].weight[4] * 1.1  # near it before the norm's scale is counted
        net[0].bias[1], net[0].bias[4] = 0.7, 0.3
    calibration = noisy(dtype=torch.float64)
    kept = [0, 1, 2, 3, 5, 6, 7]
    small, _ = without(net, calibration, {"0": [4]})
    raw = recovered(small, net, calibration, "fold").raw
    for tensor in (net[0].weight, net[0].bias, net[1].weight, net[1].bias, net[1].running_mean, net[1].running_var):
        expected = tensor.detach().clone()
        expected[1] = (tensor[1] + tensor[4]).detach() / 2
        mine = next(v for k, v in raw.state_dict().items() if net.state_dict()[k].data_ptr() == tensor.data_ptr())
        torch.testing.assert_close(mine, expected[kept])
    expected = net[3].weight.detach().clone()
    expected[:, 1] += net[3].weight.detach()[:, 4]
    torch.testing.assert_close(raw[3].weight, expected[:, kept])


@pytest.mark.parametrize("how", ["bias", "merge"])
def test_means_come_out_right_at_the_borders_too(how):
    net = randomise_(padded(), seed=1).double().eval()
    calibration = noisy(per_class=20, dtype=torch.float64)
    small, _ = without(net, calibration, {"0": [1, 4]})
    x = calibration.inputs(0, 80)
    x = x[np.setdiff1d(np.arange(80), choosing(calibration))] if how == "merge" else x  # means are of what fits
    with torch.no_grad():
        whole, cut = net[:4](x).mean((0, 2, 3)), small[:4](x).mean((0, 2, 3))
        back = recovered(small, net, calibration, how).raw[:4](x).mean((0, 2, 3))
    assert float((cut - whole).abs().max()) > 0.01
    torch.testing.assert_close(back, whole, rtol=1e-9, atol=1e-12)


def test_the_mean_that_a_linear_layer_loses_goes_into_its_bias():
    """Of tokens: over samples and places."""
    torch.manual_seed(0)
    net = randomise_(VisionTransformer(8, 4, 2, 2, 16, 24, num_classes=4), seed=3).double().eval()
    calibration = noisy((3, 8, 8), dtype=torch.float64)
    structure = cswap.discover(net, calibration.inputs(0, 2))
    group = next(g.name for g in structure if "mlp" in g.name)
    reader = next(s.module for s in structure[group].consumers)
    small, structure = without(net, calibration, {group: [0, 3, 5]})
    seen = []
    whole = prepared_copy(net, structure)
    whole.get_submodule(reader).register_forward_hook(lambda _m, i, _o: seen.append(i[0].detach()))
    whole(calibration.inputs(0, len(calibration)))
    mean = seen[0].reshape(-1, seen[0].shape[-1]).mean(0)
    layer = whole.get_submodule(reader)
    gone = sorted(set(range(24)) - set(small._cswap.kept[f"{reader}.weight"][1].tolist()))
    assert len(gone) == 3
    expected = layer.bias.detach() + layer.weight.detach()[:, gone] @ mean[gone]
    raw = recovered(small, net, calibration, "bias").raw
    assert float((expected - layer.bias).detach().abs().max()) > 1e-3
    torch.testing.assert_close(raw.get_submodule(reader).bias, expected, rtol=1e-9, atol=1e-12)


def test_fold_scales_what_writes_a_unit_by_the_norm_behind_it_whatever_is_called_first():
    """Weights and norms were paired by the order of their calls."""

    def two(s: Any, x: torch.Tensor) -> torch.Tensor:
        a, b = s.c1(x), s.n2(s.c2(x))
        return s.fc(F.relu(s.o(F.relu(s.n1(a) + b))).mean((2, 3)))

    layers = {"c1": nn.Conv2d(3, 8, 3, padding=1), "c2": nn.Conv2d(3, 8, 1), "n1": nn.BatchNorm2d(8), "n2": nn.BatchNorm2d(8),
              "o": nn.Conv2d(8, 6, 1), "fc": nn.Linear(6, 3)}  # fmt: skip
    net = randomise_(Net(two, **layers), seed=3).eval()
    calibration = shifted(3, 6, 6)
    structure = discover(net, calibration.inputs(0, 2))
    group = structure["c1"]
    assert [s.module for s in group.producers] == ["c1", "c2"]
    small, _ = pruned_to(net, structure, calibration, {"c1": [0]})
    case = Case(small, net, calibration, structure, small._cswap.removed, small._cswap.kept)
    scaled = []
    for c, n in ((net.c1, net.n1), (net.c2, net.n2)):
        scaled.append((c.weight.flatten(1) * (n.weight / (n.running_var + n.eps).sqrt())[:, None]).detach().double())
    np.testing.assert_allclose(_written(case, group), torch.cat(scaled, 1).numpy(), rtol=1e-5)


def test_the_mean_is_given_back_however_samples_lie():
    """81 samples are chunks of 64 and 17; a sum over the first dimension would be one over places."""
    net = Net(
        lambda s, x: s.fc(F.relu(s.b(F.relu(s.a(x.transpose(0, 1)))).mean(0))),
        a=nn.Linear(5, 7),
        b=nn.Linear(7, 6),
        fc=nn.Linear(6, 3),
    )
    calibration = shifted(4, 5, per_class=27)
    net = fitted(net, calibration)
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
