"""What every engine has in common: jobs in, scores out, shared over processes. How a cut is evaluated is a subclass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from cswap import distributed
from cswap.data.calibration import CalibrationSet
from cswap.data.truth import Truth, any_nan, joined, moved
from cswap.errors import DataError, InputError, RunError
from cswap.structure.groups import Group, Structure
from cswap.structure.images import laid
from cswap.tasks.base import Task
from cswap.types import FloatArray

MOST_ROWS = 65536

Cut = Sequence[int]


def emulated_bfloat16(device: str | torch.device) -> str:
    """What to say where bfloat16 is no gain: a CPU without AVX-512 emulates it (measured: a ninth of the speed of float32).

    Empty where it is native, or where nothing is known of it.
    """
    if torch.device(device).type != "cpu" or torch.backends.cpu.get_cpu_capability() != "AVX2":
        return ""
    return "this CPU has no bfloat16 of its own and emulates it: float32, the default, is faster here"


def working_set(device: str | torch.device) -> int:
    """Bytes of a batch's largest tensor: a CPU's larger ones cost fresh pages each time, a GPU's smaller ones launch more than they compute."""
    return 16 << 20 if torch.device(device).type == "cpu" else 512 << 20


@contextmanager
def exact(device: torch.device, amp: bool) -> Iterator[None]:
    """float32 is float32 on CUDA too: TF32 would round away what the tests look at. `amp` says that speed is wanted."""
    if device.type != "cuda" or amp:
        yield
        return
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


@dataclass(frozen=True)
class Job:
    """Units to cut together, and the samples start … stop − 1 to evaluate it on."""

    cut: tuple[int, ...]
    start: int
    stop: int

    @property
    def rows(self) -> int:
        """How many samples."""
        return self.stop - self.start


@dataclass(frozen=True, eq=False)
class Scores:
    """What one network says of n samples: σ (n,), quality (n,), σ by class (n, K) where the task has it, and how far its outputs are from
    those that the engine compares with, squared (n,), where it does (`Engine.compare_with`)."""

    sigma: FloatArray
    quality: FloatArray
    by_class: FloatArray | None = None
    moved: FloatArray | None = None

    @classmethod
    def unknown(cls, samples: int, classes: int | None, moved: bool = False) -> Scores:
        """NaN everywhere."""
        shapes = (samples, samples, None if classes is None else (samples, classes), samples if moved else None)
        return cls(*(None if s is None else np.full(s, float("nan")) for s in shapes))  # type: ignore[arg-type]

    def like(self, samples: int) -> Scores:
        """NaN everywhere, of so many samples, with the same columns."""
        classes = None if self.by_class is None else self.by_class.shape[1]
        return Scores.unknown(samples, classes, self.moved is not None)

    def put(self, part: Scores, at: Any) -> None:
        """Fill in the samples `at` (a slice or numbers)."""
        self.sigma[at], self.quality[at] = part.sigma, part.quality
        if self.by_class is not None and part.by_class is not None:
            self.by_class[at] = part.by_class
        if self.moved is not None and part.moved is not None:
            self.moved[at] = part.moved

    def at(self, start: int, stop: int) -> Scores:
        """Samples start … stop − 1."""
        by_class = None if self.by_class is None else self.by_class[start:stop]
        moved = None if self.moved is None else self.moved[start:stop]
        return Scores(self.sigma[start:stop], self.quality[start:stop], by_class, moved)

    @classmethod
    def joined(cls, parts: Sequence[Scores]) -> Scores:
        """One after the other."""
        whole = parts[0].like(sum(len(p.sigma) for p in parts))
        ends = np.cumsum([len(p.sigma) for p in parts])
        for part, end in zip(parts, ends.tolist(), strict=True):
            whole.put(part, slice(end - len(part.sigma), end))
        return whole


