"""`cswap demo`: a small ResNet trained on scikit-learn's digits on the spot, pruned by three methods."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import save_model
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from cswap.artifacts.files import MARKS, hidden, write_json
from cswap.artifacts.folder import save
from cswap.data.calibration import CalibrationSet, calibration_set
from cswap.data.models import ModelSpec, one_line
from cswap.errors import InputError, MissingPartError, RunError
from cswap.evaluate.cost import measure_cost
from cswap.evaluate.curve import quality_curve, sauce
from cswap.evaluate.quality import measure_quality
from cswap.methods.options import Options
from cswap.methods.path import PruningPath
from cswap.pipeline import PruneJob, prune_path, verified_copy
from cswap.pipeline.jobs import DataChoice, Source
from cswap.pipeline.watch import Clock
from cswap.report.figures import curve_page
from cswap.report.page import write_report
from cswap.structure.discover import discover
from cswap.tasks import Classification
from cswap.types import Target

RATIOS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
SHOWN = (0.0, 0.2, 0.4, 0.6, 0.8)
METHODS = ("cswap", "magnitude", "random")
PER_CLASS = 64
WEIGHTS = "digits.safetensors"  # of the trained network, so that other commands can go on with it


class _Block(nn.Module):
    """Two 3×3 convolutions and a shortcut."""

    def __init__(self, inn: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inn, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out)
        self.conv2, self.bn2 = nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out)
        self.shortcut = (
            nn.Identity() if stride == 1 and inn == out
            else nn.Sequential(nn.Conv2d(inn, out, 1, stride, bias=False), nn.BatchNorm2d(out))
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(h)) + self.shortcut(x))


class DigitsResNet(nn.Module):
    """(N, 1, 8, 8) → (N, 10) logits."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.layer1 = _Block(width, width, 1)
        self.layer2 = _Block(width, 2 * width, 2)
        self.layer3 = _Block(2 * width, 4 * width, 2)
        self.fc = nn.Linear(4 * width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.layer3(self.layer2(self.layer1(self.stem(x))))
        logits: torch.Tensor = self.fc(h.mean((2, 3)))
        return logits


def digits_resnet(width: int = 16) -> nn.Module:
    """Factory of the demo's network."""
    return DigitsResNet(width)


def digits(seed: int = 0) -> tuple[TensorDataset, TensorDataset]:
    """scikit-learn's 1,797 digits, 8×8, scaled to [-1, 1]: two thirds to train and calibrate, a third held out."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingPartError.of(error, "the demo needs scikit-learn's digits", "demo", "sklearn") from None
    data = load_digits()
    order = np.random.default_rng(seed).permutation(len(data.target))
    images = torch.from_numpy(data.images[order]).float().unsqueeze(1) / 8.0 - 1.0
    labels = torch.from_numpy(data.target[order]).long()
    cut = 2 * len(order) // 3
    return TensorDataset(images[:cut], labels[:cut]), TensorDataset(images[cut:], labels[cut:])


def train(model: nn.Module, data: TensorDataset, *, epochs: int = 25, seed: int = 0) -> nn.Module:
    """SGD with Nesterov momentum and a one-cycle rate; the same network for the same seed on one machine."""
    images, labels = data.tensors
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in model.modules():
            if isinstance(module, nn.Conv2d | nn.Linear | nn.BatchNorm2d):
                module.reset_parameters()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    steps = epochs * (len(labels) // 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 0.1, total_steps=steps)
    model.train()
    for _ in range(epochs):
        order = torch.randperm(len(labels), generator=generator)
        for i in range(len(labels) // 64):
            batch = order[64 * i : 64 * (i + 1)]
            optimiser.zero_grad()
            F.cross_entropy(model(images[batch]), labels[batch]).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
    return model.eval()


@dataclasses.dataclass(frozen=True, eq=False)
class DemoResult:
    """Curves, areas and seconds by method, and where things were written."""

    curves: dict[str, list[dict[str, Any]]]
    sauce: dict[str, float]
    seconds: dict[str, float]
    summary: dict[str, Any]
    out: Path


def run_demo(
    out: Path, *, seed: int = 0, force: bool = False, tell: Callable[[str], None] = lambda _line: None
) -> DemoResult:
    """Train, prune by each method, evaluate on held-out digits, write curve, artifact and report into `out`."""
    begin = time.perf_counter()
    if not 0 <= seed < 2**63:
        raise InputError(f"seed: expected a number of at least 0 and below 2⁶³, got {seed}")
    try:
        if out.exists() and not out.is_dir():
            raise InputError(f"out: expected a folder, {out} is a file")
        held = sorted(p.name for p in out.iterdir() if not hidden(p)) if out.exists() else []
        if any((out / mark).exists() for mark in MARKS):
            raise InputError(
                f"out: {out} holds an artifact or a journal, which the demo does not replace; name a new folder"
            )
        if held and "curve.html" not in held and not force:
            raise InputError(f"out: {out} holds other files (first {held[0]}); name a new folder")
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"out: {out} cannot be written ({error.strerror})") from None
    train_set, held_out = digits(seed)
    tell("training a small ResNet on 1,198 digits of 8×8")
    spec = ModelSpec.parse("cswap.demo:digits_resnet", {"width": 16})
    model = train(spec.build(), train_set, seed=seed)
    calibration = calibration_set(train_set, PER_CLASS, seed)
    curves, areas, seconds, paths = {}, {}, {"train": round(time.perf_counter() - begin, 1)}, {}
    structure = discover(model, calibration.inputs(0, 2))
    for method in METHODS:
        tell(f"pruning by {method}")
        start = time.perf_counter()
        path = prune_path(model, calibration, method=method, target="params=0.8", structure=structure, seed=seed)
        seconds[method] = round(time.perf_counter() - start, 1)
        paths[method] = path
        curves[method] = quality_curve(model, path, held_out, Classification(), list(RATIOS))
        x = [p["ratio"]["params"] for p in curves[method]]
        y = [p["quality"]["accuracy"] for p in curves[method]]
        areas[method] = sauce(x, y, y[0])
    tell("writing curve, artifact and report")
    try:
        save_model(model, str(out / WEIGHTS))
    except SafetensorError as error:
        raise RunError(f"{out / WEIGHTS} cannot be written ({one_line(error)})") from None
    curve_page(
        curves, out / "curve.html", title="Digits: accuracy against parameters removed, one shot, no fine-tuning"
    )
    analysed = {"analysis": seconds["cswap"]}
    summary = _write(model, paths["cswap"], calibration, held_out, spec, out, curves, seed, analysed)
    write_report(out / "artifact")
    seconds["total"] = round(time.perf_counter() - begin, 1)
    write_json(out / "demo.json", {"curves": curves, "sauce": areas, "seconds": seconds, "seed": seed})
    return DemoResult(curves, areas, seconds, summary, out)


def _write(
    model: nn.Module, path: PruningPath, calibration: CalibrationSet, held_out: TensorDataset, spec: ModelSpec, out: Path,
    curves: dict[str, list[dict[str, Any]]], seed: int, seconds: dict[str, float],
) -> dict[str, Any]:  # fmt: skip
    target, clock = Target.parse("params=0.4"), Clock(seconds)
    with clock.phase("surgery"):
        small, agreed = verified_copy(model, path, target, calibration.inputs(0, 32))
    models = {"baseline": model, "pruned": small}
    with clock.phase("evaluation"):
        quality = measure_quality(models, held_out, Classification(), 10)
    with clock.phase("cost"):
        cost = measure_cost(models, calibration.inputs(0, 1))
    surgery: Any = small._cswap
    summary = {
        "method": "cswap", "target": str(target), "ratio": surgery.ratio.as_dict(), "verdicts": path.verdicts(),
        **{n: {"quality": quality[n], **cost[n]} for n in models}, "classes": list(path.classes),
        "held_out_samples": len(held_out), "calibration_samples": len(calibration), "max_abs_difference": agreed.difference, "seconds": clock.seconds,
    }  # fmt: skip
    save(
        small, out / "artifact", path=path, factory=spec, force=True, summary=summary,
        curve={"points": curves["cswap"]}, details=_origin(model, path, calibration, spec, out, seed),
    )  # fmt: skip
    return summary


def _origin(
    model: nn.Module, path: PruningPath, calibration: CalibrationSet, spec: ModelSpec, out: Path, seed: int
) -> dict[str, Any]:
    """Where network and data came from, as `cswap prune` would note it, so that apply, eval and export know too. Digits that
    are split by another seed have no name.
    """
    if seed != 0:
        return {}
    source, data = Source(spec, out / WEIGHTS), DataChoice("cswap.demo:digits", per_class=PER_CLASS)
    job = PruneJob(source, data, out / "artifact", Target.parse("params=0.8"), options=Options(**path.options))
    return {
        "run": job.fingerprint(calibration, model),
        "source": source.as_dict(),
        "data": vars(data),
        "task": job.task,
    }
