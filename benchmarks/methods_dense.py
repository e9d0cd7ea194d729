"""Pruning what is not a classifier: the U-Net on CamVid (mIoU) and the small SSD on BCCD (mAP), by `cswap compare`.

    OMP_NUM_THREADS=1 python benchmarks/methods_dense.py camvid|bccd --data DIR [--methods …] [--ratios …] [--recover none,bn,lstsq]
                                                        [--per-class 16] [--only GLOB,…] [--seed 0] [--work DIR]

The data are the unpacked archives of the shared data. What is done is kept in --work, and run again, it goes on from there.
Writes benchmarks/results/dense_NAME.json.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from _machine import ROOT, machine, write_result
from cswap.compare import CompareJob, compare
from cswap.data.models import ModelSpec
from cswap.methods.options import Options
from cswap.pipeline import DataChoice, Machine, Source
from methods import Log
from paired_areas import paired

NETWORKS = ROOT / "benchmarks" / "networks"
METHODS = "magnitude:layer,random:layer,taylor:global:params,obs:global:params,cswap"
CASES: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    "camvid": ("camvid_unet", "unet_camvid", "segmentation",
               {"mean": "0.41,0.43,0.43", "std": "0.31,0.31,0.31", "ignore_index": 11}),
    "bccd": ("bccd_ssd", "ssd_bccd", "detection", {"image_size": 256}),
}  # fmt: skip
"""Name: factory, weights, task, how the data are read."""


def slim(run: dict[str, Any]) -> dict[str, Any]:
    """What the results keep of one method: quality by recovery at each ratio, and what a recovery that was declined would have given."""
    points = []
    for p in run["points"]:
        found = {"none": p["quality"], **{how: r["quality"] for how, r in p["recovered"].items()}}
        declined = {how: r["raw_quality"] for how, r in p["recovered"].items() if r["declined"]}
        points.append({"asked": p["asked"], "ratio": p["ratio"], "quality": found, "declined": declined})
    return {**{k: run[k] for k in ("seconds", "sauce", "verdicts", "steps")}, "points": points}


def run() -> None:
    """Compare and keep the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=list(CASES))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--methods", default=METHODS)
    parser.add_argument("--ratios", default="0,0.1,0.2,0.3,0.4,0.5,0.6")
    parser.add_argument("--recover", default="none,bn,lstsq")
    parser.add_argument("--per-class", type=int, default=16)
    parser.add_argument("--only", default="")
    parser.add_argument("--effects", default="full")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "dense")
    given = parser.parse_args()
    factory, weights, task, form = CASES[given.name]
    out = given.work / given.name
    job = CompareJob(
        source=Source(ModelSpec.parse(f"{NETWORKS}/dense.py:{factory}", {}), NETWORKS / "weights" / f"{weights}.safetensors"),
        data=DataChoice(str(given.data), per_class=given.per_class, **form),
        out=out, methods=tuple(given.methods.split(",")), recover=tuple(given.recover.split(",")),
        ratios=tuple(float(r) for r in given.ratios.split(",")), kinds=("params",), seeds=(given.seed,), task=task,
        options=Options(seed=given.seed, effects=given.effects), latency=False, only=tuple(filter(None, given.only.split(","))),
        machine=Machine(memory=2 << 30), resume=(out / "run.json").exists(),
    )  # fmt: skip
    result = compare(job, Log())
    flags = ("methods", "ratios", "recover", "per_class", "only", "effects", "seed")
    told = " ".join(f"--{f.replace('_', '-')} {getattr(given, f)}" for f in flags if getattr(given, f) != "")
    kept = ("unpruned", "per_class", "held_out_samples", "recover", "ratios", "kinds", "classes", "units")
    write_result(f"dense_{given.name}", {
        "command": f"python benchmarks/methods_dense.py {given.name} {told}", **machine(), "seed": given.seed, "scopes": ["layer", "global", "raw"], "task": task,
        **{k: result[k] for k in kept},
        "methods": {name: slim(m["by_seed"][str(given.seed)]) for name, m in result["methods"].items()},
        **({"paired": beside} if (beside := paired(out, given.seed)) else {}),
    })  # fmt: skip


if __name__ == "__main__":
    run()