class Engine:
    """Scores of a network, as pruned so far, under sets of cut units. The user's model is copied, never touched."""

    name = ""
    enters_known = False  # whether groups that a journal has decided must be entered all the same

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
        amp: bool = False,
    ) -> None:
        self.structure, self.calibration, self.task = structure, calibration, task
        self.device, self.memory, self.amp = torch.device(device), memory, amp
        self.dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
        self.by_class = vote_score == "class" and hasattr(task, "class_scores")
        self.most_units = units_per_batch
        self.notes: list[str] = [note] if amp and (note := emulated_bfloat16(self.device)) else []
        self.channels_last = True  # until the network does not take its images so
        self._squeeze = 1  # rows are divided by it after a device ran out of memory
        self.evaluated = 0  # samples × cut sets so far, in this process
        self.reference: FloatArray | None = None  # outputs of own samples that others are compared with, (n, D) float32
        self._recorded: FloatArray | None = None
        world = distributed.world()
        self._owners = [distributed.owned(calibration.targets, world, who) for who in range(world)]
        self.mine = self._owners[distributed.rank()]
        self.local = calibration if world == 1 else calibration.part(self.mine)

    # What a subclass does.

    def enter(self, group: Group) -> None:
        """Make ready to cut units of `group` in the network as pruned so far."""

    def remove(self, group: str, units: Sequence[int]) -> None:
        """Cut units for good: from now on every score is that of the network without them."""

    def rows(self, group: Group | None) -> int:
        """Samples × cut sets a batch."""
        raise NotImplementedError

    def _evaluate(self, group: Group | None, jobs: list[Job]) -> list[Scores]:
        """Scores of jobs on this process's own samples (`self.local`), each of at most `rows` samples."""
        raise NotImplementedError

    # What all share.

    def scores(self, group: Group | None = None) -> Scores:
        """The network as it stands."""
        return self.cut(group, [()])[0]

    def outputs_seen(self) -> FloatArray | None:
        """What the network as it stands gives own samples, (n, D) float32 (`Task.outputs_vector`); None where the task has no vectors, or they
        do not fit an eighth of the memory.
        """
        if not hasattr(self.task, "outputs_vector"):
            return None
        held, self.reference, self._recorded = self.reference, None, np.empty((len(self.mine), 0), dtype=np.float32)
        try:
            self.scores()
            found = self._recorded
        finally:
            self.reference, self._recorded = held, None
        return found if found is not None and found.shape[1] else None

    def mean_square(self, outputs: FloatArray) -> float:
        """Of all processes' samples: the mean over samples of the squared length of their outputs (n, D)."""
        own = np.array([float((outputs.astype(np.float64) ** 2).sum()), float(len(outputs))])
        parts = distributed.gathered(own, [2] * len(self._owners)) if len(self._owners) > 1 else [own]
        total, count = np.sum(parts, axis=0)
        return float(total / max(1.0, count))

    def compare_with(self, reference: FloatArray | None) -> None:
        """From now on scores say how far the outputs are from these, squared (`Scores.moved`)."""
        self.reference = reference

    def cut(self, group: Group | None, cuts: Sequence[Cut]) -> list[Scores]:
        """One Scores (M,) for each set of units of `group`, cut together."""
        m = len(self.calibration)
        return self.run(group, [Job(tuple(int(n) for n in cut), 0, m) for cut in cuts])

    def once(self, group: Group, cut: Cut) -> Scores:
        """One cut set of a group that is not entered: by what needs no preparation."""
        return self.cut(group, [cut])[0]

    def leave(self) -> None:
        """Let go of what was prepared for a group."""

    def stale(self, group: Group) -> bool:
        """Whether entering the group again would pay: so much of it was removed since."""
        return False

    def one_by_one(self, group: Group, units: Sequence[int]) -> Iterator[tuple[int, Scores, Scores]]:
        """Enter a group and cut each of these units alone, batch by batch: (unit, scores with the cut, scores without)."""
        if not units:
            return
        self.enter(group)
        base, size = self.scores(group), self.units_together(group)
        for first in range(0, len(units), size):
            batch = units[first : first + size]
            for n, scores in zip(batch, self.cut(group, [[n] for n in batch]), strict=True):
                yield n, scores, base

    def units_together(self, group: Group, samples: int | None = None) -> int:
        """How many units fit one batch, on all samples or on `samples` of them."""
        whole = self.rows(group) // max(1, (samples or len(self.calibration)) // len(self._owners))
        return max(1, min(self.most_units or whole, 1024))

    def run(self, group: Group | None, jobs: Sequence[Job]) -> list[Scores]:
        """One Scores (rows,) for each job, in sample order whoever evaluated it."""
        spans = [(int(a), int(b)) for a, b in (np.searchsorted(self.mine, (j.start, j.stop)) for j in jobs)]
        size = max(1, self.rows(group) // self._squeeze)
        parts: list[tuple[int, Job]] = []
        for i, (job, (a, b)) in enumerate(zip(jobs, spans, strict=True)):
            step = -(-(b - a) // -(-(b - a) // size)) if b > a else 1  # equal parts, none over `size`
            parts += [(i, Job(job.cut, s, min(s + step, b))) for s in range(a, b, step)]
        k = len(self.calibration.classes) if self.by_class else None
        found = [Scores.unknown(b - a, k, self.reference is not None) for a, b in spans]
        for batch in _packed(parts, size):
            with exact(self.device, self.amp):
                evaluated = self._fitting(group, [p for _, p in batch])
            for (i, part), scores in zip(batch, evaluated, strict=True):
                start = spans[i][0]
                found[i].put(scores, slice(part.start - start, part.stop - start))
        return found if len(self._owners) == 1 else self._share(jobs, found)

    def _fitting(self, group: Group | None, jobs: list[Job]) -> list[Scores]:
        """Evaluate; where a device runs out of memory, by halves, and with half the rows from then on."""
        try:
            return self._evaluate(group, jobs)
        except torch.cuda.OutOfMemoryError:
            if len(jobs) == 1 and jobs[0].rows == 1:
                raise
        torch.cuda.empty_cache()
        self._squeeze *= 2
        if len(jobs) > 1:
            half = len(jobs) // 2
            return self._fitting(group, jobs[:half]) + self._fitting(group, jobs[half:])
        (job,) = jobs
        middle = (job.start + job.stop) // 2
        parts = [self._fitting(group, [Job(job.cut, a, b)])[0] for a, b in ((job.start, middle), (middle, job.stop))]
        return [Scores.joined(parts)]

    def _share(self, jobs: Sequence[Job], found: list[Scores]) -> list[Scores]:
        """Put every process's samples together, in sample order."""
        k = len(self.calibration.classes) if self.by_class else 0
        places = [[o[np.searchsorted(o, j.start) : np.searchsorted(o, j.stop)] for j in jobs] for o in self._owners]
        far = int(self.reference is not None)
        columns = [[s.sigma, s.quality, *([s.moved] if far else []), *([s.by_class] if k else [])] for s in found]
        flat = [np.column_stack(c).ravel() for c in columns]  # type: ignore[arg-type]
        wide = 2 + far + k
        sizes = [sum(len(p) for p in places_of) * wide for places_of in places]
        whole = [Scores.unknown(j.rows, k or None, bool(far)) for j in jobs]
        everyone = distributed.gathered(np.concatenate(flat) if flat else np.empty(0), sizes)
        for places_of, values in zip(places, everyone, strict=True):
            table, row = values.reshape(-1, wide), 0
            for job, place, scores in zip(jobs, places_of, whole, strict=True):
                part = table[row : row + len(place)]
                row += len(place)
                by_class, moved = part[:, 2 + far :] if k else None, part[:, 2] if far else None
                scores.put(Scores(part[:, 0], part[:, 1], by_class, moved), place - job.start)
        return whole

    def _precision(self) -> torch.autocast:
        """bfloat16 where it is automatic, when that was asked for."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.amp)

    def _inputs(self, start: int, stop: int) -> torch.Tensor:
        """Inputs of own samples, on the device, in the network's type and layout."""
        return self._ready(self.local.inputs(start, stop))

    def _ready(self, inputs: torch.Tensor) -> torch.Tensor:
        if inputs.is_floating_point():
            inputs = inputs.to(self.dtype)
        inputs = inputs.to(self.device)
        return laid(inputs, self.channels_last)

    def _scored(self, outputs: Any, jobs: list[Job]) -> list[Scores]:
        """Split the outputs of a batch into the scores of its jobs."""
        labels = moved(joined([self.local.truth(slice(j.start, j.stop)) for j in jobs]), self.device)
        sigma = self.task.score(outputs, labels).double().cpu().numpy()
        if sigma.shape != (len(labels),):
            raise DataError(
                f"task {self.task.name}: expected score to return one number a sample, ({len(labels)},), got {sigma.shape}"
            )
        # a NaN by class means absent there, so what the network gave is asked itself
        if not np.isfinite(sigma).all() or (hasattr(self.task, "class_scores") and any_nan(outputs)):
            first, last = jobs[0].start, jobs[-1].stop - 1
            raise RunError(f"the score is not finite on calibration samples {first} to {last}: NaN or Inf inside")
        quality = self.task.sample_quality(outputs, labels).double().cpu().numpy()
        columns = self._columns(outputs, labels) if self.by_class else None
        self.evaluated += len(labels)
        ends = np.cumsum([j.rows for j in jobs])
        whole = Scores(sigma, quality, columns, self._moved(outputs, jobs))
        return [whole.at(int(e) - j.rows, int(e)) for j, e in zip(jobs, ends, strict=True)]

    def _moved(self, outputs: Any, jobs: list[Job]) -> FloatArray | None:
        """How far the outputs of a batch are from the reference, squared (n,); while outputs are recorded they are kept, as far as they fit."""
        if self.reference is None and self._recorded is None:
            return None
        vectors = self.task.outputs_vector(outputs).double().cpu().numpy()  # type: ignore[attr-defined]
        rows = np.concatenate([np.arange(j.start, j.stop) for j in jobs])
        if self.reference is not None:
            return np.asarray(((vectors - self.reference[rows]) ** 2).sum(1))
        assert self._recorded is not None
        if not self._recorded.shape[1] and 4 * len(self.mine) * vectors.shape[1] <= self.memory // 8:
            self._recorded = np.zeros((len(self.mine), vectors.shape[1]), dtype=np.float32)
        if self._recorded.shape[1]:
            self._recorded[rows] = vectors
        return None

    def _columns(self, outputs: Any, labels: Truth) -> FloatArray:
        """σ by class, (n, K); classes beyond those that the task gives columns for are absent."""
        found = self.task.class_scores(outputs, labels).double().cpu().numpy()  # type: ignore[attr-defined]
        missing = len(self.calibration.classes) - found.shape[1]
        if missing < 0:
            raise DataError(
                f"task {self.task.name}: scores of {found.shape[1]} classes for data of {found.shape[1] + missing}"
            )
        return np.pad(found, ((0, 0), (0, missing)), constant_values=np.nan)

    def _rows_for(self, largest: int, live: int) -> int:
        """Rows a batch, from the bytes of one sample's largest tensor and of all that live at once.

        Raises InputError when one sample does not fit.
        """
        budget = self.memory // 4
        if live > budget:
            raise InputError(
                f"memory: one sample needs about {live * 4 / 2**20:,.1f} MiB, {self.memory / 2**20:,.3g} given"
            )
        return max(1, min(MOST_ROWS, budget // max(1, live), working_set(self.device) // max(1, largest)))


def _packed(parts: list[tuple[int, Job]], size: int) -> list[list[tuple[int, Job]]]:
    """Consecutive jobs in batches of at most `size` rows."""
    batches: list[list[tuple[int, Job]]] = []
    room = 0
    for part in parts:
        if part[1].rows > room or not batches:
            batches.append([])
            room = size
        batches[-1].append(part)
        room -= part[1].rows
    return batches


def refuse_near_chance(scores: Scores, calibration: CalibrationSet, task: Task) -> float:
    """Mean calibration quality; raises DataError when it is that of a guess (method.md, "What goes wrong")."""
    quality, m = float(scores.quality.mean()), len(calibration)
    chance = task.chance(len(calibration.classes))
    noise = (chance * (1 - chance) / m) ** 0.5
    least = chance + max(3 * noise, 0.05 * (1 - chance))
    if quality <= min(least, (1 + chance) / 2):  # of few samples no quality would be above three deviations
        raise DataError(
            f"the unpruned network's calibration quality is {quality:.3f} and chance is {chance:.3f}: expected a trained "
            "network; look for other weights, another normalisation, or labels in another order (--labels FILE)"
        )
    return quality
