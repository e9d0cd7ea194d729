"""The batch norm that takes a layer's outputs, and nothing else does: there a constant of the layer can be kept."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from cswap.errors import pass_on_out_of_memory
from cswap.structure.calls import call_counts
from cswap.structure.chains import WholeLayers


def norms_behind(net: nn.Module, inputs: torch.Tensor) -> dict[str, str]:
    """By layer the batch norm whose only input is the layer's output, as the graph of the network (torch.fx) has it.

    The norm subtracts the mean it keeps (which is tried), both are called once, nothing else reads the output, and the norm's
    channels are the layer's outputs. Empty where the network is no graph: what follows is not guessed.
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
        places = (2,) * (weight.dim() - 2)
        fits = weight.shape[0] == len(held) and (dims.get(layer) == 2 or not linear)
        if fits and _subtracts_its_mean(net.get_submodule(norm), places):
            found[layer] = norm
    return found


def _subtracts_its_mean(norm: nn.Module, places: tuple[int, ...]) -> bool:
    """Whether what is added to its inputs and to its mean alike leaves its outputs as they are, and to its inputs alone does not."""
    still: Any = copy.deepcopy(norm).eval().double()
    mean = still.running_mean
    g = torch.Generator().manual_seed(0)
    x, by = (torch.randn(n, len(mean), *places, generator=g).to(mean) for n in (4, 1))
    x = x + mean.view(1, -1, *(1 for _ in places))  # an activation behind the norm passes about half of it
    by = by.flatten(2).mean(2).view(1, -1, *(1 for _ in places)) if places else by
    try:
        with torch.no_grad():
            out, moved = still(x), still(x + by)
            mean.add_(by.flatten())
            both = still(x + by)
    except Exception as error:  # noqa: BLE001 — the user's own code, which may take other inputs
        pass_on_out_of_memory(error)
        return False
    if not isinstance(out, torch.Tensor) or out.shape != x.shape:
        return False
    scale = 1e-3 * float(out.abs().max()) + 1e-12
    return float((both - out).abs().max()) < scale < float((moved - out).abs().max())
