"""Finding units and groups through Torch-Pruning's dependency graph; the only file that imports it."""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch_pruning as tp
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.conv import _ConvNd
from torch.utils.flop_counter import FlopCounterMode

from cswap.errors import StructureError
from cswap.structure.chains import chains
from cswap.structure.check import agreement, random_half, randomise_
from cswap.structure.detectors import forward_of
from cswap.structure.fit import refuse_unfit
from cswap.structure.groups import Group, LayerCost, LeftOut, Slot, Structure
from cswap.structure.heads import Whole, attention_of, head_groups, names_in, with_whole_heads
from cswap.structure.joined import Dimension, Grouped, joined
from cswap.structure.layers import is_grouped, rule_of
from cswap.structure.recurrent import replace_recurrent_, step_by_step, why_not
from cswap.structure.replaced import replace_
from cswap.structure.standins import recurrent_of, with_recurrence, with_stand_ins
from cswap.structure.surgery import count_params
from cswap.types import IntArray

_OPS = tp.ops.OPTYPE
_REFUSED = {
    _OPS.LN: "a LayerNorm mixes these channels, so a zero is not a removal",
    _OPS.GN: "a GroupNorm mixes these channels, so a zero is not a removal",
    _OPS.MHA: "nn.MultiheadAttention ties this width to all its heads",
    _OPS.LSTM: "an LSTM ties this width to its gates and its recurrence",
    _OPS.PARAMETER: "a parameter outside any known layer acts on these channels",
    _OPS.OUTPUT: "these channels are the model's output",
}
_ROOTS = (_ConvNd, nn.Linear, nn.Embedding)


class _Refused(Exception):
    """A group that is left out; the message is the reason."""


@contextlib.contextmanager
def untouched_rng() -> Iterator[None]:
    """Leave torch's global random state as it was."""
    with torch.random.fork_rng(devices=[]):
        yield


def macs_of(model: nn.Module, inputs: torch.Tensor) -> tuple[int, dict[str, int]]:
    """Multiply-accumulates of one sample, in all and by module name, by torch's own counter (which counts two each).

    What torch computes by a fused kernel the counter cannot see; so recurrent modules are counted by their equivalents.
    """
    hosts = [n for n, m in model.named_modules() if n and isinstance(m, nn.RNNBase) and why_not(m) is None]
    if hosts:
        with contextlib.suppress(TypeError):  # it packs its sequences, or gives them a first state
            return _counted(replace_recurrent_(copy.deepcopy(model), hosts), inputs)
    return _counted(model, inputs)


def _counted(model: nn.Module, inputs: torch.Tensor) -> tuple[int, dict[str, int]]:
    counter = FlopCounterMode(display=False)
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # fused attention kernels are invisible to the counter
    try:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), step_by_step(), counter:
            model(inputs[:1])
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    counts = counter.get_flop_counts()
    root = type(model).__name__
    by_module = {
        str(name)[len(root) + 1 :]: sum(flops.values()) // 2
        for name, flops in counts.items()
        if str(name).startswith(root + ".")
    }
    return counter.get_total_flops() // 2, by_module


def _call_order(model: nn.Module, inputs: torch.Tensor) -> dict[str, int]:
    """Position of each leaf module's first call in the forward pass."""
    order: dict[str, int] = {}
    handles = []
    for name, module in model.named_modules():
        if not any(True for _ in module.children()):

            def note(_m: nn.Module, _i: Any, name: str = name) -> None:
                order.setdefault(name, len(order))

            handles.append(module.register_forward_pre_hook(note))
    with torch.no_grad():
        forward_of(model)(inputs)
    for handle in handles:
        handle.remove()
    return order


def _dimension(raw: Any, names: dict[nn.Module, str], shared: dict[str, str]) -> Dimension:
    """One dependency group as a dimension; a refusal is kept with it."""
    root, size = names[raw[0].dep.target.module], len(raw[0].idxs)
    blocks = tuple(
        (names[item.dep.target.module], _writes(raw, item), _indices(item.idxs), _indices(item.root_idxs))
        for item in raw
        if is_grouped(item.dep.target.module)
    )
    try:
        slots = _slots(raw, names, shared, size)
        part = _gated_part(raw, slots)
        if part:
            slots, size = [replace(s, owner=s.owner % part) for s in slots], part
        return Dimension(root, size, tuple(slots), blocks)
    except _Refused as reason:
        return Dimension(root, size, (), blocks, str(reason))


def _indices(values: Any) -> IntArray:
    return np.asarray(values, dtype=np.int64)


def _writes(raw: Any, item: Any) -> bool:
    """Whether the item says what happens to a layer's outputs."""
    return bool(raw._DG.is_out_channel_pruning_fn(item.dep.handler))


