"""What recoveries put where, number by number: every kind of layer, constants and their signs, lines and means of what is merged."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset
from torchvision.models import VisionTransformer

import cswap
from cswap.causal.compensation import CompensatedPlainEngine
from cswap.errors import InputError
from cswap.linear.patches import groups_of, matrix_of
from cswap.methods.obs import obs_scores
from cswap.recovery import recovered
from cswap.recovery.base import choosing
from cswap.recovery.lstsq import STRENGTHS
from cswap.recovery.merge import STRENGTHS as MERGES
from cswap.structure.check import randomise_
from cswap.structure.surgery import prepared_copy
from cswap.tasks import Classification
from cswap.types import Target
from tests.conftest import NETS, path_of
from tests.reference.least_squares import lines_by_hand, ridge_by_hand, rows_by_hand, targets_by_hand


def _calibration(shape=(3, 8, 8), per_class=10, dtype=torch.float32, seed=0) -> cswap.CalibrationSet:
    g = torch.Generator().manual_seed(seed)
    labels = torch.arange(4).repeat_interleave(per_class)
    x = torch.randn(len(labels), *shape, generator=g) + labels.view(-1, *[1] * len(shape)) * 0.3
    return cswap.calibration_set(TensorDataset(x.to(dtype), labels), per_class)


def _without(net: nn.Module, calibration: cswap.CalibrationSet, removed: dict[str, list[int]]):
    structure = cswap.discover(net, calibration.inputs(0, 2))
    path = path_of(structure, removed, calibration.inputs(0, 4))
    return path.apply(net, Target("units", path.ratio.units)), structure


def _solid() -> nn.Module:
    """Three dimensions, and layers before norms: one with a bias, one without."""
    return nn.Sequential(
        nn.Conv3d(1, 4, 2), nn.BatchNorm3d(4), nn.ReLU(), nn.Conv3d(4, 6, 2, stride=2, bias=False), nn.BatchNorm3d(6), nn.ReLU(),
        nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(6, 4),
    )  # fmt: skip


def _wide() -> nn.Module:
    """Strided, grouped, dilated and circular convolutions one behind the other."""
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 8, 3, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=2), nn.ReLU(),
        nn.Conv2d(8, 6, 3, padding=1, padding_mode="circular"), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(96, 4),
    )  # fmt: skip


LAYERS = {
    "depthwise": (NETS["depthwise"], (3, 8, 8)),
    "concat": (NETS["concat"], (3, 8, 8)),
    "residual": (NETS["residual"], (3, 8, 8)),
    "solid": (_solid, (1, 6, 6, 6)),
    "wide": (_wide, (3, 8, 8)),
    "transformer": (lambda: VisionTransformer(8, 4, 2, 2, 16, 24, num_classes=4), (3, 8, 8)),
}


def _chosen(at: dict[float, float]) -> float:
    """Downhill from the middle, the weaker side first; a tie stays."""
    strengths = sorted(at)
    best = len(strengths) // 2
    for way in (-1, 1):
        here = best
        while 0 <= here + way < len(strengths) and at[strengths[here + way]] < at[strengths[here]]:
            here += way
        if here != best:
            return strengths[here]
    return strengths[best]


@pytest.mark.parametrize("kind", list(LAYERS))
def test_every_refitted_layer_is_the_dense_solve_with_its_constant(kind):
    """What a layer of the recovered network reads is what it was fitted on: layers before it were fitted first.

    The strength is the one whose solve errs least on the samples that did not fit, and where none errs less than the weights
    that were there, these stay.
    """
    build, shape = LAYERS[kind]
    torch.manual_seed(0)
    net = randomise_(build(), seed=3).double().eval()
    calibration = _calibration(shape, dtype=torch.float64)
    structure = cswap.discover(net, calibration.inputs(0, 2))
    names = [g.name for g in structure]
    removed = {next((n for n in names if "#v" in n), names[-1]): [0, 2]}
    small, structure = _without(net, calibration, removed)
    found = recovered(small, net, calibration, "lstsq")
    whole, held = prepared_copy(net, structure), np.asarray([i for i in range(40) if i % 10 >= 8])  # the last fifth
    fitting = np.setdiff1d(np.arange(40), held)
    assert found.judged == len(held)
    assert sum(f["strength"] is not None for f in found.facts["lstsq"].values()) >= 2
    norms = {"3": "4", "6": "7"} if kind in ("solid", "wide") else {"conv": "bn", "squeeze": "bn"}
    for name, fact in found.facts["lstsq"].items():
        layer, before = found.raw.get_submodule(name), small.get_submodule(name)
        channel = -1 if isinstance(layer, nn.Linear) else 1
        kept = small._cswap.kept.get(f"{name}.weight", {}).get(0, np.arange(whole.get_submodule(name).weight.shape[0]))
        rows, targets = {}, {}
        for part, numbers in (("fit", fitting), ("held", held)):
            got = {}
            for key, model in (("whole", whole), ("raw", found.raw)):
                handle = model.get_submodule(name).register_forward_hook(
                    lambda _m, i, o, key=key, got=got: got.update({key: (i[0].detach(), o.detach())})
                )
                model(calibration.inputs(0, 40)[numbers])
                handle.remove()
            targets[part] = targets_by_hand(layer, got["whole"][1].index_select(channel, torch.from_numpy(kept)))
            rows[part] = rows_by_hand(layer, got["raw"][0])
        assert fact["rows"] == len(rows["fit"][0])

        def error(solved, rows=rows, targets=targets) -> float:
            held = zip(rows["held"], targets["held"], solved, strict=True)
            return float(sum((y - x @ w - c).square().sum() for x, y, (w, c) in held))

        def constant(net: nn.Module, name=name, layer=layer) -> torch.Tensor:
            if layer.bias is not None:
                return net.get_submodule(name).bias.detach().reshape(groups_of(layer), -1)
            here, was = (m.get_submodule(norms[name]).running_mean for m in (net, whole))
            return (was - here).detach().reshape(groups_of(layer), -1)

        fits = list(zip(rows["fit"], targets["fit"], matrix_of(before), strict=True))
        solved = {s: [ridge_by_hand(x, y, prior, s, intercept=True) for x, y, prior in fits] for s in STRENGTHS}
        errors = {s: error(found) for s, found in solved.items()}
        start = error(list(zip(matrix_of(before), constant(small), strict=True)))
        strength = _chosen(errors)
        spread = float(sum((y - y.mean(0)).square().sum() for y in targets["held"]))
        assert fact["error_before"] == pytest.approx(start / spread, rel=1e-6)
        if not errors[strength] < start:
            assert fact["strength"] is None
            torch.testing.assert_close(layer.weight, before.weight, rtol=0, atol=0)
            continue
        assert fact["strength"] == strength
        assert fact["error_after"] == pytest.approx(errors[strength] / spread, rel=1e-6)
        if layer.bias is None:
            torch.testing.assert_close(
                whole.get_submodule(norms[name]).running_var, found.raw.get_submodule(norms[name]).running_var
            )
        for g, (w, c) in enumerate(solved[strength]):
            torch.testing.assert_close(matrix_of(layer)[g], w, rtol=1e-6, atol=1e-9)
            torch.testing.assert_close(constant(found.raw)[g], c, rtol=1e-6, atol=1e-9)


def test_a_layer_that_no_fit_helps_keeps_its_weights():
    """What was cut is silent on the samples that choose, so there the weights as they are err nowhere."""
    net = randomise_(nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 4)), seed=3).double().eval()
    with torch.no_grad():
        net[0].weight[1], net[0].bias[1] = torch.tensor([3.0, 0.0, 0.0]), 0.0
    x, labels = (
        torch.randn(40, 3, generator=torch.Generator().manual_seed(1)).double(),
        torch.arange(4).repeat_interleave(10),
    )
    drawn = cswap.calibration_set(TensorDataset(x, labels), 10).inputs(0, 40)
    chooses = (x.unsqueeze(1) == drawn[torch.arange(40) % 10 >= 8]).all(2).any(1)
    assert int(chooses.sum()) == 8
    x[:, 0] = torch.where(chooses, -1.0, 1.0).double() * x[:, 0].abs()
    calibration = cswap.calibration_set(TensorDataset(x, labels), 10)
    small, _ = _without(net, calibration, {"0": [1]})
    found = recovered(small, net, calibration, "lstsq")
    fact = found.facts["lstsq"]["2"]
    assert fact["strength"] is None
    assert fact["error_after"] == fact["error_before"] < 1e-12
    for mine, theirs in zip(found.raw.parameters(), small.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def _padded() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 5, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(5, 4),
    )  # fmt: skip


def test_merge_gives_each_unit_to_the_line_that_tells_it_best():
    net = randomise_(_padded(), seed=1).double().eval()
    calibration = _calibration(per_class=20, dtype=torch.float64)
    gone, kept = [1, 4], [0, 2, 3, 5, 6, 7]
    small, _ = _without(net, calibration, {"0": gone})
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
    calibration = _calibration(dtype=torch.float64)
    structure = cswap.discover(net, calibration.inputs(0, 2))
    attention = next(g.name for g in structure if g.name.endswith("#heads")).removesuffix(".q#heads")
    small, _ = _without(
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
    small, _ = _without(net, calibration, {"a": list(range(0, 600, 3))})
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
    calibration = _calibration(shape=(12,), per_class=40, dtype=torch.float64)
    gone = list(range(0, 24, 3))
    kept = [i for i in range(24) if i not in gone]
    small, _ = _without(net, calibration, {"0": gone})
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
    net = randomise_(_padded(), seed=0).eval()
    with torch.no_grad():
        net[1].weight[2], net[1].bias[2] = gamma, beta
        net[3].weight[:, 2] /= beta
    calibration = _calibration(per_class=40)
    small, _ = _without(net, calibration, {"0": [4, 5, 7]})
    x = calibration.inputs(0, 160)

    @torch.no_grad()
    def error(how: str) -> float:
        return float((recovered(small, net, calibration, how).raw(x) - net(x)).square().mean())

    assert error("merge") <= 1.5 * error("bias")  # it was 1e9 times that


def test_fold_takes_means_of_what_writes_and_sums_of_what_reads():
    net = randomise_(_padded(), seed=1).double().eval()
    with torch.no_grad():  # 4 is near 1 once the norm's scale is counted, and far before
        scale = [float(net[1].weight[n] / (net[1].running_var[n] + net[1].eps).sqrt()) for n in range(8)]
        net[1].weight[4] *= 5 * scale[1] / scale[4]
        net[0].weight[4] = net[0].weight[1] / 5 * 1.05
        net[0].weight[6] = net[0].weight[4] * 1.1  # near it before the norm's scale is counted
        net[0].bias[1], net[0].bias[4] = 0.7, 0.3
    calibration = _calibration(dtype=torch.float64)
    kept = [0, 1, 2, 3, 5, 6, 7]
    small, _ = _without(net, calibration, {"0": [4]})
    raw = recovered(small, net, calibration, "fold").raw
    for tensor in (net[0].weight, net[0].bias, net[1].weight, net[1].bias, net[1].running_mean, net[1].running_var):
        expected = tensor.detach().clone()
        expected[1] = (tensor[1] + tensor[4]).detach() / 2
        mine = next(v for k, v in raw.state_dict().items() if net.state_dict()[k].data_ptr() == tensor.data_ptr())
        torch.testing.assert_close(mine, expected[kept])
    expected = net[3].weight.detach().clone()
    expected[:, 1] += net[3].weight.detach()[:, 4]
    torch.testing.assert_close(raw[3].weight, expected[:, kept])


def test_norms_behind_refitted_layers_have_the_original_s_statistics_whatever_came_before():
    net = randomise_(_solid(), seed=2).eval()
    calibration = _calibration((1, 6, 6, 6), per_class=20)
    small, _ = _without(net, calibration, {"0": [1]})
    found = recovered(small, net, calibration, "bn+lstsq")
    assert found.facts["lstsq"]["3"]["strength"] is not None
    torch.testing.assert_close(found.raw[4].running_var, net[4].running_var)
    biased = copy.deepcopy(net)
    biased[3].bias = nn.Parameter(torch.zeros(6))
    small, _ = _without(biased, calibration, {"0": [1]})
    found = recovered(small, biased, calibration, "bn+lstsq")
    for buffer in ("running_mean", "running_var"):
        torch.testing.assert_close(getattr(found.raw[4], buffer), getattr(biased[4], buffer))


class Tied(nn.Module):
    """An output layer whose weights are those of another layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.into, self.out = nn.Linear(12, 9), nn.Linear(9, 6), nn.Linear(6, 4), nn.Linear(6, 4)
        self.out.weight = self.into.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.b(torch.relu(self.a(x))))
        return self.into(x) + self.out(torch.sin(x))


