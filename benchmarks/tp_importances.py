"""Torch-Pruning's importances as methods, to stand beside ours in one comparison: `tp_l2`, `tp_lamp`, `tp_taylor`, `tp_hessian`.

Imported by methods.py, methods_text.py and methods_dense.py. The scores are its own code's, with its defaults, on groups as cswap finds
them: every layer that writes, scales or reads a unit, with the function that Torch-Pruning would shrink it by. Channels of one unit
(a head's) are summed, as it sums what flattens to one channel. With `:global` all groups are ranked together by scores as they are, as its
pruner does. Gradients are of the calibration samples, in eval mode, of −log σ (classification: cross-entropy): of their mean, and for
`tp_hessian` one sample at a time, mended as in peers.py, which compares with its pruner on ResNet-18. A third mend: with gradients it sorts a
layer's channels without the units that they are of, which scores others behind a flatten; here they stay together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
import torch_pruning as tp
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch_pruning.pruner import function

from cswap.causal.cut import PlainEngine
from cswap.causal.first_order import batches
from cswap.data.calibration import CalibrationSet
from cswap.methods.options import Options
from cswap.methods.path import PruningPath
from cswap.methods.ranking import ranking_path
from cswap.methods.registry import register
from cswap.structure.groups import Group, Slot, Structure
from cswap.structure.layers import is_depthwise
from cswap.structure.surgery import prepared_copy
from cswap.tasks.base import Task, smooth
from cswap.types import FloatArray
from peers import HessianMended


class _Target(NamedTuple):
    module: nn.Module


class _Dependency(NamedTuple):
    """What importances read of a dependency of Torch-Pruning's."""

    target: _Target
    layer: nn.Module
    handler: Callable[..., Any]
    pruning_fn: Callable[..., Any]


class _Item(NamedTuple):
    """One layer of a group: channels, and the unit of each."""

    dep: _Dependency
    idxs: list[int]
    root_idxs: list[int]


class _Items(list[_Item]):
    """A group as Torch-Pruning's own: iterated in pairs, indexed with all three."""

    def __iter__(self) -> Iterator[Any]:
        return ((i.dep, i.idxs) for i in super().__iter__())


def shrinker(layer: nn.Module, slot: Slot) -> Callable[..., Any] | None:
    """The function of Torch-Pruning's that shrinks `layer` on the side of `slot`; None for what its importances do not look at."""
    out = slot.side == "out"
    if is_depthwise(layer):
        return function.prune_depthwise_conv_out_channels
    if isinstance(layer, nn.modules.conv._ConvNd):
        return function.prune_conv_out_channels if out else function.prune_conv_in_channels
    if isinstance(layer, nn.Linear):
        return function.prune_linear_out_channels if out else function.prune_linear_in_channels
    if isinstance(layer, _BatchNorm):
        return function.prune_batchnorm_out_channels
    return None


def as_theirs(model: nn.Module, group: Group) -> _Items:
    """A group of ours as one of Torch-Pruning's, its first producer first."""
    found = _Items()
    for slot in sorted(group.slots, key=lambda s: s.role != "producer"):
        layer = model.get_submodule(slot.module)
        if (how := shrinker(layer, slot)) is not None:
            order = np.argsort(slot.positions, kind="stable")  # it sorts the channels, and not their units with them
            places, units = slot.positions[order].tolist(), slot.owner[order].tolist()
            found.append(_Item(_Dependency(_Target(layer), layer, how, how), places, units))
    return found


def gradients(
    importance: Any, model: nn.Module, units: Structure, calibration: CalibrationSet, task: Task, **machine: Any
) -> nn.Module:
    """A network whose weights have the gradients that the importance reads."""
    engine = PlainEngine(model, units, calibration, task, **machine)
    net, numbers = engine.net.requires_grad_(True), np.arange(len(calibration))
    each = isinstance(importance, tp.importance.GroupHessianImportance)
    if each:
        importance.zero_grad()
    for part in [numbers[i : i + 1] for i in numbers] if each else [numbers]:
        net.zero_grad()
        for _, inputs, targets in batches(engine, part, passes=2):
            with torch.enable_grad():
                score = smooth(task)(net(inputs), targets)
                loss = -score.clamp_min(1e-12).log().sum() / len(part)
                loss.backward()  # type: ignore[no-untyped-call]
        if each:
            importance.accumulate_grad(net)
    return net


def scores_of(
    importance: Any, model: nn.Module, units: Structure, calibration: CalibrationSet, task: Task, **machine: Any
) -> dict[str, FloatArray]:
    """What `importance` says of every unit, by group (size,)."""
    if isinstance(importance, tp.importance.GroupTaylorImportance | tp.importance.GroupHessianImportance):
        net = gradients(importance, model, units, calibration, task, **machine)
    else:
        net = prepared_copy(model, units)
    scores = {}
    for group in units:
        theirs = as_theirs(net, group)
        found = importance(theirs).detach().double().cpu().numpy()
        # it divides by the mean over channels, where units may have several
        scores[group.name] = found[: group.size] * (1 if importance.normalizer == "lamp" else group.size / len(found))
    return scores


def _known(name: str, make: Callable[[], Any]) -> None:
    @register(name)
    def method(
        model: nn.Module, units: Structure, calibration: CalibrationSet, task: Task, *, options: Options = Options(),  # noqa: B008
        device: str = "cpu", memory: int = 4 << 30, **run: Any
    ) -> PruningPath:  # fmt: skip
        """Smallest importance first."""
        machine: dict[str, Any] = {"device": device, "memory": memory}
        scores = scores_of(make(), model, units, calibration, task, **machine)
        return ranking_path(
            model, units, calibration, task, scores, method=name, options=options, comparable=True, **machine, **run
        )


IMPORTANCES: dict[str, Callable[[], Any]] = {
    "tp_l2": tp.importance.GroupMagnitudeImportance,
    "tp_lamp": tp.importance.LAMPImportance,
    "tp_taylor": tp.importance.GroupTaylorImportance,
    "tp_hessian": HessianMended,
}
for _name, _make in IMPORTANCES.items():
    _known(_name, _make)
