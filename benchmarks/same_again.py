"""Is a path the same again? Every method's complete path of ResNet-18, made twice from nothing by one seed, and a ranking once by another.

    python benchmarks/same_again.py [--methods cswap,cbp,…] [--per-class 2] [--seed 0] [--cifar DIR] [--work FILE]

Two paths are the same if every decision is: phase, group, unit, whether it went, verdict, ξ to the last bit. Paths that are made are kept in
--work as digests; run again, it goes on from there. `greedy` is for small networks: its path is compared by the tests. Writes
benchmarks/results/same_again.json.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from pathlib import Path
from typing import Any

import cswap
from _machine import ROOT, begun, machine, write_result
from _real import Case, case, unpacked

SLOW = ("cswap", "cbp")
METHODS = "cswap,cbp,joint,obs,taylor,taylor2,deeplift,lrp,lamp,magnitude,random"


def made(real: Case, method: str, seed: int) -> dict[str, Any]:
    """One path, and what tells it from another."""
    begin = time.perf_counter()
    path = cswap.prune_path(real.model, real.calibration, method=method, seed=seed)
    told = [(d.phase, d.group, d.unit, d.removed, str(d.verdict), d.xi) for d in path]
    gone = {(d.group, d.unit) for d in path if d.removed}
    return {
        "steps": len(told), "gone": len(gone), "may_go": path.structure.units - len(path.structure.groups),
        "digest": hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16], "seconds": round(time.perf_counter() - begin, 1),
    }  # fmt: skip


def run() -> None:
    """Make the paths and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default=METHODS)
    parser.add_argument("--per-class", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cifar", type=Path)
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "same_again.json")
    given = parser.parse_args()
    images = unpacked("cifar10", given.cifar, ROOT / "runs")
    runs = begun(given.work)
    held = json.loads(given.work.read_text()) if given.work.exists() else {}
    found: dict[str, Any] = {}
    for method in given.methods.split(","):
        turns = [("first", given.seed), ("again", given.seed)]
        for turn, seed in turns + [("other seed", given.seed + 1)] * (method not in SLOW):
            key = f"{method}, {given.per_class} a class, seed {given.seed}: {turn}"
            if key not in held:
                held[key] = made(case("resnet18", images, given.per_class, seed), method, seed)
                given.work.parent.mkdir(parents=True, exist_ok=True)
                given.work.write_text(json.dumps(held, indent=1))
                print(time.strftime("%H:%M:%S"), key, held[key], flush=True)
            found.setdefault(method, {})[turn] = held[key]
    write_result("same_again", {
        "command": f"python benchmarks/same_again.py --methods {given.methods} --per-class {given.per_class} --seed {given.seed}",
        **machine(), "seed": given.seed, "per_class": given.per_class, **({"measured_by": runs} if len(runs) > 1 else {}), "methods": found,
    })  # fmt: skip


if __name__ == "__main__":
    run()
