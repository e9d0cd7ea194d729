"""What is left of q·k should give the logits that all of it gave: the queries to aim for when inner dimensions went."""

from __future__ import annotations

from typing import Any

import torch

from cswap.data.text import unpadded
from cswap.recovery.base import Case
from cswap.structure.attention import HeadAttention

_DAMPING = 1e-6


def query_targets(case: Case) -> dict[str, torch.Tensor]:
    """By query projection that lost dimensions of heads that stay: a matrix (Q, Q') that makes its targets, float64.

    The kept keys k' of a head stay what they are, so the best queries for Σ_j (q·k_j − q'·k'_j)² over the keys j of a sample
    are q' = q·M, M = Cov(k, k') Cov(k')⁻¹: keys centred by sample, because softmax does not see what all logits of a query
    share. One pass of the original network over the samples that fit. Source: ours.
    """
    shrunk: dict[str, tuple[HeadAttention, torch.Tensor]] = {}
    for name, module in case.teacher.named_modules():
        kept = case.kept_of(f"{name}.q", "out") if isinstance(module, HeadAttention) else None
        if kept is not None and isinstance(module, HeadAttention):
            shrunk[name] = module, torch.from_numpy(kept)
    if not shrunk:
        return {}
    moments: dict[str, torch.Tensor] = {}
    handles = []
    tokens: list[torch.Tensor] = []
    for name, (module, _) in shrunk.items():

        def see(_m: Any, _args: Any, k: torch.Tensor, name: str = name) -> None:
            centred = _centred(k, tokens[-1]).double()
            moments[name] = moments.get(name, torch.zeros(())) + (centred.T @ centred).cpu()

        handles.append(module.k.register_forward_hook(see))
    try:
        with torch.no_grad():
            for chunk in case.chunks(case.fitting):
                tokens[:] = [chunk]
                case.teacher(chunk)
    finally:
        for handle in handles:
            handle.remove()
    return {
        f"{name}.q": _matrix(moments[name], module.core.qk_head.cpu(), kept) for name, (module, kept) in shrunk.items()
    }


def _centred(k: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
    """Keys (…, L, E) less their mean over the keys of each sample, as rows; of text without the padding, which no query sees."""
    if unpadded(k, inputs) is k:
        return (k - k.mean(-2, keepdim=True)).reshape(-1, k.shape[-1])
    seen = inputs[:, 1].unsqueeze(-1).to(k)
    return unpadded(k - (k * seen).sum(1, keepdim=True) / seen.sum(1, keepdim=True).clamp_min(1.0), inputs)


def _matrix(second: torch.Tensor, head: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """Blocks M of every head that keeps a dimension, at the columns of what it keeps."""
    whole = torch.zeros(len(head), len(kept), dtype=torch.float64)
    for h in sorted(set(head[kept].tolist())):
        own = torch.nonzero(head == h).flatten()
        columns = torch.nonzero(head[kept] == h).flatten()
        left = kept[columns]
        if len(left) == len(own):
            whole[own, columns] = 1.0
            continue
        inner = second[left][:, left]
        inner = inner + _DAMPING * inner.diagonal().mean().clamp_min(1e-12) * torch.eye(len(left)).double()
        whole[own.unsqueeze(1), columns.unsqueeze(0)] = torch.linalg.solve(inner, second[left][:, own]).T
    return whole
