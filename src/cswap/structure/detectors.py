"""torchvision's detectors: their part that is made of tensors, without the choice of boxes at the end.

Which boxes survive a threshold or a suppression changes in steps, so two networks that differ by rounding may give lists of
different lengths, and no gradient tells which channels belong together. Units are found, and networks compared, on what the
heads give for every anchor, and, in a two-stage detector, for boxes that are fixed.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

PARTS = {"transform", "backbone"}
_GRID = 4  # fixed boxes along a side


def is_detector(model: nn.Module) -> bool:
    """A torchvision detector, one-stage (`head`) or two-stage (`rpn` and `roi_heads`); a subclass with the same pass is one too."""
    held = {n for n, _ in model.named_children()}
    return (
        held >= PARTS
        and ("head" in held or {"rpn", "roi_heads"} <= held)
        and type(model).forward.__module__.startswith("torchvision.")
    )


def forward_of(model: nn.Module) -> Callable[[torch.Tensor], Any]:
    """What structure is seen and compared by: the tensor part of a detector, else the model itself."""
    return (lambda inputs: _tensors(model, inputs)) if is_detector(model) else model


def _tensors(model: Any, inputs: torch.Tensor) -> list[torch.Tensor]:
    """Raw outputs of every head, in a fixed order. inputs: (N, 3, H, W)."""
    images, _ = model.transform([*inputs])
    maps = model.backbone(images.tensors)
    features = {"0": maps} if isinstance(maps, torch.Tensor) else maps
    if not hasattr(model, "rpn"):
        heads = [h for h in model.head.children() if hasattr(h, "module_list") or hasattr(h, "conv")]
        return [t for head in heads for t in _maps(head, list(features.values()))]
    objects, moves = model.rpn.head(list(features.values()))
    boxes = [_boxes(h, w).to(images.tensors) for h, w in images.image_sizes]
    roi = model.roi_heads
    found = [*objects, *moves, *roi.box_predictor(roi.box_head(roi.box_roi_pool(features, boxes, images.image_sizes)))]
    for name in ("mask", "keypoint"):
        if getattr(roi, f"{name}_head", None) is not None:
            pooled = getattr(roi, f"{name}_roi_pool")(features, boxes, images.image_sizes)
            found.append(getattr(roi, f"{name}_predictor")(getattr(roi, f"{name}_head")(pooled)))
    return found


def _maps(head: Any, features: list[torch.Tensor]) -> list[torch.Tensor]:
    """What a one-stage head's last layers give, before all anchors are put in one row."""
    if hasattr(head, "module_list"):  # SSD: layers of its own for each map
        return [layers(f) for layers, f in zip(head.module_list, features, strict=True)]
    last = [m for n, m in head.named_children() if n != "conv"]  # RetinaNet, FCOS: the same for every map
    shared = [head.conv(f) for f in features]
    return [layer(f) for layer in last for f in shared]


def _boxes(height: int, width: int) -> torch.Tensor:
    """(B, 4): a grid of boxes over the image, and the whole of it."""
    rows, columns = (torch.linspace(0, side, _GRID + 1) for side in (height, width))
    corners = [(x0, y0, x1, y1) for y0, y1 in _pairs(rows) for x0, x1 in _pairs(columns)]
    return torch.tensor([*corners, (0.0, 0.0, float(width), float(height))])


def _pairs(edges: torch.Tensor) -> list[tuple[float, float]]:
    values = edges.tolist()
    return list(itertools.pairwise(values))
