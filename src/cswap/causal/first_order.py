"""A cheap guess at effects: to first order, cutting a unit changes σ by −Σ a · ∂σ/∂a over what its consumers read.

Source: Molchanov et al. (2017, arXiv 1611.06440), the Taylor expansion at a = 0, kept by sample and with its sign.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from cswap.causal.cut import PlainEngine
from cswap.structure.groups import Group
from cswap.structure.layers import channel_dim
from cswap.types import FloatArray, IntArray

_SAMPLES = 16  # a class: enough to put the classes in order


@contextlib.contextmanager
def _read_inputs(net: nn.Module, modules: list[str]) -> Iterator[list[tuple[str, torch.Tensor]]]:
    """Every consumer's input, as a tensor of its own that keeps its gradient."""
    seen: list[tuple[str, torch.Tensor]] = []
    handles = []
    for name in modules:

        def hook(_m: nn.Module, args: tuple[Any, ...], name: str = name) -> tuple[Any, ...]:
            x = args[0].view_as(args[0]) if args[0].requires_grad else args[0].detach().clone().requires_grad_()
            x.retain_grad()
            seen.append((name, x))
            return (x, *args[1:])

        handles.append(net.get_submodule(name).register_forward_pre_hook(hook))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def first_order(engine: PlainEngine, group: Group, numbers: IntArray) -> FloatArray:
    """Estimated d of samples `numbers` under the cut of each unit: (N, size) float64, on the network as pruned so far.

    Zeros where the score has no gradient.
    """
    slots = {s.module: s for s in group.consumers}
    estimates = np.zeros((len(numbers), group.size))
    size = max(1, min(len(numbers), engine.memory // 4 // max(1, 3 * engine.all_bytes)))
    calibration = engine.calibration
    for start in range(0, len(numbers), size):
        part = numbers[start : start + size]
        inputs = engine._ready(torch.cat([calibration.inputs(int(i), int(i) + 1) for i in part]))
        targets = torch.from_numpy(calibration.targets[part]).to(engine.device)
        with torch.enable_grad(), _read_inputs(engine.net, list(slots)) as seen:
            score = engine.task.score(engine.net(inputs), targets)
            if not score.requires_grad:
                return estimates
            score.sum().backward()  # type: ignore[no-untyped-call]
        for name, x in seen:
            assert x.grad is not None
            change = -(x.detach() * x.grad).movedim(channel_dim(engine.net.get_submodule(name)), -1)
            by_position = change.reshape(len(part), -1, change.shape[-1]).double().sum(1).cpu().numpy()
            slot = slots[name]
            for column, unit in zip(slot.positions.tolist(), slot.owner.tolist(), strict=True):
                estimates[start : start + size, unit] += by_position[:, column]
    return estimates


def classes_in_order(engine: PlainEngine, group: Group) -> IntArray:
    """For each unit, class numbers from the one most likely to need it: by the estimate's t statistic, (size, K) int64."""
    targets = engine.calibration.targets
    classes = range(len(engine.calibration.classes))
    few = {k: np.flatnonzero(targets == k)[:_SAMPLES] for k in classes}
    estimates = first_order(engine, group, np.concatenate(list(few.values())))
    t = np.zeros((group.size, len(few)))
    start = 0
    for k, numbers in few.items():
        own = estimates[start : start + len(numbers)]
        start += len(numbers)
        spread = own.std(0, ddof=1) if len(own) > 1 else np.ones(group.size)
        t[:, k] = own.mean(0) / np.maximum(spread / max(1, len(own)) ** 0.5, 1e-12)
    return np.argsort(t, axis=1, kind="stable").astype(np.int64)
