"""LRP ranking, by zennit: relevance handed down from the labelled class's logit, layer by layer (Bach et al., 2015).

Pruning by it: Yeom et al. (2021, arXiv 1912.08881). The rules are zennit's EpsilonPlus: z⁺ for convolutions, ε for linear
layers, activations pass relevance on (a flat rule at the input would only matter to pixels, which are no units). A unit's relevance is the mean over samples of
|Σ relevance| over all places where a weight reads the unit.

Ours: every call is a module of its own; a batch norm is merged into the layer before it, and goes by ε elsewhere; means go
by zennit's Norm, sums by its Sum; a product of two activations gives each factor half, attention and layer norms go by
`lrp_attention` (Achtibat et al., 2024, arXiv 2402.05602). An operation without a rule is refused: its gradient would be no relevance.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.padding import _ConstantPadNd, _ReflectionPadNd, _ReplicationPadNd

from cswap.causal.cut import PlainEngine
from cswap.causal.first_order import batches, read_inputs, unit_sums
from cswap.data.calibration import CalibrationSet
from cswap.errors import MethodError, MissingPartError
from cswap.methods.lrp_attention import NORMS, Normed, RelevantProduct, ruled, scaled
from cswap.methods.options import Options
from cswap.methods.path import PruningPath
from cswap.methods.ranking import ranking_path
from cswap.methods.registry import register
from cswap.methods.relevance import (  # fmt: skip
    ACTIVATIONS,
    MAX_POOLS,
    Activation,
    Logits,
    MaxPool,
    Mean,
    Operations,
    columns_of,
    mean_scores,
    name_of,
)
from cswap.structure.attention import HeadProduct
from cswap.structure.groups import Structure
from cswap.structure.hosts import MASKS
from cswap.tasks.base import Task
from cswap.types import FloatArray

_AVERAGES = (
    nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d,
)  # fmt: skip
_MOVES = (
    nn.Identity, nn.Flatten, nn.Unflatten, _DropoutNd, nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle,
    _ConstantPadNd, _ReflectionPadNd, _ReplicationPadNd,
)  # fmt: skip
_RULED = (nn.Linear, _ConvNd, _BatchNorm, *ACTIVATIONS, Activation, *_AVERAGES, Mean, *MAX_POOLS, MaxPool, *_MOVES)
_IN_EVAL_MODE_NOTHING = {"StochasticDepth", "DropPath"}
_MOVE_NAMES = {
    "flatten", "unflatten", "view", "reshape", "permute", "transpose", "movedim", "swapaxes", "contiguous", "getitem",
    "chunk", "split", "narrow", "cat", "concat", "stack", "squeeze", "unsqueeze", "unbind", "expand", "pad", "clone",
    "dropout", "dropout1d", "dropout2d", "dropout3d", "stochastic_depth", "roll", "pixel_shuffle", "channel_shuffle", "float", "to",
}  # fmt: skip


def _composite() -> Any:
    try:
        from zennit.composites import EpsilonPlus
        from zennit.rules import Epsilon, Norm, Pass
    except ImportError as error:
        raise MissingPartError.of(error, "method lrp needs zennit", "lrp", "zennit") from None
    return EpsilonPlus(layer_map=[((*ACTIVATIONS, Activation), Pass()), ((Mean,), Norm()), ((_BatchNorm,), Epsilon())])


class _Add(nn.Module):
    """a + b, each given relevance by its share."""

    def __init__(self) -> None:
        super().__init__()
        from zennit.layer import Sum

        self.sum = Sum()

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return self.sum(torch.stack(torch.broadcast_tensors(a, b), dim=-1))  # type: ignore[no-any-return, no-untyped-call]


class _Product(torch.autograd.Function):
    """a · b, each given half of the relevance."""

    @staticmethod
    def forward(ctx: Any, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        ctx.shapes = a.shape, b.shape
        return a * b

    @staticmethod
    def backward(ctx: Any, *relevance: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple((relevance[0] / 2).sum_to_size(shape) for shape in ctx.shapes)


def _product(a: torch.Tensor, b: torch.Tensor) -> Any:
    return _Product.apply(a, b)


def _prepared(operations: Operations) -> Logits:
    """The network with a rule at every operation; raises MethodError that names what has none."""
    varying = set(operations.varying())
    without: dict[str, str] = {}
    for node in operations.nodes:
        if node not in varying or node.op in ("placeholder", "output"):
            continue
        if node.op == "call_module":
            module, layer = operations.module_at(node), operations.layer_of.get(str(node.target), node.name)
            if isinstance(module, NORMS):
                operations.put(node, Normed(module))
            elif isinstance(module, HeadProduct):
                RelevantProduct.of(module)
            elif not (isinstance(module, _RULED) or type(module).__name__ in _IN_EVAL_MODE_NOTHING):
                without.setdefault(type(module).__name__, f" (first at {layer})")
        elif not _ruled_call(operations, node, varying):
            without.setdefault(name_of(node), "")
    if without:
        raise MethodError(
            f"method lrp: no rule hands relevance through {', '.join(k + at for k, at in without.items())}: "
            "expected linear layers, convolutions, norms, activations, pooling, attention, sums and products"
        )
    return operations.network()


def _ruled_call(operations: Operations, node: fx.Node, varying: set[fx.Node]) -> bool:
    """Put the rule of a function or method in its place; False when there is none."""
    name, changing = name_of(node), [isinstance(a, fx.Node) and a in varying for a in node.args]
    if name in _MOVE_NAMES or _is_mask(node):
        return True
    if ruled(node, name, changing):
        return True
    if len(changing) != 2 or node.kwargs:
        return False
    if name in ("add", "iadd"):
        if all(changing):
            operations.put(node, _Add())
        return True
    if name == "sub":
        return changing == [True, False]
    if name == "mul" and all(changing):
        node.op, node.target = "call_function", _product
        return True
    if name == "mul" or (name in ("div", "truediv") and changing == [True, False]):
        node.op, node.target, node.args = "call_function", scaled, (*node.args, name != "mul")
        return True
    return False


def _is_mask(node: fx.Node) -> bool:
    """Whether a call makes an attention's mask, for which a query tells only its shape."""
    return node.target in MASKS