def _slots(raw: Any, names: dict[nn.Module, str], shared: dict[str, str], size: int) -> list[Slot]:
    """Our slots of one dependency group; raises _Refused with the reason."""
    slots: dict[tuple[str, str], Slot] = {}
    for item in raw:
        node = item.dep.target
        if node.type in _REFUSED:
            raise _Refused(_REFUSED[node.type])
        module = node.module
        if isinstance(module, Whole):
            raise _Refused("attention reads or writes this width as a whole")
        if module not in names:
            continue  # an operation without weights: add, cat, flatten, ...
        name = names[module]
        if name in shared:
            raise _Refused(f"{name} and {shared[name]} share a weight")
        rule = rule_of(module)
        if is_grouped(module) and rule is not None:
            continue  # it acts on blocks of channels: `joined` makes its slots
        if rule is None:
            if any(True for _ in module.parameters(recurse=False)) or any(True for _ in module.buffers(recurse=False)):
                raise _Refused(f"no rule to shrink {name} ({type(module).__name__})")
            continue
        if not rule.out:
            continue
        own = {n for n, _ in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))}
        if "weight" not in own and rule.mixes:
            raise _Refused(f"the weight of {name} is computed (a parametrisation), not a parameter of its own")
        if rule.mixes:
            side, role = ("out", "producer") if _writes(raw, item) else ("in", "consumer")
        else:
            side, role = "out", "channelwise"
        slot = Slot(name, side, role, _indices(item.idxs), _indices(item.root_idxs))  # type: ignore[arg-type]
        tensor, dim = (rule.out if side == "out" else rule.inn)[0]
        width = module.get_parameter(tensor).shape[dim] if rule.mixes else None
        if width is not None and len(slot.positions) and slot.positions.max() >= width:
            raise _Refused(
                f"the dependency library loses these channels on the way to {name} (a split, slice or reshape)"
            )
        if len(np.unique(slot.positions)) != len(slot.positions) or (
            len(slot.owner) and (slot.owner.min() < 0 or slot.owner.max() >= size)
        ):
            raise _Refused(f"the channels of {name} are tied to several units at once")
        other = slots.get((name, side))
        if other is not None and not (
            np.array_equal(other.positions, slot.positions) and np.array_equal(other.owner, slot.owner)
        ):
            raise _Refused(f"{name} meets these channels twice, in different places")
        slots[name, side] = slot
    return list(slots.values())


def _gated_part(raw: Any, slots: list[Slot]) -> int:
    """Width of the parts of a layer that is split in equal parts which meet again, as gate and up of a fused gated MLP; else 0.

    The dependency library follows one part only, so no reader owns the others: they are one unit with it.
    """
    splits = [item.dep.target.module for item in raw if item.dep.target.type == _OPS.SPLIT]
    widths = {int(w) for s in splits for w in np.diff(s.offsets or [0])}
    read = [s.owner for s in slots if s.role == "consumer"]
    if len(widths) != 1 or not read:
        return 0
    part = widths.pop()
    return part if len(np.unique(np.concatenate(read) // part)) == 1 else 0


def _group_of(dimension: Dimension, model: nn.Module, order: dict[str, int]) -> Group:
    if dimension.refused:
        raise _Refused(dimension.refused)
    slots = sorted(
        with_recurrence(list(dimension.slots), model), key=lambda s: (order.get(s.module, len(order)), s.side == "out")
    )
    producers = [s for s in slots if s.role == "producer"]
    if not any(s.role == "consumer" for s in slots):
        raise _Refused("no weight reads these channels: they are the model's output")
    if not producers:
        raise _Refused("no weight writes these channels: they are the model's input")
    first = producers[0]
    if len(np.unique(first.owner)) != dimension.size:
        first = next((s for s in producers if s.module == dimension.root), first)
    if dimension.size < 2:
        raise _Refused("it has a single unit, and a group keeps at least one")
    return Group(first.module, dimension.size, tuple(slots))


def _trace(model: nn.Module, inputs: torch.Tensor) -> Any:
    """The dependency library's graph, or the error in one line where it cannot be built."""
    with warnings.catch_warnings(), torch.enable_grad():
        warnings.simplefilter("ignore")
        try:
            return tp.DependencyGraph().build_dependency(
                model, example_inputs=(inputs,), forward_fn=lambda m, x: forward_of(m)(*x), verbose=False
            )
        except Exception as error:  # noqa: BLE001 — whatever it raises, chains are left to see
            return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:160]}"


