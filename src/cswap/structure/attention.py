"""Attention whose heads and inner dimensions can go one by one: the layers that take the place of a library's own.

Units of one attention, and where a cut acts (method.md, "Words"):

- `…q#heads`: whole heads. Cut: zero at the output projection's weights that read the head.
- `…q#qk3`: the inner dimensions of q·k of head 3, one group a head. Cut: zero in that dimension's product term.
- `…v#v3`: the inner dimensions of v of head 3. Cut: zero at the output projection's weights that read it.

Heads may end with different numbers of dimensions, so a dimension is tested and removed alone instead of together with
the dimension of that number in every other head, with which it has nothing in common. A head owns the positions of its
own dimensions too: whoever goes first takes them, and each is counted once. As every group keeps a unit, a head that is
left always has a dimension of each kind. `--only '*#heads'` or `--exclude '*#qk*'` choose among the kinds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from cswap.structure.layers import LayerRule

_ALIGNED = 8  # numbers: a GPU's memory-efficient kernels take rows at multiples of 16 bytes


def _aligned(t: torch.Tensor) -> bool:
    return not any(n % _ALIGNED for n in (t.shape[-1], t.storage_offset(), *t.stride()[:-1]))


@dataclass(frozen=True)
class _Part:
    """Heads of the same size, computed together. `places`: their numbers among the heads that are left."""

    heads: tuple[int, ...]
    places: tuple[int, ...]
    qk: int
    v: int


def _refit_product(product: HeadProduct) -> None:
    product.refit()


class HeadProduct(nn.Module):
    """softmax(q · kᵀ · scale + mask) · v, head by head; heads may have different numbers of inner dimensions.

    `weight` (Q,): the factor of each dimension of q·k, which is the ORIGINAL scale however many dimensions are left, or 0
    where the dimension is cut. `qk_head` (Q,), `v_head` (V,): the original number of the head each position belongs to.
    """

    layer_rule = LayerRule(
        out=(("v_head", 0),), inn=(("weight", 0), ("qk_head", 0)), mixes=True, refit=_refit_product, additive=True, channel=-1
    )  # fmt: skip
    weight: torch.Tensor
    qk_head: torch.Tensor
    v_head: torch.Tensor
    _qk_order: torch.Tensor | None
    _v_order: torch.Tensor | None
    _v_back: torch.Tensor | None

    def __init__(self, heads: int, qk: int, v: int, scale: float, dropout: float, like: torch.Tensor) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        number = torch.arange(heads, device=like.device)
        self.register_buffer("weight", torch.full((heads * qk,), scale, dtype=like.dtype, device=like.device))
        self.register_buffer("qk_head", number.repeat_interleave(qk))
        self.register_buffer("v_head", number.repeat_interleave(v))
        for name in ("_qk_order", "_v_order", "_v_back"):
            self.register_buffer(name, None, persistent=False)
        self.refit()

    def refit(self) -> None:
        """Put heads of the same size side by side, so that each size is one product."""
        qk_of, v_of = self.qk_head.tolist(), self.v_head.tolist()
        left = sorted(set(v_of))
        sizes: dict[tuple[int, int], list[int]] = {}
        for head in left:
            sizes.setdefault((qk_of.count(head), v_of.count(head)), []).append(head)
        self.parts = tuple(
            _Part(tuple(hs), tuple(left.index(h) for h in hs), qk, v) for (qk, v), hs in sizes.items()
        )  # fmt: skip
        order = [head for part in self.parts for head in part.heads]
        qk_order = [i for head in order for i, h in enumerate(qk_of) if h == head]
        v_order = [i for head in order for i, h in enumerate(v_of) if h == head]
        moved = torch.tensor(v_order, dtype=torch.int64, device=self.v_head.device)
        same_qk, same_v = qk_order == list(range(len(qk_of))), v_order == list(range(len(v_of)))
        self._qk_order = None if same_qk else torch.tensor(qk_order, dtype=torch.int64, device=self.v_head.device)
        self._v_order, self._v_back = (None, None) if same_v else (moved, moved.argsort())

    def forward(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None = None, weights: bool = False
    ) -> Any:
        """q (…, L, Q), k (…, S, Q), v (…, S, V) → (…, L, V); with `weights` also the mean attention (…, L, S).

        mask: to be broadcast to (…, heads, L, S); bool (True takes part) or a float that is added. Its heads are the
        original ones or those that are left. A first dimension that divides the batch repeats over it (windows).
        """
        q = q * self.weight
        if self._qk_order is not None:
            q, k = q.index_select(-1, self._qk_order), k.index_select(-1, self._qk_order)
        if self._v_order is not None:
            v = v.index_select(-1, self._v_order)
        folded = mask is not None and mask.dim() == 4 and mask.shape[0] not in (1, q.shape[0])
        if mask is not None and folded:
            windows = mask.shape[0]
            q, k, v = (t.reshape(-1, windows, *t.shape[1:]) for t in (q, k, v))
        outputs, attended, at_qk, at_v = [], [], 0, 0
        for part in self.parts:
            n = len(part.heads)
            own = slice(at_qk, at_qk + n * part.qk)
            qh, kh = _by_head(q[..., own], n), _by_head(k[..., own], n)
            vh = _by_head(v[..., at_v : at_v + n * part.v], n)
            at_qk, at_v = at_qk + n * part.qk, at_v + n * part.v
            out, a = self._attend(qh, kh, vh, self._mask_of(mask, part), weights)
            outputs.append(out.transpose(-3, -2).flatten(-2))
            attended += [] if a is None else [a.sum(-3)]
        result = outputs[0] if len(outputs) == 1 else torch.cat(outputs, -1)
        if self._v_back is not None:
            result = result.index_select(-1, self._v_back)
        result = result.flatten(0, 1) if folded else result
        return (result, sum(attended) / sum(len(p.heads) for p in self.parts)) if weights else result

    def _attend(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, weights: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """One part: (…, h, L, d) each; with `weights` also its attention (…, h, L, S)."""
        p = self.dropout if self.training else 0.0
        # what a GPU's fused kernels refuse goes by plain products
        if not weights and (not q.is_cuda or all(_aligned(t) for t in (q, k, v))):
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=p, scale=1.0), None
        attended = F.dropout(masked(q @ k.transpose(-2, -1), mask).softmax(-1), p)
        return attended @ v, attended if weights else None

    def _mask_of(self, mask: torch.Tensor | None, part: _Part) -> torch.Tensor | None:
        """The mask of a part's heads."""
        if mask is None or mask.dim() < 3 or mask.shape[-3] == 1 or len(part.heads) == mask.shape[-3]:
            return mask
        numbers = part.heads if mask.shape[-3] == self.heads else part.places
        return mask.index_select(-3, torch.tensor(numbers, device=mask.device))


