"""LRP: zennit's own canonizers, closed forms, and no relevance lost."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cswap.causal.cut import PlainEngine
from cswap.methods.lrp import lrp_scores, relevances
from cswap.structure.check import randomise_
from cswap.structure.discover import discover
from cswap.tasks import Classification
from tests.conftest import DepthwiseNet, ResidualNet
from tests.relevances import calibration_on, random_images, scores_by


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
    calibration = calibration_on(random_images(8).double())
    scores = [scores_by("lrp", net.eval().double(), calibration) for net in (one, other)]
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
    calibration = calibration_on(random_images(8, 32).double())
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
    model, calibration = randomise_(net(), 3).eval().double(), calibration_on(random_images().double())
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
    model, calibration = randomise_(Gained(), 2).eval().double(), calibration_on(x, 3)
    scores = scores_by("lrp", model, calibration)
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
