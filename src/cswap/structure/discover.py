"""Finding units and groups: from a network to its structure."""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.conv import _ConvNd
from torch.utils.flop_counter import FlopCounterMode

from cswap.errors import pass_on_out_of_memory
from cswap.structure.calls import run_hooked
from cswap.structure.chains import chains
from cswap.structure.detectors import forward_of
from cswap.structure.fit import copied
from cswap.structure.groups import Group, LayerCost, LeftOut, Structure, consumers_of
from cswap.structure.heads import Whole, attention_of, head_groups, names_in, with_whole_heads
from cswap.structure.joined import Dimension, Grouped, joined
from cswap.structure.layers import is_grouped, rule_of
from cswap.structure.library import LIBRARY, ROOTS, Refused, dependency_groups, dimension_of, traced, width_of
from cswap.structure.recurrent import replace_recurrent_, step_by_step, why_not
from cswap.structure.replaced import replace_
from cswap.structure.standins import recurrent_of, with_recurrence, with_stand_ins
from cswap.structure.surgery import count_params
from cswap.structure.verify import verified


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
        try:
            return _counted(replace_recurrent_(copy.deepcopy(model), hosts), inputs)
        except Exception as error:  # noqa: BLE001 — it packs its sequences, gives a first state, or looks into the last one
            pass_on_out_of_memory(error)
    return _counted(model, inputs)


def _counted(model: nn.Module, inputs: torch.Tensor) -> tuple[int, dict[str, int]]:
    counter = FlopCounterMode(display=False)
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # fused attention kernels are invisible to the counter
    learned = [p for p in model.parameters() if p.requires_grad]
    for p in learned:
        p.requires_grad_(False)  # a module given a parameter's view would be asked for its gradient, and there is none
    try:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), step_by_step(), counter:
            model(inputs[:1])
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for p in learned:
            p.requires_grad_(True)
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


def _group_of(dimension: Dimension, model: nn.Module, order: dict[str, int]) -> Group:
    if dimension.refused:
        raise Refused(dimension.refused)
    slots = sorted(
        with_recurrence(list(dimension.slots), model), key=lambda s: (order.get(s.module, len(order)), s.side == "out")
    )
    producers = [s for s in slots if s.role == "producer"]
    if not any(s.role == "consumer" for s in slots):
        raise Refused("no weight reads these channels: they are the model's output")
    if not producers:
        raise Refused("no weight writes these channels: they are the model's input")
    first = producers[0]
    if len(np.unique(first.owner)) != dimension.size:
        first = next((s for s in producers if s.module == dimension.root), first)
    reads = np.concatenate([s.owner for s in slots if s.role == "consumer"])
    if len(np.unique(reads)) != dimension.size:
        raise Refused("no weight reads some of its channels")
    if dimension.size < 2:
        raise Refused("it has a single unit, and a group keeps at least one")
    return Group(first.module, dimension.size, tuple(slots))


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
            left_out.append(LeftOut.group(group, f"channels of {clash.module} belong to another group too"))
            continue
        for s in group.slots:
            owned.setdefault((s.module, s.side), set()).update(s.positions.tolist())
        same = sum(g.name.split("#")[0] == group.name for g in kept)
        kept.append(Group(f"{group.name}#{same + 1}", group.size, group.slots) if same else group)
    return kept


def _read_by_place(groups: list[Group], model: nn.Module, inputs: torch.Tensor, left_out: list[LeftOut]) -> list[Group]:
    """Groups whose readers get what they read as their first argument, where a cut acts."""
    by_name: set[str] = set()

    def see(name: str) -> Any:
        return lambda _m, args, _named: None if args else by_name.add(name)

    handles = [model.get_submodule(n).register_forward_pre_hook(see(n), with_kwargs=True) for n in consumers_of(groups)]
    run_hooked(forward_of(model), inputs, handles)
    wrong = {g.name: next((s.module for s in g.consumers if s.module in by_name), "") for g in groups}
    left_out += [
        LeftOut.group(g, f"{wrong[g.name]} is called by keyword, so what it reads cannot be cut")
        for g in groups
        if wrong[g.name]
    ]
    return [g for g in groups if not wrong[g.name]]


