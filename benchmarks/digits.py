"""Every method on one curve in minutes, and what options of ours change: the demo's network on scikit-learn's digits.

    python benchmarks/digits.py [--seeds 0,1,2] [--work DIR] [--skip all|options]

Trains the demo's network, runs `cswap compare` with all methods, timed as a whole (best on a machine that does nothing else), and
beside it the causal methods with plain and compensated cuts, and `obs` without and with swaps, over calibration seeds, plain and refitted.
Needs no shared data. Writes benchmarks/results/digits.json.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors.torch import save_model

from _machine import RESULTS, ROOT, machine, write_result
from _real import Log
from cswap.compare import CompareJob, compare
from cswap.data.models import ModelSpec
from cswap.demo import digits, train
from cswap.methods.options import Options
from cswap.pipeline import DataChoice, Source

ALL = "cswap,cbp,greedy,joint,taylor:global:params,obs:global:params,taylor2,deeplift,lrp,lamp,magnitude,random"
PER_CLASS, JOBS = 32, 2
PAIRS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain cuts": ("cswap,cbp", {}), "compensated cuts": ("cswap,cbp", {"cut": "compensated"}),
    "no swaps": ("obs:layer,obs:global:params", {}), "swaps": ("obs:layer,obs:global:params", {"swaps": True}),
}  # fmt: skip
RATIOS = (0.0, 0.2, 0.4, 0.5, 0.6, 0.7, 0.8)


def network(work: Path, seed: int) -> Path:
    """The demo's network, trained once."""
    file = work / f"digits.{seed}.safetensors"
    if not file.exists():
        work.mkdir(parents=True, exist_ok=True)
        model = ModelSpec.parse("cswap.demo:digits_resnet").build()
        save_model(train(model, digits(seed)[0], seed=seed), str(file))
    return file


def curves(result: dict[str, Any]) -> dict[str, Any]:
    """What is kept of each method: mean and deviation over seeds by ratio, area, seconds."""
    return {
        name: {
            "seconds": m["seconds"], "sauce": m["sauce"],
            "curves": {kind: [{k: r[k] for k in ("asked", "quality", "ms_64") if k in r} for r in rows] for kind, rows in m["curves"].items()},
        }
        for name, m in result["methods"].items()
    }  # fmt: skip


def run() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", default="0,1,2", help="of the calibration samples, for the options")
    parser.add_argument("--seed", type=int, default=0, help="of the network's training")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "digits")
    parser.add_argument("--skip", choices=["all", "options"], help="keep what an earlier result has of it")
    given = parser.parse_args()
    source = Source(ModelSpec.parse("cswap.demo:digits_resnet"), network(given.work, given.seed))
    data = DataChoice("cswap.demo:digits", per_class=PER_CLASS)
    file = RESULTS / "digits.json"
    earlier = json.loads(file.read_text()) if given.skip and file.exists() else {}
    kept = (given.skip, "seeds", "held_out_samples", "unpruned")
    found: dict[str, Any] = {k: v for k, v in earlier.items() if k in kept}
    job = CompareJob(source, data, given.work / "all", tuple(ALL.split(",")), jobs=JOBS, force=True)
    if given.skip != "all":
        begin = time.perf_counter()
        result = compare(job, Log())
        found["all"] = {
            "total_seconds": round(time.perf_counter() - begin, 1),
            "jobs": JOBS,
            "methods": curves(result),
            "refused": result["refused"],
        }
        found |= {k: result[k] for k in ("held_out_samples", "unpruned")}
    if given.skip != "options":
        found["options"] = {}
        seeds = tuple(int(s) for s in given.seeds.split(","))
        for name, (methods, options) in PAIRS.items():
            result = compare(
                replace(
                    job, out=given.work / name.replace(" ", "-"), methods=tuple(methods.split(",")), recover=("none", "lstsq"),
                    ratios=RATIOS, kinds=("params", "macs"), seeds=seeds, options=Options(**options), latency=False,
                ),
                Log(),
            )  # fmt: skip
            found["options"][name] = curves(result)
            found["seeds"] = list(seeds)
    write_result("digits", {
        "command": f"python benchmarks/digits.py --seeds {given.seeds} --seed {given.seed}", **machine(), "seed": given.seed,
        "per_class": PER_CLASS, **found,
    })  # fmt: skip


if __name__ == "__main__":
    run()
