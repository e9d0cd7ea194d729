"""Pruned transformers, saved and loaded elsewhere."""

from __future__ import annotations

import pytest
import torch
import torchvision

import cswap
from cswap.structure.attention import HeadAttention
from cswap.structure.check import VISIBLE, agreement, random_half, randomise_
from cswap.structure.discover import count_params, discover, macs_of
from cswap.structure.surgery import pruned_copy
from tests.attention_nets import (
    _FACTORIES,
    crossed,
    ledger_of,
    loaded_elsewhere,
    made,
    saved,
)


@pytest.mark.parametrize("name", ["vit", "swin", "timm_vit"])
def test_what_was_saved_loads_in_a_new_process_to_the_same_logits(tmp_path, name):
    model, x = made(name)
    (tmp_path / "own.py").write_text(_FACTORIES)
    spec, arguments = f"{tmp_path}/own.py:{name}", None
    if name == "timm_vit":
        spec, arguments = "timm:vit_tiny_patch16_224", {"img_size": 32, "depth": 2, "embed_dim": 48, "num_classes": 5}
    small = saved(tmp_path, model, discover(model, x), spec, arguments)
    with torch.no_grad():
        assert torch.equal(loaded_elsewhere(tmp_path, x), small(x))
        assert (small(x) - model(x)).abs().max() > 1e-2
    assert any(isinstance(m, HeadAttention) for m in cswap.load(tmp_path / "run", trust=True).modules())
    from cswap.artifacts.folder import open_artifact

    assert open_artifact(tmp_path / "run").structure.replaced


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size"), [("vit_b_16", 32), ("swin_t", 64)])
def test_torchvision_s_own(name, size):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        arguments = {"image_size": size} if name == "vit_b_16" else {}
        model = randomise_(torchvision.models.get_model(name, **arguments), 1).eval()
    x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(2))
    structure = discover(model, x)
    removed = random_half(structure, 3)
    result = agreement(model, structure, removed, x)
    assert result.ok, str(result)
    assert result.moved >= VISIBLE * result.allowed
    small = pruned_copy(model, structure, removed)
    ledger = ledger_of(structure, removed)
    assert (ledger.params, round(ledger.macs)) == (count_params(small), macs_of(small, x)[0])
    assert not crossed(model, structure, removed, x) <= result.allowed
