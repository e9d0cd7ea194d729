"""Train a reference network on CIFAR-10 (JPEG), on two cores or a GPU, with a log, a checkpoint an epoch and a resume.

    nice -n 10 python benchmarks/networks/train.py NAME --cifar DIR [--out F.safetensors] [--seed 0]

The recipe (recipes.py) names the network, the optimiser and the side of the images, epoch by epoch: small images first, 32
pixels last. One-cycle rate, random crops and flips, label smoothing 0.05. Run again after an interruption, it goes on from the
last whole epoch. Weights are kept in float16; the report beside them (F.json) has the accuracy of those on the 10,000 test images.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.datasets import ImageFolder

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from recipes import RECIPES, WEIGHTS
from zoo import MEAN, STD

from _fit import keep, report
from _machine import ROOT
from _real import DEVICE
from cswap.causal.engine import emulated_bfloat16
from cswap.data.models import ModelSpec


def images(folder: Path, cache: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """(N, 3, 32, 32) uint8 and (N,) labels of one split; decoded once and kept beside the checkpoint."""
    if not cache.exists():
        data = ImageFolder(str(folder))
        pixels = np.stack([np.asarray(image) for image, _ in data])
        np.savez(cache, pixels=pixels.transpose(0, 3, 1, 2), labels=np.asarray(data.targets))
    with np.load(cache) as stored:
        return torch.from_numpy(stored["pixels"]), torch.from_numpy(stored["labels"])


def normalised(pixels: torch.Tensor) -> torch.Tensor:
    """Float, channels_last."""
    mean, std = (torch.tensor(v, device=pixels.device).view(3, 1, 1) for v in (MEAN, STD))
    return ((pixels.float() / 255 - mean) / std).contiguous(memory_format=torch.channels_last)


def augmented(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Crops of a 4-pixel reflected border, and flips, drawn a sample."""
    n, _, h, w = x.shape
    padded = F.pad(x, (4, 4, 4, 4), mode="reflect")
    top, left = torch.randint(0, 9, (2, n), generator=generator).to(x.device)
    rows = top.view(-1, 1) + torch.arange(h, device=x.device)
    cols = left.view(-1, 1) + torch.arange(w, device=x.device)
    flip = (torch.rand(n, generator=generator) < 0.5).to(x.device)
    cols = torch.where(flip.view(-1, 1), cols.flip(1), cols)
    i = torch.arange(n, device=x.device).view(-1, 1, 1)
    out = padded.permute(0, 2, 3, 1)[i, rows.unsqueeze(2), cols.unsqueeze(1)]
    return out.permute(0, 3, 1, 2)


def accuracy(model: nn.Module, pixels: torch.Tensor, labels: torch.Tensor) -> float:
    """Top-1."""
    model.eval()
    right = 0
    with torch.inference_mode():
        for i in range(0, len(labels), 500):
            right += int((model(normalised(pixels[i : i + 500])).argmax(1) == labels[i : i + 500]).sum())
    return right / len(labels)


def at_side(x: torch.Tensor, side: int) -> torch.Tensor:
    """Images of another side, by averaging."""
    return x if x.shape[-1] == side else F.interpolate(x, size=(side, side), mode="area")


def run() -> None:
    """Train to the last epoch and write weights and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=list(RECIPES))
    parser.add_argument("--cifar", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--work", type=Path, help="checkpoint and decoded images (runs/training/NAME)")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    recipe = RECIPES[given.name]
    work = given.work or ROOT / "runs" / "training" / given.name
    out = given.out or (WEIGHTS if recipe.small else work) / f"{given.name}_cifar10.safetensors"
    work.mkdir(parents=True, exist_ok=True)
    out.parent.mkdir(parents=True, exist_ok=True)  # what cannot be written is said before the hours of training
    pixels, labels = images(given.cifar / "train", work.parent / "train.npz")
    torch.manual_seed(given.seed)
    amp = recipe.amp and not emulated_bfloat16(DEVICE)
    spec = recipe.model.format(shared=os.environ.get("CSWAP_SHARED", ROOT.parent / "shared"))
    model = ModelSpec.parse(spec).factory()().to(DEVICE, memory_format=torch.channels_last)
    pixels, labels = pixels.to(DEVICE), labels.to(DEVICE)
    optimiser = recipe.optimiser(model.parameters())
    steps = [(side, int(part * (len(labels) // 128))) for side, part in recipe.stages]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, recipe.rate, total_steps=sum(n for _, n in steps))
    state: dict[str, Any] = {"epoch": 0, "seconds": 0.0}
    if (work / "last.pt").exists():
        state = torch.load(work / "last.pt", weights_only=True)
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        schedule.load_state_dict(state["schedule"])
    for epoch in range(state["epoch"], len(steps)):
        begin, generator = time.perf_counter(), torch.Generator().manual_seed(1000 * given.seed + epoch)
        order, total = torch.randperm(len(labels), generator=generator), 0.0
        (side, count), _ = steps[epoch], model.train()
        for i in range(count):
            batch = order[128 * i : 128 * (i + 1)].to(DEVICE)
            optimiser.zero_grad()
            inputs = at_side(augmented(normalised(pixels[batch]), generator), side)
            with torch.autocast(DEVICE, torch.bfloat16, enabled=amp):
                outputs = model(inputs.contiguous(memory_format=torch.channels_last))
            loss = F.cross_entropy(outputs.float(), labels[batch], label_smoothing=0.05)
            loss.backward()
            optimiser.step()
            schedule.step()
            total += loss.item()
        state["seconds"] += time.perf_counter() - begin
        print(
            f"epoch {epoch + 1}/{len(steps)} ({side} px): loss {total / count:.4f}, {state['seconds']:.0f} s",
            flush=True,
        )
        state |= {
            "epoch": epoch + 1,
            "model": model.state_dict(),
            "optimiser": optimiser.state_dict(),
            "schedule": schedule.state_dict(),
        }
        torch.save(state, work / "next.pt")
        (work / "next.pt").replace(work / "last.pt")
    test_pixels, test_labels = (v.to(DEVICE) for v in images(given.cifar / "test", work.parent / "test.npz"))
    keep(model, out)
    report(out, {
        "command": f"python benchmarks/networks/train.py {given.name} --seed {given.seed}", "data": "CIFAR-10 (JPEG)",
        "recipe": {"sides": recipe.stages, "rate": recipe.rate, "optimiser": "AdamW" if recipe.adam else "SGD", "bfloat16": amp},
        "test_accuracy": accuracy(model, test_pixels, test_labels), "parameters": sum(p.numel() for p in model.parameters()),
        "train_seconds": round(state["seconds"]), "seed": given.seed,
    })  # fmt: skip


if __name__ == "__main__":
    run()
