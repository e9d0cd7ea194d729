"""Classification: σ is the softmax probability of the labelled class (method.md, "Tasks")."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from cswap.errors import DataError


def logits_of(outputs: Any) -> torch.Tensor:
    """(N, K) logits of a model's output: a tensor, an object or dict with `logits`, or a tuple's first entry."""
    if not isinstance(outputs, torch.Tensor):
        if isinstance(outputs, dict) and "logits" in outputs:
            outputs = outputs["logits"]
        elif hasattr(outputs, "logits"):
            outputs = outputs.logits
        elif isinstance(outputs, list | tuple) and outputs:
            outputs = outputs[0]
    if not isinstance(outputs, torch.Tensor) or outputs.dim() != 2:
        came = tuple(outputs.shape) if isinstance(outputs, torch.Tensor) else type(outputs).__name__
        raise DataError(f"classification expects logits of shape (N, K) from the model, got {came}")
    return outputs


class Classification:
    """Single-label classification. Targets are (N,) class numbers.

    `outputs`: which output of the model is which class, where the model knows more classes than the data has; σ and quality
    are still those among all of its outputs.
    """

    name = "classification"
    headline = "accuracy"
    targets = "class numbers"

    def __init__(self, outputs: Sequence[int] | None = None) -> None:
        self.outputs = None if outputs is None else torch.tensor(list(outputs), dtype=torch.int64)

    def columns(self, targets: torch.Tensor) -> torch.Tensor:
        """The model's output of each labelled class, (N,)."""
        return targets if self.outputs is None else self.outputs.to(targets.device)[targets]

    def score(self, outputs: Any, targets: torch.Tensor) -> torch.Tensor:
        """Softmax probability of the labelled class, (N,) float64."""
        logits = logits_of(outputs).double()
        return logits.softmax(-1).gather(1, self.columns(targets).view(-1, 1)).squeeze(1)

    def sample_quality(self, outputs: Any, targets: torch.Tensor) -> torch.Tensor:
        """1 where the most probable class is the labelled one, (N,) float64."""
        return (logits_of(outputs).argmax(-1) == self.columns(targets)).double()

    def outputs_vector(self, outputs: Any) -> torch.Tensor:
        """The logits less their mean, which softmax does not see, (N, K) float64."""
        logits = logits_of(outputs).double()
        return logits - logits.mean(-1, keepdim=True)

    def chance(self, classes: int) -> float:
        """One in K."""
        return 1.0 / classes

    def outputs_of(self, outputs: Any) -> int | None:
        """K, as the model's output has it; None where classes are chosen among them. Raises DataError for one it lacks."""
        width = int(logits_of(outputs).shape[1])
        if self.outputs is None:
            return width
        if int(self.outputs.max()) >= width:
            raise DataError(f"labels: expected outputs below the model's {width}, got {int(self.outputs.max())}")
        return None

    def meter(self, classes: int) -> ClassificationMeter:
        """Top-1, top-5 (from six classes on) and top-1 by class."""
        return ClassificationMeter(classes, self.columns)


class ClassificationMeter:
    """Accuracy, top-5 and accuracy by class, summed over batches."""

    def __init__(self, classes: int, columns: Callable[[torch.Tensor], torch.Tensor] = lambda t: t) -> None:
        self.classes, self.columns = classes, columns
        self.seen = torch.zeros(classes, dtype=torch.int64)
        self.right = torch.zeros(classes, dtype=torch.int64)
        self.top5 = 0

    def update(self, outputs: Any, targets: torch.Tensor) -> None:
        """Take one batch."""
        logits, targets = logits_of(outputs).cpu(), targets.cpu()
        columns = self.columns(targets)
        hit = logits.argmax(-1) == columns
        self.seen += torch.bincount(targets, minlength=self.classes)
        self.right += torch.bincount(targets[hit], minlength=self.classes)
        best = logits.topk(min(5, logits.shape[-1]), dim=-1).indices
        self.top5 += int((best == columns.view(-1, 1)).sum())

    def result(self) -> dict[str, Any]:
        """Fractions in [0, 1]; `by_class` has None for a class without samples."""
        total = int(self.seen.sum())
        if not total:
            raise DataError("quality needs at least one sample, got none")
        figures: dict[str, Any] = {"accuracy": int(self.right.sum()) / total}
        if self.classes > 5:
            figures["top5"] = self.top5 / total
        figures["by_class"] = [
            int(r) / int(s) if s else None for r, s in zip(self.right.tolist(), self.seen.tolist(), strict=True)
        ]
        return figures