def _layer_costs(model: nn.Module, groups: list[Group], macs: dict[str, int]) -> dict[str, LayerCost]:
    layers: dict[str, LayerCost] = {}
    for name in dict.fromkeys(s.module for g in groups for s in g.slots):
        module = model.get_submodule(name)
        rule = rule_of(module)
        assert rule is not None
        own = {n: tuple(p.shape) for n, p in module.named_parameters(recurse=False)}
        shapes = own | {n: tuple(b.shape) for n, b in module.named_buffers(recurse=False)}
        sides = {"out": rule.out, "in": rule.inn} if rule.mixes and rule.inn else {"out": rule.out}
        axes = {side: tuple(a for a in pairs if a[0] in shapes) for side, pairs in sides.items()}
        sizes = {side: shapes[pairs[0][0]][pairs[0][1]] for side, pairs in axes.items()}
        layers[name] = LayerCost(own, macs.get(name, 0), sizes, axes, rule.additive)
    return layers


def _disjoint(groups: list[Group], left_out: list[LeftOut]) -> list[Group]:
    """Keep groups whose positions no earlier one owns: two owners of one channel cannot both be right."""
    owned: dict[tuple[str, str], set[int]] = {}
    kept: list[Group] = []
    for group in groups:
        clash = next((s for s in group.slots if owned.get((s.module, s.side), set()) & set(s.positions.tolist())), None)
        if clash is not None:
            left_out.append(LeftOut(group.name, group.size, f"channels of {clash.module} belong to another group too"))
            continue
        for s in group.slots:
            owned.setdefault((s.module, s.side), set()).update(s.positions.tolist())
        same = sum(g.name.split("#")[0] == group.name for g in kept)
        kept.append(Group(f"{group.name}#{same + 1}", group.size, group.slots) if same else group)
    return kept


def discover(model: nn.Module, inputs: torch.Tensor, *, verify: bool = True, seed: int = 0) -> Structure:
    """Units and groups of `model`, from the output to the input, verified on a randomised copy.

    inputs: (N, …) example input, N ≥ 1. `model` and the global random state are untouched. With `verify`, a random half
    of all groups is removed from a randomised copy, and every group whose masked and pruned networks disagree is left
    out with that reason. Raises StructureError for a network that cannot be taken apart at all.
    """
    refuse_unfit(model)
    inputs = inputs.detach()[:2].cpu().float() if inputs.is_floating_point() else inputs.detach()[:2].cpu()
    with untouched_rng():
        try:
            work = copy.deepcopy(model).cpu().float().eval()
        except RuntimeError as error:
            raise StructureError(
                f"{type(model).__name__} cannot be copied ({str(error).splitlines()[0][:120]}); remove weight_norm and the "
                "like first (torch.nn.utils.remove_weight_norm)"
            ) from error
        for p in work.parameters():
            p.requires_grad_(p.is_floating_point())
        heads, unlike = attention_of(work, inputs, seed)
        replace_(work, heads)
        steps, others = recurrent_of(work, inputs, seed)
        replace_(work, steps)
        replaced, unlike = heads | steps, [*unlike, *others]
        order = _call_order(work, inputs)
        total_macs, macs = macs_of(work, inputs)
        traced = with_stand_ins(with_whole_heads(work, heads))
        graph = _trace(traced, inputs)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the library's own, of what it does not follow: left out below
            groups, left_out = _collect(graph, names_in(traced), work, order)
        groups += head_groups(work, heads)
        groups.sort(key=lambda g: _place(g, order), reverse=True)
        structure = Structure(
            tuple(groups), (*left_out, *unlike), _uncalled(work, order), _layer_costs(work, groups, macs),
            count_params(work), total_macs, tuple(inputs.shape[1:]), replaced,
        )  # fmt: skip
        return _verified(work, structure, inputs, seed) if verify and groups else structure


def _dependency_groups(graph: Any, names: dict[nn.Module, str]) -> Iterator[Any]:
    """One dependency group for each dimension that a layer writes, or what could not be followed, with the reason."""
    seen: set[nn.Module] = set()
    for module in [m for m in graph.module2node if isinstance(m, _ROOTS)]:
        if module in seen or module not in names:
            continue
        pruner = graph.get_pruner_of_module(module)
        size = pruner.get_out_channels(module)
        try:
            raw = graph.get_pruning_group(module, pruner.prune_out_channels, list(range(size)))
        except Exception as error:  # noqa: BLE001 — whatever it raises, this dimension is not understood
            why = f"the dependency library fails on it ({type(error).__name__}: {error})"
            yield LeftOut(names[module], size, why)
            continue
        seen.update(
            item.dep.target.module for item in raw if _writes(raw, item) and isinstance(item.dep.target.module, _ROOTS)
        )
        yield raw