def test_weights_that_two_layers_share_are_left_with_a_note():
    torch.manual_seed(0)
    net, calibration = randomise_(Tied(), seed=1).eval(), _calibration((12,), 20)
    small, _ = _without(net, calibration, {"a": [1, 4]})
    found = recovered(small, net, calibration, "lstsq")
    assert torch.equal(found.raw.into.weight, net.into.weight)
    assert "b" in found.facts["lstsq"]
    assert {
        "into shares its weights with out: left as it is",
        "out shares its weights with into: left as it is",
    } <= set(found.notes)


def test_a_transposed_reader_is_left_with_a_note():
    net = randomise_(
        nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.ConvTranspose2d(8, 6, 3, padding=1), nn.Flatten(), nn.Linear(384, 4)),
        seed=1,
    ).eval()  # fmt: skip
    calibration = _calibration()
    small, _ = _without(net, calibration, {"0": [1, 4]})
    for how in ("bias", "merge", "lstsq"):
        notes = recovered(small, net, calibration, how).notes
        assert any(n.startswith("2: a transposed convolution") for n in notes), how
        assert not any("by a product" in n for n in notes), how


def test_every_module_keeps_its_mode_and_another_precision_is_refused():
    net, calibration = randomise_(_padded(), seed=1).train(), _calibration()
    net[1].eval()  # frozen statistics inside a module in training
    small, _ = _without(net, calibration, {"0": [1]})
    small.train()
    small[1].eval()
    found = recovered(small, net, calibration, "bias").model
    assert [m.training for m in found.modules()] == [m.training for m in small.modules()]
    with pytest.raises(InputError, match="expected networks in torch.float32.*got torch.float64"):
        recovered(copy.deepcopy(small).double(), net.double(), calibration, "bias")


