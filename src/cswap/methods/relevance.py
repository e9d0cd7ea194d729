"""What methods that rank units by relevance share: a network as single operations, and the mean over samples."""

from __future__ import annotations

import copy
import operator
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from cswap.causal.cut import PlainEngine
from cswap.causal.graph import Graph, NotTraceable
from cswap.errors import MethodError, RunError
from cswap.structure.groups import Group, consumers_of
from cswap.tasks.base import Task
from cswap.tasks.classification import logits_of
from cswap.types import FloatArray

_EXAMPLES = 4

ACTIVATIONS: tuple[type[nn.Module], ...] = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish,
    nn.Hardsigmoid, nn.Hardtanh, nn.Hardshrink, nn.Softshrink, nn.Tanhshrink, nn.Threshold, nn.Sigmoid, nn.LogSigmoid,
    nn.Tanh, nn.Softplus, nn.Softsign,
)  # fmt: skip
MAX_POOLS: tuple[type[nn.Module], ...] = (
    nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d,
)  # fmt: skip

# functions and methods by name; torch.relu, F.relu, Tensor.relu and Tensor.relu_ are all "relu"
_ACTIVATION_NAMES = {
    "relu", "relu6", "leaky_relu", "prelu", "elu", "selu", "celu", "gelu", "silu", "mish", "hardswish", "hardsigmoid",
    "hardtanh", "sigmoid", "logsigmoid", "tanh", "softplus", "softsign", "clamp", "clip",
}  # fmt: skip
_MAX_NAMES = {f"{kind}max_pool{n}d" for kind in ("", "adaptive_") for n in (1, 2, 3)}
_MEAN_NAMES = {"mean"} | {f"{kind}avg_pool{n}d" for kind in ("", "adaptive_") for n in (1, 2, 3)}
_FACTS = {"shape", "ndim", "dtype", "device"}


class Call(nn.Module):
    """One call of a function or method on one tensor, its other arguments fixed."""

    def __init__(self, node: fx.Node) -> None:
        super().__init__()
        self.called, self.more, self.named = node.target, tuple(node.args[1:]), dict(node.kwargs)
        if node.op == "call_method":
            self.called = operator.methodcaller(str(node.target), *self.more, **self.named)
            self.more, self.named = (), {}

    def forward(self, x: torch.Tensor) -> Any:
        return self.called(x, *self.more, **self.named)  # type: ignore[operator]


class Activation(Call):
    """An activation function."""


class MaxPool(Call):
    """Max pooling."""


class Mean(Call):
    """A mean or average pooling."""


def name_of(node: fx.Node) -> str:
    """What a call does: a function's or method's plain name, or a layer's class."""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    return name.rstrip("_")


def _is_size(node: fx.Node) -> bool:
    """Whether a call asks for a fact about a tensor, not for what is in it."""
    if node.op == "call_method":
        return node.target in ("size", "dim")
    return node.op == "call_function" and node.target is getattr and node.args[1] in _FACTS


