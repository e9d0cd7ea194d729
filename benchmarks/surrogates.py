"""Which surrogate orders a group's units best for `joint`: how much of the groups goes within each margin, and what is left of the quality.

    python benchmarks/surrogates.py [--networks digits,resnet20,vit] [--surrogates obs,taylor,fisher] [--per-class 32] [--targets macs=0.2,…]
                                    [--test-images N] [--seed 0] [--cifar DIR] [--work FILE]

The same calibration images order, test and refit (`--recover lstsq`). Of each margin the share of all units is told that lies in the sets within it:
a joint cut is tested whatever put it in order, so the better order is the one whose sets are larger. Runs that are done are kept in --work; run
again, it goes on from there. Networks other than `digits` need the shared data (CSWAP_SHARED). Writes benchmarks/results/surrogates.json.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

import cswap
from _machine import ROOT, begun, machine, write_result
from _real import case, unpacked
from cswap.data.sources import in_memory, limited
from cswap.demo import digits, digits_resnet, train
from cswap.evaluate.quality import measure_quality

MARGINS = "0.01,0.02,0.05,0.1,0.2,0.4"


@dataclass(frozen=True, eq=False)
class Net:
    """A trained network, its calibration images and its held-out images."""

    model: nn.Module
    calibration: cswap.CalibrationSet
    held_out: Any


def network(name: str, given: argparse.Namespace) -> Net:
    """One of the reference networks, or the demo's."""
    if name != "digits":
        real = case(name, unpacked("cifar10", given.cifar, ROOT / "runs"), given.per_class, given.seed)
        return Net(real.model, real.calibration, in_memory(limited(real.held_out, given.test_images, given.seed)))
    data, held_out = digits(given.seed)
    model = train(digits_resnet(), data, seed=given.seed)
    return Net(model, cswap.calibration_set(data, given.per_class, given.seed), held_out)


def measured(net: Net, surrogate: str, targets: list[str]) -> dict[str, Any]:
    """One analysis, and its networks refitted."""
    begin = time.perf_counter()
    path = cswap.prune_path(
        net.model, net.calibration, method="joint", per="macs", margins=MARGINS, surrogate=surrogate
    )
    seconds = time.perf_counter() - begin
    groups = (path.sensitivity or {})["groups"]
    points = []
    for target in targets:
        cut = path.apply(net.model, target)
        small = cswap.recover(cut, net.model, net.calibration, how="lstsq")
        found = measure_quality({"small": small}, net.held_out, cswap.Classification(), len(path.classes))
        points.append({"target": target, "ratio": cut._cswap.ratio.as_dict(), "quality": found["small"]})  # type: ignore[union-attr]
    sets = {m: sum(dict(map(tuple, g["sets"]))[m] for g in groups.values()) for m in map(float, MARGINS.split(","))}
    return {
        "seconds": round(seconds, 1), "interventions": sum(len(g["probes"]) for g in groups.values()), "units": path.structure.units,
        "within": [[m, n / path.structure.units] for m, n in sets.items()], "points": points,
    }  # fmt: skip


def run() -> None:
    """Measure what is missing and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default="digits,resnet20,vit")
    parser.add_argument("--surrogates", default="obs,taylor,fisher")
    parser.add_argument("--per-class", type=int, default=32)
    parser.add_argument("--targets", default="macs=0.2,macs=0.35,macs=0.5,macs=0.65")
    parser.add_argument("--test-images", type=int, help="measure quality on this many (all)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cifar", type=Path)
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "surrogates.json")
    given = parser.parse_args()
    targets = given.targets.split(",")
    runs = begun(given.work)
    held = json.loads(given.work.read_text()) if given.work.exists() else {}
    found: dict[str, Any] = {}
    for name in given.networks.split(","):
        asked = (
            f"{name}, {given.per_class} a class, seed {given.seed}, {given.targets}, on {given.test_images or 'all'}"
        )
        net = None
        for surrogate in given.surrogates.split(","):
            key = f"{asked}: {surrogate}"
            if key not in held:
                net = net or network(name, given)
                held[key] = measured(net, surrogate, targets) | {"held_out_samples": len(net.held_out)}
                given.work.parent.mkdir(parents=True, exist_ok=True)
                given.work.write_text(json.dumps(held, indent=1))
                print(time.strftime("%H:%M:%S"), key, held[key], flush=True)
            found.setdefault(name, {"surrogates": {}})["surrogates"][surrogate] = held[key]
        key = f"{asked}: unpruned"
        if key not in held:
            net = net or network(name, given)
            quality = measure_quality(
                {"it": net.model}, net.held_out, cswap.Classification(), len(net.calibration.classes)
            )
            held[key] = quality["it"]
            given.work.write_text(json.dumps(held, indent=1))
        found[name]["unpruned"] = held[key]
    write_result("surrogates", {
        "command": f"python benchmarks/surrogates.py --networks {given.networks} --surrogates {given.surrogates} --per-class {given.per_class} "
        f"--targets {given.targets} --seed {given.seed}" + (f" --test-images {given.test_images}" if given.test_images else ""),
        **machine(), "seed": given.seed, "per_class": given.per_class, **({"measured_by": runs} if len(runs) > 1 else {}), "networks": found,
    })  # fmt: skip


if __name__ == "__main__":
    run()
