"""Masked and pruned networks must agree: the check itself, and what keeps it from being vacuous (method.md, end)."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from cswap.structure.detectors import forward_of
from cswap.structure.groups import Group, Removed, Structure
from cswap.structure.layers import channel_dim
from cswap.structure.surgery import kept_indices, light_copy, own_consumers_, shrink_in_place, zero_cut_
from cswap.types import IntArray

TOLERANCE = 1e-4
VISIBLE = 100.0
EXACT = 1e-9  # the same tolerance for the comparison in float64
SURE = 0.05  # of the tolerance: rounding is far below it, what mixes channels a little (local response norms) is not
ROUNDING = 1e-6  # what rounding in float32 may amount to, relative to the largest value


@dataclass(frozen=True)
class Agreement:
    """How far the pruned network is from the masked one, and whether the mask could be seen at all.

    `where`: "output" (the model's own precision), or "consumers" (float64, at the outputs of every layer that reads a
    removed unit, where the output says nothing: the mask hardly moves it, or rounding may have).
    `visible` False: the removed units feed nothing on these inputs, even in float64.
    """

    difference: float
    allowed: float
    moved: float
    where: str
    visible: bool

    @property
    def ok(self) -> bool:
        """Whether the difference is within tolerance."""
        return bool(self.difference <= self.allowed)  # NaN is not within

    def __str__(self) -> str:
        return (
            f"max |masked − pruned| = {self.difference:.3g} (allowed {self.allowed:.3g}) at the {self.where}; "
            f"the mask moved it by {self.moved:.3g}"
        )


def tensors_of(outputs: Any) -> list[torch.Tensor]:
    """All floating tensors of a model's output, in a fixed order."""
    if isinstance(outputs, torch.Tensor):
        return [outputs] if outputs.is_floating_point() else []
    if isinstance(outputs, dict):
        return [t for key in outputs for t in tensors_of(outputs[key])]
    if isinstance(outputs, list | tuple):
        return [t for item in outputs for t in tensors_of(item)]
    return []


