"""Which layers a forward pass calls, how often, and with what dimensions."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized
from torch.utils.hooks import RemovableHandle

from cswap.errors import DataError, pass_on_out_of_memory
from cswap.structure.layers import rule_of


def run_hooked(net: Callable[[torch.Tensor], Any], inputs: torch.Tensor, handles: Iterable[RemovableHandle]) -> None:
    """One pass without gradients; the hooks are taken off afterwards, also where it fails."""
    try:
        with torch.no_grad():
            net(inputs)
    finally:
        for handle in handles:
            handle.remove()


def largest_output(net: nn.Module, run: Callable[[torch.Tensor], Any], inputs: torch.Tensor) -> int:
    """Bytes of the largest tensor that a layer of `net` gives when `run`, which calls it, is given these inputs; 0 where none gives one."""
    sizes = [0]

    def see(_module: nn.Module, _inputs: Any, output: Any) -> None:
        if isinstance(output, torch.Tensor):
            sizes.append(output.numel() * output.element_size())

    run_hooked(run, inputs, [m.register_forward_hook(see) for m in net.modules()])
    return max(sizes)


def outputs_for(net: nn.Module, inputs: torch.Tensor) -> Any:
    """What the network gives. Raises DataError where it does not take these inputs."""
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            return net(inputs)
    except Exception as error:
        pass_on_out_of_memory(error)
        line = (str(error).splitlines() or [""])[0][:160]
        raise DataError(
            f"the model does not take inputs of shape {tuple(inputs.shape)} ({type(error).__name__}: {line})"
        ) from error


def is_layer(module: nn.Module) -> bool:
    """Whether a module is one layer: it has no parts, or is a layer that has some beside its weights (timm's norms with their activation)."""
    parts = any(True for _ in module.children())
    return not parts or (rule_of(module) is not None and not is_parametrized(module))


def call_counts(net: nn.Module, inputs: torch.Tensor) -> tuple[dict[str, int], dict[str, int]]:
    """By name of a layer: how often it is called, in order of the first call; and its output's dimensions."""
    counts: dict[str, int] = {}
    dims: dict[str, int] = {}
    handles = []
    for name, module in net.named_modules():
        if not is_layer(module):
            continue

        def note(_m: nn.Module, _args: Any, out: Any, name: str = name) -> None:
            counts[name] = counts.get(name, 0) + 1
            if isinstance(out, torch.Tensor):
                dims[name] = out.dim()

        # the order is that of the returns: a layer returns before the next one is called
        handles.append(module.register_forward_hook(note))
    run_hooked(net, inputs, handles)
    return counts, dims
