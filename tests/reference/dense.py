"""Plain float64 twins of the scores of images with masks and boxes: loops over pixels' sets and boxes."""

from __future__ import annotations

import numpy as np


def hard_iou(logits: np.ndarray, mask: np.ndarray) -> list[float]:
    """IoU of each class in one image, logits (K, H, W); NaN where the mask has none."""
    found, seen = logits.argmax(0), (mask >= 0) & (mask != 255)
    values = []
    for k in range(len(logits)):
        truth = {tuple(p) for p in np.argwhere(seen & (mask == k))}
        given = {tuple(p) for p in np.argwhere(seen & (found == k))}
        values.append(len(truth & given) / len(truth | given) if truth else float("nan"))
    return values


def soft_iou(logits: np.ndarray, mask: np.ndarray) -> list[float]:
    """The same of probabilities."""
    e = np.exp(logits.astype(np.float64) - logits.max(0))
    p, seen = e / e.sum(0), (mask >= 0) & (mask != 255)
    values = []
    for k in range(len(logits)):
        both = either = count = 0.0
        for i, j in np.argwhere(seen):
            t = float(mask[i, j] == k)
            both += p[k, i, j] * t
            either += p[k, i, j] + t - p[k, i, j] * t
            count += t
        values.append(both / either if count else float("nan"))
    return values


def best_boxes(found: dict, truth: dict, first: int) -> list[float]:
    """Best IoU × score of the right class for each box of one image."""
    values = []
    for box, label in zip(truth["boxes"].tolist(), truth["labels"].tolist(), strict=True):
        best = 0.0
        for b, s, n in zip(found["boxes"].tolist(), found["scores"].tolist(), found["labels"].tolist(), strict=True):
            w = min(box[2], b[2]) - max(box[0], b[0])
            h = min(box[3], b[3]) - max(box[1], b[1])
            both = max(w, 0.0) * max(h, 0.0)
            either = (box[2] - box[0]) * (box[3] - box[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both
            best = max(best, both / either * s if n - first == label else 0.0)
        values.append(best)
    return values
