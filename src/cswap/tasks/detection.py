"""Detection: σ is the mean over ground-truth boxes of the best IoU × score of the right class (method.md, "Tasks"; ours)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from cswap.errors import DataError, MissingPartError

Boxes = dict[str, torch.Tensor]
SHARPNESS = 20.0


def found_by(outputs: Any) -> list[Boxes]:
    """A list of dicts with `boxes` (B, 4) x1, y1, x2, y2, `scores` (B,) and `labels` (B,), one an image, as torchvision gives."""
    keys = {"boxes", "scores", "labels"}
    if not isinstance(outputs, list) or not all(isinstance(o, dict) and keys <= set(o) for o in outputs):
        raise DataError(
            f"detection expects a list of dicts with boxes, scores and labels from the model, got {type(outputs).__name__}"
        )
    if any("masks" in o for o in outputs):
        raise DataError(
            "detection: the model gives masks too (instance segmentation); its boxes alone would decide what goes, so this "
            "version refuses it: expected a model that gives boxes, scores and labels"
        )
    return outputs


class Detection:
    """Targets are a list of dicts, `boxes` (B, 4) and `labels` (B,) from 0; `first`: the number the model gives class 0.

    torchvision's detectors keep 0 for the background, so `first` is 1. `outputs`: the number the model gives each class, where
    those do not follow on one another (COCO's categories are numbered 1 to 90 with gaps); other numbers are no class of the data.
    """

    name = "detection"
    headline = "map"
    targets = "boxes"

    def __init__(self, first: int = 1, outputs: Sequence[int] | None = None) -> None:
        self.first, self.outputs = first, None if outputs is None else tuple(outputs)

    def class_of(self, labels: torch.Tensor) -> torch.Tensor:
        """The class of each number the model gave, (D,) int64; negative where it is none."""
        if self.outputs is None:
            return labels - self.first
        known = torch.tensor(self.outputs, device=labels.device)
        same = labels.unsqueeze(1) == known
        return torch.where(same.any(1), same.int().argmax(1), -1)

    def best(self, values: torch.Tensor) -> torch.Tensor:
        """How well each ground-truth box was found, (B,), from IoU × score of every detection of its class, (B, D)."""
        return values.max(1).values

    def class_scores(self, outputs: Any, targets: list[Boxes]) -> torch.Tensor:
        """Mean over the boxes of each class in each image, (N, K') float64, NaN without one; K' the largest label + 1."""
        each = self._each(outputs, targets)
        width = 1 + max((int(t["labels"].max()) for t in targets if len(t["labels"])), default=0)
        rows = []
        for own, t in zip(each, targets, strict=True):
            sums = own.new_zeros(width).index_add(0, t["labels"], own)
            rows.append(sums / torch.bincount(t["labels"], minlength=width))
        return torch.stack(rows)

    def score(self, outputs: Any, targets: list[Boxes]) -> torch.Tensor:
        """Mean over all boxes of each image, (N,) float64; 1 where there is none."""
        return torch.stack([own.mean() if len(own) else own.new_ones(()) for own in self._each(outputs, targets)])

    def _each(self, outputs: Any, targets: list[Boxes]) -> list[torch.Tensor]:
        """By image: how well each box was found, (B,) float64 in [0, 1]."""
        from torchvision.ops import box_iou

        found = []
        for o, t in zip(found_by(outputs), targets, strict=True):
            if not len(o["boxes"]):
                found.append(o["scores"].new_zeros(len(t["boxes"]), dtype=torch.float64))
                continue
            right = t["labels"].unsqueeze(1) == self.class_of(o["labels"])
            values = box_iou(t["boxes"].double(), o["boxes"].double()) * o["scores"].double() * right
            found.append(self.best(values) if len(t["boxes"]) else values.new_zeros(0))
        return found

    def sample_quality(self, outputs: Any, targets: list[Boxes]) -> torch.Tensor:
        """As `Detection.score`, (N,) float64."""
        return Detection.score(Detection(self.first, self.outputs), outputs, targets)

    def chance(self, classes: int) -> float:
        """Boxes are not found by guessing."""
        return 0.0

    def outputs_of(self, outputs: Any) -> int | None:
        """The output does not say how many classes the model knows."""
        found_by(outputs)
        return None

    def meter(self, classes: int) -> DetectionMeter:
        """mAP over the whole data set, and by class."""
        return DetectionMeter(classes, self.class_of)


class SoftDetection(Detection):
    """A smooth maximum over the detections instead of the best one: Σ v·softmax(20 v), v = IoU × score (ours)."""

    name = "detection-soft"

    def best(self, values: torch.Tensor) -> torch.Tensor:
        """(B, D) → (B,)."""
        return (values * (SHARPNESS * values).softmax(1)).sum(1)


class DetectionMeter:
    """COCO's mAP@[.5:.95] and mAP@.5 by torchmetrics, and mAP@[.5:.95] by class."""

    def __init__(self, classes: int, class_of: Callable[[torch.Tensor], torch.Tensor]) -> None:
        try:
            from torchmetrics.detection import MeanAveragePrecision

            self.metric = MeanAveragePrecision(class_metrics=True)
        except ImportError as error:
            raise MissingPartError.of(
                error, "detection needs torchmetrics and pycocotools", "dense", "torchmetrics"
            ) from None
        self.classes, self.class_of = classes, class_of
        self.metric.warn_on_many_detections = False

    def update(self, outputs: Any, targets: list[Boxes]) -> None:
        """Take one batch."""
        found = []
        for o in found_by(outputs):
            labels = self.class_of(o["labels"])
            known = labels >= 0
            own = {k: o[k][known].detach().float().cpu() for k in ("boxes", "scores")}
            found.append({**own, "labels": labels[known].cpu()})
        self.metric.update(found, [{k: t[k].cpu() for k in ("boxes", "labels")} for t in targets])

    def result(self) -> dict[str, Any]:
        """`map`, `map50` in [0, 1]; `by_class` has None for a class without boxes."""
        figures = self.metric.compute()
        if float(figures["map"]) < 0:
            raise DataError("quality needs at least one box, got none")
        by_class: list[float | None] = [None] * self.classes
        for k, value in zip(
            figures["classes"].reshape(-1).tolist(), figures["map_per_class"].reshape(-1).tolist(), strict=True
        ):
            if k < self.classes and value >= 0:
                by_class[k] = value
        return {"map": float(figures["map"]), "map50": float(figures["map_50"]), "by_class": by_class}
