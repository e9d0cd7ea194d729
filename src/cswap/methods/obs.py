"""`obs`: the unit whose removal costs least AFTER what reads it is compensated (optimal brain surgeon, by units)."""

from __future__ import annotations

import copy
import glob
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from cswap.causal.behind import norms_behind
from cswap.causal.cut import PlainEngine
from cswap.causal.first_order import batches
from cswap.data.calibration import CalibrationSet
from cswap.errors import MethodError
from cswap.linear.elimination import Inverse
from cswap.linear.moments import Moments, too_large
from cswap.linear.patches import (
    columns_of,
    groups_of,
    input_rows,
    matrix_of,
    moving_grid,
    output_rows,
    refusal,
)
from cswap.methods.options import Options
from cswap.methods.path import PruningPath
from cswap.methods.ranking import ranking_path
from cswap.methods.registry import register
from cswap.recovery.walk import Chunks, Walk
from cswap.structure.calls import call_counts
from cswap.structure.groups import Slot, Structure, consumers_of
from cswap.structure.images import takes_channels_last
from cswap.structure.surgery import prepared_copy
from cswap.tasks.base import Task, smooth
from cswap.types import FloatArray, IntArray

_SWAPS = 8  # times that a group's elimination looks for local swaps
_ENOUGH = 32  # rows a column of second moments: more places of the same images tell little
_DRAWS = 4  # sums of the outputs with random signs that stand for all of them
_ROUNDS = 96  # of a group's elimination: a round takes the cheapest units out together


@register("obs")
def obs(
    model: nn.Module, units: Structure, calibration: CalibrationSet, task: Task, *, options: Options = Options(), device: str = "cpu", memory: int = 4 << 30, **run: Any  # noqa: B008
) -> PruningPath:  # fmt: skip
    """Smallest expected squared change of σ after compensation first, per layer or global. The update chooses; the pruned network
    gets one by `--recover lstsq`, which refits every layer behind a cut to what it gave in the original.
    """
    scores = obs_scores(model, units, calibration, task, swaps=options.swaps, device=device, memory=memory)
    unknown = [g.name for g in units if g.name not in scores]
    left = _left_alone(model, units, unknown, memory)
    if len(unknown) == len(units):
        raise MethodError(f"obs: nothing can be compensated in closed form: {'; '.join(left)}")
    known = units.select(exclude=tuple(glob.escape(n) for n in unknown)) if unknown else units
    machine: dict[str, Any] = {"device": device, "memory": memory}
    path = ranking_path(model, known, calibration, task, scores, method="obs", options=options, **machine, **run)
    path.notes += [f"left alone, because {why}: {', '.join(names)}" for why, names in left.items()]
    return path


def _left_alone(model: nn.Module, units: Structure, unknown: Sequence[str], memory: int) -> dict[str, list[str]]:
    """Groups without scores, by the reason."""
    found: dict[str, list[str]] = {}
    net = prepared_copy(model, units) if unknown else model
    for name in unknown:
        readers = [net.get_submodule(s.module) for s in units[name].consumers]
        columns = max((columns_of(m) for m in readers if refusal(m) is None and groups_of(m) == 1), default=0)
        why = too_large(columns, memory) or "what reads them is no plain layer called once"
        found.setdefault(why, []).append(name)
    return found