def masked(scores: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Scores before the softmax; a mask is bool (True takes part), or is added."""
    if mask is None:
        return scores
    return scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask


def _by_head(x: torch.Tensor, heads: int) -> torch.Tensor:
    """(…, L, heads · d) → (…, heads, L, d)."""
    return x.reshape(*x.shape[:-1], heads, x.shape[-1] // heads).transpose(-3, -2)


def _unchanged(_module: nn.Module) -> None:
    """No attribute follows the shapes."""


class PositionBias(nn.Module):
    """A learned bias by relative position: table (offsets, heads) and index (T·T,) → (1, heads, T, T)."""

    layer_rule = LayerRule((("table", 1),), (("table", 1),), False, _unchanged)
    index: torch.Tensor

    def __init__(self, table: nn.Parameter, index: torch.Tensor) -> None:
        super().__init__()
        self.table = table
        self.register_buffer("index", index)

    def forward(self) -> torch.Tensor:
        """The bias of all heads that are left."""
        side = round(self.index.numel() ** 0.5)
        return self.table[self.index.flatten()].view(side, side, -1).permute(2, 0, 1).unsqueeze(0)


class HeadAttention(nn.Module):
    """What every equivalent attention has: projections `q`, `k`, `v`, and `core`, the product of the heads.

    `reader`: the linear layer that reads the heads, by its name from this module; "../x" starts at the parent.
    `bias`: a PositionBias of the heads, or None. `alone`: it returns a tensor, not a tuple.
    """

    kind = ""
    alone = False
    reader = "out"
    out: nn.Module

    def __init__(
        self, q: nn.Linear, k: nn.Linear, v: nn.Linear, heads: int, scale: float, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.q, self.k, self.v = q, k, v
        self.core = HeadProduct(
            heads, q.out_features // heads, v.out_features // heads, scale, dropout, q.weight.detach()
        )

    def reader_of(self, name: str) -> str:
        """The full name of the layer that reads the heads, `name` being this module's."""
        if not self.reader.startswith("../"):
            return f"{name}.{self.reader}"
        parent = name.rpartition(".")[0]
        return f"{parent}.{self.reader[3:]}" if parent else self.reader[3:]


def thirds(fused: nn.Linear) -> list[nn.Linear]:
    """q, k and v of a fused projection (3·E rows) as linear layers of their own."""
    bias = [None] * 3 if fused.bias is None else fused.bias.chunk(3)
    return [linear(w, b) for w, b in zip(fused.weight.chunk(3), bias, strict=True)]


def linear(weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Linear:
    """A linear layer that holds copies of these tensors."""
    made = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    made.weight = nn.Parameter(weight.detach().clone(), requires_grad=weight.requires_grad)
    if bias is not None:
        made.bias = nn.Parameter(bias.detach().clone(), requires_grad=bias.requires_grad)
    return made
