"""Networks made of a function and layers, and data that they learn in a moment."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import cswap


class Net(nn.Module):
    """Layers, and a function of them and the inputs."""

    def __init__(self, forward: Callable[[Any, torch.Tensor], torch.Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.how = forward
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.how(self, x)


def shifted(*shape: int, per_class: int = 8, classes: int = 3, dtype: torch.dtype = torch.float32) -> Any:
    generator, targets = torch.Generator().manual_seed(0), torch.arange(classes).repeat_interleave(per_class)
    x = torch.randn(len(targets), *shape, generator=generator) + 0.8 * targets.view(-1, *[1] * len(shape))
    return cswap.calibration_set(TensorDataset(x.to(dtype), targets), per_class)


def fitted(net: nn.Module, calibration: Any, steps: int = 60) -> nn.Module:
    torch.manual_seed(0)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.3)
    optimiser = torch.optim.Adam(net.parameters(), 0.02)
    for _ in range(steps):
        optimiser.zero_grad()
        F.cross_entropy(net(calibration.inputs(0, len(calibration))), torch.from_numpy(calibration.targets)).backward()
        optimiser.step()
    return net.eval()
