"""Train the small U-Net on CamVid (367 images, 240×180, 11 classes), with a log, a checkpoint and a resume.

    OMP_NUM_THREADS=1 nice python benchmarks/train_camvid.py --camvid DIR [--out F.safetensors] [--epochs 120] [--seed 0]

AdamW, one-cycle rate, random flips, scales, crops and brightness; cross-entropy with classes weighted by the root of how rare
they are, plus one minus the soft IoU; bfloat16 where autocast sees fit; the loss is taken at half the resolution. Run again after an interruption, it goes on from the
last checkpoint. Weights are kept in float16; the report beside them (F.json) has the mIoU of those on the 233 test images.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent / "networks"))
from dense import MEAN, STD, camvid_unet

from _machine import ROOT, machine

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
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--rate", type=float, default=4e-3)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    pixels, masks = split(given.camvid / "train")
    share = torch.bincount(masks.flatten(), minlength=CLASSES + 1)[:CLASSES].float()
    weights = (share.sum() / share).sqrt()
    weights = weights / weights.mean()
    torch.manual_seed(given.seed)
    model = camvid_unet().to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(model.parameters(), lr=given.rate, weight_decay=0.02)
    steps = len(masks) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, given.rate, total_steps=given.epochs * steps)
    state: dict[str, Any] = {"epoch": 0, "seconds": 0.0}
    if (given.work / "last.pt").exists():
        state = torch.load(given.work / "last.pt", weights_only=True)
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        schedule.load_state_dict(state["schedule"])
    for epoch in range(state["epoch"], given.epochs):
        begin, generator = time.perf_counter(), torch.Generator().manual_seed(1000 * given.seed + epoch)
        order, total = torch.randperm(len(masks), generator=generator), 0.0
        model.train()
        for i in range(steps):
            own = order[BATCH * i : BATCH * (i + 1)]
            x, y = augmented(pixels[own], masks[own], generator)
            optimiser.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                logits = model.half(normalised(x))
            loss = loss_of(logits, y[:, ::2, ::2], weights)
            loss.backward()
            optimiser.step()
            schedule.step()
            total += loss.item()
        state["seconds"] += time.perf_counter() - begin
        print(f"epoch {epoch + 1}/{given.epochs}: loss {total / steps:.4f}, {state['seconds']:.0f} s", flush=True)
        state |= {
            "epoch": epoch + 1,
            "model": model.state_dict(),
            "optimiser": optimiser.state_dict(),
            "schedule": schedule.state_dict(),
        }
        torch.save(state, given.work / "next.pt")
        (given.work / "next.pt").replace(given.work / "last.pt")
    kept = {k: v.half() if v.is_floating_point() else v for k, v in model.state_dict().items()}
    save_file({k: v.contiguous() for k, v in kept.items()}, given.out)
    model.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in kept.items()})
    mean, by_class = miou(model, *split(given.camvid / "test"))
    report = {
        "command": f"python benchmarks/train_camvid.py --epochs {given.epochs} --rate {given.rate} --seed {given.seed}",
        "data": "CamVid 240×180, 11 classes", "test_miou": mean, "test_iou_by_class": by_class,
        "train_seconds": round(state["seconds"]), "seed": given.seed, **machine(),
    }  # fmt: skip
    given.out.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    run()