class Operations:
    """The network of an engine, which is used up, as a graph in which every call of a layer is a module of its own.

    Activations, max pooling and means that are called as functions are modules too; a batch norm right behind a linear
    layer or a convolution is merged into it. Raises MethodError for a network that cannot be had as a graph, whose inputs
    are numbers of tokens, or samples with several classes.
    """

    def __init__(self, engine: PlainEngine, method: str) -> None:
        if engine.calibration.members is not None:
            raise MethodError(f"method {method}: expected one class a sample, got {engine.calibration.kind}")
        examples = engine._ready(engine.calibration.inputs(0, _EXAMPLES))
        if not examples.is_floating_point():
            raise MethodError(f"method {method}: expected inputs of a floating type, got {examples.dtype}")
        try:
            whole = Graph(engine.net, examples, in_place=False, formats=engine.channels_last)
        except NotTraceable as reason:
            raise MethodError(
                f"method {method}: this network cannot be had as a graph of operations: {reason}"
            ) from None
        self.net, self.graph = whole.net, whole.nodes[0].graph
        self._input = whole.input
        self.layer_of: dict[str, str] = {}  # name of a call's own module -> name of the layer in the model
        for node in self.nodes:
            if node.op == "call_module":
                layer = str(node.target)
                if layer in self.layer_of:
                    node.target = self._added(node, copy.deepcopy(self.net.get_submodule(layer)))
                self.layer_of[str(node.target)] = layer
        self._modules_for_functions()

    @property
    def nodes(self) -> list[fx.Node]:
        """In the order of the calls."""
        return list(self.graph.nodes)

    def put(self, node: fx.Node, module: nn.Module) -> None:
        """Let `module` do what the node does, on the tensors among its arguments."""
        tensors = tuple(a for a in node.args if isinstance(a, fx.Node))
        node.op, node.target, node.args, node.kwargs = "call_module", self._added(node, module), tensors, {}

    def _added(self, node: fx.Node, module: nn.Module) -> str:
        name = f"own_{node.name}"
        self.net.add_module(name, module)
        return name

    def _modules_for_functions(self) -> None:
        kinds = ((_ACTIVATION_NAMES, Activation), (_MAX_NAMES, MaxPool), (_MEAN_NAMES, Mean))
        for node in self.varying():
            if node.op in ("call_function", "call_method") and len(node.all_input_nodes) == 1 and node.args:
                kind = next((k for names, k in kinds if name_of(node) in names), None)
                if kind is not None and isinstance(node.args[0], fx.Node):
                    self.put(node, kind(node))

    def varying(self) -> list[fx.Node]:
        """Nodes whose value, not only its size, depends on the input."""
        found = {self._input: None}
        for node in self.nodes:
            if not _is_size(node) and any(n in found for n in node.all_input_nodes):
                found[node] = None
        return list(found)

    def module_at(self, node: fx.Node) -> nn.Module:
        """The module a node calls."""
        return self.net.get_submodule(str(node.target))

    def network(self) -> Logits:
        """The network these operations are, in eval mode."""
        self.graph.lint()
        return Logits(fx.GraphModule(self.net, self.graph)).eval()

    def readers(self, groups: Sequence[Group]) -> list[str]:
        """Names, in `network().body`, of the calls that read a unit."""
        read = set(consumers_of(groups))
        return [call for call, layer in self.layer_of.items() if layer in read]


def columns_of(task: Task, targets: torch.Tensor) -> torch.Tensor:
    """The model's output of each labelled class, (N,)."""
    columns: Any = getattr(task, "columns", None)
    return targets if columns is None else columns(targets)


class Logits(nn.Module):
    """(N, …) inputs → (N, K) logits, whatever else the network returns; the latest are kept."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.latest = torch.empty(0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = logits_of(self.body(x))
        self.latest = logits.detach()
        return logits


def mean_scores(
    method: str, groups: Iterable[Group], sums: Iterable[dict[str, FloatArray]], power: int = 1
) -> dict[str, FloatArray]:
    """Mean over samples of |sum|^power, by group (size,); sums: batches of (n, size) by group.

    Raises MethodError when no unit has any, RunError when a number is not finite.
    """
    totals = {g.name: np.zeros(g.size) for g in groups}
    samples = 0
    for batch in sums:
        samples += len(next(iter(batch.values())))
        for name, values in batch.items():
            totals[name] += (np.abs(values) ** power).sum(0)
    for name, total in totals.items():
        if not np.isfinite(total).all():
            raise RunError(f"method {method}: the scores of group {name} are not finite: NaN or Inf inside")
    if not any(total.any() for total in totals.values()):
        raise MethodError(
            f"method {method}: every unit's score is 0 on the calibration set: expected a score with a gradient that is "
            "not saturated on every sample"
        )
    return {name: total / samples for name, total in totals.items()}
