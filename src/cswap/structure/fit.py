"""Which networks can be taken apart at all."""

from __future__ import annotations

import copy

import torch
from torch import nn

from cswap.errors import StructureError, pass_on_out_of_memory


def copied(model: nn.Module) -> nn.Module:
    """A copy of a network that can be taken apart. Raises StructureError for one that cannot, and for one that has no copy."""
    refuse_unfit(model)
    try:
        return copy.deepcopy(model)
    except RuntimeError as error:
        pass_on_out_of_memory(error)
        raise StructureError(
            f"{type(model).__name__} cannot be copied ({str(error).splitlines()[0][:120]}); remove weight_norm and the "
            "like first (torch.nn.utils.remove_weight_norm)"
        ) from error


def refuse_unfit(model: nn.Module) -> None:
    """Raise StructureError for a network whose layers cannot be taken apart: scripted, compiled, quantised, of no layers."""
    kind = type(model).__name__
    for name, module in model.named_modules():
        at = f"its layer {name}" if name else "it"
        where = type(module).__module__
        if isinstance(module, torch.jit.ScriptModule):
            raise StructureError(
                f"{kind} cannot be pruned: {at} is scripted (torch.jit), so its layers cannot be taken apart; expected the "
                "nn.Module it was made from"
            )
        if where.startswith("torch._dynamo"):
            raise StructureError(
                f"{kind} cannot be pruned: {at} is compiled (torch.compile); expected the nn.Module it was made from"
            )
        if ".quantized" in where:
            raise StructureError(
                f"{kind} cannot be pruned: {at} is quantised ({type(module).__name__}), and packed weights cannot be sliced; "
                "expected the network in floating point: prune first, quantise then"
            )
    lazy = next((n for n, p in model.named_parameters() if isinstance(p, nn.parameter.UninitializedParameter)), None)
    if lazy is not None:
        raise StructureError(
            f"{kind} cannot be pruned: {lazy} has no shape yet; expected a lazy layer that has seen data, by one forward pass"
        )
    if not any(p.is_floating_point() for p in model.parameters()):
        raise StructureError(f"{kind} cannot be pruned: it has no parameters of a floating type")
