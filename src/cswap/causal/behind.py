"""The batch norm that takes a layer's outputs, and nothing else does: there a constant of the layer can be kept."""

from __future__ import annotations

import copy

import torch
from torch import nn

from cswap.errors import pass_on_out_of_memory
from cswap.structure.calls import call_counts
from cswap.structure.chains import WholeLayers


def norms_behind(net: nn.Module, inputs: torch.Tensor) -> dict[str, str]:
    """By layer the batch norm whose only input is the layer's output, as the graph of the network (torch.fx) has it.

    The norm keeps statistics, both are called once, nothing else reads the output, and the norm's channels are the layer's
    outputs. Empty where the network is no graph: what follows is not guessed.
    """
    counts, dims = call_counts(net, inputs)
    try:
        nodes = list(WholeLayers().trace(copy.deepcopy(net)).nodes)
    except Exception as error:  # noqa: BLE001 — tracing runs the model's own code on stand-ins, which may raise anything
        pass_on_out_of_memory(error)
        return {}
    found: dict[str, str] = {}
    for node in nodes:
        (before, *more) = node.all_input_nodes or [None]
        if node.op != "call_module" or before is None or more or before.op != "call_module" or len(before.users) != 1:
            continue
        layer, norm = str(before.target), str(node.target)
        held = getattr(net.get_submodule(norm), "running_mean", None)
        weight = getattr(net.get_submodule(layer), "weight", None)
        if counts.get(layer) != 1 or counts.get(norm) != 1 or not isinstance(held, torch.Tensor) or weight is None:
            continue
        linear = isinstance(net.get_submodule(layer), nn.Linear)
        if weight.shape[0] == len(held) and (dims.get(layer) == 2 or not linear):
            found[layer] = norm
    return found
