"""How images lie in memory: channels last, which convolutions on a CPU like, where the network takes it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from cswap.errors import pass_on_out_of_memory


def laid(inputs: torch.Tensor, last: bool) -> torch.Tensor:
    """Images (N, C, H, W) with their channels last or not; other inputs as they are."""
    if inputs.dim() != 4:
        return inputs
    return inputs.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def takes_channels_last(net: nn.Module, inputs: torch.Tensor) -> bool:
    """Whether `net` runs on these images with their channels last: a `view` of a map as rows does not."""
    if inputs.dim() != 4:
        return False
    try:
        with torch.no_grad():
            net(laid(inputs, last=True))
    except RuntimeError as error:
        pass_on_out_of_memory(error)
        return False
    return True


class Fed:
    """A network that is given images with their channels last, until it does not take them so."""

    def __init__(self, net: Any) -> None:
        self.net, self.last = net, True

    def __call__(self, inputs: torch.Tensor) -> Any:
        if self.last and inputs.dim() == 4:
            try:
                return self.net(laid(inputs, last=True))
            except RuntimeError as error:
                pass_on_out_of_memory(error)
                self.last = False
        return self.net(laid(inputs, last=False))
