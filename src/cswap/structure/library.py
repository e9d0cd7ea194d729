"""What Torch-Pruning's dependency graph says, as dimensions of ours; the only file that imports it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd

from cswap.errors import pass_on_out_of_memory
from cswap.structure.detectors import forward_of
from cswap.structure.groups import LeftOut, Slot
from cswap.structure.heads import Whole
from cswap.structure.joined import Dimension
from cswap.structure.layers import is_grouped, rule_of
from cswap.types import IntArray

_REFUSED = {
    "LN": "a LayerNorm mixes these channels, so a zero is not a removal",
    "GN": "a GroupNorm mixes these channels, so a zero is not a removal",
    "MHA": "nn.MultiheadAttention ties this width to all its heads",
    "LSTM": "an LSTM ties this width to its gates and its recurrence",
    "PARAMETER": "a parameter outside any known layer acts on these channels",
    "OUTPUT": "these channels are the model's output",
}
_MAPPED = ("CONCAT", "SPLIT", "RESHAPE", "UNBIND", "EXPAND", "SLICE")
LIBRARY = "the dependency library"
ROOTS = (_ConvNd, nn.Linear, nn.Embedding)


class Refused(Exception):
    """A group that is left out; the message is the reason."""


def traced(model: nn.Module, inputs: torch.Tensor) -> Any:
    """The dependency library's graph, or the error in one line where it cannot be built.

    Where it fails on how channels lie beyond one operation (it counts the parts of a split by who reads them, say), only what
    goes through that operation is lost.
    """
    from torch_pruning import DependencyGraph  # here: it brings timm and half of torchvision

    graph = DependencyGraph()
    with warnings.catch_warnings(), torch.enable_grad(), _glu_in_parts():
        warnings.simplefilter("ignore")
        try:
            return graph.build_dependency(
                model, example_inputs=(inputs,), forward_fn=lambda m, x: forward_of(m)(*x), verbose=False
            )
        except Exception as error:  # noqa: BLE001 — whatever it raises, chains are left to see
            pass_on_out_of_memory(error)
            said = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:160]}"
            frame = error.__traceback__
            while frame and frame.tb_frame.f_code.co_name != "update_index_mapping":
                frame = frame.tb_next
            return _mapped(graph) if frame else said


@contextmanager
def _glu_in_parts() -> Iterator[None]:
    """`F.glu` as the split and the product that it is: the library knows those, and sees that a gate and its value go together."""
    whole = F.glu

    def parts(input: torch.Tensor, dim: int = -1) -> torch.Tensor:
        value, gate = input.chunk(2, dim)
        return value * gate.sigmoid()

    F.glu = parts
    try:
        yield
    finally:
        F.glu = whole


def _mapped(graph: Any) -> Any:
    """The graph with index mappings made operation by operation; nothing goes through those that the library fails on."""
    from torch_pruning.dependency import index_mapping
    from torch_pruning.ops import OPTYPE

    updates = {kind: getattr(index_mapping, f"update_{kind.lower()}_index_mapping") for kind in _MAPPED}
    for node in graph.module2node.values():
        if node.type.name not in updates:
            continue
        try:
            updates[node.type.name](graph, node)
        except Exception as error:  # noqa: BLE001 — as above
            pass_on_out_of_memory(error)
            closed = _Closed(f"no way through a {node.type.name.lower()}: {type(error).__name__}: {str(error)[:100]}")
            for at in (node, *node.inputs, *node.outputs):
                for dep in at.dependencies:
                    if at is node or dep.target is node:
                        dep.index_mapping = [closed, None]
            node.type = OPTYPE.ELEMENTWISE  # every later walk makes the mappings of other kinds again
    return graph


@dataclass(frozen=True)
class _Closed:
    """An index mapping that nothing gets through."""

    why: str

    def __call__(self, indices: Any) -> Any:
        raise ValueError(self.why)


class _Steps(list[Any]):
    """A node's dependencies, in a graph whose walks are bounded: after a split the library may go round for ever."""

    def __init__(self, items: Any, left: list[int]) -> None:
        super().__init__(items)
        self.left = left

    def __iter__(self) -> Iterator[Any]:
        self.left[0] -= 1
        if self.left[0] < 0:
            raise RecursionError("it goes round in circles")
        return super().__iter__()


class _Mappings(list[Any]):
    """A dependency's index mappings, whose work is bounded too: channels that are flattened on every lap grow without end."""

    def __init__(self, items: Any, left: list[int]) -> None:
        super().__init__(items)
        self.left = left

    def __iter__(self) -> Iterator[Any]:
        return (m if m is None else self._counted(m) for m in super().__iter__())

    def _counted(self, mapping: Any) -> Any:
        def call(indices: Any) -> Any:
            mapped = mapping(indices)
            self.left[1] -= len(indices) + len(mapped)
            if self.left[1] < 0:
                raise RecursionError("it goes round in circles")
            return mapped

        return call


def dependency_groups(graph: Any, names: dict[nn.Module, str]) -> Iterator[Any]:
    """One dependency group for each dimension that a layer writes, or what could not be followed, with the reason."""
    seen: set[nn.Module] = set()
    nodes, left = list(graph.module2node.values()), [0, 0]
    most = 4 * len(nodes) + 2000  # steps of one walk; the most that was needed: 5.6 a node, in DenseNet-201
    a_channel, more = (
        8 * len(nodes) + 4000,
        10**6,
    )  # indices mapped; the most that was needed: 2,624 a channel, there too
    for node in nodes:
        for dependency in node.dependencies:
            dependency.index_mapping = _Mappings(dependency.index_mapping, left)
        node.dependencies = _Steps(node.dependencies, left)
    for module in [m for m in graph.module2node if isinstance(m, ROOTS)]:
        if module in seen or module not in names:
            continue
        pruner = graph.get_pruner_of_module(module)
        size = pruner.get_out_channels(module)
        left[:] = most, a_channel * size + more
        try:
            raw = graph.get_pruning_group(module, pruner.prune_out_channels, list(range(size)))
        except Exception as error:  # noqa: BLE001 — whatever it raises, this dimension is not understood
            pass_on_out_of_memory(error)
            if isinstance(error, RecursionError):
                # the walks after it go round in the same circle
                most, a_channel, more = min(most, len(nodes) + 500), 300, 20_000
            why = f"{LIBRARY} fails on it ({type(error).__name__}: {(str(error).splitlines() or [''])[0][:160]})"
            yield LeftOut(names[module], size, why)
            continue
        seen.update(_writers(raw))
        yield raw


