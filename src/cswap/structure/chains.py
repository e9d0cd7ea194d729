"""Dimensions that go from one layer straight to the next: what is left to see where the dependency library fails.

The library gives up on a whole network for one operation it does not understand (ShuffleNet's channel shuffle). Here a
layer's outputs are followed through operations that act on channels one by one; where every way ends in a layer's weights,
the dimension is nobody else's. Whatever meets an add, a concatenation or a reshape is not seen.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch.nn.modules.activation import Softmax, Softmax2d, Softmin
from torch.nn.modules.conv import _ConvNd
from torch.utils._pytree import tree_leaves

from cswap.errors import pass_on_out_of_memory
from cswap.structure.groups import Slot
from cswap.structure.joined import Dimension
from cswap.structure.layers import is_grouped, rule_of
from cswap.structure.recurrent import Recurrent

_ALIKE = {
    "relu", "relu6", "silu", "gelu", "sigmoid", "tanh", "hardswish", "hardsigmoid", "leaky_relu", "elu", "mish", "dropout",
    "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "interpolate", "mean", "contiguous",
}  # fmt: skip
_MAKERS = ("arange", "zeros", "ones", "full", "empty", "linspace")
_MIXING = (
    Softmax,
    Softmax2d,
    Softmin,
    nn.LogSoftmax,
    nn.Flatten,
    nn.Unflatten,
    nn.PixelShuffle,
    nn.PixelUnshuffle,
    nn.ChannelShuffle,
)


class WholeLayers(fx.Tracer):
    """Layers that have a shape rule, and modules that contain none (an activation, the embedding of tokens), stay whole."""

    def trace(self, *args: Any, **named: Any) -> fx.Graph:
        """The graph of a model. What it makes anew (`torch.arange(x.shape[1], device=x.device)`) is a node like any other."""
        plain = {name: getattr(torch, name) for name in _MAKERS}
        try:
            for name, make in plain.items():
                setattr(torch, name, self._noted(make))
            return super().trace(*args, **named)
        finally:
            for name, make in plain.items():
                setattr(torch, name, make)

    def _noted(self, make: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*args: Any, **named: Any) -> Any:
            if any(isinstance(x, fx.Proxy) for x in tree_leaves((args, named))):
                return self.create_proxy("call_function", make, args, named)
            return make(*args, **named)

        return noted

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        own = isinstance(m, Recurrent)  # loops over steps
        layers = (inner for inner in m.modules() if not isinstance(inner, nn.Embedding))
        whole = own or rule_of(m) is not None or not any(rule_of(layer) is not None for layer in layers)
        return whole or super().is_leaf_module(m, module_qualified_name)


def chains(model: nn.Module) -> list[Dimension]:
    """One dimension for each layer whose outputs are read by weights alone; empty where the model has no graph."""
    try:
        graph = WholeLayers().trace(model)
    except Exception as error:  # noqa: BLE001 — control flow that depends on values: nothing is seen
        pass_on_out_of_memory(error)
        return []
    calls: dict[str, list[fx.Node]] = {}
    for node in graph.nodes:
        if node.op == "call_module":
            calls.setdefault(str(node.target), []).append(node)
    found = []
    for name, nodes in calls.items():
        module = model.get_submodule(name)
        if len(nodes) == 1 and isinstance(module, _ConvNd | nn.Linear) and not is_grouped(module):
            rule = rule_of(module)
            slots = _followed(model, nodes[0], calls) if rule is not None and rule.mixes else None
            if slots:
                size = _out_of(module)
                found.append(Dimension(name, size, (_slot(name, "out", "producer", size), *slots)))
    return found


def _slot(name: str, side: Any, role: Any, size: int) -> Slot:
    every = np.arange(size, dtype=np.int64)
    return Slot(name, side, role, every, every)


def _followed(model: nn.Module, start: fx.Node, calls: dict[str, list[fx.Node]]) -> list[Slot] | None:
    """Slots behind a producer, or None where a way out of it cannot be followed to a weight."""
    size = _out_of(model.get_submodule(str(start.target)))
    slots: list[Slot] = []
    ways = [start]
    while ways:
        for user in ways.pop().users:
            if user.op == "call_module":
                name, module = str(user.target), model.get_submodule(str(user.target))
                rule = rule_of(module)
                if rule is None or not rule.out:
                    if not _acts_alike(module):
                        return None
                    ways.append(user)
                elif len(calls[name]) > 1 or is_grouped(module):
                    return None
                elif rule.mixes:
                    tensor, dim = rule.inn[0]
                    weight = dict(module.named_parameters(recurse=False)).get(tensor)
                    if weight is None or weight.shape[dim] != size:
                        return None  # a computed weight, or the product of an attention's heads
                    slots.append(_slot(name, "in", "consumer", size))
                else:
                    slots.append(_slot(name, "out", "channelwise", size))
                    ways.append(user)
            elif (
                user.op in ("call_function", "call_method") and _name(user) in _ALIKE and len(user.all_input_nodes) == 1
            ):
                ways.append(user)
            else:
                return None
    return slots


def _acts_alike(module: nn.Module) -> bool:
    """Whether a layer without a rule does the same with every channel: torch's activations, dropouts, pools."""
    known = type(module).__module__.startswith("torch.nn.") and not isinstance(module, _MIXING)
    return known and not any(True for _ in module.parameters())


def _out_of(module: nn.Module) -> int:
    rule = rule_of(module)
    assert rule is not None
    tensor, dim = rule.out[0]
    weight: torch.Tensor = module.get_parameter(tensor)
    return weight.shape[dim]


def _name(node: fx.Node) -> str:
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return name.rstrip("_")