def obs_scores(
    model: nn.Module, units: Structure, calibration: CalibrationSet, task: Task, *, swaps: bool = False, device: str = "cpu",
    memory: int = 4 << 30, inverses: dict[str, Inverse] | None = None, graded: IntArray | None = None, outputs: bool = False,
) -> dict[str, FloatArray]:  # fmt: skip
    """By group (size,): what a unit's removal adds to E[(Δσ)²], at the moment when it is the cheapest that is left.

    Within a group units are eliminated one after the other: the cost of one is Σ over consumers and their outputs o of
    v_o · [W_pᵀ (H⁻¹_pp)⁻¹ W_p]_oo, H the damped second moments of the consumer's inputs on the original network, p the
    columns that read the unit, and v_o = Σ over places of E[(∂σ/∂y_o)²]; W and H⁻¹ are updated after each round. A score is
    never below one before it, so that the ranking keeps the order. `swaps`: after each eighth of the group, see `_swapped`.
    `graded`: the samples that v is taken from (all). `outputs`: of the squared change of the task's `outputs_vector` in the place of σ's. `inverses` takes them as they were before anything went, as far as a quarter of the memory holds them. Source: ours, from
    Hassibi and Stork (1993) and Kurtic et al. (2022, arXiv 2203.07259). Groups with a reader that is no plain layer called once, or whose moments do not fit the
    memory, are not among them.
    """
    importance = output_importance(
        model, units, calibration, task, graded, outputs=outputs, device=device, memory=memory
    )
    net, few = prepared_copy(model, units).eval().to(device), calibration.inputs(0, 2).to(device)
    chunks = Chunks(calibration, [np.arange(len(calibration))], device, takes_channels_last(net, few))
    walk = Walk(net, chunks, memory, device)
    called, norms = [n for n in call_counts(walk.net, few)[0] if n in importance], norms_behind(walk.net, few)
    readers: dict[str, list[_Reader]] = {g.name: [] for g in units}
    scores: dict[str, FloatArray] = {}
    for place, name in enumerate(called):
        module: Any = walk.net.get_submodule(name)
        reading = [(g, s) for g in units for s in g.consumers if s.module == name]
        shifts = getattr(module, "bias", None) is not None or name in norms
        found_here = _inverse(walk, name, module, len(calibration), memory, shifts)
        if inverses is not None and found_here is not None:
            size = sum(i.inverse.numel() for i in (found_here[0], *inverses.values()))
            if 8 * size <= memory // 4:
                inverses[name] = copy.deepcopy(found_here[0])
        for group, slot in reading:
            if found_here is not None:
                inverse, moments = found_here
                own = copy.deepcopy(inverse) if len(reading) > 1 else inverse  # groups are eliminated each on its own
                kept = moments if swaps else None
                readers[group.name].append(_Reader.of(module, slot, own, importance[name], kept))
            if not any(s.module in called[place + 1 :] for s in group.consumers):  # its last: the moments may go
                found = readers.pop(group.name)
                if len(found) == len(group.consumers):
                    scores[group.name] = _eliminated(group.size, found)
    return scores


def output_importance(
    model: nn.Module, units: Structure, calibration: CalibrationSet, task: Task, graded: IntArray | None = None, *, outputs: bool = False,
    device: str = "cpu", memory: int = 4 << 30,
) -> dict[str, torch.Tensor]:  # fmt: skip
    """v of every plain consumer (`refusal`) called once: Σ over places of E[(∂σ/∂y_o)²] over the samples `graded` (all), (outputs,) float64.

    outputs: Σ_d E[(∂z_d/∂y_o)²] of the task's `outputs_vector` z instead, by `_DRAWS` random sums of it with signs: the mean square of such a sum's
    gradient is that of all (Hutchinson, 1990). Raises MethodError when σ has no gradient.
    """
    if outputs:
        sums = [
            _importance(model, units, calibration, task, graded, _signed(task, draw), device=device, memory=memory)
            for draw in range(_DRAWS)
        ]
        return {n: torch.stack([s[n] for s in sums]).mean(0) for n in sums[0]}
    return _importance(model, units, calibration, task, graded, smooth(task), device=device, memory=memory)


def _signed(task: Task, draw: int) -> Callable[[Any, Any], torch.Tensor]:
    """A sum of each sample's outputs with random signs, (N,)."""
    generator = torch.Generator().manual_seed(draw)

    def score(outputs: Any, _targets: Any) -> torch.Tensor:
        vectors: torch.Tensor = task.outputs_vector(outputs)  # type: ignore[attr-defined]
        signs = torch.randint(0, 2, vectors.shape, generator=generator) * 2 - 1
        return (vectors * signs.to(vectors)).sum(1)

    return score


