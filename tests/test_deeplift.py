"""DeepLIFT: a twin by hand, and attributions that add up."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cswap.causal.cut import PlainEngine
from cswap.methods.deeplift import attributions, deeplift_scores
from cswap.structure.check import randomise_
from cswap.structure.discover import discover
from cswap.tasks import Classification
from tests.conftest import NETS, ResidualNet
from tests.relevances import Reused, calibration_on, random_images, scores_by


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
    model, calibration = randomise_(ResidualNet(), 3).eval().double(), calibration_on(random_images().double())
    x = calibration.inputs(0, 12).clone().requires_grad_()
    expected = _residual_twin(model, x, torch.zeros_like(x), torch.from_numpy(calibration.targets))
    scores = scores_by("deeplift", model, calibration)
    assert set(scores) == set(expected)
    for group, score in scores.items():
        np.testing.assert_allclose(score, expected[group], rtol=1e-6)
    other = _residual_twin(model, x, torch.ones_like(x), torch.from_numpy(calibration.targets))
    assert np.abs(other["conv"] - expected["conv"]).max() > 0.01  # the baseline can be seen


@pytest.mark.parametrize("net", [*NETS.values(), Reused])
def test_deeplift_attributions_add_up_to_the_difference_from_the_baseline(net):
    model, calibration = randomise_(net(), seed=3).eval(), calibration_on(random_images())
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
