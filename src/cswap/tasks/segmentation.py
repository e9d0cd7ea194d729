"""Segmentation: σ is the mean IoU of one image over the classes present in it (method.md, "Tasks")."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from cswap.errors import DataError, MissingPartError
from cswap.tasks.base import mean_of_present

VOID = 255


def maps_of(outputs: Any, size: torch.Size | tuple[int, ...]) -> torch.Tensor:
    """(N, K, H, W) logits of a model's output at the masks' size: a tensor, or `out` or `logits` of a dict or object.

    Logits of another size are resized bilinearly (ours).
    """
    for key in ("out", "logits"):
        if isinstance(outputs, dict) and key in outputs:
            outputs = outputs[key]
        elif not isinstance(outputs, torch.Tensor) and hasattr(outputs, key):
            outputs = getattr(outputs, key)
    if not isinstance(outputs, torch.Tensor) or outputs.dim() != 4:
        came = tuple(outputs.shape) if isinstance(outputs, torch.Tensor) else type(outputs).__name__
        raise DataError(f"segmentation expects logits of shape (N, K, H, W) from the model, got {came}")
    if outputs.shape[-2:] == tuple(size):
        return outputs
    return F.interpolate(outputs, size=tuple(size), mode="bilinear", align_corners=False)


def iou(both: torch.Tensor, either: torch.Tensor, there: torch.Tensor) -> torch.Tensor:
    """both / either, NaN where the class is not there; all (N, K)."""
    return torch.where(there, both.double() / either.double().clamp_min(1e-12), torch.nan)


class Segmentation:
    """Targets are masks (N, H, W) of class numbers; VOID (255) and negative pixels are ignored.

    σ moves in steps, so gradient methods use `surrogate`, the soft IoU.
    """

    name = "segmentation"
    headline = "miou"
    targets = "masks"

    def class_scores(self, outputs: Any, targets: torch.Tensor) -> torch.Tensor:
        """IoU of each class in each image, (N, K) float64; NaN where the mask has none of it."""
        logits = maps_of(outputs, targets.shape[-2:])
        n, k = logits.shape[:2]
        seen = _seen(targets)
        places = torch.arange(n, device=targets.device).view(-1, 1, 1) * k * k + targets * k + logits.argmax(1)
        counts = torch.bincount(places[seen], minlength=n * k * k).view(n, k, k)
        both, truth = counts.diagonal(dim1=1, dim2=2), counts.sum(2)
        return iou(both, truth + counts.sum(1) - both, truth > 0)

    def score(self, outputs: Any, targets: torch.Tensor) -> torch.Tensor:
        """Mean IoU over the classes present, (N,) float64; 1 where nothing is labelled."""
        return mean_of_present(self.class_scores(outputs, targets))

    def surrogate(self, outputs: Any, targets: torch.Tensor) -> torch.Tensor:
        """As `score`, of probabilities: it has a gradient."""
        return mean_of_present(soft_iou(outputs, targets))

    def sample_quality(self, outputs: Any, targets: torch.Tensor) -> torch.Tensor:
        """Mean IoU of one image, (N,) float64, of the most probable classes."""
        return mean_of_present(Segmentation.class_scores(self, outputs, targets))

    def chance(self, classes: int) -> float:
        """IoU of a guess among K equally frequent classes: 1 / (2K − 1)."""
        return 1.0 / (2 * classes - 1)

    def outputs_of(self, outputs: Any) -> int | None:
        """K, as the model's output has it."""
        return int(maps_of(outputs, (1, 1)).shape[1])

    def meter(self, classes: int) -> SegmentationMeter:
        """mIoU over the whole data set, and IoU by class."""
        return SegmentationMeter(classes)


class SoftSegmentation(Segmentation):
    """σ and class scores of probabilities instead of the most probable class (ours): small effects show, steps do not."""

    name = "segmentation-soft"

    def class_scores(self, outputs: Any, targets: torch.Tensor) -> torch.Tensor:
        """Soft IoU of each class in each image, (N, K) float64; NaN where the mask has none of it."""
        return soft_iou(outputs, targets)


def _seen(targets: torch.Tensor) -> torch.Tensor:
    return (targets >= 0) & (targets != VOID)


def soft_iou(outputs: Any, targets: torch.Tensor) -> torch.Tensor:
    """Σ p·t / Σ (p + t − p·t) over labelled pixels, p softmax probabilities, t the one-hot mask; (N, K) float64 with NaN."""
    logits = maps_of(outputs, targets.shape[-2:])
    seen = _seen(targets)
    p = logits.float().softmax(1) * seen.unsqueeze(1)
    truth = F.one_hot(targets.where(seen, 0), logits.shape[1]).movedim(-1, 1) * seen.unsqueeze(1)
    both, count = (p * truth).sum((2, 3), dtype=torch.float64), truth.sum((2, 3))
    return iou(both, p.sum((2, 3), dtype=torch.float64) + count - both, count > 0)


class SegmentationMeter:
    """Dataset mIoU by torchmetrics' Jaccard index; classes that are neither there nor predicted have none."""

    def __init__(self, classes: int) -> None:
        try:
            from torchmetrics.classification import MulticlassJaccardIndex
        except ImportError as error:
            raise MissingPartError.of(error, "segmentation needs torchmetrics", "dense", "torchmetrics") from None
        self.index = MulticlassJaccardIndex(classes, average="none", ignore_index=VOID, zero_division=float("nan"))

    def update(self, outputs: Any, targets: torch.Tensor) -> None:
        """Take one batch."""
        found = maps_of(outputs, targets.shape[-2:]).argmax(1)
        self.index.update(found.cpu(), targets.where(_seen(targets), VOID).cpu())

    def result(self) -> dict[str, Any]:
        """`miou` in [0, 1], the mean of `by_class` over the classes that have one."""
        values = [None if v != v else v for v in self.index.compute().tolist()]
        known = [v for v in values if v is not None]
        if not known:
            raise DataError("quality needs at least one labelled pixel, got none")
        return {"miou": sum(known) / len(known), "by_class": values}
