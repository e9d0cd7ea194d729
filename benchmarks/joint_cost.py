"""What joint testing costs beside brute-force testing of every unit, and how the number of interventions grows with width.

    python benchmarks/joint_cost.py [--cifar DIR] [--per-class 128] [--seed 0] [--parts brute,one,ten,widths]

ResNet-18 / CIFAR-10 (JPEG): brute force (copy, cut one unit, run the whole network on every calibration image) is timed on a few
units drawn by the seed and projected to all; `joint` is timed whole, for one target (one margin) and for a sweep of ten
(ten margins, ten targets of one path). Width: a perceptron trained on scikit-learn's digits, hidden layer of 64 to 8,192.
Each part is kept with its commit, and not measured again. Writes benchmarks/results/joint_cost.json.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import TensorDataset

import cswap
from _machine import ROOT, machine, write_result
from _real import case, unpacked
from cswap.demo import digits
from effects_speed import brute

WIDTHS = (64, 128, 256, 512, 1024, 2048, 4096, 8192)
ONE, TEN = "0.05", "0.005,0.01,0.02,0.03,0.05,0.08,0.12,0.2,0.3,0.4"
TARGETS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.55, 0.6, 0.65, 0.7, 0.8)


def joint(model: nn.Module, calibration: Any, margins: str, target: str) -> dict[str, Any]:
    """Seconds and joint cuts of one analysis."""
    structure = cswap.discover(model, calibration.inputs(0, 2))
    begin = time.perf_counter()
    path = cswap.prune_path(
        model, calibration, method="joint", per="macs", margins=margins, target=target,
        structure=structure,
    )  # fmt: skip
    seconds = time.perf_counter() - begin
    groups = (path.sensitivity or {})["groups"]
    return {
        "margins": margins, "target": target, "seconds": round(seconds, 2), "reached": path.ratio.as_dict(),
        "interventions": {name: len(g["probes"]) for name, g in groups.items()},
    }  # fmt: skip


def perceptron(width: int, seed: int) -> tuple[nn.Module, Any]:
    """Trained on the digits for 20 epochs, and its calibration set."""
    train, _ = digits(seed)
    x, y = (torch.stack([x.flatten() for x, _ in train]), torch.tensor([int(y) for _, y in train]))
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(x.shape[1], width), nn.ReLU(), nn.Linear(width, 10))
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for epoch in range(20):
        for part in torch.randperm(len(y), generator=torch.Generator().manual_seed(seed + epoch)).split(64):
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(x[part]), y[part]).backward()
            optimiser.step()
    return model.eval(), cswap.calibration_set(TensorDataset(x, y), 64, seed)


def widths(seed: int) -> list[dict[str, Any]]:
    """Joint cuts by width, for one margin and for ten."""
    found = []
    for width in WIDTHS:
        model, calibration = perceptron(width, seed)
        row: dict[str, Any] = {"width": width}
        for name, margins in (("one", ONE), ("ten", TEN)):
            run = joint(model, calibration, margins, "units=0.5")
            row[name] = {"interventions": sum(run["interventions"].values()), "seconds": run["seconds"]}
        found.append(row)
        print(row, flush=True)
    return found


def run() -> None:
    """Measure what is not measured yet, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar", type=Path, help="an unpacked cifar10 folder")
    parser.add_argument("--per-class", type=int, default=128)
    parser.add_argument("--units", type=int, default=12, help="units that brute force is timed on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--work", type=Path, default=ROOT / "runs" / "joint_cost", help="where an interrupted run goes on"
    )
    parser.add_argument("--parts", default="brute,one,ten,widths")
    given = parser.parse_args()
    c = case("resnet18", unpacked("cifar10", given.cifar, ROOT / "runs"), given.per_class, given.seed)
    structure = cswap.discover(c.model, c.calibration.inputs(0, 2))
    parts: dict[str, Callable[[], Any]] = {
        "brute": lambda: brute(c, structure, given.units, np.random.default_rng(given.seed)),
        "one": lambda: joint(c.model, c.calibration, ONE, "params=0.5"),
        "ten": lambda: joint(c.model, c.calibration, TEN, f"params={max(TARGETS)}"),
        "widths": lambda: widths(given.seed),
    }
    of = {"per_class": given.per_class, "seed": given.seed, "units": given.units}
    given.work.mkdir(parents=True, exist_ok=True)
    state = given.work / "parts.json"
    found = json.loads(state.read_text()) if state.exists() else {}
    if found.get("of") != of:
        found = {"of": of}
    for name in given.parts.split(","):
        if name not in found:
            found[name] = {"commit": machine()["commit"], "found": parts[name]()}
            state.write_text(json.dumps(found))
        print(name, str(found[name])[:300], flush=True)
    done = {name: found[name]["found"] for name in parts if name in found}
    told = "" if len(done) == len(parts) else f" --parts {','.join(done)}"
    write_result("joint_cost", {
        "command": f"python benchmarks/joint_cost.py --per-class {given.per_class} --seed {given.seed}{told}", **machine(),
        "seed": given.seed, "network": "resnet18", "units": structure.units, "per_class": given.per_class,
        **done, "targets": list(TARGETS), "commits": {n: found[n]["commit"] for n in done},
    })  # fmt: skip


if __name__ == "__main__":
    run()