def _importance(
    model: nn.Module, units: Structure, calibration: CalibrationSet, task: Task, graded: IntArray | None,
    score_of: Callable[[Any, Any], torch.Tensor], *, device: str, memory: int,
) -> dict[str, torch.Tensor]:  # fmt: skip
    """`output_importance` by the gradient of one score a sample."""
    engine = PlainEngine(model, units, calibration, task, device=device, memory=memory)
    found: dict[str, torch.Tensor] = {}
    calls: dict[str, int] = {}
    numbers = np.arange(len(calibration)) if graded is None else graded
    plain = [n for n in consumers_of(units) if refusal(engine.net.get_submodule(n)) is None]
    for _, inputs, targets in batches(engine, numbers, passes=2):
        given: list[tuple[str, torch.Tensor]] = []
        calls.clear()

        def keep(name: str, out: torch.Tensor, given: list[tuple[str, torch.Tensor]] = given) -> torch.Tensor:
            calls[name] = calls.get(name, 0) + 1
            out = out if out.requires_grad else out.detach().requires_grad_()
            out.register_hook(lambda g: given.append((name, g)))  # type: ignore[no-untyped-call]
            return out.clone()  # what follows may work in place, on memory of its own

        handles = [
            engine.net.get_submodule(n).register_forward_hook(lambda _m, _i, out, n=n: keep(n, out)) for n in plain
        ]
        try:
            with torch.enable_grad():
                score = score_of(engine.net(inputs), targets)
                if not score.requires_grad:
                    raise MethodError("obs: the score has no gradient; expected one that outputs change smoothly")
                score.sum().backward()  # type: ignore[no-untyped-call]
        finally:
            for handle in handles:
                handle.remove()
        for name, grad in given:
            squares = output_rows(engine.net.get_submodule(name), grad.double().square()).sum((0, 1))
            found[name] = found.get(name, 0.0) + squares / len(numbers)
    return {n: v for n, v in found.items() if calls[n] == 1}


def _inverse(
    walk: Walk, name: str, module: Any, samples: int, memory: int, shifts: bool
) -> tuple[Inverse, torch.Tensor] | None:
    """Of the layer's inputs on the original network, with their damped moments, without their means where the layer can take
    a constant; None where it is no plain matrix, or does not fit the memory. Where the images have more than `_ENOUGH` rows a column, every n-th place counts.
    """
    columns = columns_of(module) if refusal(module) is None else 0
    if not columns or groups_of(module) > 1 or too_large(columns, memory):
        return None
    moments = Moments.empty(1, columns, 0)
    for i, x in enumerate(walk.inputs(name)):
        for rows in input_rows(module, x, moving_grid(module, x, i, samples, _ENOUGH)):
            moments.add_rows(rows, rows.new_zeros((len(rows), 1, 0)))
    second = (moments.centred() if shifts else moments.whole())[0][0] / moments.rows
    inverse = Inverse(second, moments.mean()[0] if shifts else torch.zeros_like(moments.x[0]))
    second.diagonal().add_(inverse.added)
    return inverse, second


