"""torchvision's segmenters and detectors: masked = pruned, saved and loaded in a new process, at random weights."""

from __future__ import annotations

import pytest
import torch
import torchvision

import cswap
from cswap.structure.check import agreement, random_half, randomise_

from .conftest import saved_and_loaded_elsewhere

NAMES = [
    "lraspp_mobilenet_v3_large", "deeplabv3_mobilenet_v3_large", "deeplabv3_resnet50", "fcn_resnet50",
    "ssdlite320_mobilenet_v3_large", "fasterrcnn_mobilenet_v3_large_320_fpn", "retinanet_resnet50_fpn",
]  # fmt: skip
SMALL = {"retinanet_resnet50_fpn": {"min_size": 64, "max_size": 64}}  # it scales what it is given, by default to 800


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_it_is_pruned_to_the_same_network_and_loads_in_a_new_process(name, tmp_path):
    given = {"weights": None, "weights_backbone": None, **SMALL.get(name, {})}
    net = torchvision.models.get_model(name, **given).eval()
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    randomise_(net, 1, x)
    structure = cswap.discover(net, x)
    assert structure.groups
    removed = random_half(structure, 0)
    assert agreement(net, structure, removed, x).ok
    saved_and_loaded_elsewhere(net, structure, removed, x, tmp_path, f"torchvision:{name}", given)
