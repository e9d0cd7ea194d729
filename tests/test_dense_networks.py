"""torchvision's segmenters and detectors, and a U-Net: masked = pruned, saved and loaded in a new process, at random weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import cswap
from cswap.data.models import ModelSpec
from cswap.pipeline import Source
from cswap.report.support import support_report
from cswap.structure.check import agreement, random_half, randomise_, tensors_of, widest
from cswap.structure.detectors import forward_of
from cswap.structure.surgery import masked_copy, pruned_copy

from .conftest import off_by_one, saved_and_loaded_elsewhere

UNET = f"{Path(__file__).resolve().parents[1] / 'benchmarks' / 'networks' / 'dense.py'}:camvid_unet"
# parts that units are found in: backbone, then neck or head where they have any that can go
PARTS = {
    "torchvision:lraspp_mobilenet_v3_large": ("backbone.", "classifier."),
    "torchvision:deeplabv3_mobilenet_v3_large": ("backbone.", "classifier."),
    "torchvision:deeplabv3_resnet50": ("backbone.", "classifier."),
    "torchvision:fcn_resnet50": ("backbone.", "classifier."),
    "torchvision:ssdlite320_mobilenet_v3_large": ("backbone.features.", "backbone.extra."),
    "torchvision:fasterrcnn_mobilenet_v3_large_320_fpn": ("backbone.body.", "backbone.fpn.", "rpn.head.", "roi_heads.box_head."),
    "torchvision:retinanet_resnet50_fpn": (
        "backbone.body.", "backbone.fpn.", "head.classification_head.", "head.regression_head.",
    ),
    UNET: ("stem.", "down.", "up."),
}  # fmt: skip
SMALL = {"retinanet_resnet50_fpn": {"min_size": 64, "max_size": 64}}  # it scales what it is given, by default to 800


def _spec(text: str) -> ModelSpec:
    given = {"weights": None, "weights_backbone": None} if text.startswith("torchvision:") else {}
    return ModelSpec.parse(text, {**given, **SMALL.get(text.partition(":")[2], {})})


@pytest.mark.slow
@pytest.mark.parametrize("text", PARTS, ids=lambda t: t.rpartition(":")[2])
def test_it_is_pruned_to_the_same_network_and_loads_in_a_new_process(text, tmp_path):
    spec = _spec(text)
    net = spec.build()
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    randomise_(net, 1, x)
    structure = cswap.discover(net, x)
    assert structure.groups
    removed = random_half(structure, 0)
    result = agreement(net, structure, removed, x)
    assert result.ok, str(result)
    assert result.visible
    assert not _crossed(net, structure, removed, x) <= result.allowed  # the off-by-one is caught
    saved_and_loaded_elsewhere(net, structure, removed, x, tmp_path, text, spec.arguments or None)


def _crossed(net, structure, removed, x) -> float:
    """How far the masked network is from one pruned with an off-by-one; infinite where that does not even run."""
    with torch.no_grad():
        masked = tensors_of(forward_of(masked_copy(net, structure, removed))(x))
        try:
            wrong = tensors_of(forward_of(pruned_copy(net, off_by_one(structure), removed))(x))
        except (RuntimeError, IndexError):
            return float("inf")
    return widest(list(zip(masked, wrong, strict=True)))


@pytest.mark.slow
@pytest.mark.parametrize("text", PARTS, ids=lambda t: t.rpartition(":")[2])
def test_the_support_report_names_units_in_every_part(text):
    found = support_report(Source(_spec(text)), image_size=64)
    names = [g["group"] for g in found["groups"]]
    assert found["nothing"] == ""
    for part in PARTS[text]:
        assert any(n.startswith(part) for n in names), f"no group in {part}"
    assert all(n.startswith(PARTS[text]) for n in names), names
