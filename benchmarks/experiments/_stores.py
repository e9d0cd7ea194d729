"""Stores of differences that several experiments read."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from _real import DEVICE, Case, case
from cswap.causal.engine import exact
from cswap.causal.store import DifferenceStore, measure_differences
from cswap.causal.verdicts import VoteRule
from cswap.data.calibration import CalibrationSet, calibration_set
from cswap.structure.discover import discover
from cswap.structure.groups import Structure
from cswap.structure.surgery import pruned_copy
from cswap.tasks import Classification

GB = 1 << 30


def opened(network: str, images: Path, per_class: int, seed: int) -> tuple[Case, Structure]:
    """A real network with its calibration set, and what can be pruned in it."""
    c = case(network, images, per_class, seed)
    return c, discover(c.model, c.calibration.inputs(0, 2))


def measured(
    network: str, images: Path, per_class: int, seed: int, folder: Path
) -> tuple[DifferenceStore, Case, Structure]:
    """Differences of all units on the original network: measured once, kept, and resumed."""
    c, structure = opened(network, images, per_class, seed)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{network}.{per_class}.{seed}.safetensors"
    store = measure_differences(
        c.model, structure, c.calibration, Classification(), file=file, device=DEVICE, memory=4 * GB, tell=tell
    )
    return store, c, structure


def tell(text: str) -> None:
    """A line of the log."""
    print(time.strftime("%H:%M:%S"), text, flush=True)


def held_out_set(c: Case, per_class: int) -> CalibrationSet:
    """The first `per_class` test images of every class, as a calibration set: for measuring, never for choosing."""
    return calibration_set(c.held_out, per_class, 0, classes=c.calibration.classes)


def verdicts(store: DifferenceStore, rule: VoteRule, per_class: int | None = None) -> dict[tuple[str, int], str]:
    """By (group, unit)."""
    return {
        (g, n): str(store.judge(g, n, rule, per_class=per_class).verdict)
        for g, d in store.differences.items()
        for n in range(len(d))
    }


def counts(found: dict[Any, str]) -> dict[str, int]:
    """How many of each verdict."""
    values = list(found.values())
    return {v: values.count(v) for v in ("critical", "neutral", "detrimental")}


def split_classes(store: DifferenceStore, parts: int, seed: int = 0) -> DifferenceStore:
    """Every class split at random into `parts` pseudo-classes of equal size: nothing about the network changes."""
    rng, targets = np.random.default_rng(seed), store.targets.copy()
    for k in range(len(store.classes)):
        own = rng.permutation(np.flatnonzero(store.targets == k))
        for i, piece in enumerate(np.array_split(own, parts)):
            targets[piece] = k * parts + i
    names = tuple(f"{c}/{i}" for c in store.classes for i in range(parts))
    return replace(store, targets=targets, classes=names)


def without(model: nn.Module, structure: Structure, units: dict[str, list[int]]) -> nn.Module:
    """A network without these units."""
    return pruned_copy(
        model, structure, {g: np.asarray(sorted(n), dtype=np.int64) for g, n in units.items() if n}
    ).eval()


def accuracy(model: nn.Module, inputs: torch.Tensor, targets: Any) -> float:
    """Top-1."""
    model = model.to(DEVICE)
    with torch.inference_mode(), exact(torch.device(DEVICE), False):
        found = torch.cat([model(part.to(DEVICE)).argmax(1).cpu() for part in inputs.split(250)])
    model.to("cpu")
    return float((found.numpy() == np.asarray(targets)).mean())
