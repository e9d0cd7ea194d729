"""How one group's cuts are replayed: what a cut changes, what that reads besides, and what leads there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from cswap.causal.graph import Env, Graph
from cswap.structure.groups import Group
from cswap.structure.layers import channel_dim, rule_of
from cswap.types import IntArray


@dataclass(frozen=True, eq=False)
class Consumer:
    """One call of a layer that reads the group. `first`: its input does not change under a cut of the group."""

    node: fx.Node
    module: nn.Module
    first: bool
    positions: dict[int, IntArray]

    def of(self, cut: Sequence[int]) -> torch.Tensor:
        """Input positions the units own."""
        parts = [self.positions[n] for n in cut if n in self.positions]
        return torch.from_numpy(np.concatenate(parts)) if parts else torch.empty(0, dtype=torch.int64)


@dataclass(eq=False)
class Plan:
    """How one group's cuts are replayed on one state of the network."""

    group: Group
    graph: Graph
    consumers: list[Consumer]
    prefix: list[fx.Node] = field(default_factory=list)
    tail: list[fx.Node] = field(default_factory=list)
    frontier: list[fx.Node] = field(default_factory=list)
    prefix_last: dict[fx.Node, fx.Node] = field(default_factory=dict)
    tail_last: dict[fx.Node, fx.Node] = field(default_factory=dict)
    shared: bool = True  # whether several cut sets can go through in one batch
    cached: Env = field(default_factory=dict)
    cached_rows: int = 0
    removed: int = 0

    def leading_from(self, held: Env) -> tuple[list[fx.Node], dict[fx.Node, fx.Node]]:
        """The nodes that lead to the frontier from the network's input and the values that are held, and who uses a value last."""
        wanted = set(self.frontier)
        needed = wanted - set(held)
        for node in reversed(self.graph.nodes):
            if node in needed:
                needed.update(i for i in node.all_input_nodes if i not in held)
        nodes = [n for n in self.graph.nodes if n in needed and n is not self.graph.input]
        stays = {*wanted, *held, self.graph.input}
        return nodes, {i: node for node in nodes for i in node.all_input_nodes if i not in stays}


def plan_of(group: Group, graph: Graph, consumers: list[Consumer], changed: set[fx.Node]) -> Plan:
    """The nodes a cut changes (`changed`: the tail), what they read besides (the frontier), and what leads there (the prefix)."""
    plan = Plan(group, graph, consumers)
    calls = {c.node: c for c in consumers}
    plan.tail = [n for n in graph.nodes if n in changed]
    wanted: dict[fx.Node, None] = {}
    for node in plan.tail:
        wanted.update({i: None for i in node.all_input_nodes if i not in changed})
        if node in calls and calls[node].first:
            wanted[node] = None  # its output without a cut
    plan.frontier = list(wanted)
    plan.prefix, plan.prefix_last = plan.leading_from({})
    for node in plan.tail:
        plan.tail_last.update({i: node for i in node.all_input_nodes if i in changed})
    kinds = [graph.scales[n] for n in (*plan.frontier, graph.output)]
    plan.shared = None not in kinds
    return plan


def live_bytes(graph: Graph, nodes: list[fx.Node], last: dict[fx.Node, fx.Node]) -> tuple[int, int]:
    """Bytes a sample: the largest value, and the most that lives at once."""
    alive: dict[fx.Node, int] = {}
    largest = most = 0
    for node in nodes:
        size = graph.row_bytes.get(node, 0)
        alive[node] = size
        largest, most = max(largest, size), max(most, sum(alive.values()))
        for used in node.all_input_nodes:
            if last.get(used) is node:
                alive.pop(used, None)
    return largest, most


def is_channels_last(value: torch.Tensor) -> bool:
    return value.dim() == 4 and value.is_contiguous(memory_format=torch.channels_last)


def joined(values: list[Any]) -> Any:
    if len(values) == 1:
        return values[0]
    if isinstance(values[0], torch.Tensor):
        return torch.cat(values)
    if isinstance(values[0], list | tuple):
        return type(values[0])(joined(list(v)) for v in zip(*values, strict=True))
    return values[0]


def input_dim(module: nn.Module) -> int:
    rule = rule_of(module)
    assert rule is not None
    return rule.inn[0][1]


def weight_of(module: nn.Module) -> torch.Tensor:
    weight: Any = module.weight
    return weight.data  # type: ignore[no-any-return]


def without(
    module: nn.Module, x: torch.Tensor, positions: list[torch.Tensor], shares: list[int], *others: Any, **named: Any
) -> torch.Tensor:
    """The layer on inputs of cut sets, one after the other, of `shares` samples each: a set's own positions count as zero.

    others, named: what it takes besides x, as it is.
    """
    if len(positions) == 1:
        weight, dim, index = weight_of(module), input_dim(module), positions[0].to(x.device, non_blocking=True)
        held = weight.index_select(dim, index)
        weight.index_fill_(dim, index, 0.0)
        try:
            result: torch.Tensor = module(x, *others, **named)
        finally:
            weight.index_copy_(dim, index, held)
        return result
    x = x.clone()
    each, start = x.shape[0] // sum(shares), 0
    for index, share in zip(positions, shares, strict=True):
        x[start : start + share * each].index_fill_(channel_dim(module), index.to(x.device, non_blocking=True), 0.0)
        start += share * each
    masked: torch.Tensor = module(x, *others, **named)
    return masked
