"""The compensated cut (`--cut compensated`, ours): what a removal does AFTER the layers that read the unit make up for it.

A consumer without columns p of its inputs gets the closed-form update of optimal brain surgery (`linear.elimination`): what
it read of the unit is guessed from what it still reads. Under the cut its output changes by W_pᵀ(x̂_p − x_p), a layer of as
many filters as p has columns, in the place of −W_pᵀ x_p. Moments are those of the calibration set on the network as pruned
so far, taken when a group is entered. Consumers that are no plain matrix product are cut without compensation, and said so.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from cswap.causal.behind import norms_behind
from cswap.causal.cut import PlainEngine, _cut_hook, _RowsDoNotMatch
from cswap.causal.engine import Engine, Scores
from cswap.causal.graph import Env, Graph
from cswap.causal.plan import Consumer, Plan, is_channels_last, joined
from cswap.causal.replay import ReplayEngine
from cswap.linear.elimination import Inverse
from cswap.linear.moments import Moments
from cswap.linear.patches import at_tokens, columns_of, groups_of, input_rows, refusal
from cswap.structure.calls import call_counts
from cswap.structure.groups import Group, Slot, Structure
from cswap.structure.layers import channel_dim
from cswap.structure.surgery import kept_indices
from cswap.types import IntArray

_WIDTHS = 16
_CONV: dict[int, Any] = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}


class Compensation:
    """Inverse moments of every consumer, by group, and what they make of a cut."""

    def __init__(self, structure: Structure, memory: int) -> None:
        self.structure, self.memory = structure, memory
        # samples whose cuts are compensated from the others' moments; none: all from all
        self.folds: list[IntArray] = []
        self._by_fold: list[dict[tuple[str, str], Inverse]] = [{}]
        self.inverses = self._by_fold[0]
        self.known: dict[str, Inverse] = {}  # of the original network's layers, with their means: measured elsewhere
        self.held: dict[str, str | None] = {}
        self.refused: dict[str, str] = {}
        self.gone: dict[str, list[int]] = {}  # columns of each layer that no weight reads any more
        self._solved: dict[Any, tuple[torch.Tensor, torch.Tensor]] = {}  # of the latest cut: every batch asks again
        self._reduced: dict[Any, tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = {}

    def split(self, folds: list[IntArray]) -> None:
        """Cuts on samples of one fold are compensated by what the others gave; `use` says which fold's cuts come next."""
        self.folds, self._by_fold = folds, [{} for _ in folds]
        self.use(0)

    def use(self, fold: int) -> None:
        """The cuts that come next are of this fold's samples."""
        if self.inverses is not self._by_fold[fold]:
            self.inverses = self._by_fold[fold]
            self.changed()

    def agree(self) -> None:
        """Fold 0 comes next; a reader that the memory took for some folds alone is cut plainly in all."""
        everywhere = set.intersection(*(set(held) for held in self._by_fold))
        for held in self._by_fold:
            for key in [k for k in held if k not in everywhere]:
                del held[key]
        self.use(0)

    def forget(self) -> None:
        """Let go of the moments of all groups."""
        for held in self._by_fold:
            held.clear()
        self.changed()

    def measure(self, net: nn.Module, group: Group, batches: Iterator[torch.Tensor], example: torch.Tensor) -> None:
        """Moments of what the group's consumers read in `net`, once."""
        self.changed()
        if not self.held:
            counts, _ = call_counts(net, example)
            norms = norms_behind(net, example)
            for name, m in net.named_modules():
                if counts.get(name) == 1 and refusal(m) is None:
                    self.held[name] = name if getattr(m, "bias", None) is not None else norms.get(name)
        wanted = {s.module: s for s in group.consumers if (group.name, s.module) not in self.inverses}
        sums: dict[str, Moments] = {}
        handles, given = [], [example]
        for name in wanted:
            module: Any = net.get_submodule(name)
            why = self._why_not(name, module)
            if why is not None:
                self.refused[name] = why
                continue
            if name in self.known and self.held.get(name) is not None and not (self.gone or self.folds):
                self.inverses[group.name, name] = copy.deepcopy(self.known[name])
                continue
            sums[name] = Moments.empty(1, columns_of(module), 0)

            def see(m: nn.Module, args: tuple[Any, ...], name: str = name) -> None:
                for rows in input_rows(m, at_tokens(m, args[0], given[0])):
                    sums[name].add_rows(rows, rows.new_zeros((len(rows), 1, 0)))

            handles.append(module.register_forward_pre_hook(see))
        try:
            if sums:
                with torch.no_grad():
                    for inputs in batches:
                        given[0] = inputs  # what pads it is no token
                        net(inputs)
        finally:
            for handle in handles:
                handle.remove()
        for name, m in sums.items():
            shifts = self.held.get(name) is not None
            second = m.centred()[0][0] if shifts else m.whole()[0][0]
            mean = m.mean()[0] if shifts else torch.zeros_like(m.x[0])
            self.inverses[group.name, name] = Inverse(second / m.rows, mean)
            if self.gone.get(name):
                self.inverses[group.name, name].take(torch.tensor(self.gone[name]))

    def _why_not(self, name: str, module: Any) -> str | None:
        if name not in self.held:
            return refusal(module) or "it is called more than once"
        if groups_of(module) > 1:
            return "a grouped convolution"
        columns = columns_of(module)
        kept = [*self.known.values(), *(i for own in self._by_fold for i in own.values())]
        held = sum(i.inverse.numel() * 8 for i in kept)
        if 8 * columns**2 * 3 + held > self.memory:
            return f"{columns:,} columns of moments do not fit the memory"
        return None

    def changed(self) -> None:
        """Inverses are others now."""
        self._solved.clear()
        self._reduced.clear()

    def _filters(
        self, key: Any, inverse: Inverse, columns: torch.Tensor, read: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Filters (r, D) of the columns, or their product with the weights that read them (O, D), and their constant. key: of the
        group, layer and units, and of the weights where they are read."""
        if key not in self._solved:
            if any(k[2] != key[2] for k in self._solved):
                self.changed()
            filters = inverse.filters(columns, read)
            self._solved[key] = filters, -filters @ inverse.mean
        return self._solved[key]

    def change(
        self, group: Group, slot: Slot, cut: Sequence[int], module: Any, x: torch.Tensor, at: torch.Tensor, left: IntArray | None
    ) -> torch.Tensor | None:  # fmt: skip
        """What the cut does to the layer's output on inputs x: W_pᵀ(x̂_p − x_p). `at`: where the units lie in x, `left`: original
        inputs that x still has (None: all). None where the layer is not compensated.
        """
        inverse = self.inverses.get((group.name, slot.module))
        if inverse is None:
            return None
        columns, kernel = columns_for(module, slot, cut), module.weight.shape[2:]
        taken = module.weight.index_select(1, at.to(x.device)).flatten(1)  # (O, r)
        whole = len(columns) >= len(taken)  # then the change of the layer's own weights is the smaller matrix
        key = (group.name, slot.module, tuple(cut), id(module) if whole else None)
        filters, constant = self._filters(key, inverse, columns, taken if whole else None)
        constant = constant.to(x)
        shaped = filters.reshape(len(filters), -1, *kernel).to(x)
        if left is not None:
            shaped = shaped.index_select(1, torch.from_numpy(left).to(x.device))
        if isinstance(module, nn.Linear):
            guess: torch.Tensor = F.linear(x, shaped, constant)
            moved: torch.Tensor = guess if whole else F.linear(guess, taken)
            return moved
        padded, padding = _padded(module, x)
        guessed: torch.Tensor = _CONV[x.dim()](
            padded, shaped.contiguous(), constant, module.stride, padding, module.dilation
        )
        if whole:
            return guessed
        result: torch.Tensor = _CONV[x.dim()](guessed, taken.reshape(*taken.shape, *([1] * len(kernel))).contiguous())
        return result

    def output(
        self, group: Group, slot: Slot, cut: Sequence[int], module: Any, x: torch.Tensor, at: torch.Tensor, left: IntArray | None
    ) -> torch.Tensor | None:  # fmt: skip
        """What the layer gives under the cut, by a layer of the inputs that stay; arguments as of `change`. None where `change` is
        as cheap, or the layer is not compensated.
        """
        inverse = self.inverses.get((group.name, slot.module))
        columns = columns_for(module, slot, cut)
        if inverse is None or len(columns) < module.weight.shape[0]:
            return None
        key = (group.name, slot.module, tuple(cut), id(module))
        filters, constant = self._filters(
            key, inverse, columns, module.weight.index_select(1, at.to(x.device)).flatten(1)
        )
        if key not in self._reduced:
            shaped = filters.reshape(len(filters), -1, *module.weight.shape[2:])
            if left is not None:
                shaped = shaped.index_select(1, torch.from_numpy(left).to(shaped.device))
            weight = module.weight.double() + shaped.to(x.device)
            weight.index_fill_(1, at.to(x.device), 0.0)
            stays = torch.ones(weight.shape[1], dtype=torch.bool)
            stays[at] = False
            count = int(stays.sum())  # a width that kernels like, and never none; what is cut weighs nothing
            stays[at[: -count % _WIDTHS if count else 1]] = True
            kept = stays.nonzero().flatten().to(x.device)
            last = is_channels_last(module.weight)
            weight = weight.index_select(1, kept).to(module.weight)
            weight = weight.contiguous(memory_format=torch.channels_last) if last else weight.contiguous()
            bias = constant if module.bias is None else constant + module.bias.double().to(constant)
            self._reduced[key] = kept, weight, bias.to(module.weight)
        kept, weight, bias = self._reduced[key]
        if isinstance(module, nn.Linear):
            return F.linear(x.index_select(-1, kept), weight, bias)
        padded, padding = _padded(module, x.index_select(1, kept))
        found: torch.Tensor = _CONV[x.dim()](padded, weight, bias, module.stride, padding, module.dilation)
        return found

    def apply_(self, nets: Sequence[nn.Module], group: Group, units: Sequence[int]) -> list[Slot]:
        """Make the cut for good in every one of `nets` (original sizes), as compensated; returns the slots that are not."""
        self.changed()
        plain = []
        for slot in group.consumers:
            inverse = self.inverses.get((group.name, slot.module))
            if inverse is None:
                plain.append(slot)
                continue
            columns = columns_for(nets[0].get_submodule(slot.module), slot, units)
            gone = self.gone.setdefault(slot.module, [])
            columns = columns[~torch.isin(columns, torch.tensor(gone, dtype=torch.int64))]  # a head took its dimensions
            if not len(columns):
                continue
            filters = inverse.filters(columns)
            for net in nets:
                module: Any = net.get_submodule(slot.module)
                weight = module.weight.data
                flat = weight.flatten(1).double()
                taken = flat[:, columns.to(flat.device)]
                shift = taken @ (-filters @ inverse.mean).to(flat)
                flat = flat + taken @ filters.to(flat)
                flat[:, columns.to(flat.device)] = 0.0
                weight.copy_(flat.reshape(weight.shape))
                self._shift(net, slot.module, module, shift)
            gone.extend(columns.tolist())
            for (_, name), other in self.inverses.items():  # those of other groups that the layer reads, too
                if name == slot.module:
                    other.take(columns)
        return plain

    def _shift(self, net: nn.Module, name: str, module: Any, by: torch.Tensor) -> None:
        where = self.held.get(name)
        if where == name:
            module.bias.data.add_(by.to(module.bias))
        elif where is not None:
            mean = net.get_submodule(where).get_buffer("running_mean")
            mean.sub_(by.to(mean))


def columns_for(module: Any, slot: Slot, units: Sequence[int]) -> torch.Tensor:
    """Columns of the layer's matrix that read the units, unit by unit, channel-major."""
    places = module.weight[0, 0].numel()
    first = torch.from_numpy(_positions(slot, units)).unsqueeze(1) * places
    columns: torch.Tensor = (first + torch.arange(places)).flatten()
    return columns


def _padded(conv: Any, x: torch.Tensor) -> tuple[torch.Tensor, Any]:
    """The input as the convolution pads it itself, and what is left to pad."""
    if conv.padding_mode == "zeros":
        return x, conv.padding
    return F.pad(x, conv._reversed_padding_repeated_twice, mode=conv.padding_mode), 0


class CompensatedPlainEngine(PlainEngine):
    """Every compensated cut by a full forward pass."""

    name = "plain, compensated: hooks and full forward passes"
    enters_known = True  # moments are of the network at that moment

    def __init__(self, model: nn.Module, *args: Any, compensation: Compensation | None = None, **settings: Any) -> None:
        super().__init__(model, *args, **settings)
        self.compensation = compensation or Compensation(self.structure, self.memory)

    def enter(self, group: Group) -> None:
        size = max(1, min(64, self.rows(group)))
        m, example = len(self.calibration), self._ready(self.calibration.inputs(0, 2))
        for fold, own in enumerate(self.compensation.folds):
            self.compensation.use(fold)
            rest = np.setdiff1d(np.arange(m), own)
            others = (self._ready(self.calibration.of(rest[s : s + size])) for s in range(0, len(rest), size))
            self.compensation.measure(self.net, group, others, example)
        if self.compensation.folds:
            self.compensation.agree()
        else:
            parts = (self._ready(self.calibration.inputs(s, min(s + size, m))) for s in range(0, m, size))
            self.compensation.measure(self.net, group, parts, example)
        for name, why in self.compensation.refused.items():
            note = f"{name} is cut without compensation: {why}"
            if note not in self.notes:
                self.notes.append(note)

    def once(self, group: Group, cut: Sequence[int]) -> Scores:
        self.enter(group)
        return super().once(group, cut)

    @contextmanager
    def _hooked(self, group: Group | None, cuts: Sequence[Sequence[int]], shares: list[int]) -> Iterator[None]:
        handles = []
        try:
            if group is not None and any(len(c) for c in cuts):
                for slot in group.consumers:
                    module = self.net.get_submodule(slot.module)
                    if (group.name, slot.module) in self.compensation.inverses:
                        hook = self._change_hook(group, slot, cuts, shares)
                        handles.append(module.register_forward_hook(hook))
                    else:
                        hook = _cut_hook(slot, cuts, shares, channel_dim(module))
                        handles.append(module.register_forward_pre_hook(hook))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _change_hook(self, group: Group, slot: Slot, cuts: Sequence[Sequence[int]], shares: list[int]) -> Any:
        def hook(module: Any, args: tuple[Any, ...], out: torch.Tensor) -> torch.Tensor:
            x, out = args[0], out.clone()
            if len(cuts) > 1 and x.shape[0] % sum(shares):
                raise _RowsDoNotMatch
            whole = len(cuts) == 1  # one cut is of all rows, however they lie
            each, start = x.shape[0] // sum(shares), 0
            for cut, share in zip(cuts, shares, strict=True):
                rows = slice(None) if whole else slice(start * each, (start + share) * each)
                at = torch.from_numpy(_positions(slot, cut))
                change = self.compensation.change(group, slot, cut, module, x[rows], at, None) if len(at) else None
                if change is not None:
                    out[rows] += change
                start += share
            return out

        return hook

    def remove(self, group: str, units: Sequence[int]) -> None:
        chosen = self.structure[group]
        self.enter(chosen)
        self.compensation.apply_([self.net], chosen, units)
        super().remove(group, units)


def _positions(slot: Slot, units: Sequence[int]) -> IntArray:
    """Input positions of the units, in their order."""
    none = np.empty(0, dtype=np.int64)
    return np.concatenate([none, *(slot.by_unit.get(int(n), none) for n in units)])


def compensation_of(engine: Engine) -> Compensation | None:
    """What compensates an engine's cuts, or None for one whose cuts are plain."""
    return engine.compensation if isinstance(engine, CompensatedPlainEngine | CompensatedReplayEngine) else None


def forget(engine: Engine) -> None:
    """Let go of the moments of all groups: they are measured again when a group is entered."""
    compensation = compensation_of(engine)
    if compensation is not None:
        compensation.forget()


class CompensatedReplayEngine(ReplayEngine):
    """The fast engine with compensated cuts; checked group by group against `CompensatedPlainEngine`."""

    enters_known = True

    def __init__(self, model: nn.Module, *args: Any, **settings: Any) -> None:
        super().__init__(model, *args, **settings)
        self.compensation = Compensation(self.structure, self.memory)
        self.plain: CompensatedPlainEngine = CompensatedPlainEngine(
            model, *args, compensation=self.compensation, **settings
        )
        self.name += "; cuts compensated"

    def enter(self, group: Group) -> None:
        self.plain.enter(group)
        self.notes += [n for n in self.plain.notes if n not in self.notes]
        super().enter(group)

    def _graph(self) -> Graph:
        # what the graph lacks, as long as it is used: more may go before the next one is made
        self._lacks = kept_indices(self.structure, self._gone(taken_out=True))
        return super()._graph()

    def remove(self, group: str, units: Sequence[int]) -> None:
        chosen = self.structure[group]
        self.plain.enter(chosen)
        self.compensation.apply_([self.plain.net, self.model], chosen, units)
        PlainEngine.remove(self.plain, group, units)
        self.removed.setdefault(group, set()).update(int(n) for n in units)
        self._whole = self._planned = self._drawn = None  # its weights are others now

    def once(self, group: Group, cut: Sequence[int]) -> Scores:
        self.plain.enter(group)  # measured before, so that what the cut makes of the moments is undone too
        held = copy.deepcopy((self.model.state_dict(), self.plain.net.state_dict(), self.removed))
        read = {s.module for s in group.consumers}
        inverses = {k: copy.deepcopy(v) for k, v in self.compensation.inverses.items() if k[1] in read}
        gone = copy.deepcopy(self.compensation.gone)
        self.remove(group.name, cut)
        try:
            return self.scores()
        finally:
            self.model.load_state_dict(held[0])
            self.plain.net.load_state_dict(held[1])
            self.removed, self._whole = held[2], None
            self.compensation.inverses |= inverses
            self.compensation.gone = gone
            self.compensation.changed()

    def _handler(
        self, plan: Plan, c: Consumer, cuts: list[tuple[int, ...]], frontiers: list[Env], shares: list[int]
    ) -> Any:
        group = plan.group
        slot = next(s for s in group.consumers if s.module == str(c.node.target))
        if (group.name, slot.module) not in self.compensation.inverses:
            return super()._handler(plan, c, cuts, frontiers, shares)
        source, left = c.node.all_input_nodes[0], self._lacks.get(f"{slot.module}.weight", {}).get(1)

        def whole(x: torch.Tensor, cut: tuple[int, ...]) -> torch.Tensor | None:
            at = c.of(cut)
            return self.compensation.output(group, slot, cut, c.module, x, at, left) if len(at) else None

        def changed(x: torch.Tensor, cut: tuple[int, ...]) -> torch.Tensor | float:
            at = c.of(cut)
            found = self.compensation.change(group, slot, cut, c.module, x, at, left) if len(at) else None
            return 0.0 if found is None else found

        def without(f: Env, cut: tuple[int, ...]) -> torch.Tensor:
            out = whole(f[source], cut)
            return f[c.node] + changed(f[source], cut) if out is None else out

        def first(_env: Env) -> torch.Tensor:
            with torch.autocast(self.device.type, enabled=False):
                parts = [without(f, cut) for f, cut in zip(frontiers, cuts, strict=True)]
                return parts[0] if len(parts) == 1 else torch.cat(parts)

        def replayed(env: Env) -> torch.Tensor:
            x = env[source] if source in env else joined([f[source] for f in frontiers])
            if len(cuts) == 1 and (found := whole(x, cuts[0])) is not None:
                return found
            out: torch.Tensor = c.module(x)
            each, start = x.shape[0] // sum(shares), 0
            for cut, share in zip(cuts, shares, strict=True):
                rows = slice(None) if len(cuts) == 1 else slice(start * each, (start + share) * each)
                out[rows] += changed(x[rows], cut)
                start += share
            return out

        return first if c.first else replayed
