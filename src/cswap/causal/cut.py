"""The cut `do(n)`: hooks at every consumer, full forward, several cut sets a batch. Plain and correct."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from cswap.data.calibration import CalibrationSet
from cswap.errors import DataError, InputError, RunError
from cswap.structure.groups import Group, Slot, Structure
from cswap.structure.layers import channel_dim
from cswap.structure.surgery import zero_cut_
from cswap.tasks.base import Task
from cswap.types import FloatArray

_WORKING_SET = 64 << 20  # bytes of activations a batch: past the caches a larger batch is no faster
_MOST_ROWS = 4096


@dataclass(frozen=True, eq=False)
class Scores:
    """What one network says of all M samples: σ (M,), quality (M,), and σ by class (M, K) where the task has it."""

    sigma: FloatArray
    quality: FloatArray
    by_class: FloatArray | None = None


class _RowsDoNotMatch(Exception):
    """A consumer's input is not laid out sample by sample, so cut sets cannot share a batch."""


class CutEngine:
    """Scores of a network, as pruned so far, under sets of cut units. The user's model is copied, never touched."""

    def __init__(
        self,
        model: nn.Module,
        structure: Structure,
        calibration: CalibrationSet,
        task: Task,
        *,
        device: str = "cpu",
        memory: int = 4 << 30,
        units_per_batch: int | None = None,
        vote_score: str = "class",
    ) -> None:
        self.structure, self.calibration, self.task = structure, calibration, task
        self.device = torch.device(device)
        self.dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
        self.net = copy.deepcopy(model).eval().requires_grad_(False).to(self.device)
        if calibration.inputs(0, 1).dim() == 4:
            self.net = self.net.to(memory_format=torch.channels_last)
        self._by_class = vote_score == "class" and hasattr(task, "class_scores")
        self.rows = self._probe(memory)
        whole = self.rows // max(1, len(calibration))
        self.units_per_batch = max(1, min(units_per_batch or whole, 1024))
        self.forwards = 0

    def _probe(self, memory: int) -> int:
        """Rows a batch, from the largest activations one sample makes."""
        largest = 0

        def see(_m: nn.Module, inputs: Any, output: Any) -> None:
            nonlocal largest
            both = [t for t in (*inputs, output) if isinstance(t, torch.Tensor)]
            largest = max(largest, sum(t.numel() * t.element_size() for t in both))

        handles = [m.register_forward_hook(see) for m in self.net.modules()]
        try:
            self._forward(self.calibration.inputs(0, 1))
        finally:
            for handle in handles:
                handle.remove()
        budget = memory // 8  # several tensors of the largest size live at once, beside the data and the weights
        if largest > budget:
            raise InputError(
                f"memory: one sample needs about {largest * 8 / 2**30:.2f} GiB, {memory / 2**30:.2f} given"
            )
        return max(1, min(_MOST_ROWS, budget // max(1, largest), max(64, _WORKING_SET // max(1, largest))))

    def _forward(self, inputs: torch.Tensor) -> Any:
        if inputs.is_floating_point():
            inputs = inputs.to(self.dtype)
        inputs = inputs.to(self.device)
        if inputs.dim() == 4:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        with torch.inference_mode():
            return self.net(inputs)

    def remove(self, group: str, units: Sequence[int]) -> None:
        """Cut units for good: from now on every score is that of the network without them."""
        zero_cut_(self.net, self.structure, {group: np.asarray(sorted(units), dtype=np.int64)})

    def scores(self) -> Scores:
        """The network as it stands."""
        return self.cut(None, [()])[0]

    def cut(self, group: Group | None, cuts: Sequence[Sequence[int]]) -> list[Scores]:
        """One Scores for each set of units of `group`, cut together; sets are evaluated several a batch."""
        results: list[Scores] = []
        start = 0
        while start < len(cuts):
            part = cuts[start : start + self.units_per_batch]
            try:
                results += self._cut_together(group, part)
            except _RowsDoNotMatch:
                self.units_per_batch = 1
                continue
            except torch.cuda.OutOfMemoryError:
                if self.rows == 1:
                    raise
                self.rows //= 2
                self.units_per_batch = max(1, self.units_per_batch // 2)
                torch.cuda.empty_cache()
                continue
            start += len(part)
        return results

    def _cut_together(self, group: Group | None, cuts: Sequence[Sequence[int]]) -> list[Scores]:
        u, m = len(cuts), len(self.calibration)
        size = max(1, min(m, self.rows // u))
        sigma, quality = np.empty((u, m)), np.empty((u, m))
        by_class = np.empty((u, m, len(self.calibration.classes))) if self._by_class else None
        start = 0
        for inputs, targets in self.calibration.batches(size):
            n = len(targets)
            repeated = inputs.repeat(u, *([1] * (inputs.dim() - 1))) if u > 1 else inputs
            labels = targets.repeat(u).to(self.device)
            with self._hooked(group, cuts, u * n):
                outputs = self._forward(repeated)
            self.forwards += u * n
            stop = start + n
            score = self.task.score(outputs, labels).double().cpu().numpy().reshape(u, n)
            if not np.isfinite(score).all():
                raise RunError(
                    f"the score is not finite on calibration samples {start} to {stop - 1}: NaN or Inf inside"
                )
            sigma[:, start:stop] = score
            quality[:, start:stop] = self.task.sample_quality(outputs, labels).double().cpu().numpy().reshape(u, n)
            if by_class is not None:
                columns = self.task.class_scores(outputs, labels)  # type: ignore[attr-defined]
                by_class[:, start:stop] = columns.double().cpu().numpy().reshape(u, n, -1)
            start = stop
        return [Scores(sigma[i], quality[i], None if by_class is None else by_class[i]) for i in range(u)]

    @contextmanager
    def _hooked(self, group: Group | None, cuts: Sequence[Sequence[int]], rows: int) -> Iterator[None]:
        handles = []
        try:
            if group is not None and any(len(c) for c in cuts):
                for slot in group.consumers:
                    module = self.net.get_submodule(slot.module)
                    handles.append(module.register_forward_pre_hook(_cut_hook(slot, cuts, rows, channel_dim(module))))
            yield
        finally:
            for handle in handles:
                handle.remove()


def _cut_hook(slot: Slot, cuts: Sequence[Sequence[int]], rows: int, dim: int) -> Any:
    """Zero, in each cut set's rows of a consumer's input, the positions its units own."""
    none = np.empty(0, dtype=np.int64)
    positions = [
        torch.from_numpy(np.concatenate([slot.by_unit.get(int(n), none) for n in cut]) if len(cut) else none)
        for cut in cuts
    ]

    def hook(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        x = args[0]
        if len(cuts) > 1 and x.shape[0] % rows:
            raise _RowsDoNotMatch
        x = x.clone()
        share = x.shape[0] // len(cuts)
        for i, index in enumerate(positions):
            if len(index):
                part = x[i * share : (i + 1) * share] if len(cuts) > 1 else x
                part.index_fill_(dim, index.to(x.device), 0.0)
        return (x, *args[1:])

    return hook


def refuse_near_chance(scores: Scores, calibration: CalibrationSet, task: Task) -> float:
    """Mean calibration quality; raises DataError when it is that of a guess (method.md, "What goes wrong")."""
    quality, m = float(scores.quality.mean()), len(calibration)
    chance = task.chance(len(calibration.classes))
    noise = (chance * (1 - chance) / m) ** 0.5
    if quality <= chance + max(3 * noise, 0.05 * (1 - chance)):
        raise DataError(
            f"the unpruned network's calibration quality is {quality:.3f} and chance is {chance:.3f}: expected a trained "
            "network; look for other weights, another normalisation, or labels in another order (--labels FILE)"
        )
    return quality
