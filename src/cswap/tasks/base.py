"""What a task is: a small object that scores samples and measures quality."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch


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
    `targets`: "class numbers", "masks" or "boxes", what the data must have.
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


def smooth(task: Task) -> Callable[[Any, Any], torch.Tensor]:
    """The score that gradient methods follow: the task's `surrogate`, or σ itself."""
    found: Callable[[Any, Any], torch.Tensor] = getattr(task, "surrogate", task.score)
    return found


def mean_of_present(by_class: torch.Tensor) -> torch.Tensor:
    """(N, K) with NaN where a class is absent → (N,) means over the others; 1 where all are."""
    there = ~by_class.isnan()
    mean = torch.where(there, by_class, 0.0).sum(1) / there.sum(1).clamp_min(1)
    return torch.where(there.any(1), mean, 1.0)
