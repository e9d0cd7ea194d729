"""Equivalent modules of attention: the same outputs, or a reason why there is none."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn

from cswap.errors import ArtifactError
from cswap.structure.check import agreement, random_half, randomise_
from cswap.structure.discover import discover, macs_of
from cswap.structure.hosts import TorchAttention, Unlike, equivalent_of, replace_attention_
from cswap.structure.surgery import prepared_copy
from tests.attention_nets import (
    crossed,
)


def _mha(**kwargs) -> nn.MultiheadAttention:
    return randomise_(nn.MultiheadAttention(12, 3, **kwargs), 5).eval()


@pytest.mark.parametrize("grad", [False, True])  # without gradients PyTorch takes its fused kernel
@pytest.mark.parametrize(
    "kwargs", [{}, {"batch_first": True}, {"bias": False}, {"kdim": 7, "vdim": 5, "batch_first": True}]
)
def test_the_equivalent_of_multihead_attention_gives_the_same(kwargs, grad):
    host = _mha(**kwargs)
    mine = equivalent_of(host)
    assert isinstance(mine, TorchAttention)
    g = torch.Generator().manual_seed(0)
    n, length, source = 2, 4, 6
    x = torch.randn(n, length, 12, generator=g)
    k, v = torch.randn(n, source, host.kdim, generator=g), torch.randn(n, source, host.vdim, generator=g)
    if not host.batch_first:
        x, k, v = (t.transpose(0, 1) for t in (x, k, v))
    bool_mask = torch.rand(length, source, generator=g) < 0.3
    bool_mask[:, 0] = False
    padding = torch.zeros(n, source, dtype=torch.bool)
    padding[1, -2:] = True
    by_head = torch.randn(n * 3, length, source, generator=g)
    masks = [{}, {"attn_mask": bool_mask}, {"attn_mask": torch.randn(length, source, generator=g)}, {"attn_mask": by_head},
             {"key_padding_mask": padding}, {"attn_mask": bool_mask, "key_padding_mask": padding}]  # fmt: skip
    with torch.set_grad_enabled(grad):
        for mask in masks:
            for need in (True, False):
                a, b = (m(x, k, v, need_weights=need, **mask) for m in (host, mine))
                torch.testing.assert_close(a[0], b[0], atol=1e-5, rtol=1e-5)
                if need:
                    torch.testing.assert_close(a[1], b[1], atol=1e-5, rtol=1e-5)
                else:
                    assert b[1] is None
        if host._qkv_same_embed_dim:
            torch.testing.assert_close(host(x, x, x)[0], mine(x, x, x)[0], atol=1e-5, rtol=1e-5)
            alone = x[:, 0] if not host.batch_first else x[0]
            torch.testing.assert_close(host(alone, alone, alone)[0], mine(alone, alone, alone)[0], atol=1e-5, rtol=1e-5)


def test_what_has_no_equivalent_says_why():
    for kwargs in ({"add_bias_kv": True}, {"add_zero_attn": True}):
        with pytest.raises(Unlike, match="add a key"):
            equivalent_of(_mha(**kwargs))
    assert equivalent_of(nn.Linear(3, 3)) is None
    v2 = torchvision.models.swin_transformer.ShiftedWindowAttentionV2(8, [4, 4], [0, 0], 2)
    with pytest.raises(Unlike, match="cosine"):
        equivalent_of(v2)
    timm = pytest.importorskip("timm", reason="timm is not installed")
    normed = timm.layers.Attention(16, 2, qk_norm=True, norm_layer=nn.LayerNorm)
    with pytest.raises(Unlike, match="q_norm mixes"):
        equivalent_of(normed)


def test_attention_without_an_equivalent_leaves_the_mlps_to_be_pruned():
    from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformer, SwinTransformerBlockV2

    model = SwinTransformer(
        [4, 4], 16, [2, 2], [2, 4], [4, 4], num_classes=4, block=SwinTransformerBlockV2, downsample_layer=PatchMergingV2
    )
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    model = randomise_(model, 1, x).eval()
    structure = discover(model, x)
    assert len(structure) == 4
    assert {g.size for g in structure} == {64, 128}
    assert sum("cosine" in o.reason for o in structure.left_out) == 4
    removed = random_half(structure, 3)
    result = agreement(model, structure, removed, x)
    assert result.ok, str(result)
    assert result.visible
    assert not crossed(model, structure, removed, x) <= result.allowed


class _Token(nn.Module):
    """A layer is given a view of a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.ones(1, 6))
        self.inner, self.fc = nn.Sequential(nn.Linear(6, 5), nn.ReLU()), nn.Linear(5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.inner(self.token.expand(len(x), -1)) + self.inner(x))


def test_a_parameter_s_view_given_to_a_layer_is_counted():
    model = _Token()
    assert macs_of(model, torch.randn(2, 6))[0] == 6 * 5 * 2 + 5 * 2
    assert all(p.requires_grad for p in model.parameters())


class _Head(nn.Module):
    """An encoder layer of PyTorch's own, whose fused kernel knows equal heads only."""

    def __init__(self, **kwargs) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(12, 3, 20, batch_first=True, **kwargs)
        self.fc = nn.Linear(12, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.layer(x).mean(1))


def test_pytorch_s_own_encoder_layer():
    model, x = randomise_(_Head(), 3).eval(), torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(0))
    structure = discover(model, x)
    assert {g.name for g in structure} >= {"layer.self_attn.q#heads", "layer.self_attn.v#v2", "layer.self_attn.q#qk0"}
    with torch.no_grad():
        assert (model(x) - prepared_copy(model, structure)(x)).abs().max() < 1e-5
    assert agreement(model, structure, random_half(structure, 1), x).ok


class _Lying(nn.Module):
    """Looks like timm's attention and reads its heads in another order."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj, self.num_heads, self.scale = nn.Linear(12, 36), nn.Linear(12, 12), 3, 0.5

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (4, 3, 3)).permute(3, 0, 4, 1, 2)
        return self.proj((torch.softmax(q @ k.transpose(-1, -2) * 0.5, -1) @ v).transpose(1, 2).flatten(2))


def test_an_equivalent_that_differs_is_not_used():
    model = nn.Sequential(nn.Linear(6, 12), _Lying(), nn.Flatten(), nn.Linear(60, 4)).eval()
    structure = discover(model, torch.randn(2, 5, 6))
    assert not structure.replaced
    assert any("gives other outputs" in o.reason for o in structure.left_out if o.name == "1")


def test_a_model_without_that_attention_cannot_take_it():
    with pytest.raises(ArtifactError, match="expected an attention module"):
        replace_attention_(nn.Sequential(nn.Linear(3, 3)), ["0"])
