"""Encoders of transformers, tiny and random: equal masked and pruned, equal after a load elsewhere, eager and sdpa."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import cswap
from cswap.data.models import ModelSpec
from cswap.structure.check import VISIBLE, agreement, random_half, randomise_
from cswap.structure.discover import discover
from tests.attention_nets import crossed, saved
from tests.test_text import SMALL, _tokens

pytest.importorskip("transformers", reason="transformers is not installed")

IMAGE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "image_size": 32,
         "patch_size": 8, "num_labels": 5}  # fmt: skip
DISTIL = {"vocab_size": 40, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48, "max_position_embeddings": 32,
          "num_labels": 2, "pad_token_id": 0}  # fmt: skip
MODERN = {**SMALL, "local_attention": 8, "reference_compile": False, "cls_token_id": 1, "sep_token_id": 2,
          "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "ViTForImageClassification": IMAGE, "DeiTForImageClassification": IMAGE, "BertForSequenceClassification": SMALL,
    "DistilBertForSequenceClassification": DISTIL,
}  # fmt: skip


BOTH = ("eager", "sdpa")
GATED = "ModernBertForSequenceClassification"
LLAMA = "LlamaForSequenceClassification"
_LOAD = """import sys, torch, cswap
torch.set_num_threads(1)
for folder in sys.argv[1:]:
    x = torch.load(folder + "/x.pt", weights_only=True)
    with torch.no_grad():
        torch.save(cswap.load(folder + "/run")(x), folder + "/y.pt")
"""


def _arguments(kind: str, how: str) -> dict[str, Any]:
    return ({GATED: MODERN, LLAMA: SMALL | {"num_key_value_heads": 2}} | KINDS)[kind] | {"attn_implementation": how}


def _model(kind: str, how: str) -> tuple[nn.Module, torch.Tensor]:
    model = randomise_(ModelSpec.parse(f"hf:{kind}", _arguments(kind, how)).build(), 1).eval()
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return model, images if "Image" in kind else _tokens()


@pytest.mark.parametrize("how", BOTH)
@pytest.mark.parametrize("kind", KINDS)
def test_masked_is_pruned_with_either_attention(kind, how):
    model, inputs = _model(kind, how)
    assert model.config._attn_implementation == how
    structure = discover(model, inputs)
    assert len(structure.replaced) == 2
    assert sum(g.name.endswith("#heads") for g in structure) == 2
    removed = random_half(structure, 3)
    result = agreement(model, structure, removed, inputs)
    assert result.ok, str(result)
    assert result.moved >= VISIBLE * result.allowed
    assert not crossed(model, structure, removed, inputs) <= result.allowed


def test_all_of_them_load_in_a_new_process_to_the_same_logits(tmp_path: Path):
    made = {}
    for kind in (*KINDS, GATED, LLAMA):
        for how in BOTH:
            folder = tmp_path / f"{kind}_{how}"
            folder.mkdir()
            model, inputs = _model(kind, how)
            small = saved(folder, model, discover(model, inputs), f"hf:{kind}", _arguments(kind, how))
            torch.save(inputs, folder / "x.pt")
            made[folder] = (model, small, inputs)
    subprocess.run([sys.executable, "-c", _LOAD, *map(str, made)], check=True)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as there: sums are in another order on two
    try:
        for folder, (model, small, inputs) in made.items():
            with torch.no_grad():
                assert torch.equal(torch.load(folder / "y.pt", weights_only=True), small(inputs)), folder.name
                assert (small(inputs) - model(inputs)).abs().max() > 1e-2
    finally:
        torch.set_num_threads(threads)


def test_an_attention_that_returns_a_tensor_alone_is_replaced_by_one_that_does(tmp_path: Path):
    small: dict[str, Any] = {"hidden_sizes": [16, 16, 16], "neck_hidden_sizes": [8, 8, 8, 8, 8, 8, 8], "num_labels": 3}
    spec = ModelSpec.parse("hf:MobileViTForImageClassification", small | {"image_size": 64})
    model = randomise_(spec.build(), 1).eval()
    inputs = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    structure = discover(model, inputs)
    attentions = [n for n, m in model.named_modules() if type(m).__name__ == "MobileViTSelfAttention"]
    assert attentions
    assert sorted(structure.replaced) == sorted(attentions)
    assert agreement(model, structure, random_half(structure, 3), inputs).ok
    pruned = saved(tmp_path, model, structure, spec.text, spec.arguments)
    with torch.no_grad():
        assert torch.equal(cswap.load(tmp_path / "run")(inputs), pruned(inputs))


@pytest.mark.parametrize("kind", ["BertForSequenceClassification", "ViTForImageClassification"])
def test_both_attentions_give_the_same_groups_and_logits(kind):
    found = []
    for how in BOTH:
        model, inputs = _model(kind, how)
        structure = discover(model, inputs)
        with torch.no_grad():
            found.append(([(g.name, g.size) for g in structure], model(inputs)))
    assert found[0][0] == found[1][0]
    torch.testing.assert_close(found[0][1], found[1][1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("how", BOTH)
def test_gate_and_up_in_one_projection_are_one_unit(how):
    model, tokens = _model(GATED, how)
    structure = discover(model, tokens)
    gated = [g for g in structure if any(s.module.endswith("mlp.Wi") for s in g.producers)]
    assert [g.size for g in gated] == [48, 48]
    assert all(len(s.by_unit[0]) == 2 for g in gated for s in g.producers)  # a row of the gate, a row of what it gates
    assert not any(
        "#" in g.name for g in structure
    )  # rotated and joined in one projection: heads are left out, said why
    assert sum("Wqkv" in o.name for o in structure.left_out) >= 1
    removed = random_half(structure, 3)
    result = agreement(model, structure, removed, tokens)
    assert result.ok, str(result)
    assert result.moved >= VISIBLE * result.allowed


@pytest.mark.parametrize("how", BOTH)
def test_a_llama_loses_gated_neurons_and_its_shared_keys_are_left(how):
    model, tokens = _model(LLAMA, how)
    structure = discover(model, tokens)
    assert [(g.name, g.size) for g in structure] == [(f"model.layers.{i}.mlp.gate_proj", 48) for i in (1, 0)]
    assert all({s.module.rpartition(".")[2] for s in g.producers} == {"gate_proj", "up_proj"} for g in structure)
    reasons = {o.name: o.reason for o in structure.left_out}
    assert "several heads share one key and value" in reasons["model.layers.0.self_attn"]
    removed = random_half(structure, 3)
    result = agreement(model, structure, removed, tokens)
    assert result.ok, str(result)
    assert result.moved >= VISIBLE * result.allowed
    assert not crossed(model, structure, removed, tokens) <= result.allowed
