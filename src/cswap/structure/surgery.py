"""Shrinking: a map of kept indices per tensor dimension, applied to a module. Saving and loading use the same map."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import nn

from cswap.errors import ArtifactError
from cswap.structure.groups import Removed, Structure
from cswap.structure.layers import rule_of
from cswap.structure.replaced import replace_
from cswap.types import IntArray

KeptIndices = dict[str, dict[int, IntArray]]
"""Tensor name -> dimension -> ORIGINAL indices kept, ascending; only dimensions that shrink are listed."""


def count_params(model: nn.Module) -> int:
    """Number of parameters, shared ones once."""
    return sum(p.numel() for p in model.parameters())


def kept_indices(structure: Structure, removed: Removed) -> KeptIndices:
    """What stays of every tensor dimension when `removed` goes."""
    gone: dict[tuple[str, str], list[IntArray]] = {}
    for name, units in removed.items():
        for slot in structure[name].slots:
            positions = slot.of(units)
            if len(positions):
                gone.setdefault((slot.module, slot.side), []).append(positions)
    kept: KeptIndices = {}
    for (module, side), parts in gone.items():
        cost = structure.layers[module]
        left = np.setdiff1d(np.arange(cost.sides[side], dtype=np.int64), np.concatenate(parts))
        for tensor, dim in cost.axes[side]:
            kept.setdefault(f"{module}.{tensor}", {})[dim] = left
    return kept


def removed_by(structure: Structure, kept: KeptIndices) -> Removed:
    """The inverse of `kept_indices`: units of which no position is kept on some side, by group."""
    removed: Removed = {}
    for group in structure:
        gone: set[int] = set()
        for slot in group.slots:
            cost = structure.layers[slot.module]
            for tensor, dim in cost.axes[slot.side]:
                left = kept.get(f"{slot.module}.{tensor}", {}).get(dim)
                if left is not None:
                    gone.update(np.setdiff1d(slot.owner, slot.owner[np.isin(slot.positions, left)]).tolist())
        if gone:
            removed[group.name] = np.asarray(sorted(gone), dtype=np.int64)
    return removed


def shrink_in_place(model: nn.Module, kept: KeptIndices) -> nn.Module:
    """Slice the named tensors and let each layer's attributes follow; returns `model`.

    Raises ArtifactError when a name, a dimension or an index does not fit the model.
    """
    touched: dict[str, nn.Module] = {}
    for name, dims in kept.items():
        owner, _, tensor = name.rpartition(".")
        try:
            module = model.get_submodule(owner)
            old = getattr(module, tensor)
        except AttributeError:
            raise ArtifactError(f"the model has no tensor {name!r}, which should shrink") from None
        new = old.detach()
        for dim, index in sorted(dims.items()):
            if not (0 <= dim < new.dim() and len(index) and index.min() >= 0 and index.max() < new.shape[dim]):
                raise ArtifactError(
                    f"indices kept of {name!r}, dimension {dim}, do not fit its shape {tuple(old.shape)}"
                )
            new = new.index_select(dim, torch.from_numpy(index).to(new.device))
        if isinstance(old, nn.Parameter):
            setattr(module, tensor, nn.Parameter(new.clone(), requires_grad=old.requires_grad))
        else:
            setattr(module, tensor, new.clone())
        touched[owner] = module
    for owner, module in touched.items():
        rule = rule_of(module)
        if rule is None:
            raise ArtifactError(f"layer {owner!r} ({type(module).__name__}) cannot be shrunk")
        rule.refit(module)
    return model


def prepared_copy(model: nn.Module, structure: Structure) -> nn.Module:
    """A copy in which every layer the structure names is there: attention and recurrent modules are replaced."""
    return replace_(copy.deepcopy(model), structure.replaced)


def light_copy(model: nn.Module, structure: Structure) -> nn.Module:
    """As `prepared_copy`, but sharing every tensor with `model`: to be run, or written to after `own_consumers_`."""
    shared: dict[int, Any] = {id(t): t for t in (*model.parameters(), *model.buffers())}
    return replace_(copy.deepcopy(model, shared), structure.replaced)


def own_consumers_(model: nn.Module, structure: Structure, removed: Removed) -> nn.Module:
    """Give a light copy tensors of its own where `zero_cut_` writes; returns `model`."""
    for name in dict.fromkeys(s.module for g in removed for s in structure[g].consumers):
        (tensor, _), *_ = structure.layers[name].axes["in"]
        module = model.get_submodule(name)
        old = getattr(module, tensor)
        own = old.detach().clone()
        setattr(module, tensor, nn.Parameter(own, old.requires_grad) if isinstance(old, nn.Parameter) else own)
    return model


def pruned_copy(model: nn.Module, structure: Structure, removed: Removed) -> nn.Module:
    """A new, physically smaller module; `model` is untouched."""
    return shrink_in_place(prepared_copy(model, structure), kept_indices(structure, removed))


def zero_cut_(model: nn.Module, structure: Structure, removed: Removed) -> nn.Module:
    """`do(n)` on the weights of `model` itself: zero at every weight that reads a removed unit; returns `model`.

    `model` comes from `prepared_copy`, or the structure replaces nothing in it.
    """
    for name, units in removed.items():
        for slot in structure[name].consumers:
            positions = torch.from_numpy(slot.of(units))
            if len(positions):
                (tensor, dim), *_ = structure.layers[slot.module].axes["in"]
                weight: Any = getattr(model.get_submodule(slot.module), tensor)
                weight.data.index_fill_(dim, positions.to(weight.device, non_blocking=True), 0.0)
    return model


def masked_copy(model: nn.Module, structure: Structure, removed: Removed) -> nn.Module:
    """The same network with the removed units cut but not taken out; `model` is untouched."""
    return zero_cut_(prepared_copy(model, structure), structure, removed)
