"""Seconds of every recovery of ResNet-18 on CIFAR-10 (JPEG) with half its MACs gone; best on a machine that does nothing else.

    python benchmarks/recovery_seconds.py [--cifar DIR] [--per-class 128] [--seed 0]

Units of the smallest norm go: what is timed does not depend on which. Writes benchmarks/results/recovery_seconds.json.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import cswap
from _machine import ROOT, machine, write_result
from _real import case, unpacked

TARGET = "macs=0.5"
WAYS = ("bias", "bn", "merge", "fold", "lstsq", "merge+lstsq")


def run() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cifar", type=Path)
    parser.add_argument("--per-class", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    real = case("resnet18", unpacked("cifar10", given.cifar, ROOT / "runs"), per_class=given.per_class)
    path = cswap.prune_path(real.model, real.calibration, method="magnitude", target=TARGET, seed=given.seed)
    small = path.apply(real.model, TARGET)
    seconds = {}
    for how in WAYS:
        begin = time.perf_counter()
        cswap.recover(small, real.model, real.calibration, how=how, structure=path.structure)
        seconds[how] = round(time.perf_counter() - begin, 1)
        print(how, seconds[how], flush=True)
    write_result("recovery_seconds", {
        "command": f"python benchmarks/recovery_seconds.py --per-class {given.per_class} --seed {given.seed}", **machine(),
        "seed": given.seed, "target": TARGET, "samples": len(real.calibration), "seconds": seconds,
    })  # fmt: skip


if __name__ == "__main__":
    run()