def dimension_of(raw: Any, names: dict[nn.Module, str], shared: dict[str, str]) -> Dimension:
    """One dependency group as a dimension; a refusal is kept with it."""
    root, size = names[raw[0].dep.target.module], len(raw[0].idxs)
    blocks = tuple(
        (names[item.dep.target.module], _writes(raw, item), _indices(item.idxs), _indices(item.root_idxs))
        for item in raw
        if is_grouped(item.dep.target.module)
    )
    writers = tuple(dict.fromkeys(names[m] for m in _writers(raw) if m in names))
    try:
        slots = _slots(raw, names, shared, size)
        part = _gated_part(raw, slots)
        if part:
            slots, size = [replace(s, owner=s.owner % part) for s in slots], part
        return Dimension(root, size, tuple(slots), blocks, writers=writers)
    except Refused as reason:
        return Dimension(root, size, (), blocks, str(reason), writers)


def _indices(values: Any) -> IntArray:
    return np.asarray(values, dtype=np.int64)


def _writers(raw: Any) -> Iterator[nn.Module]:
    """The layers whose outputs a dependency group is about; not one that is narrower, and gates all of them."""
    for item in raw:
        module = item.dep.target.module
        if _writes(raw, item) and isinstance(module, ROOTS) and max(item.idxs, default=0) < width_of(module):
            yield module


def width_of(module: nn.Module) -> int:
    """Output channels of a layer of a kind in ROOTS."""
    rule = rule_of(module)
    if rule is None:  # a grouped transposed convolution
        return int(module.get_parameter("weight").shape[1]) * getattr(module, "groups", 1)
    tensor, dim = rule.out[0]
    return int(getattr(module, tensor).shape[dim])


def _writes(raw: Any, item: Any) -> bool:
    """Whether the item says what happens to a layer's outputs."""
    return bool(raw._DG.is_out_channel_pruning_fn(item.dep.handler))


def _slots(raw: Any, names: dict[nn.Module, str], shared: dict[str, str], size: int) -> list[Slot]:
    """Our slots of one dependency group; raises Refused with the reason."""
    slots: dict[tuple[str, str], Slot] = {}
    for item in raw:
        node = item.dep.target
        if node.type.name in _REFUSED:
            raise Refused(_REFUSED[node.type.name])
        module = node.module
        if isinstance(module, Whole):
            raise Refused("attention reads or writes this width as a whole")
        if module not in names:
            continue  # an operation without weights: add, cat, flatten, ...
        name = names[module]
        if name in shared:
            raise Refused(f"{name} and {shared[name]} share a weight")
        rule = rule_of(module)
        if is_grouped(module) and rule is not None:
            continue  # it acts on blocks of channels: `joined` makes its slots
        if rule is None:
            if any(True for _ in module.parameters(recurse=False)) or any(True for _ in module.buffers(recurse=False)):
                raise Refused(f"no rule to shrink {name} ({type(module).__name__})")
            continue
        if not rule.out:
            continue
        own = {n for n, _ in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))}
        if "weight" not in own and rule.mixes:
            raise Refused(f"the weight of {name} is computed (a parametrisation), not a parameter of its own")
        if rule.mixes:
            side, role = ("out", "producer") if _writes(raw, item) else ("in", "consumer")
        else:
            side, role = "out", "channelwise"
        slot = Slot(name, side, role, _indices(item.idxs), _indices(item.root_idxs))  # type: ignore[arg-type]
        tensor, dim = (rule.out if side == "out" else rule.inn)[0]
        width = module.get_parameter(tensor).shape[dim] if rule.mixes else None
        if width is not None and len(slot.positions) and slot.positions.max() >= width:
            raise Refused(f"{LIBRARY} loses these channels on the way to {name} (a split, slice or reshape)")
        if len(np.unique(slot.positions)) != len(slot.positions) or (
            len(slot.owner) and (slot.owner.min() < 0 or slot.owner.max() >= size)
        ):
            raise Refused(f"the channels of {name} are tied to several units at once")
        other = slots.get((name, side))
        if other is not None and not (
            np.array_equal(other.positions, slot.positions) and np.array_equal(other.owner, slot.owner)
        ):
            raise Refused(f"{name} meets these channels twice, in different places")
        slots[name, side] = slot
    return list(slots.values())


def _gated_part(raw: Any, slots: list[Slot]) -> int:
    """Width of the parts of a layer that is split in equal parts which meet again, as gate and up of a fused gated MLP; else 0.

    The dependency library follows one part only, so no reader owns the others: they are one unit with it.
    """
    splits = [item.dep.target.module for item in raw if item.dep.target.type.name == "SPLIT"]
    widths = {int(w) for s in splits for w in np.diff(s.offsets or [0])}
    read = [s.owner for s in slots if s.role == "consumer"]
    if len(widths) != 1 or not read:
        return 0
    part = widths.pop()
    return part if len(np.unique(np.concatenate(read) // part)) == 1 else 0
