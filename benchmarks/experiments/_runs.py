"""Runs of `cswap compare` that several experiments make."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from _experiment import Given

from _real import AMP, FORMAT, NETWORKS, Log
from cswap.compare import CompareJob, compare
from cswap.data.models import ModelSpec
from cswap.methods.options import Options
from cswap.pipeline import DataChoice, Machine, Source


def compared(
    given: Given, network: str, methods: tuple[str, ...], *, name: str = "", per_class: int, ratios: tuple[float, ...], kinds: tuple[str, ...] = ("params",),
    seeds: tuple[int, ...] | None = None, recover: tuple[str, ...] = ("none",), recover_per_class: int | None = None,
    eval_samples: int | None = None, latency: bool = False, folder: Path | None = None, **options: Any,
) -> dict[str, Any]:  # fmt: skip
    """`compare.json` of a run that is kept in the experiment's folder and resumed there."""
    spec, weights, arguments = NETWORKS[network]
    out = folder or given.work / (name or network)
    drawn = seeds or (given.seed,)
    job = CompareJob(
        source=Source(ModelSpec.parse(spec, arguments), weights), out=out, methods=methods, ratios=ratios, kinds=kinds, seeds=drawn,
        data=DataChoice(str(given.images), per_class=per_class, eval_samples=eval_samples, **FORMAT), recover=recover,
        recover_per_class=recover_per_class, options=Options(seed=drawn[0], **options), eval_amp=AMP, latency=latency,
        jobs=given.jobs, machine=Machine(memory=given.jobs * (4 << 30)), resume=(out / "run.json").exists(),
    )  # fmt: skip
    return compare(job, Log())


def point(run: dict[str, Any], kind: str, asked: float) -> dict[str, Any] | None:
    """The point of one method and seed that was asked for."""
    return next((p for p in run["points"] if p["asked"].get(kind) == asked), None)


def at(
    result: dict[str, Any], method: str, kind: str, asked: float, seed: int | None = None, how: str = "none"
) -> float | None:
    """Accuracy of one method at one point."""
    by_seed = result["methods"][method]["by_seed"]
    found = point(by_seed[str(result["seeds"][0] if seed is None else seed)], kind, asked)
    if found is None:
        return None
    quality = found["quality"] if how == "none" else found["recovered"][how]["quality"]
    return float(quality["accuracy"])