def relevances(engine: PlainEngine, units: Structure) -> Iterator[dict[str, FloatArray]]:
    """Batches of n samples: relevance by group (n, size). The engine's network is used up."""
    composite = _composite()
    dims = engine.sample_dims(units.groups)
    operations = Operations(engine, "lrp")
    net = _prepared(operations)
    for _, inputs, targets in batches(engine, np.arange(len(engine.calibration)), passes=2):
        assert isinstance(targets, torch.Tensor)  # a class a sample: `Operations` has seen to it
        # the composite comes second: its rules then lie between our reading and the layer
        with (
            torch.enable_grad(),
            read_inputs(net.body, operations.readers(units.groups)) as seen,
            composite.context(net),
        ):
            chosen = net(inputs.requires_grad_()).gather(1, columns_of(engine.task, targets).view(-1, 1))
            torch.autograd.grad(chosen, inputs, chosen.detach())
        reads = [(operations.layer_of[r.name], r.grad) for r in seen if r.grad is not None]
        yield unit_sums(engine.net, units.groups, reads, len(targets), dims)


def lrp_scores(
    model: nn.Module,
    units: Structure,
    calibration: CalibrationSet,
    task: Task,
    *,
    device: str = "cpu",
    memory: int = 4 << 30,
) -> dict[str, FloatArray]:
    """LRP relevance by group (size,); `model` is untouched.

    Raises MissingPartError without zennit, MethodError for a network that cannot be traced or has an operation without a
    rule, DataError for one that gives no logits.
    """
    engine = PlainEngine(model, units, calibration, task, device=device, memory=memory)
    return mean_scores("lrp", units, relevances(engine, units))


@register("lrp")
def lrp(
    model: nn.Module, units: Structure, calibration: CalibrationSet, task: Task, *, options: Options = Options(), device: str = "cpu", memory: int = 4 << 30, **run: Any  # noqa: B008
) -> PruningPath:  # fmt: skip
    """Smallest mean |LRP relevance| first, per layer or global; see the module for the rules."""
    machine: dict[str, Any] = {"device": device, "memory": memory}
    scores = lrp_scores(model, units, calibration, task, **machine)
    return ranking_path(model, units, calibration, task, scores, method="lrp", options=options, **machine, **run)