def test_obs_knows_that_a_layer_without_a_constant_cannot_make_up_for_one():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 4, bias=False)).eval()
    with torch.no_grad():
        net[0].weight[3], net[0].bias[3] = 0.0, 3.0  # always 3
        net[2].weight[:, 3] = torch.tensor([0.4, -0.4, 0.0, 0.0])
    calibration = _calibration((12,), 20)
    structure = cswap.discover(net, calibration.inputs(0, 2))
    scores = obs_scores(net, structure, calibration, Classification())["0"]
    small, _ = _without(net, calibration, {"0": [3]})
    raw, x = recovered(small, net, calibration, "lstsq").raw, calibration.inputs(0, 80)
    labels = torch.from_numpy(calibration.targets).view(-1, 1)
    with torch.no_grad():
        lost = (net(x).softmax(1) - raw(x).softmax(1)).gather(1, labels).square().mean()
    assert float(lost) > 1e-4
    assert scores[3] > 0.1 * float(lost)
    biased = copy.deepcopy(net)
    biased[2].bias = nn.Parameter(torch.zeros(4))
    assert obs_scores(biased, structure, calibration, Classification())["0"][3] < 1e-6


class Words(nn.Module):
    """Tokens (N, 2, L) → logits; the mean is over the tokens that count."""

    def __init__(self) -> None:
        super().__init__()
        self.e, self.a, self.b, self.fc = nn.Embedding(20, 8), nn.Linear(8, 10), nn.Linear(10, 8), nn.Linear(8, 4)

    def forward(self, t: torch.Tensor) -> torch.Tensor:
        x = self.e(t[:, 0])
        x = x + self.b(torch.relu(self.a(x)))
        counts = t[:, 1].unsqueeze(-1).to(x)
        return self.fc((x * counts).sum(1) / counts.sum(1))


