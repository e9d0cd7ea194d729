"""First consumers by difference: a linear layer without some inputs is its output minus what those inputs contribute."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

_CONV: dict[int, Any] = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}


def separable(module: nn.Module, node: fx.Node) -> bool:
    """Whether the layer's output is a sum over its inputs that can be taken apart here."""
    if len(node.args) != 1 or node.kwargs or not isinstance(node.args[0], fx.Node):
        return False
    if isinstance(module, nn.Linear):
        return True
    plain_conv = isinstance(module, _ConvNd) and not isinstance(module, _ConvTransposeNd)
    return bool(plain_conv and module.groups == 1 and module.padding_mode == "zeros")


def contribution(module: nn.Module, x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """What the inputs `index` add to the layer's output: W[:, index] · x[index], without bias."""
    weight: torch.Tensor = module.weight  # type: ignore[assignment]
    index = index.to(x.device, non_blocking=True)
    if isinstance(module, nn.Linear):
        return F.linear(x.index_select(-1, index), weight.index_select(1, index))
    conv: Any = module
    part, columns = x.index_select(1, index), weight.index_select(1, index)
    return _CONV[weight.dim()](part, columns, None, conv.stride, conv.padding, conv.dilation)  # type: ignore[no-any-return]


def subtract_(module: nn.Module, before: torch.Tensor, x: torch.Tensor, index: torch.Tensor, rows: int = 256) -> None:
    """before −= contribution, in place, a few rows at a time."""
    share = before.shape[0] // max(1, x.shape[0])
    for start in range(0, x.shape[0] if len(index) else 0, rows):
        part = x[start : start + rows]
        before[start * share : (start + len(part)) * share] -= contribution(module, part, index)


def by_difference(
    module: nn.Module, before: list[torch.Tensor], inputs: list[torch.Tensor], cuts: list[torch.Tensor]
) -> torch.Tensor:
    """The layer's outputs under cut sets, one after the other in a batch.

    before[i], inputs[i]: the layer's output and input on the samples of set i, without a cut; cuts[i]: input positions.
    A set that extends the one before it on the same samples starts from that one's result.
    """
    one_each = all(len(c) == 1 for c in cuts) and all(x is inputs[0] for x in inputs)
    if isinstance(module, nn.Linear) and one_each and len(cuts) > 1:
        index = torch.cat(cuts).to(inputs[0].device, non_blocking=True)
        taken = inputs[0].index_select(-1, index).movedim(-1, 0).unsqueeze(-1)  # (U, n, …, 1)
        columns = module.weight.index_select(1, index).t()  # (U, out)
        shaped = columns.view(len(cuts), *([1] * (taken.dim() - 2)), -1)
        return (before[0].unsqueeze(0) - taken * shaped).flatten(0, 1)
    if len(cuts) == 1:
        return before[0].clone() if not len(cuts[0]) else before[0] - contribution(module, inputs[0], cuts[0])
    rows = [b.shape[0] for b in before]
    last = before[0].dim() == 4 and before[0].is_contiguous(memory_format=torch.channels_last)
    result = torch.empty(
        (sum(rows), *before[0].shape[1:]), dtype=before[0].dtype, device=before[0].device,
        memory_format=torch.channels_last if last else torch.contiguous_format,
    )  # fmt: skip
    start, previous = 0, None
    for i, index in enumerate(cuts):
        place = result[start : start + rows[i]]
        grows = previous is not None and inputs[i] is inputs[i - 1] and _extends(index, cuts[i - 1])
        base, new = (previous, index[len(cuts[i - 1]) :]) if grows and previous is not None else (before[i], index)
        if len(new):
            torch.sub(base, contribution(module, inputs[i], new), out=place)
        else:
            place.copy_(base)
        start, previous = start + rows[i], place
    return result


def _extends(index: torch.Tensor, shorter: torch.Tensor) -> bool:
    return 0 < len(shorter) <= len(index) and torch.equal(index[: len(shorter)], shorter)
