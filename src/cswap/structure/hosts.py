"""Attention modules of other libraries, and the equivalent of each whose heads can go."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from cswap.errors import ArtifactError
from cswap.structure.attention import HeadAttention, PositionBias, linear, thirds


class Unlike(Exception):
    """This module has no equivalent; the message is the reason."""


# nn.MultiheadAttention


def _merged_mask(
    mask: torch.Tensor | None, padding: torch.Tensor | None, heads: int, like: torch.Tensor
) -> torch.Tensor | None:
    """`attn_mask` (L, S) or (N·heads, L, S) and `key_padding_mask` (N, S), where True or −inf is left out, as one that is added."""
    total = None
    for part in (mask, padding):
        if part is None:
            continue
        added = like.new_zeros(part.shape).masked_fill(part, float("-inf")) if part.dtype == torch.bool else part
        if part is padding:
            added = added[..., None, None, :]
        elif part.dim() == 3 and like.dim() == 3:
            added = added.reshape(-1, heads, *added.shape[1:])
        total = added if total is None else total + added
    return total


torch.fx.wrap("_merged_mask")


class TorchAttention(HeadAttention):
    """`nn.MultiheadAttention`: same arguments, same results; attention weights are the mean over the heads that are left."""

    kind = "torch"

    def __init__(self, host: nn.MultiheadAttention) -> None:
        if host.bias_k is not None or host.bias_v is not None or host.add_zero_attn:
            raise Unlike("bias_k, bias_v and add_zero_attn add a key that no weight of a head writes")
        weights: Any = (
            host.in_proj_weight.chunk(3)
            if host.in_proj_weight is not None
            else (host.q_proj_weight, host.k_proj_weight, host.v_proj_weight)
        )
        biases = [None] * 3 if host.in_proj_bias is None else host.in_proj_bias.chunk(3)
        q, k, v = (linear(w, b) for w, b in zip(weights, biases, strict=True))
        super().__init__(q, k, v, host.num_heads, host.head_dim**-0.5, host.dropout)
        self.out: nn.Linear = host.out_proj
        self.batch_first, self.num_heads, self.embed_dim = host.batch_first, host.num_heads, host.embed_dim
        # nn.TransformerEncoderLayer asks for these; the answers keep it off its fused kernel, which knows equal heads only
        self.in_proj_bias, self.in_proj_weight, self._qkv_same_embed_dim = None, None, False

    def forward(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, key_padding_mask: torch.Tensor | None = None,
        need_weights: bool = True, attn_mask: torch.Tensor | None = None, average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:  # fmt: skip
        """As `nn.MultiheadAttention.forward`; attention weights by head are not given. `is_causal` only hints at attn_mask."""
        if need_weights and not average_attn_weights:
            raise NotImplementedError("attention weights by head: expected average_attn_weights=True")
        q, k, v = query, key, value
        if not self.batch_first:  # dimension 0 of an unbatched input is its own −2
            q, k, v = (t.transpose(0, -2) for t in (q, k, v))
        q, k, v = self.q(q), self.k(k), self.v(v)
        mask = _merged_mask(attn_mask, key_padding_mask, self.num_heads, q)
        found = self.core(q, k, v, mask, need_weights)
        out = self.out(found[0] if need_weights else found)
        return out if self.batch_first else out.transpose(0, -2), found[1] if need_weights else None


# timm: one fused projection


def _timm_mask(mask: torch.Tensor | None, is_causal: bool, q: torch.Tensor) -> torch.Tensor | None:
    if not is_causal:
        return mask
    causal = torch.ones(q.shape[-2], q.shape[-2], dtype=torch.bool, device=q.device).tril()
    added = q.new_zeros(causal.shape).masked_fill(~causal, float("-inf"))
    if mask is None:
        return added
    return added + (q.new_zeros(mask.shape).masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else mask)


torch.fx.wrap("_timm_mask")

MASKS = (_merged_mask, _timm_mask)
"""What makes a mask; of the query it reads the shape."""


class FusedAttention(HeadAttention):
    """timm's `Attention`: one projection `qkv`, `proj`, and nothing that mixes the inner dimensions in between."""

    kind = "fused"
    alone = True

    def __init__(self, host: Any) -> None:
        for name in ("q_norm", "k_norm", "norm"):
            if not isinstance(getattr(host, name, nn.Identity()), nn.Identity):
                raise Unlike(f"its {name} mixes the dimensions of a head")
        if getattr(host, "gate", None) is not None:
            raise Unlike("its output is gated by another projection")
        heads = int(host.num_heads)
        if host.qkv.out_features != 3 * host.proj.in_features or host.proj.in_features % heads:
            raise Unlike("q, k and v are not of the same width")
        drop = getattr(host, "attn_drop", None)
        q, k, v = thirds(host.qkv)
        super().__init__(q, k, v, heads, float(host.scale), getattr(drop, "p", 0.0))
        self.out: nn.Linear = host.proj
        self.out_drop: nn.Module = getattr(host, "proj_drop", nn.Identity())

    def forward(self, x: torch.Tensor, attn_mask: torch.Tensor | None = None, is_causal: bool = False) -> torch.Tensor:
        """x (N, L, E) → (N, L, E); attn_mask as in timm: True takes part, or a float that is added."""
        q = self.q(x)
        core = self.core(q, self.k(x), self.v(x), _timm_mask(attn_mask, is_causal, q))
        out: torch.Tensor = self.out_drop(self.out(core))
        return out


