"""The slow twin of the cut: deepcopy, zero the weights by hand, full forward, in float64. Shares no code with the engine."""

from __future__ import annotations

import copy

import torch
from torch import nn


def cut_scores(
    model: nn.Module, reads: list[tuple[str, list[int]]], inputs: torch.Tensor, targets: torch.Tensor
) -> torch.Tensor:
    """σ*: softmax probability of the label when the given input columns of the named layers are zero."""
    net = copy.deepcopy(model).double().eval()
    with torch.no_grad():
        for name, columns in reads:
            layer = net.get_submodule(name)
            for column in columns:
                layer.weight[:, column] = 0.0
        probabilities = torch.softmax(net(inputs.double()), dim=1)
    return torch.stack([row[t] for row, t in zip(probabilities, targets, strict=True)])
