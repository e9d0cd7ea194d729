"""Every method and recovery on ResNet-18 / CIFAR-10 (JPEG), one shot, no fine-tuning: `cswap compare` on 10,000 test images.

    python benchmarks/methods.py [--network resnet18] [--methods cswap,taylor:global:params,…] [--recover none,bn,lstsq]
                                 [--ratios 0,0.2,…] [--ratio-in params,macs] [--per-class 32] [--recover-per-class 128]
                                 [--granularity block:N] [--folds N] [--test-images N] [--latency] [--seed 0] [--cifar DIR] [--work DIR] [--jobs N]
                                 [--memory GIB]

On a GPU where there is one. Effects and scores come from 32 samples a class (C-SWAP at 128 takes a day's patience on two cores), recoveries from 128 for
every method. Quality is measured in bfloat16 where the CPU has it, and the unpruned network in both precisions. What is done is kept in --work, and
run again, it goes on from there; methods, ratios and recoveries may be added. Needs the shared networks and data
(CSWAP_SHARED, by default ../shared). Writes benchmarks/results/methods_NETWORK.json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import tp_importances  # noqa: F401 — its methods
from _machine import ROOT, begun, machine, write_result
from _real import AMP, FORMAT, NETWORKS, Log, unpacked
from cswap.compare import CompareJob, compare
from cswap.data.models import ModelSpec
from cswap.methods.options import Options
from cswap.pipeline import DataChoice, Machine, Source
from cswap.types import TESTS
from paired_areas import paired
from results_common import RULE

METHODS = (
    "cswap,cbp,taylor:global:params,obs:global:params,obs:global:macs,taylor:global,taylor2:global,deeplift:global,lrp:global,"
    "obs:global,magnitude:layer,magnitude:global,taylor:layer,random:layer"
)


def slim(method: dict[str, Any], seed: int) -> dict[str, Any]:
    """What the results keep of one method."""
    run = method["by_seed"][str(seed)]
    points = []
    for p in run["points"]:
        found = {"none": p["quality"], **{how: r["quality"] for how, r in p["recovered"].items()}}
        points.append({
            "asked": p["asked"], "ratio": p["ratio"], "accuracy": {how: q["accuracy"] for how, q in found.items()},
            "raw_accuracy": {how: r["raw_quality"]["accuracy"] for how, r in p["recovered"].items()},
            "worst_class": {how: min(q["by_class"]) for how, q in found.items()},
            "p_worse": {how: r.get("p_worse") for how, r in p["recovered"].items()},
            "declined": [how for how, r in p["recovered"].items() if r["declined"]],
            "recover_seconds": {how: r["seconds"] for how, r in p["recovered"].items()},
            **({"latency_ms": p["latency_ms"]} if "latency_ms" in p else {}),
        })  # fmt: skip
    return {
        "seconds": run["seconds"],
        "sauce": run["sauce"],
        "verdicts": run["verdicts"],
        "steps": run["steps"],
        "points": points,
    }


def gains_of(folder: Path, name: str, seed: int) -> int:
    """How many units that some class needs have a positive ξ: by its mean the network is better without them."""
    path = folder / "paths" / f"{name.replace(':', '-')}.{seed}" / "path.jsonl"
    tested = (json.loads(line) for line in path.read_text().splitlines())
    return sum(d["phase"] in TESTS and d["verdict"] == "critical" and (d["xi"] or 0) > 0 for d in tested)


def run() -> None:
    """Compare and keep the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="resnet18", choices=[n for n, (_, w, _) in NETWORKS.items() if w])
    parser.add_argument("--methods", default=METHODS)
    parser.add_argument("--recover", default="none,bn,lstsq@0.5/0.7")
    parser.add_argument("--ratios", default="0,0.2,0.4,0.5,0.6,0.7,0.8")
    parser.add_argument("--ratio-in", default="params,macs@0.5/0.7")
    parser.add_argument("--per-class", type=int, default=32)
    parser.add_argument("--recover-per-class", type=int, default=128)
    parser.add_argument(
        "--granularity", default="unit", help="block:N: C-SWAP tests N units together, where units take a day"
    )
    parser.add_argument("--folds", type=int, default=1, help="joint tests sets compensated from other samples")
    parser.add_argument("--test-images", type=int, help="measure quality on this many (all 10,000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--result", help="name of the JSON (methods_NETWORK)")
    parser.add_argument("--note", help="where parts of --work were measured, when not all of it here")
    parser.add_argument("--latency", action="store_true", help="time every point: on a machine that does nothing else")
    parser.add_argument("--jobs", type=int, default=1, help="methods measured at a time, each in a process")
    parser.add_argument("--memory", type=int, default=6, help="GiB of working memory, shared by the jobs")
    parser.add_argument("--cifar", type=Path, help="an unpacked cifar10 folder")
    parser.add_argument("--work", type=Path, help="where paths and points are kept (runs/RESULT)")
    given = parser.parse_args()
    given.work = given.work or ROOT / "runs" / (given.result or f"methods_{given.network}")  # one folder a result
    images = unpacked("cifar10", given.cifar, given.work.parent)
    spec, weights, arguments = NETWORKS[given.network]
    job = CompareJob(
        source=Source(ModelSpec.parse(spec, arguments), weights),
        data=DataChoice(str(images), per_class=given.per_class, eval_samples=given.test_images, **FORMAT),
        out=given.work / given.network, methods=tuple(given.methods.split(",")), recover=tuple(given.recover.split(",")),
        ratios=tuple(float(r) for r in given.ratios.split(",")), kinds=tuple(given.ratio_in.split(",")), seeds=(given.seed,),
        options=Options(seed=given.seed, granularity=given.granularity, folds=given.folds), recover_per_class=given.recover_per_class, eval_amp=AMP, latency=given.latency,
        jobs=given.jobs, machine=Machine(memory=given.memory << 30), resume=(given.work / given.network / "run.json").exists(),
    )  # fmt: skip
    runs = begun(job.out)
    result = compare(job, Log())
    command = (
        f"python benchmarks/methods.py --network {given.network} --per-class {given.per_class} --recover-per-class "
        f"{given.recover_per_class} --methods {given.methods} --recover {given.recover} --ratios {given.ratios} --ratio-in "
        f"{given.ratio_in} --seed {given.seed}"
        + (f" --granularity {given.granularity}" if given.granularity != "unit" else "")
        + (f" --folds {given.folds}" if given.folds > 1 else "")
        + (f" --test-images {given.test_images}" if given.test_images else "")
        + (" --latency" if given.latency else "")
        + (f" --result {given.result}" if given.result else "")
    )
    write_result(
        given.result or f"methods_{given.network}",
        {
            "command": command, **machine(), "seed": given.seed, "network": given.network, "jobs": given.jobs, "scopes": ["layer", "global", "raw"], "recover_rule": RULE, **({"measured_by": runs} if len(runs) > 1 else {}),
            **({"note": given.note} if given.note else {}),
            **({"folds": given.folds} if given.folds > 1 else {}),
            **({"granularity": given.granularity} if given.granularity != "unit" else {}),
            **{k: result[k] for k in ("unpruned", "measured_in", "per_class", "recover_per_class", "held_out_samples", "recover",
                                      "ratios", "kinds", "classes", "units")},
            "methods": {
                name: {**slim(m, given.seed), "critical_with_gain": gains_of(job.out, name, given.seed)}
                for name, m in result["methods"].items()
            },
            **({"paired": beside} if (beside := paired(job.out, given.seed)) else {}),
        },
    )  # fmt: skip


if __name__ == "__main__":
    run()
