"""How the cost of one intervention grows: with width, samples, classes and depth, and whether memory stays in its budget.

    python benchmarks/effects_growth.py

Random networks (the cost does not depend on the weights): a perceptron for width, where the first hidden layer is cut; a
convolutional chain for the rest, where its first layer is cut. Every point is a process of its own. Writes
benchmarks/results/effects_growth.json.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import TensorDataset

from _machine import machine, write_result
from cswap.causal.replay import ReplayEngine
from cswap.data.calibration import calibration_set
from cswap.structure.discover import discover
from cswap.tasks import Classification

BASE = {"width": 64, "samples": 64, "classes": 10, "depth": 4}
SWEEPS = {
    "width": (64, 128, 256, 512, 1024, 2048, 4096),
    "samples": (16, 32, 64, 128, 256),
    "classes": (10, 30, 100, 300, 1000),
    "depth": (2, 4, 8, 16),
}
MEMORY = 1 << 30


def perceptron(width: int, classes: int) -> nn.Module:
    """3·16·16 inputs and two hidden layers."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(768, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, classes)
    )


def chain(width: int, depth: int, classes: int) -> nn.Module:
    """`depth` 3×3 convolutions at 16×16, each with batch norm and ReLU."""
    layers: list[nn.Module] = []
    for i in range(depth):
        layers += [nn.Conv2d(3 if i == 0 else width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))


def one(kind: str, width: int, samples: int, classes: int, depth: int) -> dict[str, Any]:
    """Seconds a unit, and memory beyond what model and data take."""
    torch.manual_seed(0)
    model = (perceptron(width, classes) if kind == "width" else chain(width, depth, classes)).eval()
    labels = torch.arange(classes).repeat_interleave(samples)
    data = calibration_set(TensorDataset(torch.randn(len(labels), 3, 16, 16), labels), samples)
    structure = discover(model, data.inputs(0, 2))
    data.inputs(0, 1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    engine = ReplayEngine(model, structure, data, Classification(), memory=MEMORY)
    group = structure.groups[-1]  # the earliest: all the rest is behind it
    engine.enter(group)
    size = engine.units_together(group)
    units = list(range(min(group.size, max(size, 2))))
    engine.cut(group, [units[:1]])
    times = []
    while len(times) < 3 and sum(times) * len(units) < 20:
        start = time.perf_counter()
        for first in range(0, len(units), size):
            engine.cut(group, [[n] for n in units[first : first + size]])
        times.append((time.perf_counter() - start) / len(units))
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "width": width, "samples_a_class": samples, "classes": classes, "depth": depth, "samples": len(labels),
        "units": group.size, "unit_seconds": float(np.median(times)), "group_seconds": float(np.median(times)) * group.size,
        "rows": engine.rows(group), "together": size, "memory_mib": (after - before) / 1024, "budget_mib": MEMORY / 2**20,
        "model_mib": sum(p.numel() * p.element_size() for p in model.parameters()) / 2**20,
    }  # fmt: skip


def main() -> None:
    """All sweeps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--point", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.point:
        kind, values = given.point.split(":")
        print(json.dumps(one(kind, *(int(v) for v in values.split(",")))))
        return
    sweeps: dict[str, Any] = {}
    for kind, values in SWEEPS.items():
        for value in values:
            at = {**BASE, **({"samples": 8} if kind == "classes" else {}), kind: value}
            point = f"{kind}:{at['width']},{at['samples']},{at['classes']},{at['depth']}"
            done = subprocess.run(
                [sys.executable, __file__, "--point", point], capture_output=True, text=True, check=False
            )
            if done.returncode:
                raise SystemExit(f"{point}: {done.stderr[-2000:]}")
            found = json.loads(done.stdout.splitlines()[-1])
            sweeps.setdefault(kind, []).append(found)
            print(
                f"{kind:8} {value:5}: {1e3 * found['unit_seconds']:9.3f} ms a unit, {found['memory_mib']:7.0f} MiB",
                flush=True,
            )
    for kind, points in sweeps.items():
        x, y = (
            np.log([p[{"samples": "samples_a_class"}.get(kind, kind)] for p in points]),
            np.log([p["unit_seconds"] for p in points]),
        )
        print(
            f"{kind}: cost of a unit grows with the power {np.polyfit(x, y, 1)[0]:.2f}, the last step {(y[-1] - y[-2]) / (x[-1] - x[-2]):.2f}"
        )
    write_result(
        "effects_growth",
        {"command": "python benchmarks/effects_growth.py", **machine(), "seed": 0, "base": BASE, "sweeps": sweeps},
    )


if __name__ == "__main__":
    main()
