"""`obs`: the unit whose removal costs least AFTER what reads it is compensated (optimal brain surgeon, by units)."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from cswap.causal.cut import PlainEngine
from cswap.causal.first_order import batches, consumers_of
from cswap.data.calibration import CalibrationSet
from cswap.errors import InputError
from cswap.linear.elimination import Inverse
from cswap.linear.moments import Moments
from cswap.linear.patches import columns_of, groups_of, input_rows, matrix_of, output_rows, refusal
from cswap.methods.options import Options
from cswap.methods.path import PruningPath
from cswap.methods.ranking import ranking_path
from cswap.methods.registry import register
from cswap.recovery.walk import ROWS, Walk
from cswap.structure.calls import call_counts
from cswap.structure.groups import Group, Slot, Structure
from cswap.tasks.base import Task
from cswap.types import FloatArray

_ROUNDS = 96  # of a group's elimination: a round takes the cheapest units out together


@register("obs")
def obs(
    model: nn.Module, units: Structure, calibration: CalibrationSet, task: Task, *, options: Options = Options(), device: str = "cpu", memory: int = 4 << 30, **run: Any  # noqa: B008
) -> PruningPath:  # fmt: skip
    """Smallest expected squared change of σ after compensation first, per layer or global; the update itself is what
    `--recover lstsq` makes of the pruned network.
    """
    scores = obs_scores(model, units, calibration, task, device=device, memory=memory)
    machine: dict[str, Any] = {"device": device, "memory": memory}
    return ranking_path(model, units, calibration, task, scores, method="obs", options=options, **machine, **run)


def obs_scores(
    model: nn.Module, units: Structure, calibration: CalibrationSet, task: Task, *, device: str = "cpu", memory: int = 4 << 30
) -> dict[str, FloatArray]:  # fmt: skip
    """By group (size,): what a unit's removal adds to E[(Δσ)²], at the moment when it is the cheapest that is left.

    Within a group units are eliminated one after the other: the cost of one is Σ over consumers and their outputs o of
    v_o · [W_pᵀ (H⁻¹_pp)⁻¹ W_p]_oo, H the damped second moments of the consumer's inputs on the original network, p the
    columns that read the unit, and v_o = Σ over places of E[(∂σ/∂y_o)²]; W and H⁻¹ are updated after each round. A score is
    never below one before it, so that the ranking keeps the order. Source: ours, from Hassibi and Stork (1993) and Kurtic et
    al. (2022, arXiv 2203.07259). Groups of which nothing is known (see `linear.patches.refusal`) rank by index.
    """
    importance = output_importance(model, units, calibration, task, device=device, memory=memory)
    inputs = calibration.inputs(0, len(calibration))
    if inputs.dim() == 4:
        inputs = inputs.contiguous(memory_format=torch.channels_last)
    walk = Walk(model, [c.to(device) for c in torch.split(inputs, ROWS)], memory, device)
    called = [n for n in call_counts(walk.net, inputs[:2].to(device))[0] if n in importance]
    readers: dict[str, list[_Reader]] = {g.name: [] for g in units}
    scores: dict[str, FloatArray] = {}
    for name in called:
        module: Any = model.get_submodule(name)
        inverse = _inverse(walk, name, module, memory)
        reading = [(g, s) for g in units for s in g.consumers if s.module == name and inverse is not None]
        for group, slot in reading:
            own = copy.deepcopy(inverse) if len(reading) > 1 else inverse  # groups are eliminated each on its own
            assert own is not None
            readers[group.name].append(_Reader.of(module, slot, own, importance[name]))
        for group in units:
            if called.index(name) == max(
                (called.index(s.module) for s in group.consumers if s.module in called), default=-1
            ):
                scores[group.name] = _eliminated(
                    group, readers.pop(group.name)
                )  # its last consumer: the moments may go
    return {g.name: scores.get(g.name, np.arange(g.size, dtype=np.float64)) for g in units}


def output_importance(
    model: nn.Module, units: Structure, calibration: CalibrationSet, task: Task, *, device: str = "cpu", memory: int = 4 << 30
) -> dict[str, torch.Tensor]:  # fmt: skip
    """v of every consumer called once: Σ over places of E[(∂σ/∂y_o)²] over samples, (outputs,) float64.

    Raises InputError when σ has no gradient.
    """
    engine = PlainEngine(model, units, calibration, task, device=device, memory=memory)
    found: dict[str, torch.Tensor] = {}
    calls: dict[str, int] = {}
    for _, inputs, targets in batches(engine, np.arange(len(calibration)), passes=2):
        given: list[tuple[str, torch.Tensor]] = []
        calls.clear()

        def keep(name: str, out: torch.Tensor, given: list[tuple[str, torch.Tensor]] = given) -> torch.Tensor:
            calls[name] = calls.get(name, 0) + 1
            out = out if out.requires_grad else out.detach().requires_grad_()
            out.retain_grad()
            given.append((name, out))
            return out

        handles = [
            engine.net.get_submodule(n).register_forward_hook(lambda _m, _i, out, n=n: keep(n, out))
            for n in consumers_of(units)
        ]
        try:
            with torch.enable_grad():
                score = task.score(engine.net(inputs), targets)
                if not score.requires_grad:
                    raise InputError("obs: the score has no gradient; expected one that outputs change smoothly")
                score.sum().backward()  # type: ignore[no-untyped-call]
        finally:
            for handle in handles:
                handle.remove()
        for name, out in given:
            if out.grad is not None:
                squares = output_rows(engine.net.get_submodule(name), out.grad.double().square()).sum((0, 1)).cpu()
                found[name] = found.get(name, torch.zeros(())) + squares / len(calibration)
    return {n: v for n, v in found.items() if calls[n] == 1}


def _inverse(walk: Walk, name: str, module: Any, memory: int) -> Inverse | None:
    """Of the layer's inputs on the original network; None where it is no plain matrix, or does not fit the memory."""
    columns = columns_of(module) if refusal(module) is None else 0
    if not columns or groups_of(module) > 1 or 4 * 8 * columns**2 > memory:
        return None
    moments = Moments.empty(1, columns, 0)
    for x in walk.inputs(name):
        for rows in input_rows(module, x):
            moments.add_rows(rows, rows.new_zeros((len(rows), 1, 0)))
    centred = moments.centred()[0][0] / moments.rows
    return Inverse(centred, moments.x[0] / moments.rows)


