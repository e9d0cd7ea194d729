"""`lstsq` against dense solves: every kind of layer, constants and their signs, norms behind them, half precision."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset
from torchvision.models import VisionTransformer

import cswap
from cswap.linear.patches import groups_of, matrix_of
from cswap.methods.obs import obs_scores
from cswap.recovery import recovered
from cswap.recovery.lstsq import STRENGTHS
from cswap.structure.check import randomise_
from cswap.structure.surgery import prepared_copy
from cswap.tasks import Classification
from tests.conftest import NETS
from tests.recoveries import noisy, without
from tests.reference.least_squares import ridge_by_hand, rows_by_hand, targets_by_hand


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
    calibration = noisy(shape, dtype=torch.float64)
    structure = cswap.discover(net, calibration.inputs(0, 2))
    names = [g.name for g in structure]
    removed = {next((n for n in names if "#v" in n), names[-1]): [0, 2]}
    small, structure = without(net, calibration, removed)
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
    small, _ = without(net, calibration, {"0": [1]})
    found = recovered(small, net, calibration, "lstsq")
    fact = found.facts["lstsq"]["2"]
    assert fact["strength"] is None
    assert fact["error_after"] == fact["error_before"] < 1e-12
    for mine, theirs in zip(found.raw.parameters(), small.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_norms_behind_refitted_layers_have_the_original_s_statistics_whatever_came_before():
    net = randomise_(_solid(), seed=2).eval()
    calibration = noisy((1, 6, 6, 6), per_class=20)
    small, _ = without(net, calibration, {"0": [1]})
    found = recovered(small, net, calibration, "bn+lstsq")
    assert found.facts["lstsq"]["3"]["strength"] is not None
    torch.testing.assert_close(found.raw[4].running_var, net[4].running_var)
    biased = copy.deepcopy(net)
    biased[3].bias = nn.Parameter(torch.zeros(6))
    small, _ = without(biased, calibration, {"0": [1]})
    found = recovered(small, biased, calibration, "bn+lstsq")
    for buffer in ("running_mean", "running_var"):
        torch.testing.assert_close(getattr(found.raw[4], buffer), getattr(biased[4], buffer))


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
    net, calibration = net.to(dtype), noisy((6,), 100, dtype=dtype)
    structure = cswap.discover(net, calibration.inputs(0, 2))
    small, _ = without(net, calibration, {"0": [3]})
    x = calibration.inputs(0, 400)

    @torch.no_grad()
    def away(model: nn.Module) -> float:
        return float((model(x).double() - net(x).double()).square().mean())

    for how in ("merge", "lstsq"):
        assert away(recovered(small, net, calibration, how).raw) < 1e-3 * away(small), how
    scores = obs_scores(net, structure, calibration, Classification())["0"]
    assert np.isfinite(scores).all()
    exact = noisy((6,), 100, dtype=torch.float64)
    expected = obs_scores(copy.deepcopy(net).double(), structure, exact, Classification())["0"]
    np.testing.assert_allclose(scores[:3], expected[:3], rtol=0.2)
