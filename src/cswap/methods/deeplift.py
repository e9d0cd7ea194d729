"""DeepLIFT ranking, by captum: relevance by the difference from a baseline (Shrikumar et al., 2017, arXiv 1704.02685).

The baseline is the zero input in normalised space, the target the labelled class's logit, the rule Rescale. A unit's
relevance is the mean over samples of |Σ attribution| over all places where a weight reads the unit: captum's multiplier
there times the difference of what is read from what is read under the baseline.

Ours, on top of captum: every call of an activation is a module of its own, all activations go by Rescale, and max pooling
and products have rules that hold where windows overlap and gates multiply, so that attributions add up.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from cswap.causal.cut import PlainEngine
from cswap.causal.first_order import batches, read_inputs, unit_sums
from cswap.causal.layout import CONSTANT
from cswap.data.calibration import CalibrationSet
from cswap.errors import MethodError, MissingPartError
from cswap.methods.options import Options
from cswap.methods.path import PruningPath, Silence, Sink
from cswap.methods.ranking import ranking_path
from cswap.methods.registry import register
from cswap.methods.relevance import (
    ACTIVATIONS,
    MAX_POOLS,
    Activation,
    Logits,
    MaxPool,
    Operations,
    columns_of,
    mean_scores,
    name_of,
)
from cswap.structure.groups import Structure
from cswap.tasks.base import Task
from cswap.types import FloatArray

_RESCALED = (*ACTIVATIONS, Activation)
_MAXES = (*MAX_POOLS, MaxPool)
_TINY = 1e-6  # a smaller difference of an input is rounding: its gradient stands in
_ADDS_UP = 0.01


def _explainer_class() -> Any:
    """captum's DeepLift for all our activations, and for max pooling with windows that overlap."""
    try:
        from captum.attr._core.deep_lift import DeepLift, nonlinear
    except ImportError as error:
        raise MissingPartError.of(error, "method deeplift needs captum", "deeplift", "captum") from None

    class Rescale(DeepLift):  # type: ignore[misc, unused-ignore]
        def _is_non_linear(self, module: nn.Module) -> bool:
            return isinstance(module, (*_RESCALED, *_MAXES))

        def _backward_hook(self, module: Any, grad_input: torch.Tensor, grad_output: torch.Tensor) -> torch.Tensor:
            rule = max_multipliers if isinstance(module, _MAXES) else nonlinear
            multipliers = rule(module, module.input, module.output, grad_input, grad_output, self.eps)
            del module.input, module.output
            return multipliers

    return Rescale


def max_multipliers(
    module: nn.Module, inputs: torch.Tensor, outputs: torch.Tensor, grad_input: torch.Tensor, grad_output: torch.Tensor,
    eps: float,
) -> torch.Tensor:  # fmt: skip
    """Multipliers (2n, …) of max pooling, samples first and their baselines after them.

    A rise of the maximum is due to the sample's largest input, a fall to the baseline's; the same split as captum's, but
    inputs that several windows share collect from all of them.
    """
    out, under = outputs.chunk(2)
    most = torch.maximum(out, under)
    flow = grad_output.chunk(2)[0]
    with torch.enable_grad():
        again = inputs.detach().requires_grad_()
        (shares,) = torch.autograd.grad(module.forward(again), again, torch.cat([most - under, out - most]) * torch.cat([flow, flow]))  # fmt: skip
    share, difference = sum(shares.chunk(2)), inputs.chunk(2)[0] - inputs.chunk(2)[1]
    multiplier = torch.where(difference.abs() < eps, grad_input.chunk(2)[0], share / difference)
    return torch.cat([multiplier, multiplier])


class _Product(torch.autograd.Function):
    """a · b of samples and their baselines; each factor's multiplier is the other's mean of both, so that all adds up."""

    @staticmethod
    def forward(ctx: Any, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(a, b)
        return a * b

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, ...]:
        a, b = ctx.saved_tensors
        return tuple((grads[0] * _middle(other)).sum_to_size(own.shape) for own, other in ((a, b), (b, a)))


def _product(a: torch.Tensor, b: torch.Tensor) -> Any:
    return _Product.apply(a, b)


def _middle(x: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2)
    return ((first + second) / 2).repeat(2, *[1] * (x.dim() - 1))