@dataclass(eq=False)
class _Reader:
    """One consumer of a group, as units go: where each unit's columns are, what they weigh."""

    blocks: dict[int, torch.Tensor]
    inverse: Inverse
    weights: torch.Tensor
    importance: torch.Tensor

    @classmethod
    def of(cls, module: Any, slot: Slot, inverse: Inverse, importance: torch.Tensor) -> _Reader:
        """Columns are channel-major: a channel's kernel places lie side by side."""
        places = module.weight[0, 0].numel()
        own = torch.arange(places)
        blocks = {n: (torch.from_numpy(p).unsqueeze(1) * places + own).flatten() for n, p in slot.by_unit.items()}
        return cls(blocks, inverse, matrix_of(module)[0].cpu().clone(), importance)

    def costs(self, left: list[int]) -> FloatArray:
        """(units,) float64; 0 where the layer does not read a unit."""
        found = np.zeros(len(left))
        widths = {len(self.blocks[n]) for n in left if n in self.blocks}
        for width in widths:  # units that own equally many columns together
            same = [i for i, n in enumerate(left) if n in self.blocks and len(self.blocks[n]) == width]
            blocks = torch.stack([self.blocks[left[i]] for i in same])
            found[same] = self.inverse.costs(blocks, self.weights, self.importance).numpy()
        return found

    def take(self, gone: list[int]) -> None:
        columns = [self.blocks[n] for n in gone if n in self.blocks]
        if columns:
            self.inverse.take(torch.cat(columns), self.weights)


def _eliminated(group: Group, readers: list[_Reader]) -> FloatArray:
    """Scores (size,) of one group; see `obs_scores`."""
    scores, left, floor = np.zeros(group.size), list(range(group.size)), 0.0
    if not readers:
        return np.arange(group.size, dtype=np.float64)
    step = max(1, group.size // _ROUNDS)
    while left:
        costs = sum((r.costs(left) for r in readers), np.zeros(len(left)))
        cheapest = np.argsort(costs, kind="stable")[:step]
        for i in cheapest:
            floor = max(floor * (1 + 1e-12), float(costs[i]))
            scores[left[i]] = floor
        gone = [left[i] for i in cheapest]
        for r in readers:
            r.take(gone)
        left = [n for n in left if n not in set(gone)]
    return scores
