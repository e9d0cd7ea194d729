"""The real networks and images that benchmarks run on, and where they are."""

from __future__ import annotations

import os
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from _machine import ROOT
from cswap.causal.engine import emulated_bfloat16
from cswap.data.calibration import CalibrationSet, calibration_set
from cswap.data.models import ModelSpec
from cswap.pipeline import DataChoice, Source, Watcher

SHARED = Path(os.environ.get("CSWAP_SHARED", ROOT.parent / "shared"))
FORMAT = {"image_size": 32, "mean": "0.4914,0.4822,0.4465", "std": "0.2470,0.2435,0.2616"}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
AMP = DEVICE == "cpu" and not emulated_bfloat16(DEVICE)  # bfloat16 where a CPU has it; a GPU is fast enough without
FLAGS = [f for k, v in FORMAT.items() for f in (f"--{k.replace('_', '-')}", str(v))]
NETWORKS: dict[str, tuple[str, Path | None, dict[str, Any]]] = {
    "resnet18": (f"{SHARED}/models/zoo.py:resnet18_cifar", SHARED / "models" / "resnet18_cifar10.safetensors", {}),
    "resnet20": (f"{ROOT}/benchmarks/networks/zoo.py:resnet20_cifar", ROOT / "benchmarks/models/resnet20_cifar10.safetensors", {}),
    "mobilenet_v2": (f"{SHARED}/models/zoo.py:mobilenet_v2_cifar", ROOT / "benchmarks/networks/weights/mobilenet_v2_cifar10.safetensors", {}),
    "vit": (f"{ROOT}/benchmarks/networks/zoo.py:vit_cifar", ROOT / "benchmarks/networks/weights/vit_cifar10.safetensors", {}),
    "resnet50": (f"{SHARED}/models/zoo.py:resnet50_cifar", ROOT / "runs/training/resnet50/resnet50_cifar10.safetensors", {}),
    "resnet18_long": (f"{SHARED}/models/zoo.py:resnet18_cifar", ROOT / "runs/training/resnet18_long/resnet18_long_cifar10.safetensors", {}),
    "vit_b_16": ("torchvision:vit_b_16", None, {"image_size": 32, "num_classes": 10}),
}  # fmt: skip
"""Name: factory, weights (None: untrained, for timing alone), arguments."""


@dataclass(frozen=True, eq=False)
class Case:
    """One network with its data."""

    source: Source
    data: DataChoice
    model: nn.Module
    calibration: CalibrationSet
    held_out: Any


class Log(Watcher):
    """A line for each thing that begins."""

    def note(self, text: str) -> None:
        print(time.strftime("%H:%M:%S"), text, flush=True)


def unpacked(name: str, given: Path | None, scratch: Path) -> Path:
    """The folder of the data set `name`: where the user says, or its archive unpacked once into `scratch`."""
    if given is not None:
        return given
    if not (SHARED / "data").is_dir():
        raise SystemExit(f"this benchmark needs the shared networks and data; none at {SHARED}")
    if not (scratch / name).is_dir():
        zipfile.ZipFile(SHARED / "data" / f"{name}.zip").extractall(scratch)
    return scratch / name


def case(name: str, images: Path, per_class: int, seed: int = 0) -> Case:
    """A network and its calibration set."""
    spec, weights, arguments = NETWORKS[name]
    source = Source(ModelSpec.parse(spec, arguments), weights)
    data = DataChoice(str(images), per_class=per_class, **FORMAT)
    pair = data.open(source.spec)
    chosen = calibration_set(pair.train, per_class, seed, classes=pair.classes)
    return Case(source, data, source.build(), chosen, pair.evaluation)
