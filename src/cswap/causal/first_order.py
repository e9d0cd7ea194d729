"""A cheap guess at effects: to first order, cutting a unit changes σ by −Σ a · ∂σ/∂a over what its consumers read.

Source: Molchanov et al. (2017, arXiv 1611.06440), the Taylor expansion at a = 0, kept by sample and with its sign.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from cswap.causal.cut import PlainEngine
from cswap.causal.layout import by_samples
from cswap.data.truth import Truth, moved
from cswap.errors import MethodError
from cswap.structure.groups import Group, Slot, consumers_of
from cswap.structure.layers import channel_dim
from cswap.tasks.base import smooth
from cswap.types import FloatArray, IntArray

_SAMPLES = 16  # a class: enough to put the classes in order


@dataclass(eq=False)
class Read:
    """What a layer read in one call, and what came back to it; `grad` is None where nothing did."""

    name: str
    value: torch.Tensor
    grad: torch.Tensor | None = None

    def _keep(self, grad: torch.Tensor) -> None:
        self.grad = grad.detach()


@contextlib.contextmanager
def read_inputs(net: nn.Module, modules: Iterable[str]) -> Iterator[list[Read]]:
    """Every input of these layers, in the order of the calls, with its gradient after a backward pass."""
    seen: list[Read] = []
    handles = []
    for name in modules:

        def hook(_m: nn.Module, args: tuple[Any, ...], name: str = name) -> tuple[Any, ...]:
            # a tensor of its own: the gradient that comes back through this layer, and through no other reader
            x = args[0].view_as(args[0]) if args[0].requires_grad else args[0].detach().clone().requires_grad_()
            read = Read(name, x.detach())
            x.register_hook(read._keep)
            seen.append(read)
            return (x, *args[1:])

        handles.append(net.get_submodule(name).register_forward_pre_hook(hook))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def unit_sums(
    net: nn.Module,
    groups: Sequence[Group],
    values: Iterable[tuple[str, torch.Tensor]],
    rows: int,
    dims: Mapping[str, int],
) -> dict[str, FloatArray]:
    """Sums over space and consumers of what lies at the units' places, by group (rows, size) float64.

    values: (name of a consumer in `net`, a tensor laid out like its input, of `rows` samples). dims: see `sample_dims`.
    """
    slots: dict[str, list[tuple[str, Slot]]] = {}
    for group in groups:
        for slot in group.consumers:
            slots.setdefault(slot.module, []).append((group.name, slot))
    sums = {g.name: np.zeros((rows, g.size)) for g in groups}
    for name, value in values:
        if name not in dims:
            raise MethodError(f"{name} is not called for every sample, so a unit's share of one sample is not known")
        at = value.movedim(channel_dim(net.get_submodule(name)), -1)
        by_position = by_samples(at, dims[name], rows).double().sum(1).cpu().numpy()
        for owner, slot in slots[name]:
            np.add.at(sums[owner].T, slot.owner, by_position[:, slot.positions].T)
    return sums


def batches(engine: PlainEngine, numbers: IntArray, passes: int = 1) -> Iterator[tuple[slice, torch.Tensor, Truth]]:
    """Samples `numbers` in batches: their place among the numbers, inputs (n, …) ready for the network, their targets.

    passes: how many forward and backward passes' memory a batch takes.
    """
    size = max(1, min(len(numbers), engine.memory // 4 // max(1, 3 * passes * engine.all_bytes)))
    calibration = engine.calibration
    for start in range(0, len(numbers), size):
        part = numbers[start : start + size]
        inputs = torch.cat([calibration.inputs(int(i), int(i) + 1) for i in part])
        targets = moved(calibration.truth(part), engine.device)
        yield slice(start, start + len(part)), engine._ready(inputs), targets


def first_order_batches(
    engine: PlainEngine, groups: Sequence[Group], numbers: IntArray
) -> Iterator[tuple[slice, dict[str, FloatArray]]]:
    """Estimated d of samples `numbers` under the cut of each unit, by batch and group: (n, size) float64.

    One forward and backward pass serves all groups, on the network as pruned so far. Ends early where the score has no
    gradient. Raises MethodError for what is not laid out by samples.
    """
    dims = engine.sample_dims(groups)
    for place, inputs, targets in batches(engine, numbers):
        with torch.enable_grad(), read_inputs(engine.net, consumers_of(groups)) as seen:
            score = smooth(engine.task)(engine.net(inputs), targets)
            if not score.requires_grad:
                return
            score.sum().backward()  # type: ignore[no-untyped-call]
        changes = ((r.name, -(r.value * r.grad)) for r in seen if r.grad is not None)
        yield place, unit_sums(engine.net, groups, changes, len(targets), dims)


def first_order_all(engine: PlainEngine, groups: Sequence[Group], numbers: IntArray) -> dict[str, FloatArray]:
    """Estimated d of samples `numbers` under the cut of each unit, by group: (N, size) float64.

    Zeros where the score has no gradient.
    """
    estimates = {g.name: np.zeros((len(numbers), g.size)) for g in groups}
    for place, changes in first_order_batches(engine, groups, numbers):
        for name, change in changes.items():
            estimates[name][place] = change
    return estimates


def first_order(engine: PlainEngine, group: Group, numbers: IntArray) -> FloatArray:
    """`first_order_all` of one group: (N, size) float64."""
    return first_order_all(engine, [group], numbers)[group.name]


def classes_in_order(engine: PlainEngine, group: Group) -> IntArray:
    """For each unit, class numbers from the one most likely to need it: by the estimate's t statistic, (size, K) int64.

    As they are numbered where no sample's share can be told.
    """
    targets = engine.calibration.targets
    classes = range(len(engine.calibration.classes))
    few = {k: np.flatnonzero(targets == k)[:_SAMPLES] for k in classes}
    try:
        estimates = first_order(engine, group, np.concatenate(list(few.values())))
    except MethodError:
        return np.tile(np.arange(len(few), dtype=np.int64), (group.size, 1))
    t = np.zeros((group.size, len(few)))
    start = 0
    for k, numbers in few.items():
        own = estimates[start : start + len(numbers)]
        start += len(numbers)
        spread = own.std(0, ddof=1) if len(own) > 1 else np.ones(group.size)
        t[:, k] = own.mean(0) / np.maximum(spread / max(1, len(own)) ** 0.5, 1e-12)
    return np.argsort(t, axis=1, kind="stable").astype(np.int64)
