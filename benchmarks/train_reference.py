"""Train a reference network on CIFAR-10 (JPEG), on two cores, with a log, a checkpoint an epoch and a resume.

    nice -n 10 python benchmarks/train_reference.py --model benchmarks/networks.py:resnet20_cifar --cifar DIR --out F.safetensors

SGD with Nesterov momentum, one-cycle rate, random crops and flips. Run again after an interruption: it goes on from the
last whole epoch. The report beside the weights (F.json) says what was done and the accuracy on the 10,000 test images.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F
from torchvision.datasets import ImageFolder

from _machine import machine
from cswap.data.models import ModelSpec
from networks import MEAN, STD


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
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    return ((pixels.float() / 255 - mean) / std).contiguous(memory_format=torch.channels_last)


def augmented(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Crops of a 4-pixel reflected border, and flips, drawn a sample."""
    n, _, h, w = x.shape
    padded = F.pad(x, (4, 4, 4, 4), mode="reflect")
    top, left = torch.randint(0, 9, (2, n), generator=generator)
    rows = top.view(-1, 1) + torch.arange(h)
    cols = left.view(-1, 1) + torch.arange(w)
    flip = torch.rand(n, generator=generator) < 0.5
    cols = torch.where(flip.view(-1, 1), cols.flip(1), cols)
    i = torch.arange(n).view(-1, 1, 1)
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


def run() -> None:
    """Train to the last epoch and write weights and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="benchmarks/networks.py:resnet20_cifar")
    parser.add_argument("--cifar", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--rate", type=float, default=0.2)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    work = given.out.with_suffix(".training")
    work.mkdir(parents=True, exist_ok=True)
    pixels, labels = images(given.cifar / "train", work / "train.npz")
    torch.manual_seed(given.seed)
    model = ModelSpec.parse(given.model).factory()().to(memory_format=torch.channels_last)
    optimiser = torch.optim.SGD(model.parameters(), lr=given.rate, momentum=0.9, nesterov=True, weight_decay=5e-4)
    steps = len(labels) // 128
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, given.rate, total_steps=given.epochs * steps)
    state: dict[str, Any] = {"epoch": 0, "seconds": 0.0}
    if (work / "last.pt").exists():
        state = torch.load(work / "last.pt", weights_only=True)
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        schedule.load_state_dict(state["schedule"])
    for epoch in range(state["epoch"], given.epochs):
        begin, generator = time.perf_counter(), torch.Generator().manual_seed(1000 * given.seed + epoch)
        order, total = torch.randperm(len(labels), generator=generator), 0.0
        model.train()
        for i in range(steps):
            batch = order[128 * i : 128 * (i + 1)]
            optimiser.zero_grad()
            loss = F.cross_entropy(
                model(augmented(normalised(pixels[batch]), generator)), labels[batch], label_smoothing=0.05
            )
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
        torch.save(state, work / "next.pt")
        (work / "next.pt").replace(work / "last.pt")
    test_pixels, test_labels = images(given.cifar / "test", work / "test.npz")
    report = {
        "command": f"python benchmarks/train_reference.py --model {given.model} --epochs {given.epochs} --rate {given.rate} --seed {given.seed}",
        "data": "CIFAR-10 (JPEG)", "test_accuracy": accuracy(model, test_pixels, test_labels),
        "train_seconds": round(state["seconds"]), "seed": given.seed, **machine(),
    }  # fmt: skip
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, given.out)
    given.out.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    run()
