"""The fast engine: only what a cut can change is run again, on the network as pruned so far, physically smaller."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from cswap import distributed
from cswap.causal.cut import PlainEngine
from cswap.causal.difference import by_difference, separable, subtract_
from cswap.causal.engine import Engine, Job, Scores, exact
from cswap.causal.graph import Env, Graph, NotTraceable
from cswap.causal.plan import (
    Consumer,
    Plan,
    input_dim,
    is_channels_last,
    joined,
    live_bytes,
    plan_of,
    weight_of,
    without,
)
from cswap.errors import InputError, pass_on_out_of_memory
from cswap.structure.check import tensors_of
from cswap.structure.groups import Group, Slot
from cswap.structure.surgery import kept_indices, masked_copy, prepared_copy, shrink_in_place
from cswap.types import FloatArray, IntArray

_CHECKED_ROWS = 4


@dataclass(frozen=True)
class Tuning:
    """What the engine does to be fast. `benchmarks/effects_speed.py` switches these on one by one.

    difference: a first consumer's output is changed by the cut channel's own contribution. shrink: what was removed leaves
    the replayed network. fold: batch norms into weights, ReLU and residual adds in place. sized: batches sized to the
    caches (else 128 samples, one unit).
    """

    difference: bool = True
    shrink: bool = True
    fold: bool = True
    sized: bool = True


class ReplayEngine(Engine):
    """See the module. Falls back on the plain engine, group by group, where the two do not agree on real samples."""

    def __init__(self, model: nn.Module, *args: Any, tuning: Tuning = Tuning(), **settings: Any) -> None:
        super().__init__(model, *args, **settings)
        self.tuning = tuning
        self.model = prepared_copy(model, self.structure).eval().requires_grad_(False)
        self.plain = PlainEngine(model, *args, **settings)
        self.channels_last = self.plain.channels_last
        self.removed: dict[str, set[int]] = {}
        self._planned: Plan | None = None
        self._before: Plan | None = None  # the one entered before it, while the next is made
        self._drawn: Graph | None = None  # of the network as it stands: groups entered one after the other share it
        self._whole: nn.Module | None = None
        self._refused: set[str] = set()
        self._few = self._samples()
        graph = self._graph()  # raises NotTraceable at once
        self.name = f"replay: a graph of {len(graph.nodes)} operations (torch.fx), only what a cut changes"

    def _samples(self) -> torch.Tensor:
        """A few inputs of different classes, on which every plan is compared with the plain engine."""
        m = len(self.calibration)
        numbers = sorted({round(i * (m - 1) / (_CHECKED_ROWS - 1)) for i in range(_CHECKED_ROWS)})
        return self._ready(torch.cat([self.calibration.inputs(i, i + 1) for i in numbers]))

    def _gone(self, *, taken_out: bool = False) -> dict[str, IntArray]:
        """Units removed so far; `taken_out`: those that the replayed network lacks physically, the others being cut in it.

        A wide group keeps a width that convolutions like (512 to 357 channels: 47 ms; to 352: 32 ms).
        """
        gone = {g: np.asarray(sorted(u), dtype=np.int64) for g, u in self.removed.items() if u}
        if not taken_out:
            return gone
        if not self.tuning.shrink:
            return {}
        sizes = {g: self.structure[g].size for g in gone}
        extra = {g: -(sizes[g] - len(u)) % _width_step(sizes[g]) for g, u in gone.items()}
        return {g: u[: len(u) - extra[g]] for g, u in gone.items() if len(u) > extra[g]}

    def _network(self) -> nn.Module:
        """The network as pruned so far, on the device."""
        net = masked_copy(self.model, self.structure, self._gone())
        net = shrink_in_place(net, kept_indices(self.structure, self._gone(taken_out=True))).to(self.device)
        return net.to(memory_format=torch.channels_last) if self.channels_last else net

    def _graph(self) -> Graph:
        net = self._network()
        try:
            with torch.no_grad():
                return Graph(
                    net, self._few, fold=self.tuning.fold, in_place=self.tuning.fold, formats=self.channels_last
                )
        except torch.cuda.OutOfMemoryError:
            raise
        except RuntimeError as error:
            pass_on_out_of_memory(error)  # by full passes the same run would decide with other rounding
            raise NotTraceable(f"the smaller network does not run: {str(error).splitlines()[0][:160]}") from error

    def compare_with(self, reference: FloatArray | None) -> None:
        super().compare_with(reference)
        self.plain.compare_with(reference)

    def enter(self, group: Group) -> None:
        before, self._planned = self._planned, None
        self._before = before if before is not None and before.graph is self._drawn else None
        del before  # what it keeps goes as soon as it is of no use
        if group.name in self._refused:
            return
        plan, reason = None, "another process cannot replay it"
        try:
            with exact(self.device, self.amp):
                plan = self._make(group)
        except (NotTraceable, InputError) as error:  # InputError: a sample of its frontier is over the memory budget
            reason = str(error)
        self._before = None
        if not distributed.all_agree(plan is not None):
            self._refused.add(group.name)
            self.notes.append(f"group {group.name} by full forward passes: {reason}")
            return
        self._planned = plan

    def _make(self, group: Group) -> Plan:
        graph = self._drawn = self._drawn or self._graph()
        kept = kept_indices(self.structure, self._gone(taken_out=True))
        gone = self.removed.get(group.name, set())
        consumers: list[Consumer] = []
        changed: set[fx.Node] = set()
        slots = {s.module: s for s in group.consumers}
        absent = [m for m in slots if m not in graph.calls]
        if absent:
            raise NotTraceable(f"{absent[0]} is called inside another layer")
        for node in graph.nodes:
            if node.op == "call_module" and str(node.target) in slots:
                slot, module = slots[str(node.target)], graph.modules[node]
                first = self.tuning.difference and separable(module, node) and node.args[0] not in changed
                consumers.append(Consumer(node, module, first, self._positions(slot, kept, gone)))
                changed.add(node)
            elif any(i in changed for i in node.all_input_nodes):
                changed.add(node)
        plan = plan_of(group, graph, consumers, changed)
        self._rows_of(plan)  # refuses what the budget does not hold
        self._verify(plan)
        self._fill(plan)
        return plan

    def _positions(self, slot: Slot, kept: Any, gone: set[int]) -> dict[int, IntArray]:
        """Where each unit that is left lies in the input of the smaller layer."""
        (tensor, dim), *_ = self.structure.layers[slot.module].axes["in"]
        left = kept.get(f"{slot.module}.{tensor}", {}).get(dim)
        own = {n: p for n, p in slot.by_unit.items() if n not in gone}
        if left is None:
            return own
        there = {n: p[np.isin(p, left)] for n, p in own.items()}  # a head that is gone took its dimensions with it
        return {n: np.searchsorted(left, p).astype(np.int64) for n, p in there.items()}

    # The frontier.

    def _frontier_of(self, plan: Plan, inputs: torch.Tensor) -> Env:
        """Values of the frontier on these inputs."""
        env: Env = {plan.graph.input: inputs}
        with torch.inference_mode():
            plan.graph.run(plan.prefix, env, last_use=plan.prefix_last)
        return {n: env[n] for n in plan.frontier}

    def _fill(self, plan: Plan) -> None:
        """Keep the frontier of as many samples as half the memory holds; the others' is made again every time.

        Where nothing was removed since the plan before it was entered, that one's frontier is of the same network: what it
        keeps of all samples need not be run again, as long as both fit that half.
        """
        graph, m = plan.graph, len(self.local)
        a_row = max(1, sum(graph.row_bytes.get(n, 0) for n in plan.frontier if graph.scales[n]))
        largest, live = live_bytes(graph, plan.prefix, plan.prefix_last)
        size = self._rows_for(max(1, largest), live + a_row)
        sliced = all(graph.scales[n] is False or (graph.scales[n] and n in graph.row_shape) for n in plan.frontier)
        keep = min(m, (self.memory // 2) // a_row) if sliced else 0
        if self._before is not None and not _all_held(self._before, m, self.memory // 2 - keep * a_row):
            self._before = None
        held = self._before
        nodes, last = plan.leading_from({} if held is None else held.cached)
        for start in range(0, keep, size):
            stop = min(start + size, keep)
            env = {} if held is None else self._frontier(held, start, stop)
            env[graph.input] = self._inputs(start, stop)
            with torch.inference_mode():
                graph.run(nodes, env, last_use=last)
            part = {n: env[n] for n in plan.frontier}
            for node, value in part.items():
                if graph.scales[node] is not True or not isinstance(value, torch.Tensor):
                    plan.cached[node] = value
                    continue
                if node not in plan.cached:
                    share = value.shape[0] // (stop - start)
                    like = torch.channels_last if is_channels_last(value) else torch.contiguous_format
                    plan.cached[node] = torch.empty((keep * share, *value.shape[1:]), dtype=value.dtype, device=value.device, memory_format=like)  # fmt: skip
                whole = plan.cached[node]
                share = whole.shape[0] // keep
                whole[start * share : stop * share] = value
        plan.cached_rows = keep

    def _frontier(self, plan: Plan, start: int, stop: int) -> Env:
        if stop > plan.cached_rows:
            return self._frontier_of(plan, self._inputs(start, stop))
        found: Env = {}
        for node, value in plan.cached.items():
            if plan.graph.scales[node] is True and isinstance(value, torch.Tensor):
                share = value.shape[0] // plan.cached_rows
                found[node] = value[start * share : stop * share]
            else:
                found[node] = value
        return found

    # The tail.

    def _outputs(self, plan: Plan, cuts: list[tuple[int, ...]], frontiers: list[Env], shares: list[int]) -> Any:
        """The model's outputs for cut sets, one after the other in a batch, from the frontier of each (`shares` samples)."""

        def fetch(node: fx.Node) -> Any:
            values = [f[node] for f in frontiers]
            if len(values) == 1 or plan.graph.scales[node] is False:
                return values[0]
            return joined(values)

        special = {c.node: self._handler(plan, c, cuts, frontiers, shares) for c in plan.consumers}
        with torch.inference_mode(), self._precision():
            return plan.graph.run(plan.tail, {}, last_use=plan.tail_last, special=special, fetch=fetch)

    def _handler(
        self, plan: Plan, c: Consumer, cuts: list[tuple[int, ...]], frontiers: list[Env], shares: list[int]
    ) -> Any:
        scales = plan.graph.scales
        if c.first:
            source = c.node.all_input_nodes[0]

            def first(_env: Env) -> torch.Tensor:
                with torch.autocast(self.device.type, enabled=False):
                    before, inputs = [f[c.node] for f in frontiers], [f[source] for f in frontiers]
                    return by_difference(c.module, before, inputs, [c.of(cut) for cut in cuts])

            return first

        def masked(env: Env) -> torch.Tensor:
            def value(node: fx.Node) -> Any:
                if node in env:
                    return env[node]
                return frontiers[0][node] if scales[node] is False else joined([f[node] for f in frontiers])

            args: Any = fx.node.map_arg(c.node.args, value)
            named: Any = fx.node.map_arg(c.node.kwargs, value)
            return without(c.module, args[0], [c.of(cut) for cut in cuts], shares, *args[1:], **named)

        return masked

    def rows(self, group: Group | None) -> int:
        plan = self._of(group)
        if plan is None:
            return self.plain.rows(group)
        return self._rows_of(plan)

    def _rows_of(self, plan: Plan) -> int:
        largest, live = live_bytes(plan.graph, plan.tail, plan.tail_last)
        own = sum(plan.graph.row_bytes.get(n, 0) for n in plan.frontier)
        rows = self._rows_for(max(1, largest), live + own)
        return rows if self.tuning.sized else min(128, rows)

    def units_together(self, group: Group, samples: int | None = None) -> int:
        plan = self._of(group)
        if plan is None:
            return self.plain.units_together(group, samples)
        return super().units_together(group, samples) if plan.shared and self.tuning.sized else 1

    def leave(self) -> None:
        self._planned = None

    def once(self, group: Group, cut: Sequence[int]) -> Scores:
        before = {g: set(u) for g, u in self.removed.items()}
        self.removed.setdefault(group.name, set()).update(int(n) for n in cut)
        self._whole = None
        try:
            return self.scores()
        finally:
            self.removed, self._whole = before, None

    def _of(self, group: Group | None) -> Plan | None:
        if group is None:
            return None
        if group.name in self._refused:
            return None
        if self._planned is None or self._planned.group is not group:
            self.enter(group)
        return self._planned

    def _evaluate(self, group: Group | None, jobs: list[Job]) -> list[Scores]:
        plan = self._of(group)
        if group is None:
            return self._evaluate_whole(jobs)
        if plan is None:
            found = self.plain._evaluate(group, jobs)
            self.evaluated += sum(j.rows for j in jobs)
            return found
        if not plan.shared and len(jobs) > 1:
            return [s for j in jobs for s in self._evaluate(group, [j])]
        spans: dict[tuple[int, int], Env] = {}
        for j in jobs:
            if (j.start, j.stop) not in spans:
                spans[j.start, j.stop] = self._frontier(plan, j.start, j.stop)
        outputs = self._outputs(
            plan, [j.cut for j in jobs], [spans[j.start, j.stop] for j in jobs], [j.rows for j in jobs]
        )
        return self._scored(outputs, jobs)

    def _evaluate_whole(self, jobs: list[Job]) -> list[Scores]:
        """The network as it stands, by a forward pass of the smaller network."""
        if self._whole is None:
            self._whole = self._network()
        with torch.inference_mode(), self._precision():
            outputs = self._whole(torch.cat([self._inputs(j.start, j.stop) for j in jobs]))
        return self._scored(outputs, jobs)

    def remove(self, group: str, units: Sequence[int]) -> None:
        self._whole = self._drawn = None
        self.plain.remove(group, units)
        self.removed.setdefault(group, set()).update(int(n) for n in units)
        plan = self._planned
        if plan is None or plan.group.name != group:
            self._planned = None
            return
        with torch.inference_mode():
            for c in plan.consumers:
                index = c.of(units)
                if c.first and plan.cached_rows:
                    subtract_(c.module, plan.cached[c.node], plan.cached[c.node.all_input_nodes[0]], index)
            for module, index in {id(c.module): (c.module, c.of(units)) for c in plan.consumers}.values():
                weight_of(module).index_fill_(input_dim(module), index.to(self.device, non_blocking=True), 0.0)
        plan.removed += len(units)

    def stale(self, group: Group) -> bool:
        """Whether so much of the group went since it was entered that a smaller network pays: something of it is replayed."""
        plan = self._planned
        if plan is None or plan.group is not group or not self.tuning.shrink:
            return False
        replayed = {str(n.target) for n in plan.tail if n.op == "call_module"} - {
            str(c.node.target) for c in plan.consumers if c.first
        }
        left = group.size - len(self.removed.get(group.name, ()))
        return plan.removed >= max(8, left // 8) and any(s.module in replayed for s in group.slots)

    def _verify(self, plan: Plan) -> None:
        """Replayed and plainly cut networks must agree on real samples. Raises NotTraceable.

        Half of the group and one unit are cut. Where that hardly moves the outputs, what may differ is a hundredth of the move,
        or the difference that rounding makes without a cut.
        """
        left = [n for n in range(plan.group.size) if n not in self.removed.get(plan.group.name, set())]
        cuts: list[tuple[int, ...]] = [(), tuple(left[::2]), (left[0],)]
        batches = [cuts] if plan.shared else [[cut] for cut in cuts]
        frontier, got, expected = self._frontier_of(plan, self._few), [], []
        for batch in batches:
            many = [len(self._few)] * len(batch)
            try:
                outputs = tensors_of(self._outputs(plan, batch, [frontier] * len(batch), many))
            except torch.cuda.OutOfMemoryError:
                raise
            except RuntimeError as error:
                pass_on_out_of_memory(error)
                raise NotTraceable(f"its replay fails: {str(error).splitlines()[0][:160]}") from error
            plain = tensors_of(self.plain.outputs(plan.group, batch, torch.cat([self._few] * len(batch))))
            if [t.shape for t in outputs] != [t.shape for t in plain]:
                raise NotTraceable("its replay gives outputs of other shapes")
            got += _split(outputs, len(batch))
            expected += _split(plain, len(batch))
        tolerance = 5e-2 if self.amp else 1e-9 if self.dtype == torch.float64 else 1e-4
        for place, uncut in enumerate(expected[0]):
            scale = max(1.0, float(uncut.abs().max()))
            rounding = float((got[0][place] - uncut).abs().max())
            for mine, plain_one in zip(got, expected, strict=True):
                off = float((mine[place] - plain_one[place]).abs().max())
                moved = float((plain_one[place] - uncut).abs().max())
                allowed = min(tolerance * scale, max(moved / 100, 10 * rounding, tolerance * scale / 100))
                if not off <= (tolerance * scale if self.amp else allowed):
                    raise NotTraceable(f"replayed and plain outputs differ by {off:.2g} ({allowed:.2g} allowed)")


def _all_held(plan: Plan, rows: int, room: int) -> bool:
    """Whether the plan keeps the frontier of all samples, in at most that many bytes."""
    taken = sum(v.numel() * v.element_size() for v in plan.cached.values() if isinstance(v, torch.Tensor))
    return plan.cached_rows == rows and taken <= room


def _split(tensors: list[torch.Tensor], parts: int) -> list[list[torch.Tensor]]:
    """Outputs of a batch of equally large cut sets, by set."""
    return [[t[i * len(t) // parts : (i + 1) * len(t) // parts] for t in tensors] for i in range(parts)]


def _width_step(size: int) -> int:
    """Which multiples a group's width is kept at while it shrinks."""
    return 64 if size >= 256 else 16 if size >= 64 else 1


def engine_for(model: nn.Module, *args: Any, cut: str = "plain", **settings: Any) -> Engine:
    """The replay engine where the model can be had as a graph, the plain one elsewhere, with the reason in `notes`.

    cut: "plain", or "compensated" (see `causal.compensation`).
    """
    fast: type[ReplayEngine] = ReplayEngine
    slow: type[PlainEngine] = PlainEngine
    if cut == "compensated":
        from cswap.causal.compensation import CompensatedPlainEngine, CompensatedReplayEngine

        fast, slow = CompensatedReplayEngine, CompensatedPlainEngine
    try:
        return fast(model, *args, **settings)
    except NotTraceable as reason:
        plain = slow(model, *args, **settings)
        plain.notes.append(f"no replay: {reason}")
        return plain