def discover(model: nn.Module, inputs: torch.Tensor, *, verify: bool = True, seed: int = 0) -> Structure:
    """Units and groups of `model`, from the output to the input, verified on a randomised copy.

    inputs: (N, …) example input, N ≥ 1. `model` and the global random state are untouched. With `verify`, a random half
    of all groups is removed from a randomised copy, and every group whose masked and pruned networks disagree is left
    out with that reason. Raises StructureError for a network that cannot be taken apart at all.
    """
    inputs = inputs.detach()[:2].cpu().float() if inputs.is_floating_point() else inputs.detach()[:2].cpu()
    with untouched_rng():
        work = copied(model).cpu().float().eval()
        for p in work.parameters():
            p.requires_grad_(p.is_floating_point())
        heads, unlike = attention_of(work, inputs, seed)
        replace_(work, heads)
        steps, others = recurrent_of(work, inputs, seed)
        replace_(work, steps)
        replaced, unlike = heads | steps, [*unlike, *others]
        order = _call_order(work, inputs)
        total_macs, macs = macs_of(work, inputs)
        seen = with_stand_ins(with_whole_heads(work, heads))
        graph = traced(seen, inputs)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the library's own, of what it does not follow: left out below
            groups, left_out = _collect(graph, names_in(seen), work, order)
        groups.sort(key=lambda g: _place(g, order), reverse=True)
        groups = _disjoint(groups, left_out) + head_groups(work, heads)  # a head owns its dimensions' positions too
        groups.sort(key=lambda g: _place(g, order), reverse=True)
        left_out += unlike
        groups = _read_by_place(groups, work, inputs, left_out)
        left_out += _unaccounted(work, groups, left_out, order)
        structure = Structure(
            tuple(groups), tuple(left_out), _uncalled(work, order), _layer_costs(work, groups, macs),
            count_params(work), total_macs, tuple(inputs.shape[1:]), replaced,
        )  # fmt: skip
        return verified(work, structure, inputs, seed) if verify and groups else structure


def _with_chains(
    model: nn.Module, shared: dict[str, str], dimensions: list[Dimension], left_out: list[LeftOut]
) -> tuple[list[Dimension], list[LeftOut]]:
    """What the library failed on, but goes straight from layer to layer, is a dimension all the same."""
    failed = {x.name for x in left_out} | {d.root for d in dimensions if d.refused.startswith(LIBRARY)}
    if not failed:
        return dimensions, left_out
    found = {d.root: d for d in _alone(model, shared) if d.root in failed}
    kept = [found.pop(d.root) if d.refused and d.root in found else d for d in dimensions]
    return [*kept, *found.values()], [x for x in left_out if x.name not in found]


def _alone(model: nn.Module, shared: dict[str, str]) -> list[Dimension]:
    return [d for d in chains(model) if not any(s.module in shared for s in d.slots)]


def _collect(
    graph: Any, names: dict[nn.Module, str], model: nn.Module, order: dict[str, int]
) -> tuple[list[Group], list[LeftOut]]:
    shared = _shared(model)
    dimensions: list[Dimension] = []
    left_out: list[LeftOut] = []
    if isinstance(graph, str):
        why = f"{LIBRARY} fails on this network ({graph}): only what goes straight from layer to layer is seen"
        dimensions = _alone(model, shared)
        left_out = [LeftOut(n, w, why) for n, w in _unseen(model, dimensions, order)]
    else:
        for raw in dependency_groups(graph, names):
            if isinstance(raw, LeftOut):
                left_out.append(raw)
            elif not (isinstance(first := raw[0].dep.target.module, Whole) and first.read):  # else its heads are groups
                dimensions.append(dimension_of(raw, names, shared))
        dimensions, left_out = _with_chains(model, shared, dimensions, left_out)
    convs = {
        n: Grouped(m.in_channels // m.groups, m.out_channels // m.groups, m.groups)
        for m, n in names.items()
        if isinstance(m, _ConvNd) and is_grouped(m)
    }
    groups: list[Group] = []
    for dimension in joined(dimensions, convs):
        try:
            groups.append(_group_of(dimension, model, order))
        except Refused as reason:
            others = tuple(w for w in dimension.writers if w != dimension.root)
            left_out.append(LeftOut(dimension.root, dimension.size, str(reason), others))
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
        if name not in seen and isinstance(module, ROOTS) and (rule := rule_of(module)) is not None and rule.mixes:
            yield name, width_of(module)


def _unaccounted(
    model: nn.Module, groups: list[Group], left_out: list[LeftOut], order: dict[str, int]
) -> list[LeftOut]:
    """Layers that run, write channels, and are neither in a group nor left out with a reason: nothing is dropped in silence."""
    told = {s.module for g in groups for s in g.slots if s.side == "out"}
    told |= {n for x in left_out for n in (x.name, *x.layers)}
    found = []
    for name in order:
        module = model.get_submodule(name)
        rule = rule_of(module)
        # an attention's own layers go by its name
        owners = {name.rsplit(".", i)[0] for i in range(name.count(".") + 1)}
        if rule is None or not rule.mixes or owners & told:
            continue
        why = f"{LIBRARY} does not show what becomes of its channels"
        if is_grouped(module):
            why = "a grouped convolution goes with the channels it reads, and those are left out"
        found.append(LeftOut(name, width_of(module), why))
    return found


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