# torchvision's Swin: windows that shift


class _Windows(nn.Module):
    """How an image (N, H, W, C) is cut into windows, and put together again."""

    def __init__(self, window: list[int], shift: list[int]) -> None:
        super().__init__()
        self.window, self.shift = list(window), list(shift)

    def _plan(self, x: torch.Tensor) -> tuple[list[int], list[int]]:
        """Padded height and width, and the shift of each: none along a side that one window covers."""
        padded = [-(-s // w) * w for s, w in zip(x.shape[1:3], self.window, strict=True)]
        return padded, [0 if w >= p else s for p, w, s in zip(padded, self.window, self.shift, strict=True)]


class _Split(_Windows):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, H, W, C) → (N · windows, T, C)."""
        (h, w), shift = self._plan(x)
        x = F.pad(x, (0, 0, 0, w - x.shape[2], 0, h - x.shape[1]))
        if any(shift):
            x = torch.roll(x, (-shift[0], -shift[1]), (1, 2))
        a, b = self.window
        x = x.view(x.shape[0], h // a, a, w // b, b, x.shape[3])
        return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, a * b, x.shape[5])


class _Join(_Windows):
    def forward(self, x: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        """(N · windows, T, C) → (N, H, W, C), `image` being what was split."""
        (h, w), shift = self._plan(image)
        a, b = self.window
        x = x.view(-1, h // a, w // b, a, b, x.shape[-1])
        x = x.permute(0, 1, 3, 2, 4, 5).reshape(-1, h, w, x.shape[-1])
        if any(shift):
            x = torch.roll(x, (shift[0], shift[1]), (1, 2))
        return x[:, : image.shape[1], : image.shape[2]].contiguous()


class _Shifted(_Windows):
    def forward(self, image: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """bias (1, heads, T, T) → (windows, heads, T, T): −100 between places that only the shift brought together."""
        (h, w), shift = self._plan(image)
        if not any(shift):
            return bias
        a, b = self.window
        region = bias.new_zeros(h, w)
        count = 0
        for rows in (slice(0, -a), slice(-a, -shift[0]), slice(-shift[0], None)):
            for columns in (slice(0, -b), slice(-b, -shift[1]), slice(-shift[1], None)):
                region[rows, columns] = count
                count += 1
        region = region.view(h // a, a, w // b, b).permute(0, 2, 1, 3).reshape(-1, a * b)
        apart = region.unsqueeze(1) != region.unsqueeze(2)
        return bias + bias.new_zeros(apart.shape).masked_fill(apart, -100.0).unsqueeze(1)


class WindowAttention(HeadAttention):
    """torchvision's `ShiftedWindowAttention` (Swin, first version)."""

    kind = "window"
    alone = True

    def __init__(self, host: Any) -> None:
        if hasattr(host, "logit_scale"):
            raise Unlike("cosine attention normalises the dimensions of a head together")
        heads = int(host.num_heads)
        q, k, v = thirds(host.qkv)
        super().__init__(q, k, v, heads, (q.out_features // heads) ** -0.5, host.attention_dropout)
        self.bias = PositionBias(host.relative_position_bias_table, host.relative_position_index)
        self.split, self.join = _Split(host.window_size, host.shift_size), _Join(host.window_size, host.shift_size)
        self.shifted = _Shifted(host.window_size, host.shift_size)
        self.out: nn.Linear = host.proj
        self.out_drop = nn.Dropout(host.dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, H, W, C) → the same."""
        windows = self.split(x)
        mask = self.shifted(x, self.bias())
        out = self.out_drop(self.out(self.core(self.q(windows), self.k(windows), self.v(windows), mask)))
        joined: torch.Tensor = self.join(out, x)
        return joined


# Hugging Face: three projections


_FUSED = (("qkv", "proj"), ("to_qkv", "merge"))
_NAMES = (("q_proj", "k_proj", "v_proj"), ("query", "key", "value"), ("q_lin", "k_lin", "v_lin"))
_OUT = ("o_proj", "out_proj", "out_lin")
_ALONE = ("MobileViTSelfAttention",)  # returns a tensor; what others declare is not always what they return
_HEADS = ("num_attention_heads", "num_heads", "n_heads")


class SplitAttention(HeadAttention):
    """Self-attention of a Hugging Face encoder: `hidden_states` and a mask in, a tuple out, or as `alone` says."""

    kind = "split"

    def __init__(self, host: Any) -> None:
        names = next((n for n in _NAMES if all(isinstance(getattr(host, x, None), nn.Linear) for x in n)), None)
        said = (getattr(where, h, None) for where in (host, getattr(host, "config", None)) for h in _HEADS)
        heads = next((int(h) for h in said if isinstance(h, int)), 0)
        if names is None or heads < 1:
            raise Unlike("it has no three linear projections and a number of heads")
        q, k, v = (getattr(host, n) for n in names)
        if not q.out_features == k.out_features or any(p.out_features % heads for p in (q, k, v)):
            raise Unlike("several heads share one key and value")
        if getattr(host, "is_decoder", False) or getattr(host, "is_causal", False):
            raise Unlike("causal attention of a decoder, which may keep keys and values between calls")
        scale = getattr(host, "scaling", None) or getattr(host, "scale", None) or (q.out_features // heads) ** -0.5
        dropout: Any = getattr(host, "dropout", None) or getattr(host, "attention_dropout", 0.0)
        super().__init__(q, k, v, heads, float(scale), float(getattr(dropout, "p", dropout)))
        out = next((o for o in _OUT if isinstance(getattr(host, o, None), nn.Linear)), None)
        self.out: nn.Module = nn.Identity() if out is None else getattr(host, out)
        if out is None:
            self.reader = "../output.dense"
        self.alone = type(host).__name__ in _ALONE

    def forward(self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None, **others: Any) -> Any:
        """hidden_states (N, L, E) → (N, L, E), or a pair with None; attention_mask to be broadcast to (N, heads, L, L)."""
        q, k, v = self.q(hidden_states), self.k(hidden_states), self.v(hidden_states)
        out = self.out(self.core(q, k, v, attention_mask))
        return out if self.alone else (out, None)


def _is_timm(module: nn.Module) -> bool:
    linears = all(isinstance(getattr(module, n, None), nn.Linear) for n in ("qkv", "proj"))
    return linears and isinstance(getattr(module, "scale", None), float) and hasattr(module, "num_heads")


def _is_window(module: nn.Module) -> bool:
    return type(module).__name__ in ("ShiftedWindowAttention", "ShiftedWindowAttentionV2") and _is_torchvision(module)


def _is_torchvision(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torchvision.")


def _is_transformers(module: nn.Module) -> bool:
    linears = any(all(isinstance(getattr(module, x, None), nn.Linear) for x in n) for n in _NAMES)
    return linears and type(module).__module__.startswith("transformers.")


def widths_of(module: nn.Module) -> tuple[int, int, bool] | None:
    """Of an attention, whether or not it has an equivalent: input width, output width, whether it returns a tensor alone.

    Of Hugging Face's and torchvision's, in which the dependency library would go round in circles; None for anything else.
    """
    for names in _FUSED if _is_torchvision(module) else ():
        first, last = (getattr(module, n, None) for n in names)
        if isinstance(first, nn.Linear) and isinstance(last, nn.Linear):
            return first.in_features, last.out_features, True
    if not _is_transformers(module):
        return None
    split = next(n for n in _NAMES if all(isinstance(getattr(module, x, None), nn.Linear) for x in n))
    out = next((o for o in _OUT if isinstance(getattr(module, o, None), nn.Linear)), split[2])
    return (
        int(getattr(module, split[0]).in_features),
        int(getattr(module, out).out_features),
        type(module).__name__ in _ALONE,
    )


_HOSTS: tuple[tuple[Callable[[nn.Module], bool], Callable[[Any], HeadAttention]], ...] = (
    (lambda m: type(m) is nn.MultiheadAttention, TorchAttention),
    (_is_window, WindowAttention),
    (_is_timm, FusedAttention),
    (_is_transformers, SplitAttention),
)


def is_attention(module: nn.Module) -> bool:
    """Whether it is of a kind that may have an equivalent."""
    return any(is_one(module) for is_one, _ in _HOSTS)


def equivalent_of(module: nn.Module) -> HeadAttention | None:
    """An equivalent attention that takes the module's tensors over, or None for what is no attention we know.

    Raises Unlike with the reason for a known kind in an unknown variant.
    """
    for is_one, make in _HOSTS:
        if is_one(module):
            made = make(module)
            return made.train(module.training)
    return None


def replace_attention_(model: nn.Module, names: Iterable[str]) -> nn.Module:
    """Put the equivalent in the place of each named attention; returns `model`. What is replaced already stays.

    Raises ArtifactError where no attention with an equivalent is found.
    """
    for name in names:
        try:
            module = model.get_submodule(name)
            made = module if isinstance(module, HeadAttention) else equivalent_of(module)
        except (AttributeError, Unlike):
            made = None
        if made is None:
            raise ArtifactError(f"expected an attention module {name!r} that can be replaced; the model has none")
        model.set_submodule(name, made)
    return model