def test_moments_of_a_compensated_cut_count_no_padding():
    torch.manual_seed(0)
    net = randomise_(Words(), seed=1).eval()
    mask = (torch.arange(12) < torch.randint(2, 8, (40, 1))).long()
    tokens = torch.stack([torch.randint(1, 20, (40, 12)) * mask, mask], 1)
    calibration = cswap.calibration_set(TensorDataset(tokens, torch.arange(4).repeat_interleave(10)), 10)
    structure = cswap.discover(net, calibration.inputs(0, 2))
    engine = CompensatedPlainEngine(net, structure, calibration, Classification())
    engine.enter(structure["a"])
    with torch.no_grad():
        read = torch.relu(net.a(net.e(calibration.inputs(0, 40)[:, 0]))).double()
    seen = calibration.inputs(0, 40)[:, 1].bool()
    mean = engine.compensation.inverses["a", "b"].mean
    torch.testing.assert_close(mean, read[seen].mean(0), rtol=0, atol=1e-5)
    assert not torch.allclose(mean, read.flatten(0, 1).mean(0), atol=1e-3)


@pytest.mark.parametrize("how", ["bias", "merge"])
def test_means_come_out_right_at_the_borders_too(how):
    net = randomise_(_padded(), seed=1).double().eval()
    calibration = _calibration(per_class=20, dtype=torch.float64)
    small, _ = _without(net, calibration, {"0": [1, 4]})
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
    calibration = _calibration((3, 8, 8), dtype=torch.float64)
    structure = cswap.discover(net, calibration.inputs(0, 2))
    group = next(g.name for g in structure if "mlp" in g.name)
    reader = next(s.module for s in structure[group].consumers)
    small, structure = _without(net, calibration, {group: [0, 3, 5]})
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


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_sums_nothing_in_half(dtype):
    """Squares of these inputs sum to more than float16 holds."""
    torch.manual_seed(0)
    net = randomise_(nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 4)), seed=2).eval()
    with torch.no_grad():
        for p in net[0].parameters():
            p.mul_(30)
        net[2].weight.div_(30)
        net[0].weight[3], net[0].bias[3] = 0.9 * net[0].weight[1], 0.9 * net[0].bias[1]
        net[2].weight[:, 3] *= 3
    net, calibration = net.to(dtype), _calibration((6,), 100, dtype=dtype)
    structure = cswap.discover(net, calibration.inputs(0, 2))
    small, _ = _without(net, calibration, {"0": [3]})
    x = calibration.inputs(0, 400)

    @torch.no_grad()
    def away(model: nn.Module) -> float:
        return float((model(x).double() - net(x).double()).square().mean())

    for how in ("merge", "lstsq"):
        assert away(recovered(small, net, calibration, how).raw) < 1e-3 * away(small), how
    scores = obs_scores(net, structure, calibration, Classification())["0"]
    assert np.isfinite(scores).all()
    exact = _calibration((6,), 100, dtype=torch.float64)
    expected = obs_scores(copy.deepcopy(net).double(), structure, exact, Classification())["0"]
    np.testing.assert_allclose(scores[:3], expected[:3], rtol=0.2)