def _prepared(operations: Operations) -> Logits:
    varying = set(operations.varying())
    for node in operations.nodes:
        if node.op == "call_module" and isinstance(operations.module_at(node), (*_RESCALED, *_MAXES)):
            with operations.graph.inserting_before(node):
                # captum overwrites the gradient of an activation's input, which other readers may share
                alone = operations.graph.call_method("clone", node.args[:1])
            node.args = (alone, *node.args[1:])
        factors = [a for a in node.args if isinstance(a, fx.Node) and a in varying]
        if node.op != "call_module" and name_of(node) == "mul" and len(factors) == 2:
            node.op, node.target = "call_function", _product
    return operations.network()


def attributions(engine: PlainEngine, units: Structure) -> Iterator[tuple[dict[str, FloatArray], FloatArray]]:
    """Batches of n samples: attributions by group (n, size), and for each sample (n, 2) what the inputs' attributions
    add up to and the difference of the logit from the baseline's. The engine's network is used up.
    """
    explainer_class = _explainer_class()
    dims = engine.sample_dims(units.groups)
    # samples and baselines are told apart in dimension 0
    if late := [name for name, dim in dims.items() if dim not in (0, CONSTANT)]:
        raise MethodError(f"method deeplift: expected layers that read samples first, {late[0]} does not")
    operations = Operations(engine, "deeplift")
    net = _prepared(operations)
    explainer = explainer_class(net, eps=_TINY)
    for _, inputs, targets in batches(engine, np.arange(len(engine.calibration)), passes=4):
        assert isinstance(targets, torch.Tensor)  # a class a sample: `Operations` has seen to it
        n, targets = len(targets), columns_of(engine.task, targets)
        with warnings.catch_warnings(), read_inputs(net.body, operations.readers(units.groups)) as seen:
            warnings.simplefilter("ignore")  # captum tells of its hooks every time
            at_input = explainer.attribute(inputs.requires_grad_(), target=targets)
        reads = [(operations.layer_of[r.name], r.grad.chunk(2)[0] * (r.value.chunk(2)[0] - r.value.chunk(2)[1])) for r in seen if r.grad is not None]  # fmt: skip
        logits, under = net.latest.double().gather(1, targets.repeat(2).view(-1, 1)).chunk(2)
        total = at_input.detach().double().flatten(1).sum(1, keepdim=True)
        yield unit_sums(engine.net, units.groups, reads, n, dims), torch.cat([total, logits - under], 1).cpu().numpy()


def deeplift_scores(
    model: nn.Module,
    units: Structure,
    calibration: CalibrationSet,
    task: Task,
    *,
    device: str = "cpu",
    memory: int = 4 << 30,
) -> tuple[dict[str, FloatArray], float]:
    """DeepLIFT relevance by group (size,), and by what fraction of the difference the attributions do not add up.

    `model` is untouched. Raises MissingPartError without captum, MethodError for a network that cannot be traced or does not read samples first,
    DataError for one that gives no logits.
    """
    engine = PlainEngine(model, units, calibration, task, device=device, memory=memory)
    checks: list[FloatArray] = []

    def relevance() -> Iterator[dict[str, FloatArray]]:
        for sums, check in attributions(engine, units):
            checks.append(check)
            yield sums

    scores = mean_scores("deeplift", units, relevance())
    found, difference = np.concatenate(checks).T
    return scores, float(np.abs(found - difference).sum() / max(np.abs(difference).sum(), 1e-12))


@register("deeplift")
def deeplift(
    model: nn.Module, units: Structure, calibration: CalibrationSet, task: Task, *, options: Options = Options(), sink: Sink | None = None, device: str = "cpu", memory: int = 4 << 30, **run: Any  # noqa: B008
) -> PruningPath:  # fmt: skip
    """Smallest mean |DeepLIFT attribution| first, per layer or global; see the module for the baseline."""
    sink = sink or Silence()
    machine: dict[str, Any] = {"device": device, "memory": memory}
    scores, gap = deeplift_scores(model, units, calibration, task, **machine)
    note = f"deeplift: attributions miss {gap:.0%} of the difference from the baseline: gradients stand in for missing rules"
    if gap > _ADDS_UP:
        sink.note(note)
    path = ranking_path(
        model, units, calibration, task, scores, method="deeplift", options=options, sink=sink, **machine, **run
    )
    path.notes += [note] if gap > _ADDS_UP else []
    return path
