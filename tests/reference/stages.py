"""How far two networks' outputs are from each other, and what moves them, by hand: float64, one sample or one output at a time."""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import nn

from cswap.types import FloatArray


def outputs_by_hand(model: nn.Module, inputs: torch.Tensor) -> FloatArray:
    """Logits less their mean, (n, K)."""
    net = copy.deepcopy(model).double().eval()
    with torch.no_grad():
        rows = [net(x.unsqueeze(0).double())[0] for x in inputs]
    return np.stack([(r - r.sum() / len(r)).numpy() for r in rows])


def away_by_hand(original: nn.Module, other: nn.Module, inputs: torch.Tensor) -> float:
    """The mean square of the difference as a share of the original's."""
    a, b = outputs_by_hand(original, inputs), outputs_by_hand(other, inputs)
    return sum(float((x - y) @ (x - y)) for x, y in zip(a, b, strict=True)) / sum(float(x @ x) for x in a)


def squared_gradients_by_hand(model: nn.Module, layer: str, inputs: torch.Tensor) -> FloatArray:
    """Σ over centred logits and places of the mean over samples of the squared gradient at the layer's outputs, (outputs,)."""
    net = copy.deepcopy(model).double().eval()
    total: torch.Tensor | float = 0.0
    for x in inputs:
        given: list[torch.Tensor] = []

        def keep(_m: nn.Module, _i: object, out: torch.Tensor, given: list[torch.Tensor] = given) -> torch.Tensor:
            given.append(out.detach().requires_grad_())
            return given[0]

        handle = net.get_submodule(layer).register_forward_hook(keep)
        z = net(x.unsqueeze(0).double())[0]
        handle.remove()
        for value in z - z.mean():
            (g,) = torch.autograd.grad(value, given[0], retain_graph=True)
            total = total + (g**2).reshape(g.shape[1], -1).sum(1)
    assert isinstance(total, torch.Tensor)
    return (total / len(inputs)).detach().numpy()
