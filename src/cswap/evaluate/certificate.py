"""A certificate: no class lost more than τ of mean score, with confidence 1 − α, on samples that nothing was chosen by."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset

from cswap.causal.engine import exact
from cswap.data.calibration import CalibrationSet, digest_of, labels_of
from cswap.data.truth import Truth, inputs_of, members_of, moved, not_finite
from cswap.errors import CswapWarning, DataError, InputError
from cswap.evaluate.bounds import APPROXIMATE, BOUNDS, at_best, check_claim
from cswap.evaluate.quality import MOST, batches, fitting
from cswap.structure.images import Fed
from cswap.tasks.base import Task
from cswap.types import BoolArray, FloatArray

_SAME = 1e-9  # by which a bound may lie above the margin it was printed as
_ROUNDING = 1e-6  # that a loss may lie beyond [−1, 1] by: scores are computed in float32


@dataclass(frozen=True)
class Certificate:
    """What was claimed of one network, and whether it holds.

    margin: τ, in mean score. upper: by class, the bound of its mean loss. smallest: the least τ these samples certify, the
    largest of `upper`. possible: the least τ that as many samples could certify if no sample had lost or gained anything (None: a t bound, which such samples have no spread for).
    """

    margin: float
    alpha: float
    bound: str
    approximate: bool
    classes: tuple[str, ...]
    samples: tuple[int, ...]
    mean_loss: tuple[float, ...]
    upper: tuple[float, ...]
    smallest: float
    possible: float | None

    @property
    def holds(self) -> bool:
        """Whether every class's bound is within the margin: each is tested at level α, and all must pass (an
        intersection–union test, which needs no correction)."""
        return self.smallest <= self.margin + _SAME

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "holds": self.holds,
            "claim": str(self),
            **{k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()},
        }

    def __str__(self) -> str:
        how = f"{'approximately ' if self.approximate else ''}with confidence {1 - self.alpha:g} ({self.bound} bound)"
        best = ""
        if self.possible is not None:
            best = (
                f", and {min(self.samples)} samples of a class that neither lost nor gained say {shown(self.possible)}"
            )
        if self.holds:
            return (
                f"no class lost more than {self.margin} of mean score, {how}; the smallest that can be said is {shown(self.smallest)}"
                + best
            )
        worst = self.classes[int(np.argmax(self.upper))]
        return (
            f"not certified: class {worst} may have lost up to {shown(self.smallest)} of mean score, {how}; {self.margin} was asked"
            + best
        )


def shown(bound: float) -> str:
    """A bound as a margin that it holds at: rounded up, to four decimals, and to three digits where it is small."""
    places = min(9, max(4, 2 - math.floor(math.log10(bound)))) if bound > 0 else 4  # a t bound may be none
    return f"{math.ceil((bound - _SAME) * 10**places) / 10**places:.{places}f}"


def certificate_of(
    losses: Mapping[str, FloatArray],
    *,
    margin: float = 0.02,
    alpha: float = 0.05,
    bound: str = "betting",
    seed: int = 0,
) -> Certificate:
    """From the losses σ − σ_pruned of each class's samples, (n,) independent draws of a score that can only lie in [0, 1].

    Raises InputError; DataError for a class of fewer than two samples, and for losses that are not finite or lie outside [−1, 1].

    Samples are shuffled with the seed, because the betting bound needs an order that does not depend on them.
    """
    check_claim(margin, bound)
    if not 0 < alpha < 1:
        raise InputError(f"alpha: expected a number between 0 and 1, got {alpha}")
    if not losses:
        raise DataError("certify: expected losses of at least one class, got none")
    for c, v in losses.items():
        _check_two(c, len(v))
        wrong = np.flatnonzero(~(np.abs(v) <= 1 + _ROUNDING))  # NaN is among them
        if len(wrong):
            raise DataError(
                f"certify: class {c!r}: expected losses from -1 to 1, got {v[wrong[0]]:g} ({len(wrong)} of {len(v)} samples)"
            )
        if bound in APPROXIMATE and np.ptp(v) == 0:
            warnings.warn(
                f"certify: all {len(v)} samples of class {c!r} lost the same: a {bound} bound knows no spread; the betting bound does not need one",
                CswapWarning, stacklevel=2,
            )  # fmt: skip
    own = BOUNDS[bound]
    mixed = {c: np.random.default_rng([seed, k]).permutation(v) for k, (c, v) in enumerate(losses.items())}
    upper = tuple(own(v, alpha) for v in mixed.values())
    return Certificate(
        margin, alpha, bound, bound in APPROXIMATE, tuple(mixed), tuple(len(v) for v in mixed.values()),
        tuple(float(v.mean()) for v in mixed.values()), upper, max(upper),
        None if bound in APPROXIMATE else at_best(min(len(v) for v in mixed.values()), alpha, bound),
    )  # fmt: skip


def in_fixed_order(certificates: Sequence[Callable[[], Certificate]]) -> list[Certificate]:
    """Certificates of several targets, from small to large, up to and with the first that fails: all that hold, hold together with
    confidence 1 − α (fixed-sequence testing)."""
    found = []
    for make in certificates:
        found.append(make())
        if not found[-1].holds:
            break
    return found


def class_losses(
    original: nn.Module, small: nn.Module, dataset: Dataset[Any] | CalibrationSet, task: Task, classes: Sequence[str], *,
    device: str = "cpu", batch: int | None = None, bounded: bool = True,
) -> dict[str, FloatArray]:  # fmt: skip
    """σ − σ_pruned by class, (n_k,) float64: of the samples that are of class k or hold it, or where the task scores by class its own column.

    batch: by default what quality is measured in. bounded: raises DataError for scores outside [0, 1]; a certificate's bounds rest on that range, whatever losses a sample happens to show.
    """
    found: dict[str, list[FloatArray]] = {c: [] for c in classes}
    by_class, done = hasattr(task, "class_scores"), 0
    checked = _in_range if bounded else np.asarray
    nets = [Fed(copy.deepcopy(m).eval().to(device)) for m in (original, small)]
    members: BoolArray | None = None
    first: torch.Tensor | None
    read: Callable[[int], Iterator[tuple[torch.Tensor, Truth]]]
    if isinstance(dataset, CalibrationSet):
        members, read, first = dataset.members, dataset.batches, dataset.inputs(0, 1)[0]
    else:
        read = partial(batches, dataset)
        first = torch.as_tensor(dataset[0][0]) if len(dataset) else None  # type: ignore[arg-type]
        members = None if by_class else members_of(dataset, len(classes))
    for inputs, targets in read(batch or (MOST if first is None else fitting(first, device, nets))):
        with torch.inference_mode(), exact(torch.device(device), False):
            outputs = [net(inputs.to(device)) for net in nets]
            truth = moved(targets, device)
            if by_class:
                columns = [checked(task.class_scores(o, truth).double().cpu().numpy()) for o in outputs]  # type: ignore[attr-defined]
                for k, name in enumerate(classes[: columns[0].shape[1]]):
                    before, after = columns[0][:, k], columns[1][:, k]
                    there = ~(np.isnan(before) & np.isnan(after))  # else the class is not, and neither has a score
                    found[name].append((before - after)[there])
                continue
            scores = [checked(task.score(o, truth).double().cpu().numpy()) for o in outputs]
        lost = scores[0] - scores[1]
        for k, name in enumerate(classes):
            # a sample that holds several classes counts for each of them
            own = np.asarray(targets) == k if members is None else members[done : done + len(lost), k]
            found[name].append(lost[own])
        done += len(lost)
    return {c: np.concatenate(v) if v else np.empty(0) for c, v in found.items()}


@dataclass(frozen=True)
class Together:
    """What a whole network loses on the samples that it was made from: no claim, since they chose it.

    upper: by class, the one-sided paired t bound of its mean loss at 1 − alpha (None: no sample holds it), as `joint` bounds its sets'.
    """

    alpha: float
    samples: int
    upper: dict[str, float | None]

    @property
    def worst(self) -> tuple[str, float]:
        """The class of the largest bound, and the bound: the least τ that all classes are within."""
        return max(((c, b) for c, b in self.upper.items() if b is not None), key=lambda found: found[1])

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        name, bound = self.worst
        return {**asdict(self), "worst": name, "margin": bound}


def whole_losses(
    original: nn.Module, small: nn.Module, calibration: CalibrationSet, task: Task, *, alpha: float, device: str = "cpu"
) -> Together:
    """All that is removed, with all that was refitted, against the original network on the calibration samples. Source: ours."""
    losses = class_losses(original, small, calibration, task, calibration.classes, device=device, bounded=False)
    upper = {c: BOUNDS["t"](v, alpha) if len(v) else None for c, v in losses.items()}
    return Together(alpha, len(calibration), upper)


def _in_range(scores: FloatArray) -> FloatArray:
    """Scores as they are, NaN where a class is absent; a loss that is not finite is told of with its class."""
    wrong = scores[(scores < -_ROUNDING) | (scores > 1 + _ROUNDING)]
    if len(wrong):
        raise DataError(f"certify: expected a task whose scores lie between 0 and 1, got {wrong[0]:g}")
    return scores


def check_enough(
    dataset: Dataset[Any], classes: Sequence[str], *, margin: float = 0.02, alpha: float = 0.05, bound: str = "betting"
) -> None:
    """Warns, by labels alone, where the smallest class's samples cannot certify the margin unless the network became better.
    Raises DataError for a class of fewer than two."""
    members = members_of(dataset, len(classes))
    counts = np.bincount(labels_of(dataset), minlength=len(classes)) if members is None else members.sum(0)
    k = int(counts.argmin())
    _check_two(classes[k], int(counts[k]))
    best = at_best(int(counts[k]), alpha, bound)
    if best > margin + _SAME:
        warnings.warn(
            f"certify: class {classes[k]!r} has {counts[k]} samples, which can say at best {shown(best)} with confidence {1 - alpha:g} "
            f"({bound} bound), and a margin of {margin} was asked: expected more samples or a larger margin",
            CswapWarning,
            stacklevel=2,
        )


def _check_two(name: str, samples: int) -> None:
    if samples < 2:
        raise DataError(f"certify: class {name!r}: expected at least 2 samples, got {samples}")


def refuse_seen(dataset: Dataset[Any], calibration: CalibrationSet) -> None:
    """The samples of a certificate must not be among those that units, ridge or statistics were chosen by, must be finite, and each
    there once: one that comes twice is no second draw. Raises DataError.

    Compared by content, whatever they are labelled. That the network was never trained on them is for the user to know.
    """
    used = set(calibration.digests())
    first: dict[bytes, int] = {}
    for i in range(len(dataset)):  # type: ignore[arg-type]
        inputs = inputs_of(dataset, i)
        if not_finite(inputs.unsqueeze(0)):
            raise DataError(f"certify: sample {i}: expected finite inputs, got NaN or Inf")
        own = digest_of(inputs)
        if own in used:
            raise DataError(
                f"certify: sample {i} is one of the calibration samples: expected samples that nothing was chosen by"
            )
        if first.setdefault(own, i) != i:
            raise DataError(f"certify: sample {i} is sample {first[own]} again: expected each sample once")
