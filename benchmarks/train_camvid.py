"""Train the small U-Net on CamVid (367 images, 240×180, 11 classes), with a log, a checkpoint and a resume.

    OMP_NUM_THREADS=1 python benchmarks/train_camvid.py --camvid DIR [--out F.safetensors] [--work DIR] [--seed 0]

AdamW; random flips, crops, brightness and contrast; cross-entropy with classes weighted by the root of how rare they are, plus
one minus the soft IoU, at half the resolution; bfloat16 where autocast sees fit. Run again after an interruption, it goes on
from the last epoch. Weights are kept in float16; the report beside them (F.json) has the mIoU of those on the 233 test images.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent / "networks"))
from dense import MEAN, STD, camvid_unet

from _fit import Fit, keep, report
from _machine import ROOT

CLASSES, VOID, BATCH = 11, 11, 8
WEIGHTS = ROOT / "benchmarks" / "networks" / "weights" / "unet_camvid.safetensors"


def split(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """(N, 3, H, W) uint8 and (N, H, W) int64 of one split."""
    files = sorted((folder / "images").iterdir())
    images = np.stack([np.asarray(Image.open(f).convert("RGB")) for f in files])
    masks = np.stack([np.asarray(Image.open(folder / "masks" / f"{f.stem}.png")) for f in files])
    return torch.from_numpy(images.transpose(0, 3, 1, 2).copy()), torch.from_numpy(masks.astype(np.int64))


def normalised(pixels: torch.Tensor) -> torch.Tensor:
    """Float, channels_last."""
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    return ((pixels.float() / 255 - mean) / std).contiguous(memory_format=torch.channels_last)


def augmented(x: torch.Tensor, y: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """One image at a time: flip, a crop of 0.6 to 1 of each side made whole again, brightness and contrast."""
    images, masks, (h, w) = [], [], x.shape[-2:]
    for image, mask in zip(x, y, strict=True):
        flip, part, top, left, gain, shift = torch.rand(6, generator=generator).tolist()
        part = 0.6 + 0.4 * part
        ph, pw = int(h * part), int(w * part)
        t, s = int(top * (h - ph + 1)), int(left * (w - pw + 1))
        i, m = image[:, t : t + ph, s : s + pw].float(), mask[t : t + ph, s : s + pw]
        if flip < 0.5:
            i, m = i.flip(-1), m.flip(-1)
        i = F.interpolate(i[None], size=(h, w), mode="bilinear", align_corners=False)[0]
        m = F.interpolate(m[None, None].float(), size=(h, w))[0, 0].long()
        images.append((i * (0.75 + 0.5 * gain) + 40 * (shift - 0.5)).clamp(0, 255))
        masks.append(m)
    return torch.stack(images), torch.stack(masks)


def loss_of(logits: torch.Tensor, masks: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Weighted cross-entropy and one minus the mean soft IoU of the batch."""
    logits = logits.float()
    seen = masks != VOID
    truth = F.one_hot(masks.where(seen, 0), CLASSES).permute(0, 3, 1, 2) * seen[:, None]
    p = logits.softmax(1) * seen[:, None]
    both, either = (p * truth).sum((0, 2, 3)), (p + truth - p * truth).sum((0, 2, 3))
    there = truth.sum((0, 2, 3)) > 0
    return F.cross_entropy(logits, masks, weights, ignore_index=VOID) + 1 - (both / either.clamp_min(1))[there].mean()


def miou(model: nn.Module, pixels: torch.Tensor, masks: torch.Tensor) -> tuple[float, list[float]]:
    """Over the whole split: mean and by class."""
    model.eval()
    counts = torch.zeros(CLASSES, CLASSES, dtype=torch.int64)
    with torch.inference_mode():
        for i in range(0, len(masks), BATCH):
            got, y = model(normalised(pixels[i : i + BATCH])).argmax(1), masks[i : i + BATCH]
            seen = y != VOID
            counts += torch.bincount(y[seen] * CLASSES + got[seen], minlength=CLASSES**2).view(CLASSES, CLASSES)
    right = counts.diag()
    iou = right / (counts.sum(0) + counts.sum(1) - right)
    return float(iou.mean()), iou.tolist()


def run() -> None:
    """Train to the last epoch and write weights and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--camvid", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "training" / "camvid")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    pixels, masks = split(given.camvid / "train")
    share = torch.bincount(masks.flatten(), minlength=CLASSES + 1)[:CLASSES].float()
    weights = (share.sum() / share).sqrt()
    weights = weights / weights.mean()
    torch.manual_seed(given.seed)
    model: Any = camvid_unet().to(memory_format=torch.channels_last)

    def loss(own: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        x, y = augmented(pixels[own], masks[own], generator)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model.coarse(normalised(x))
        return loss_of(logits, y[:, ::2, ::2], weights)

    recipe = Fit(epochs=66, cycle=100, cool=8, rate=4e-3, seed=given.seed, batch=BATCH)
    seconds = recipe.run(model, given.work, len(masks), loss)
    keep(model, given.out)
    mean, by_class = miou(model, *split(given.camvid / "test"))
    report(given.out, {
        "command": f"python benchmarks/train_camvid.py --seed {given.seed}", "recipe": vars(recipe),
        "data": "CamVid 240×180, 11 classes", "test_miou": mean, "test_iou_by_class": by_class, "train_seconds": seconds,
    })  # fmt: skip


if __name__ == "__main__":
    run()
