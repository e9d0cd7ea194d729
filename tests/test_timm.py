"""timm's own layers: its toy networks, which wire what its families do."""

from __future__ import annotations

import pytest
import torch

from cswap.data.models import ModelSpec
from cswap.data.sources import ImageFormat, image_format
from cswap.structure.check import agreement, random_half, randomise_
from cswap.structure.discover import count_params, discover
from cswap.structure.ledger import Ledger
from cswap.structure.surgery import pruned_copy

timm = pytest.importorskip("timm", reason="timm is not installed: pip install 'cswap[timm]'")


@pytest.mark.parametrize(
    ("name", "groups"), [("test_resnet", 11), ("test_efficientnet", 13), ("test_byobnet", 14), ("test_convnext", 9)]
)
def test_masked_equals_pruned(name, groups):
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    net = randomise_(ModelSpec.parse(f"timm:{name}").build(), 3, x).eval()
    structure = discover(net, x)
    assert len(structure) == groups
    removed = random_half(structure, 4)
    result = agreement(net, structure, removed, x)
    assert result.ok, str(result)
    assert result.visible
    ledger = Ledger(structure)
    for group, units in removed.items():
        for n in units:
            ledger.remove(structure[group], int(n))
    assert ledger.params == count_params(pruned_copy(net, structure, removed))


@pytest.mark.parametrize(
    ("name", "arguments", "mean", "size", "resize"),
    [
        ("test_vit", {}, (0.5, 0.5, 0.5), 160, 168),
        ("vit_base_patch16_224.augreg_in21k", {"img_size": 96}, (0.5, 0.5, 0.5), 96, 106),
        ("resnet18", {}, (0.485, 0.456, 0.406), 224, 235),
    ],
)
def test_images_are_prepared_as_timm_says(name, arguments, mean, size, resize):
    spec = ModelSpec.parse(f"timm:{name}", arguments)
    form = image_format(spec, None, None, None)
    assert (form.mean, form.size, form.resize) == (mean, size, resize)
    said = image_format(spec, 32, "0.1,0.2,0.3", "1,1,1")
    assert (said.mean, said.std, said.size, said.resize) == ((0.1, 0.2, 0.3), (1.0, 1.0, 1.0), 32, 32)


def test_a_timm_name_without_a_configuration_gets_the_usual_format():
    assert image_format(ModelSpec.parse("timm:no_such_network"), None, None, None) == ImageFormat()


def test_a_resnet_with_frozen_batch_norms_keeps_its_groups():
    from timm.layers import freeze_batch_norm_2d

    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    net = randomise_(ModelSpec.parse("timm:test_resnet").build(), 3, x).eval()
    before = [(g.name, g.size) for g in discover(net, x)]
    frozen = freeze_batch_norm_2d(net)
    structure = discover(frozen, x)
    assert [(g.name, g.size) for g in structure] == before
    result = agreement(frozen, structure, random_half(structure, 4), x)
    assert result.ok
    assert result.visible
