"""ResNet-18 on CIFAR-10 (JPEG): the same target by C-SWAP, magnitude and random, 10,000 test images.

    python benchmarks/prune_resnet18.py [--target params=0.1] [--per-class 8] [--methods cswap,magnitude,random]

Needs the shared networks and data (CSWAP_SHARED, by default ../shared). Writes benchmarks/results/prune_resnet18.json.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import zipfile
from pathlib import Path

from _machine import ROOT, machine, write_result
from cswap.cli.app import main

SHARED = Path(os.environ.get("CSWAP_SHARED", ROOT.parent / "shared"))
FORMAT = ["--image-size", "32", "--mean", "0.4914,0.4822,0.4465", "--std", "0.2470,0.2435,0.2616"]


def run() -> None:
    """Prune by each method in turn and keep what summary.json says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default="params=0.1")
    parser.add_argument("--per-class", type=int, default=8)
    parser.add_argument("--methods", default="cswap,magnitude,random")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cifar", type=Path, help="an unpacked cifar10 folder")
    given = parser.parse_args()
    if not (SHARED / "models").is_dir():
        raise SystemExit(f"this benchmark needs the shared networks and data; none at {SHARED}")
    with tempfile.TemporaryDirectory() as scratch:
        cifar = given.cifar
        if cifar is None:
            zipfile.ZipFile(SHARED / "data" / "cifar10.zip").extractall(scratch)
            cifar = Path(scratch) / "cifar10"
        summaries = {}
        for method in given.methods.split(","):
            out = Path(scratch) / method
            model = f"{SHARED}/models/zoo.py:resnet18_cifar"
            weights = f"{SHARED}/models/resnet18_cifar10.safetensors"
            status = main([
                "prune", "--model", model, "--weights", weights, "--data", str(cifar), *FORMAT, "--method", method,
                "--per-class", str(given.per_class), "--target", given.target, "--seed", str(given.seed), "--out", str(out),
            ])  # fmt: skip
            if status:
                raise SystemExit(status)
            summaries[method] = json.loads((out / "summary.json").read_text())
    command = (
        f"python benchmarks/prune_resnet18.py --target {given.target} --per-class {given.per_class} --seed {given.seed}"
    )
    write_result("prune_resnet18", {"command": command, **machine(), "seed": given.seed, "methods": summaries})


if __name__ == "__main__":
    run()
