"""How LRP goes through attention and layer norms, for which zennit has no rules: those of AttnLRP.

Achtibat et al. (2024, arXiv 2402.05602): a product of two activations gives each factor half, by share of what it adds up to;
a softmax goes by its first-order expansion, x · (R − s · ΣR); a norm over features hands relevance on as it comes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn

from cswap.structure.attention import HeadProduct, masked

_SMALL = 1e-6  # as zennit's ε
NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm)
"""Norms over features: their statistics are of one sample."""


class _Product(torch.autograd.Function):
    """a @ b."""

    @staticmethod
    def forward(ctx: Any, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        out = a @ b
        ctx.save_for_backward(a, b, out)
        return out

    @staticmethod
    def backward(ctx: Any, *relevance: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        a, b, out = ctx.saved_tensors
        share = relevance[0] / (2 * (out + torch.where(out >= 0, _SMALL, -_SMALL)))
        to_a, to_b = a * (share @ b.transpose(-2, -1)), b * (a.transpose(-2, -1) @ share)
        return to_a.sum_to_size(a.shape), to_b.sum_to_size(b.shape)


class _Softmax(torch.autograd.Function):
    """Over one dimension; what is masked, −inf, has no relevance."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, dim: int) -> torch.Tensor:
        out = x.softmax(dim)
        ctx.save_for_backward(x, out)
        ctx.dim = dim
        return out

    @staticmethod
    def backward(ctx: Any, *relevance: torch.Tensor) -> tuple[torch.Tensor, None]:
        x, out = ctx.saved_tensors
        given = relevance[0]
        back = x * (given - out * given.sum(ctx.dim, keepdim=True))
        return torch.where(x.isfinite(), back, torch.zeros_like(back)), None


class _Scaled(torch.autograd.Function):
    """x scaled by what does not depend on the input: all relevance is x's."""

    @staticmethod
    def forward(ctx: Any, first: Any, second: Any, divide: bool) -> torch.Tensor:
        ctx.of = [x.shape if needed else None for x, needed in zip((first, second), ctx.needs_input_grad, strict=False)]
        return first / second if divide else first * second  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, *relevance: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return (*(None if shape is None else relevance[0].sum_to_size(shape) for shape in ctx.of), None)


class _Handed(torch.autograd.Function):
    """y in x's place: relevance is handed on as it comes."""

    @staticmethod
    def forward(_ctx: Any, _x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return y.clone()

    @staticmethod
    def backward(_ctx: Any, *relevance: torch.Tensor) -> tuple[torch.Tensor, None]:
        return relevance[0], None


def product(a: torch.Tensor, b: torch.Tensor) -> Any:
    """a @ b."""
    return _Product.apply(a, b)


def scaled(first: Any, second: Any, divide: bool = False) -> Any:
    """first · second, or first / second: one of them does not depend on the input."""
    return _Scaled.apply(first, second, divide)


def softmax(x: torch.Tensor, dim: int = -1, **_more: Any) -> Any:
    """Softmax over one dimension."""
    return _Softmax.apply(x, dim)


class Normed(nn.Module):
    """A norm over features, with its rule."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: torch.Tensor) -> Any:
        with torch.no_grad():
            y = self.norm(x)
        return _Handed.apply(x, y)


class RelevantProduct(HeadProduct):
    """The product of the heads, with the rules of its parts; one is made of a HeadProduct, by `of`."""

    @classmethod
    def of(cls, core: HeadProduct) -> RelevantProduct:
        """The same module, which is used up."""
        made: Any = core
        made.scale, made.weight = core.weight, torch.ones_like(core.weight)
        made.__class__ = cls
        return made  # type: ignore[no-any-return]

    def forward(self, q: torch.Tensor, *others: Any, **more: Any) -> Any:
        return super().forward(scaled(q, self.scale), *others, **more)

    def _attend(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, weights: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        attended = softmax(masked(product(q, k.transpose(-2, -1)), mask))
        return product(attended, v), attended if weights else None


def ruled(node: fx.Node, name: str, changing: list[bool]) -> bool:
    """Put the rule of a product or a softmax that is called as a function in its place; False when there is none."""
    if name in ("matmul", "bmm") and changing == [True, True] and not node.kwargs:
        node.op, node.target = "call_function", product
        return True
    if name == "softmax" and len(node.all_input_nodes) == 1:
        node.op, node.target = "call_function", softmax
        return True
    return False