def widest(pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> float:
    """Largest absolute difference; infinite when shapes differ, NaN when a value is."""
    if any(a.shape != b.shape for a, b in pairs):
        return float("inf")
    worst = [(a - b).abs().max().item() for a, b in pairs if a.numel()]
    return float("nan") if any(np.isnan(worst)) else max(worst, default=0.0)


def scale_of(tensors: list[torch.Tensor]) -> float:
    """Largest absolute value, at least 1: what tolerances are relative to."""
    return max([1.0, *(t.abs().max().item() for t in tensors if t.numel())])


@contextmanager
def _recorded(model: nn.Module, names: list[str]) -> Iterator[dict[str, list[torch.Tensor]]]:
    seen: dict[str, list[torch.Tensor]] = {}
    handles = []
    for name in names:

        def keep(_m: nn.Module, _i: Any, out: Any, name: str = name) -> None:
            seen.setdefault(name, []).append(tensors_of(out)[0].detach())

        handles.append(model.get_submodule(name).register_forward_hook(keep))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def agreement(model: nn.Module, structure: Structure, removed: Removed, inputs: torch.Tensor) -> Agreement:
    """Compare masked and pruned network on `inputs` (N, …); `model` is untouched and used in eval mode.

    Raises whatever the pruned network raises when it does not run at all.
    """
    own = next((p.dtype for p in model.parameters() if p.is_floating_point()), inputs.dtype)
    inputs = inputs.to(own) if inputs.is_floating_point() else inputs
    with torch.no_grad():
        nets = _nets(model, structure, removed)
        out_original, masked, pruned = (tensors_of(forward_of(net.eval())(inputs)) for net in nets)
        allowed = TOLERANCE * scale_of(masked)
        moved = widest(list(zip(out_original, masked, strict=True)))
        difference = widest(list(zip(masked, pruned, strict=True)))
        seen = Agreement(difference, allowed, moved, "output", moved >= VISIBLE * allowed)
        plain = seen.ok and seen.visible
        if plain and difference <= SURE * allowed:
            return seen
        try:
            exact = _exact_agreement(model, structure, removed, inputs)
        except (RuntimeError, TypeError):  # it holds float32 by itself somewhere
            return seen
        by_float32 = exact.difference <= exact.allowed / EXACT * ROUNDING  # float32 somewhere inside, and nothing more
        return seen if plain and by_float32 else exact


def _nets(model: nn.Module, structure: Structure, removed: Removed) -> Iterator[nn.Module]:
    """The network before, masked and pruned: one at a time, so that they take little more memory than what they change."""
    yield light_copy(model, structure)
    yield zero_cut_(own_consumers_(light_copy(model, structure), structure, removed), structure, removed)
    yield shrink_in_place(light_copy(model, structure), kept_indices(structure, removed))


def _exact_agreement(model: nn.Module, structure: Structure, removed: Removed, inputs: torch.Tensor) -> Agreement:
    """The comparison in float64 at the outputs of the consumers, where even a faint unit can be seen."""
    model = copy.deepcopy(model).double()
    inputs = inputs.double() if inputs.is_floating_point() else inputs
    names = sorted({s.module for g in removed for s in structure[g].consumers})
    outs, channels = [], {}
    for net in _nets(model, structure, removed):
        with _recorded(net.eval(), names) as seen:
            final = tensors_of(forward_of(net)(inputs))
        outs.append((final, seen))
        channels = {name: channel_dim(net.get_submodule(name)) for name in names}
    (_, seen_o), (final_m, seen_m), (final_p, seen_p) = outs
    kept = kept_indices(structure, removed)
    pairs, moves = list(zip(final_m, final_p, strict=True)), []
    for name in names:
        (tensor, dim), *_ = structure.layers[name].axes["out"]
        index = kept.get(f"{name}.{tensor}", {}).get(dim)
        for o, m, p in zip(seen_o[name], seen_m[name], seen_p[name], strict=True):
            moves.append((o, m))
            pairs.append((m if index is None else m.index_select(channels[name], torch.from_numpy(index)), p))
    allowed = EXACT * scale_of([a for a, _ in pairs])
    moved = widest(moves)
    return Agreement(widest(pairs), allowed, moved, "consumers", moved >= VISIBLE * allowed)


def randomise_(model: nn.Module, seed: int = 0, inputs: torch.Tensor | None = None) -> nn.Module:
    """Give every parameter and norm statistic a value that shows: weights by fan-in, scales and variances in [0.5, 1.5].

    Without it the check cannot fail: at default initialisation many layers move the output below any tolerance. With
    `inputs` (N, …), which the model then takes once, in eval mode, batch norms get the scale of what they really meet, so that values
    stay of order one to the last layer: else rounding in the first layers of a deep network is more than tolerance in the last.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(like: torch.Tensor, std: float) -> torch.Tensor:
        return torch.randn(like.shape, generator=generator, dtype=torch.float32).mul_(std).to(like)

    def around_one(like: torch.Tensor) -> torch.Tensor:
        return torch.rand(like.shape, generator=generator, dtype=torch.float32).add_(0.5).to(like)

    with torch.no_grad():
        for name, p in model.named_parameters():
            if not p.is_floating_point():
                continue
            if p.dim() >= 2:
                fan_in = max(1, p[0].numel())
                p.copy_(normal(p, (2.0 / fan_in) ** 0.5))
            elif name.endswith("bias"):
                p.copy_(normal(p, 0.2))
            else:
                p.copy_(around_one(p))
        for name, b in model.named_buffers():
            if name.endswith("running_mean"):
                b.copy_(normal(b, 0.2))
            elif name.endswith("running_var"):
                b.copy_(around_one(b))
        if inputs is not None:
            _settle(model, inputs)
    return model


def _settle(model: nn.Module, inputs: torch.Tensor) -> None:
    """Scale every batch norm's statistics by the root mean square of all its channels.

    Not channel by channel: in a deep network the few values of a channel may be alike by chance, and a norm that divides
    by their spread makes a large number of every change, of one in the last digit too.
    """

    settled: set[nn.Module] = set()

    def settle(norm: nn.Module, args: tuple[Any, ...]) -> None:
        x, mean, variance = args[0], norm.get_buffer("running_mean"), norm.get_buffer("running_var")
        if norm not in settled and isinstance(x, torch.Tensor) and x.dim() >= 2 and x.shape[1] == len(mean):
            settled.add(norm)
            square = x.square().mean().clamp_min(1e-6)
            mean.mul_(square.sqrt())
            variance.mul_(square)

    norms = [
        m for m in model.modules() if {"running_mean", "running_var"} <= {n for n, b in m.named_buffers(recurse=False)}
    ]
    handles = [m.register_forward_pre_hook(settle) for m in norms]
    try:
        forward_of(model.eval())(inputs)
    finally:
        for handle in handles:
            handle.remove()


def random_half(structure: Structure, seed: int, groups: list[str] | None = None) -> Removed:
    """A random half of every group (of the named ones), at least one unit gone, and one kept of every layer."""
    rng = np.random.default_rng(seed)
    return {g.name: _half(g, rng) for g in structure if g.size > 1 and (groups is None or g.name in groups)}


def _half(group: Group, rng: np.random.Generator) -> IntArray:
    # of layers that have some of the units alone
    own = [set(s.by_unit) for s in group.slots if len(s.by_unit) < group.size]
    gone: list[int] = []
    for unit in rng.permutation(group.size).tolist():
        if len(gone) == max(1, group.size // 2):
            break
        if all(have - {*gone, unit} for have in own if unit in have):
            gone.append(unit)
    return np.sort(np.asarray(gone, dtype=np.int64))
