"""A pruned Hugging Face model under its own config: brought back by the library alone, or the true reason why not."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import cswap
from cswap.artifacts.export import export
from cswap.artifacts.native import with_own_config
from cswap.errors import InputError
from cswap.structure.check import randomise_
from cswap.types import Target
from tests.conftest import path_of

transformers = pytest.importorskip("transformers", reason="transformers is not installed")


@pytest.fixture(scope="module")
def case():
    config = transformers.ViTConfig(
        image_size=8, patch_size=4, num_channels=1, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=12, num_labels=3,
    )  # fmt: skip
    net = randomise_(transformers.ViTForImageClassification(config), seed=1).eval()
    x = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return net, cswap.discover(net, x[:2]), x


def pruned(case, removed):
    net, structure, x = case
    path = path_of(structure, {n: np.asarray(u) for n, u in removed.items()}, x)
    return path.apply(net, Target("units", path.ratio.units))


def hidden(structure):
    return [g.name for g in structure if g.size == 12]


def test_equal_widths_are_told_by_the_config_and_come_back(case, tmp_path):
    first, second = hidden(case[1])
    small = pruned(case, {first: [0, 5, 7], second: [1, 2, 11]})
    native = with_own_config(small)
    assert type(native) is transformers.ViTForImageClassification
    assert native.config.intermediate_size == 9
    assert case[0].config.intermediate_size == 12
    native.save_pretrained(tmp_path)
    again = transformers.ViTForImageClassification.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        torch.testing.assert_close(again(case[2]).logits, small(case[2]).logits, rtol=1e-5, atol=1e-6)
        assert (again(case[2]).logits - case[0](case[2]).logits).abs().max() > 1e-3, "the cut must be seen"


def test_what_one_number_cannot_say_is_refused_with_the_reason(case):
    first, second = hidden(case[1])
    with pytest.raises(InputError, match="one intermediate_size for all blocks, and they are 9 to 11 wide"):
        with_own_config(pruned(case, {first: [0, 5, 7], second: [1]}))
    with pytest.raises(InputError, match="cannot say the shape of"):
        with_own_config(pruned(case, {first: [0]}))
    heads = next(g.name for g in case[1] if g.name.endswith("#heads"))
    with pytest.raises(InputError, match="cannot say the shape of"):
        with_own_config(pruned(case, {heads: [1]}))
    with pytest.raises(InputError, match="expected a pruned Hugging Face model, got Linear"):
        with_own_config(torch.nn.Linear(2, 2))


@pytest.mark.parametrize("form", ["onnx", "pt2"])
def test_a_transformer_without_a_head_is_exported(case, tmp_path, form):
    if form == "onnx":
        pytest.importorskip("onnxscript", reason="onnxscript is not installed")
        pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    heads = next(g.name for g in case[1] if g.name.endswith("#heads"))
    small = pruned(case, {heads: [1], hidden(case[1])[0]: [0, 3]})
    done = export(small, tmp_path / f"vit.{form}", case[2], format=form)
    with torch.no_grad():
        apart = (small(case[2]).logits - case[0](case[2]).logits).abs().max()
    assert done.difference <= done.allowed < apart / 100, "another network's outputs must not pass"
