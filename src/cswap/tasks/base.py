"""What a task is: a small object that scores samples and measures quality."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch

from cswap.errors import DataError, InputError


class Meter(Protocol):
    """Accumulates quality over batches."""

    def update(self, outputs: Any, targets: Any) -> None:
        """Take one batch of model outputs and its targets."""

    def result(self) -> dict[str, Any]:
        """Overall figures by name, and `by_class`: figures by class number."""


@runtime_checkable
class Task(Protocol):
    """A task. `headline` names the figure of `Meter.result` that curves show.

    targets: class numbers (N,), masks (N, H, W), or a list of dicts with boxes and labels, as the data has them.

    Optional: `class_scores(outputs, targets) -> (N, K)`, NaN where a class is absent; then class k is tested on its own
    column (fewer columns than classes: the last ones are absent). `surrogate(outputs, targets) -> (N,)`, a score with a
    gradient for methods that need one, where σ moves in steps. `outputs_of(outputs) -> K`, classes the model knows, or None.
    `targets`: "class numbers", "masks" or "boxes", what the data must have. `outputs_vector(outputs) -> (N, D)`: each sample's outputs, of which
    a squared distance says how far two networks are from each other.
    """

    name: str
    headline: str

    def score(self, outputs: Any, targets: Any) -> torch.Tensor:
        """σ: (N,) float64, higher is better."""

    def sample_quality(self, outputs: Any, targets: Any) -> torch.Tensor:
        """(N,) float64 in [0, 1]; its mean is the calibration quality watched while pruning."""

    def chance(self, classes: int) -> float:
        """Quality of a guess among `classes` classes."""

    def meter(self, classes: int) -> Meter:
        """A fresh meter."""


class Scored:
    """A task of which only `score` is known, and perhaps `class_scores`: quality is the mean score, and nothing is known of chance (ours)."""

    def __init__(self, task: Any) -> None:
        self.task, self.headline = task, "score"
        self.name = str(getattr(task, "name", type(task).__name__))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "task" not in self.__dict__:  # asked of a copy that is being made
            raise AttributeError(name)
        return getattr(self.task, name)  # class_scores, surrogate and the like, where it has them

    def score(self, outputs: Any, targets: Any) -> torch.Tensor:
        """The task's own."""
        found: torch.Tensor = self.task.score(outputs, targets)
        return found

    def sample_quality(self, outputs: Any, targets: Any) -> torch.Tensor:
        """The score."""
        return self.score(outputs, targets)

    def chance(self, classes: int) -> float:
        """Not known."""
        return float("nan")

    def meter(self, classes: int) -> Meter:
        """Mean score, by class too where targets are class numbers."""
        return ScoreMeter(self, classes)


class ScoreMeter:
    """Mean score of all samples and of each class's own."""

    def __init__(self, task: Scored, classes: int) -> None:
        self.task, self.classes = task, classes
        self.scores: list[torch.Tensor] = []
        self.targets: list[torch.Tensor] = []

    def update(self, outputs: Any, targets: Any) -> None:
        """Take one batch."""
        self.scores.append(self.task.score(outputs, targets).double().cpu())
        if isinstance(targets, torch.Tensor) and targets.dim() == 1:
            self.targets.append(targets.cpu())

    def result(self) -> dict[str, Any]:
        """`score`, and `by_class` with None for a class without samples of its own."""
        if not sum(map(len, self.scores)):
            raise DataError("quality needs at least one sample, got none")
        scores, by_class = torch.cat(self.scores), [None] * self.classes
        if self.targets:
            targets = torch.cat(self.targets)
            by_class = [float(scores[own].mean()) if (own := targets == k).any() else None for k in range(self.classes)]  # type: ignore[misc]
        return {"score": float(scores.mean()), "by_class": by_class}


def completed(task: Any) -> Task:
    """`task` itself where it is whole, and with what it lacks where it has `score` alone. Raises InputError."""
    if isinstance(task, Task):
        return task
    if not callable(getattr(task, "score", None)):
        raise InputError(
            f"task: expected an object with score(outputs, targets) -> (samples,), got {type(task).__name__}"
        )
    lacks = [n for n in ("headline", "sample_quality", "chance", "meter") if not hasattr(task, n)]
    if len(lacks) < 4 and hasattr(task, "sample_quality"):
        raise InputError(
            f"task: {type(task).__name__} has no {', '.join(lacks or ['name'])}; expected all of cswap.Task, or score alone"
        )
    return Scored(task)


def smooth(task: Task) -> Callable[[Any, Any], torch.Tensor]:
    """The score that gradient methods follow: the task's `surrogate`, or σ itself."""
    found: Callable[[Any, Any], torch.Tensor] = getattr(task, "surrogate", task.score)
    return found


def mean_of_present(by_class: torch.Tensor) -> torch.Tensor:
    """(N, K) with NaN where a class is absent → (N,) means over the others; 1 where all are."""
    there = ~by_class.isnan()
    mean = torch.where(there, by_class, 0.0).sum(1) / there.sum(1).clamp_min(1)
    return torch.where(there.any(1), mean, 1.0)