@dataclass(eq=False)
class _Reader:
    """One consumer of a group, as units go: where each unit's columns are, what they weigh."""

    blocks: dict[int, torch.Tensor]
    inverse: Inverse
    weights: torch.Tensor
    importance: torch.Tensor
    moments: torch.Tensor | None
    original: torch.Tensor

    @classmethod
    def of(
        cls, module: Any, slot: Slot, inverse: Inverse, importance: torch.Tensor, moments: torch.Tensor | None
    ) -> _Reader:
        """Columns are channel-major: a channel's kernel places lie side by side."""
        places = module.weight[0, 0].numel()
        original = matrix_of(module)[0].to(inverse.inverse)
        own = torch.arange(places, device=original.device)
        starts = {n: torch.from_numpy(p).to(own).unsqueeze(1) * places for n, p in slot.by_unit.items()}
        blocks = {n: (start + own).flatten() for n, start in starts.items()}
        return cls(blocks, inverse, original.clone(), importance, moments, original)

    def _by_width(self, units: Sequence[int], measure: Callable[[torch.Tensor], torch.Tensor]) -> FloatArray:
        """(units,) float64, units that own equally many columns together; 0 where the layer does not read a unit."""
        found = np.zeros(len(units))
        for width in {len(self.blocks[n]) for n in units if n in self.blocks}:
            same = [i for i, n in enumerate(units) if n in self.blocks and len(self.blocks[n]) == width]
            found[same] = measure(torch.stack([self.blocks[units[i]] for i in same])).cpu().numpy()
        return found

    def costs(self, left: Sequence[int]) -> FloatArray:
        """What each unit's removal would add, (units,)."""
        return self._by_width(left, lambda b: self.inverse.costs(b, self.weights, self.importance))

    def gains(self, gone: Sequence[int]) -> FloatArray:
        """What each unit's return would save, (units,)."""
        if self.moments is None:
            raise ValueError("gains: expected a reader that kept its moments, got one without")
        moments = self.moments
        return self._by_width(
            gone, lambda b: self.inverse.gains(b, moments, self.weights, self.original, self.importance)
        )

    def give(self, unit: int) -> None:
        if unit in self.blocks and self.moments is not None:
            self.inverse.give(self.blocks[unit], self.moments, self.weights, self.original)

    def take(self, gone: Sequence[int]) -> None:
        columns = [self.blocks[n] for n in gone if n in self.blocks]
        if columns:
            self.inverse.take(torch.cat(columns), self.weights)

    def among(self, units: Sequence[int]) -> _Reader:
        """A copy that knows these units' columns alone: what eliminating some of them does to the others is all in there."""
        read = [n for n in units if n in self.blocks]
        sizes = [len(self.blocks[n]) for n in read]
        columns = torch.cat([self.blocks[n] for n in read]) if read else torch.arange(0, device=self.weights.device)
        ends = np.cumsum([0, *sizes]).tolist()
        places = torch.arange(ends[-1], device=columns.device)
        blocks = {n: places[a:b] for n, (a, b) in zip(read, itertools.pairwise(ends), strict=True)}
        weights = self.weights[columns]
        return _Reader(blocks, self.inverse.among(columns), weights, self.importance, None, weights)


def _eliminated(size: int, readers: list[_Reader]) -> FloatArray:
    """Scores (size,) of one group; see `obs_scores`."""
    scores, left, floor = np.zeros(size), list(range(size)), 0.0
    step, lately, swaps = max(1, size // _ROUNDS), [], all(r.moments is not None for r in readers)
    held = size
    while left:
        if not swaps and len(left) < 0.8 * held:  # what is gone takes no part any more, nor any time
            readers, held = [r.among(left) for r in readers], len(left)
        costs = _costs(readers, left)
        order = np.argsort(costs, kind="stable")
        most = float(costs[order[step]]) if step < len(left) else float("inf")
        gone: set[int] = set()
        round_ = [left[i] for i in order[:step]]
        few = [r.among(round_) for r in readers]
        for n in round_:
            now = float(_costs(few, [n])[0])  # what went in this round may have made it dear, as one of a pair does
            if gone and now > most:
                continue
            floor = max(floor * (1 + 1e-12), now)
            scores[n] = floor
            gone.add(n)
            for r in few:
                r.take([n])
        for r in readers:
            r.take(sorted(gone))
        left = [n for n in left if n not in gone]
        lately += sorted(gone, key=lambda n: scores[n])
        if swaps and len(left) > 1 and len(lately) >= max(4, size / _SWAPS):
            _swapped(readers, lately, left, scores)
            lately = []
    return scores


def _swapped(readers: list[_Reader], gone: list[int], left: list[int], scores: FloatArray) -> None:
    """Local swaps: the unit of `gone` whose return saves most comes back and the cheapest of `left` goes in its stead, as long
    as the joint error falls; lists and scores are changed in place.
    """
    for _ in range(len(gone)):
        gains = sum((r.gains(gone) for r in readers), np.zeros(len(gone)))
        back = gone[int(np.argmax(gains))]
        for r in readers:
            r.give(back)
        candidates = [*left, back]
        costs = _costs(readers, candidates)
        out = candidates[int(np.argmin(costs))]
        better = out != back and float(costs.min()) < float(gains.max()) * (1 - 1e-6)
        for r in readers:
            r.take([out if better else back])
        if not better:
            return
        gone[gone.index(back)] = out
        left[left.index(out)] = back
        scores[out], scores[back] = scores[back], 0.0


def _costs(readers: list[_Reader], units: list[int]) -> FloatArray:
    return sum((r.costs(units) for r in readers), np.zeros(len(units)))
