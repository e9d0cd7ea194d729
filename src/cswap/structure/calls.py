"""Which layers a forward pass calls, how often, and which reads which first-hand."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def call_counts(net: nn.Module, inputs: torch.Tensor) -> tuple[dict[str, int], dict[str, str]]:
    """How often each module is called, in order of the first call; and by layer the module that reads its output first-hand."""
    counts: dict[str, int] = {}
    follows: dict[str, str] = {}
    given: list[tuple[str, torch.Tensor]] = []
    handles = []
    for name, module in net.named_modules():
        if any(True for _ in module.children()):
            continue

        def before(_m: nn.Module, args: tuple[Any, ...], name: str = name) -> None:
            counts[name] = counts.get(name, 0) + 1
            if args and isinstance(args[0], torch.Tensor):
                follows.update({n: name for n, t in given if t is args[0] and n not in follows})

        def after(_m: nn.Module, _args: Any, out: Any, name: str = name) -> None:
            if isinstance(out, torch.Tensor):
                given.append((name, out))

        handles += [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
    try:
        with torch.no_grad():
            net(inputs)
    finally:
        for handle in handles:
            handle.remove()
    return counts, follows
