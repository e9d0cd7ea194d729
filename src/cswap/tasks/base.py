"""What a task is: a small object that scores samples and measures quality."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import torch


class Meter(Protocol):
    """Accumulates quality over batches."""

    def update(self, outputs: Any, targets: torch.Tensor) -> None:
        """Take one batch of model outputs and its targets."""

    def result(self) -> dict[str, Any]:
        """Overall figures by name, and `by_class`: figures by class number."""


@runtime_checkable
class Task(Protocol):
    """A task. `headline` names the figure of `Meter.result` that curves show.

    Optional: `class_scores(outputs, targets) -> (N, K)`, NaN where a class is absent; then class k is tested on its own
    column.
    """

    name: str
    headline: str

    def score(self, outputs: Any, targets: torch.Tensor) -> torch.Tensor:
        """σ: (N,) float64, higher is better."""

    def sample_quality(self, outputs: Any, targets: torch.Tensor) -> torch.Tensor:
        """(N,) float64 in [0, 1]; its mean is the calibration quality watched while pruning."""

    def chance(self, classes: int) -> float:
        """Quality of a guess among `classes` classes."""

    def meter(self, classes: int) -> Meter:
        """A fresh meter."""
