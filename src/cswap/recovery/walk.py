"""Front to back through a network, layer by layer, over a whole set of inputs: what each layer reads and gives.

Every layer is reached once; the values that later layers need are kept between layers, so that a network that is changed
from front to back is run once in all, and every sample read once. Where they would not fit the memory, or the network is no graph, it is run again from
its inputs up to the layer.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import fx, nn

from cswap.causal.graph import Env, Graph, NotTraceable
from cswap.data.calibration import CalibrationSet
from cswap.data.text import is_tokens
from cswap.linear.patches import at_tokens
from cswap.structure.images import laid
from cswap.types import IntArray

ROWS = 64


class Chunks(Sequence[torch.Tensor]):
    """Inputs of these samples, at most `ROWS` at a time on the device, loaded when they are asked for; parts do not mix. last: channels last."""

    def __init__(self, calibration: CalibrationSet, parts: Sequence[IntArray], device: str, last: bool) -> None:
        self.calibration, self.device, self.last = calibration, device, last
        self.numbers = [part[i : i + ROWS] for part in parts for i in range(0, len(part), ROWS)]

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, i: Any) -> Any:
        return laid(self.calibration.of(self.numbers[i]), self.last).to(self.device)


class _Reached(Exception):
    """The layer was reached; nothing behind it is needed."""


class Walk:
    """Inputs and outputs of a network's layers, in chunks of samples. `net` is a copy, whose weights may be changed on the way.

    chunks: inputs (n, …) each. Layers must be asked for in the order of their calls; asking for the outputs of one is
    passing it. Raises RuntimeError when a layer is not called.
    """

    def __init__(self, net: nn.Module, chunks: Sequence[torch.Tensor], memory: int, device: str = "cpu") -> None:
        self.net, self.chunks = copy.deepcopy(net).eval().to(device), chunks
        self._graph = self._traced(memory)
        self._envs: list[Env] = [{} for _ in chunks]
        self._tokens: dict[int, torch.Tensor] = {}  # chunks of text, whose masks every layer needs
        self._at = 0

    def _traced(self, memory: int) -> Graph | None:
        try:
            with torch.no_grad():
                graph = Graph(self.net, self.chunks[0][:2], fold=False, in_place=False)
        except NotTraceable:
            return None
        self._last = _last_uses(graph.nodes)
        held = _most_held(graph, self._last) * ROWS * len(self.chunks)
        return graph if held <= memory else None

    @property
    def kept(self) -> bool:
        """Whether values are kept between layers."""
        return self._graph is not None

    def inputs(self, layer: str) -> Iterator[torch.Tensor]:
        """What the layer reads, chunk by chunk; of text, rows at the sentences' tokens, without the padding."""
        return self._values(layer, before=True)

    def outputs(self, layer: str) -> Iterator[torch.Tensor]:
        """What the layer gives, chunk by chunk."""
        return self._values(layer, before=False)

    def _values(self, layer: str, before: bool) -> Iterator[torch.Tensor]:
        module = self.net.get_submodule(layer)
        if self._graph is None or layer not in self._graph.calls:  # inside a layer that the graph keeps whole
            for chunk in self.chunks:
                yield at_tokens(module, self._again(layer, chunk, before), chunk)
            return
        node = self._graph.calls[layer][0]
        place = self._graph.nodes.index(node) + (0 if before else 1)
        nodes, self._at = self._graph.nodes[self._at : place], max(place, self._at)
        for i, env in enumerate(self._envs):
            with torch.no_grad():
                self._run(nodes, env, i)
            wanted = node.all_input_nodes[0] if before else node  # it may be given by keyword
            yield at_tokens(module, env[wanted], self._tokens.get(i))

    def _run(self, nodes: list[fx.Node], env: Env, i: int) -> None:
        """Run these on chunk i, which is loaded where the network reads it and not again."""
        assert self._graph is not None
        for node in nodes:
            if node is self._graph.input:
                env[node] = self.chunks[i]
                if is_tokens(env[node]):
                    self._tokens[i] = env[node]
                continue
            self._graph.run([node], env)
            for used in node.all_input_nodes:
                if self._last.get(used) is node:
                    env.pop(used, None)

    def _again(self, layer: str, chunk: torch.Tensor, before: bool) -> torch.Tensor:
        seen: list[torch.Tensor] = []

        def stop(_m: nn.Module, args: tuple[Any, ...], named: dict[str, Any], *out: Any) -> None:
            seen.append(next(iter((*args, *named.values()))) if before else out[0])
            raise _Reached

        module = self.net.get_submodule(layer)
        hold = module.register_forward_pre_hook if before else module.register_forward_hook
        handle = hold(stop, with_kwargs=True)
        try:
            with torch.no_grad():
                self.net(chunk)
        except _Reached:
            return seen[0]
        finally:
            handle.remove()
        raise RuntimeError(f"{layer} is never called")


def _last_uses(nodes: list[fx.Node]) -> dict[fx.Node, fx.Node]:
    last: dict[fx.Node, fx.Node] = {}
    for node in nodes:
        for used in node.all_input_nodes:
            last[used] = node
    return last


def _most_held(graph: Graph, last: dict[fx.Node, fx.Node]) -> int:
    """Bytes a sample of all values held at once, at most."""
    held, most = 0, 0
    for node in graph.nodes:
        held += graph.row_bytes.get(node, 0)
        most = max(most, held)
        held -= sum(graph.row_bytes.get(u, 0) for u in node.all_input_nodes if last.get(u) is node)
    return most