def _collect(
    graph: Any, names: dict[nn.Module, str], model: nn.Module, order: dict[str, int]
) -> tuple[list[Group], list[LeftOut]]:
    shared = _shared(model)
    dimensions: list[Dimension] = []
    left_out: list[LeftOut] = []
    if isinstance(graph, str):
        why = f"the dependency library fails on this network ({graph}): only what goes straight from layer to layer is seen"
        dimensions = [d for d in chains(model) if not any(s.module in shared for s in d.slots)]
        left_out = [LeftOut(n, w, why) for n, w in _unseen(model, dimensions, order)]
    else:
        for raw in _dependency_groups(graph, names):
            if isinstance(raw, LeftOut):
                left_out.append(raw)
            elif not (isinstance(first := raw[0].dep.target.module, Whole) and first.read):  # else its heads are groups
                dimensions.append(_dimension(raw, names, shared))
    convs = {
        n: Grouped(m.in_channels // m.groups, m.out_channels // m.groups, m.groups)
        for m, n in names.items()
        if isinstance(m, _ConvNd) and is_grouped(m)
    }
    groups: list[Group] = []
    for dimension in joined(dimensions, convs):
        try:
            groups.append(_group_of(dimension, model, order))
        except _Refused as reason:
            left_out.append(LeftOut(dimension.root, dimension.size, str(reason)))
    return groups, left_out


def _shared(model: nn.Module) -> dict[str, str]:
    """Modules that hold the same parameter as another one, and which: taking it out of one would take it out of both."""
    holders: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        for p in module.parameters(recurse=False):
            holders.setdefault(id(p), []).append(name)
    return {n: next(m for m in held if m != n) for held in holders.values() if len(set(held)) > 1 for n in held}


def _unseen(model: nn.Module, dimensions: list[Dimension], order: dict[str, int]) -> Iterator[tuple[str, int]]:
    """Layers whose outputs are no dimension's, and their widths."""
    seen = {s.module for d in dimensions for s in d.slots if s.role == "producer"}
    for name in order:
        module = model.get_submodule(name)
        if name not in seen and isinstance(module, _ROOTS) and (rule := rule_of(module)) is not None and rule.mixes:
            tensor, dim = rule.out[0]
            yield name, int(getattr(module, tensor).shape[dim])


def _place(group: Group, order: dict[str, int]) -> tuple[int, int]:
    """Order of groups: the earliest weight that consumes them, then the last that produces them."""
    last = len(order)
    return (
        min(order.get(s.module, last) for s in group.consumers),
        max(order.get(s.module, last) for s in group.producers),
    )


def _uncalled(model: nn.Module, order: dict[str, int]) -> tuple[str, ...]:
    """Modules with parameters of their own that the forward pass never calls; attention reads its own without a call."""
    inside = {id(c) for m in model.modules() if isinstance(m, nn.MultiheadAttention) for c in m.children()}
    return tuple(
        n
        for n, m in model.named_modules()
        if n
        and n not in order
        and id(m) not in inside
        and not any(True for _ in m.children())
        and any(True for _ in m.parameters())
    )


def _disagreement(
    model: nn.Module, structure: Structure, inputs: torch.Tensor, seed: int, names: list[str]
) -> str | None:
    """Why half of these groups cannot be removed safely, or None."""
    try:
        result = agreement(model, structure, random_half(structure, seed, names), inputs)
    except Exception as error:  # noqa: BLE001 — whatever the pruned network raises is the reason to leave it alone
        return f"the pruned network does not run ({type(error).__name__}: {(str(error).splitlines() or [''])[0][:160]})"
    return None if result.ok else f"masked and pruned networks disagree: {result}"


def _bad(model: nn.Module, structure: Structure, inputs: torch.Tensor, seed: int, names: list[str]) -> dict[str, str]:
    """Those of the groups that cannot be pruned, with the reason; found by halves."""
    why = _disagreement(model, structure, inputs, seed, names)
    if why is None or len(names) == 1:
        return {} if why is None else {names[0]: why}
    middle = len(names) // 2
    return _bad(model, structure, inputs, seed, names[:middle]) | _bad(model, structure, inputs, seed, names[middle:])


def _verified(work: nn.Module, structure: Structure, inputs: torch.Tensor, seed: int) -> Structure:
    randomised = randomise_(copy.deepcopy(work), seed, inputs).requires_grad_(False)
    names = [g.name for g in structure]
    if _disagreement(randomised, structure, inputs, seed, names) is None:
        return structure
    bad = _bad(randomised, structure, inputs, seed, names)
    kept = tuple(g for g in structure if g.name not in bad)
    left = structure.left_out + tuple(LeftOut(n, structure[n].size, why) for n, why in bad.items())
    smaller = Structure(
        kept, left, structure.uncalled, structure.layers, structure.total_params, structure.total_macs,
        structure.input_shape, structure.replaced,
    )  # fmt: skip
    if kept and (why := _disagreement(randomised, smaller, inputs, seed, [g.name for g in kept])) is not None:
        raise StructureError(f"groups agree one by one but not together; nothing was pruned ({why})")
    return smaller
