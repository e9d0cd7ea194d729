"""Train the small SSD on BCCD (blood cells, Pascal VOC boxes of three classes), with a log, a checkpoint and a resume.

    OMP_NUM_THREADS=1 python benchmarks/train_bccd.py --bccd DIR [--out F.safetensors] [--work DIR] [--seed 0]

Trained on the splits train and val (292 images, resized to 256×256), measured on the 72 of test. AdamW; flips and crops;
torchvision's own SSD loss; bfloat16 where autocast sees fit. Run again after an interruption, it goes on from the last epoch.
Weights are kept in float16; the report beside them (F.json) has the mAP of those on the test split.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent / "networks"))
from dense import bccd_ssd

from _fit import Fit, keep, report
from _machine import ROOT
from cswap.data.boxes import open_boxes
from cswap.data.sources import ImageFormat
from cswap.evaluate.quality import measure_quality
from cswap.tasks import Detection

SIDE, BATCH = 256, 8
WEIGHTS = ROOT / "benchmarks" / "networks" / "weights" / "ssd_bccd.safetensors"


def augmented(image: torch.Tensor, truth: dict[str, torch.Tensor], generator: torch.Generator) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:  # fmt: skip
    """Flips along both sides, a crop of 0.6 to 1 made whole again with the boxes whose centres it holds, brightness."""
    boxes, labels = truth["boxes"].clone(), truth["labels"]
    across, down, part, left, top, gain = torch.rand(6, generator=generator).tolist()
    if across < 0.5:
        image, boxes = (
            image.flip(-1),
            boxes[:, [2, 1, 0, 3]] * torch.tensor([-1.0, 1, -1, 1]) + torch.tensor([SIDE, 0, SIDE, 0]),
        )
    if down < 0.5:
        image, boxes = (
            image.flip(-2),
            boxes[:, [0, 3, 2, 1]] * torch.tensor([1.0, -1, 1, -1]) + torch.tensor([0, SIDE, 0, SIDE]),
        )
    side = int(SIDE * (0.6 + 0.4 * part))
    x, y = int(left * (SIDE - side + 1)), int(top * (SIDE - side + 1))
    moved = boxes - torch.tensor([x, y, x, y])
    centres = (moved[:, :2] + moved[:, 2:]) / 2
    inside = ((centres > 0) & (centres < side)).all(1)
    moved = moved.clamp(0, side)
    inside &= (moved[:, 2:] - moved[:, :2] > 2).all(1)
    if inside.any():
        crop = image[None, :, y : y + side, x : x + side]
        image = F.interpolate(crop, size=(SIDE, SIDE), mode="bilinear", align_corners=False)[0]
        boxes, labels = moved[inside] * SIDE / side, labels[inside]
    return (image * (0.8 + 0.4 * gain)).clamp(0, 1), {"boxes": boxes, "labels": labels + 1}


def run() -> None:
    """Train to the last epoch and write weights and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bccd", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "training" / "bccd")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    form = ImageFormat(asked=SIDE)
    train, test = open_boxes(given.bccd, form, "trainval", "test")
    samples = [train[i] for i in range(len(train))]
    torch.manual_seed(given.seed)
    model: Any = bccd_ssd().to(memory_format=torch.channels_last)

    def loss(own: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        images, truth = zip(*(augmented(*samples[int(i)], generator) for i in own), strict=True)
        with torch.autocast("cpu", torch.bfloat16):
            losses = model(list(images), list(truth))
        return sum(v.float() for v in losses.values())  # type: ignore[no-any-return]

    recipe = Fit(epochs=60, cycle=60, cool=1, rate=3e-3, seed=given.seed, batch=BATCH)
    seconds = recipe.run(model, given.work, len(samples), loss)
    keep(model, given.out)
    quality = measure_quality({"net": model}, test, Detection(), len(test.classes), batch=16)["net"]
    report(given.out, {
        "command": f"python benchmarks/train_bccd.py --seed {given.seed}", "recipe": vars(recipe),
        "data": f"BCCD {SIDE}×{SIDE}, 3 classes", "test": quality, "train_seconds": seconds,
    })  # fmt: skip


if __name__ == "__main__":
    run()
