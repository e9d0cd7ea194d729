"""`bias`: the mean of what was cut goes into the biases of the layers that read it."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from cswap.recovery.base import Case, step
from cswap.recovery.walk import Walk
from cswap.types import IntArray


@step("bias")
def bias(case: Case) -> None:
    """Add to every reader of removed units the mean, over samples and places, of what they gave it in the original network.

    A layer is linear, so that mean is the layer's own output on the mean input: padding, stride and borders are the
    layer's. Readers without a bias get it in the mean of the batch norm behind them, others are left with a note. Source:
    ours (the constant of a least-squares fit whose weights stay).
    """
    case.refuse_changed("bias")  # what was given back once would be given twice
    walk = Walk(case.teacher, case.chunks(), case.memory, case.device)
    for name in case.readers():
        inputs, outputs = case.kept_of(name, "in"), case.kept_of(name, "out")
        module: Any = case.teacher.get_submodule(name)
        if inputs is None or (isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) and module.groups > 1):
            continue
        if not case.linear(name):
            continue
        if not case.can_shift(name):
            case.note(
                f"{name} has neither a bias nor a batch norm known to be behind it: the mean of what was cut is not given back"
            )
            continue
        total, rows = torch.zeros(()), 0
        for x in walk.inputs(name):
            x = x.reshape(-1, x.shape[-1]) if isinstance(module, nn.Linear) else x  # samples need not come first
            total, rows = total + x.double().sum(0, keepdim=True).cpu(), rows + len(x)
        case.shift(name, mean_given(module, total / rows, inputs, outputs))
    case.note_products("bias")


def mean_given(module: Any, mean: torch.Tensor, inputs: IntArray, outputs: IntArray | None) -> torch.Tensor:
    """What a layer gives, on average over places, of mean inputs (1, …) that are not among `inputs`: (outputs,) float64."""
    alone = copy.deepcopy(module).double().cpu()
    with torch.no_grad():
        alone.weight.index_fill_(1, torch.from_numpy(inputs), 0.0)
        if alone.bias is not None:
            alone.bias.zero_()
        given: torch.Tensor = alone.forward(mean)  # a hook that looks has nothing to see here
    channels = (
        given.reshape(-1, given.shape[-1]).mean(0) if isinstance(module, nn.Linear) else given.flatten(2).mean((0, 2))
    )
    return channels if outputs is None else channels[torch.from_numpy(outputs)]
