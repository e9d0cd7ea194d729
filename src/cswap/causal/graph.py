"""The network as a graph of operations (torch.fx), run node by node, so that only what a cut can change is run again."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from cswap.errors import pass_on_out_of_memory
from cswap.structure.chains import WholeLayers
from cswap.structure.check import tensors_of

Env = dict[fx.Node, Any]

_IN_PLACE: dict[Any, Any] = {
    operator.iadd: operator.add, operator.isub: operator.sub, operator.imul: operator.mul,
    operator.itruediv: operator.truediv, torch.relu_: torch.relu,
}  # fmt: skip
_ADDS = (operator.add, torch.add)
_FRESH_FUNCTIONS = {
    operator.add, operator.mul, torch.add, torch.mul, torch.relu, nn.functional.relu, nn.functional.relu6,
    nn.functional.silu, nn.functional.hardswish,
}  # fmt: skip
_FRESH_MODULES = (_ConvNd, nn.Linear, _BatchNorm, nn.ReLU, nn.ReLU6, nn.SiLU, nn.Hardswish)
_FOLDED = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_RELU_FUNCTIONS = (torch.relu, nn.functional.relu)


class NotTraceable(Exception):
    """The model cannot be had as a graph that gives its own results; the message is the reason."""


class Graph:
    """Nodes of `net` in order. `net` is changed: nothing in it works in place, and eval-mode batch norms are folded.

    `own`: nodes whose result is memory that nothing else looks at, so that its last user may overwrite it.
    `scales[node]`: True where dimension 0 of the node's tensor grows with the number of samples, False where nothing of
    it depends on that number, None where it does in another way (then several cut sets cannot share a batch).
    `row_bytes[node]`: bytes a sample of its output.
    """

    def __init__(
        self, net: nn.Module, inputs: torch.Tensor, *, fold: bool = True, in_place: bool = True, formats: bool = True
    ) -> None:
        self.net = net.eval()
        expected = tensors_of(net(inputs))
        try:
            graph = WholeLayers().trace(net)
        except Exception as error:
            pass_on_out_of_memory(error)
            raise NotTraceable(f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:160]}") from error
        self.nodes: list[fx.Node] = list(graph.nodes)
        placeholders = [n for n in self.nodes if n.op == "placeholder"]
        self.input, self.output = placeholders[0], self.nodes[-1]
        self._constant = {n: n.args[0] for n in placeholders[1:] if n.args}
        if len(self._constant) < len(placeholders) - 1:
            raise NotTraceable("the model takes more than one input")
        _without_in_place(net, self.nodes)
        if fold:
            _fold_batch_norms(net, self.nodes)
            self.nodes = list(graph.nodes)
        self.modules: dict[fx.Node, nn.Module] = {
            n: net.get_submodule(str(n.target)) for n in self.nodes if n.op == "call_module"
        }
        self.calls: dict[str, list[fx.Node]] = {}
        for n in self.modules:
            self.calls.setdefault(str(n.target), []).append(n)
        fresh = {n for n in self.nodes if self._is_fresh(n)}
        self.own = {n for n in fresh if in_place and all(u in fresh for u in n.users)}
        self._formats: dict[fx.Node, torch.memory_format] = {}
        self._check(expected, inputs)
        if fold and formats and inputs.device.type == "cpu" and inputs.dim() == 4:
            self._choose_formats()

    def _choose_formats(self) -> None:
        """Wide convolutions on small maps go channels first, others channels last; see `_format`."""
        for node, module in self.modules.items():
            shape = self.row_shape.get(node, ())
            if type(module) is nn.Conv2d and len(shape) == 3:
                self._formats[node] = _format(module, shape[1] * shape[2])
        for name, nodes in self.calls.items():
            formats = {self._formats.get(n) for n in nodes}
            if len(formats) == 1 and None not in formats:
                weight = self.net.get_submodule(name).get_parameter("weight")
                weight.data = weight.data.contiguous(memory_format=formats.pop() or torch.contiguous_format)
            else:
                for n in nodes:
                    self._formats.pop(n, None)

    def _is_fresh(self, node: fx.Node) -> bool:
        """Whether the node's result is memory of its own, which nothing else looks at."""
        if node.op == "call_module":
            return isinstance(self.modules[node], _FRESH_MODULES)
        return node.op == "call_function" and node.target in _FRESH_FUNCTIONS

    def _check(self, expected: list[torch.Tensor], inputs: torch.Tensor) -> None:
        """The graph must give the model's own outputs; sizes are noted at two batch sizes on the way."""
        many, few = inputs, inputs[: len(inputs) - 1]
        try:
            seen: Env = {}
            whole = self.run(self.nodes, {self.input: many}, keep=seen)
            fewer: Env = {}
            self.run(self.nodes, {self.input: few}, keep=fewer)
        except Exception as error:
            pass_on_out_of_memory(error)
            raise NotTraceable(
                f"its graph does not run: {type(error).__name__}: {str(error).splitlines()[0][:160]}"
            ) from error
        got = tensors_of(whole)
        tolerance = 1e-4 if got and got[0].dtype != torch.float64 else 1e-9
        same = len(got) == len(expected) and all(
            a.shape == b.shape and bool((a - b).abs().max() <= tolerance * max(1.0, float(b.abs().max())))
            for a, b in zip(got, expected, strict=True)
        )
        if not same:
            raise NotTraceable("its graph gives other outputs than the model")
        self.scales = {n: _scaling(seen.get(n), fewer.get(n), len(many), len(few)) for n in self.nodes}
        self.row_bytes = {n: _bytes(v) // len(many) for n, v in seen.items()}
        self.row_shape = {n: tuple(v.shape[1:]) for n, v in seen.items() if isinstance(v, torch.Tensor) and v.dim()}

    def run(
        self,
        nodes: Iterable[fx.Node],
        env: Env,
        *,
        last_use: dict[fx.Node, fx.Node] | None = None,
        special: dict[fx.Node, Callable[[Env], Any]] | None = None,
        fetch: Callable[[fx.Node], Any] | None = None,
        keep: Env | None = None,
    ) -> Any:
        """Run `nodes` in order on `env`; returns the output node's value, or None when it is not among them.

        `special`: nodes computed in another way. `fetch`: values of nodes that are not in `env`. With `last_use`, a value
        is dropped after the node that uses it last, and may be overwritten by it. `keep` gets every value.
        """
        special = special or {}
        result = None
        for node in nodes:
            if node in env:
                value = env[node]
            elif node in special:
                value = special[node](env)
            elif node.op == "output":
                result = fx.node.map_arg(node.args[0], lambda n: env[n] if n in env or fetch is None else fetch(n))
                continue
            else:
                if fetch is not None:
                    for used in node.all_input_nodes:
                        if used not in env:
                            env[used] = fetch(used)
                value = self._step(node, env, last_use)
            env[node] = value
            if keep is not None:
                keep[node] = value
            if last_use is not None:
                for used in node.all_input_nodes:
                    if last_use.get(used) is node:
                        env.pop(used, None)
        return result

    def _step(self, node: fx.Node, env: Env, last_use: dict[fx.Node, fx.Node] | None) -> Any:
        def value(n: fx.Node) -> Any:
            return env[n]

        if node.op == "get_attr":
            return operator.attrgetter(str(node.target))(self.net)
        if node.op == "placeholder":
            return self._constant[node]
        args: Any = fx.node.map_arg(node.args, value)
        kwargs: Any = fx.node.map_arg(node.kwargs, value)
        if last_use is not None:
            done, result = self._in_place(node, args, last_use)
            if done:
                return result
        if node.op == "call_module":
            if node in self._formats:
                args = (args[0].contiguous(memory_format=self._formats[node]), *args[1:])
            return self.modules[node](*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        return node.target(*args, **kwargs)  # type: ignore[operator]

    def _in_place(self, node: fx.Node, args: Any, last_use: dict[fx.Node, fx.Node]) -> tuple[bool, Any]:
        """Overwrite an input that nothing needs any more: ReLU, and the add of a residual."""

        def free(i: int) -> bool:
            n = node.args[i]
            return isinstance(n, fx.Node) and n in self.own and last_use.get(n) is node

        if node.op == "call_module" and type(self.modules[node]) is nn.ReLU and free(0):
            return True, args[0].relu_()
        if node.op == "call_function" and node.target in _RELU_FUNCTIONS and len(node.args) == 1 and free(0):
            return True, args[0].relu_()
        if node.op == "call_function" and node.target in _ADDS and len(args) == 2 and not node.kwargs:
            for i, j in ((0, 1), (1, 0)):
                a, b = args[i], args[j]
                plain = isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) and node.args[0] is not node.args[1]
                if plain and free(i) and a.shape == b.shape and a.dtype == b.dtype:
                    return True, a.add_(b)
        return False, None


def _without_in_place(net: nn.Module, nodes: list[fx.Node]) -> None:
    """Nothing may overwrite a value that is kept for the next cut."""
    for module in net.modules():
        if getattr(module, "inplace", False) is True:
            module.__dict__["inplace"] = False
    for node in nodes:
        if node.op == "call_function" and node.target in _IN_PLACE:
            node.target = _IN_PLACE[node.target]
        if node.op == "call_method" and str(node.target).endswith("_") and not str(node.target).endswith("__"):
            node.target = str(node.target)[:-1]
        if node.kwargs.get("inplace") is True:
            node.kwargs = {**node.kwargs, "inplace": False}


def _fold_batch_norms(net: nn.Module, nodes: list[fx.Node]) -> None:
    """An eval-mode batch norm behind a convolution or linear layer that feeds nothing else goes into its weights."""
    calls: dict[str, int] = {}
    for n in nodes:
        if n.op == "call_module":
            calls[str(n.target)] = calls.get(str(n.target), 0) + 1
    for n in nodes:
        if n.op != "call_module" or calls[str(n.target)] != 1 or len(n.all_input_nodes) != 1 or n.kwargs:
            continue
        before = n.all_input_nodes[0]
        if before.op != "call_module" or calls[str(before.target)] != 1 or len(before.users) != 1:
            continue
        norm, layer = net.get_submodule(str(n.target)), net.get_submodule(str(before.target))
        if (
            not isinstance(norm, _BatchNorm)
            or norm.running_mean is None
            or "weight" not in dict(layer.named_parameters())
        ):
            continue
        if (
            isinstance(layer, _FOLDED)
            and type(layer) in _FOLDED
            and type(norm) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
        ):
            folded: nn.Module = fuse_conv_bn_eval(layer, norm)
        elif type(layer) is nn.Linear and type(norm) is nn.BatchNorm1d and layer.out_features == norm.num_features:
            folded = fuse_linear_bn_eval(layer, norm)  # on (N, L, C) the norm is over L: the check finds it
        else:
            continue
        net.set_submodule(str(before.target), folded.requires_grad_(False))
        n.replace_all_uses_with(before)
        n.graph.erase_node(n)


def _format(conv: nn.Conv2d, pixels: int) -> torch.memory_format:
    """The faster layout on a CPU, measured with oneDNN 3 on AVX-512: 512 channels at 4×4, 144 and 202 GMAC/s."""
    wide = conv.groups == 1 and conv.in_channels >= 256 and conv.kernel_size != (1, 1)
    return torch.contiguous_format if wide and pixels <= 36 else torch.channels_last


def _bytes(value: Any) -> int:
    return sum(t.numel() * t.element_size() for t in _every_tensor(value))


def _every_tensor(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [t for item in value for t in _every_tensor(item)] if isinstance(value, list | tuple) else []


def _scaling(many: Any, few: Any, rows: int, fewer: int) -> bool | None:
    """See `Graph.scales`."""
    if isinstance(many, torch.Tensor) and isinstance(few, torch.Tensor):
        if many.shape == few.shape:
            return False if rows == fewer or many.dim() == 0 or torch.equal(many, few) else None
        grows = (
            many.dim() == few.dim() and many.shape[1:] == few.shape[1:] and many.shape[0] * fewer == few.shape[0] * rows
        )
        return True if grows else None
    if isinstance(many, dict) and isinstance(few, dict) and list(many) == list(few):
        many, few = list(many.values()), list(few.values())
    if isinstance(many, list | tuple) and isinstance(few, list | tuple) and len(many) == len(few):
        kinds = {_scaling(a, b, rows, fewer) for a, b in zip(many, few, strict=True)}
        return kinds.pop() if len(kinds) == 1 else None
    return False if type(many) is type(few) and many == few else None
