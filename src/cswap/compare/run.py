"""`cswap compare`: methods on one curve, from the same network, the same samples and the same held-out data, in one run."""

from __future__ import annotations

from typing import Any

from cswap.artifacts.aside import replacing
from cswap.artifacts.files import read_json
from cswap.compare.folder import COMPARISON, RESULT, claim, write
from cswap.compare.job import CompareJob
from cswap.compare.measure import Run, measured, opened
from cswap.compare.summary import spread
from cswap.compare.workers import measure_in_processes, refuse_a_child
from cswap.errors import MethodError
from cswap.evaluate.quality import measure_quality
from cswap.pipeline import Watcher


def compare(job: CompareJob, watcher: Watcher | None = None) -> dict[str, Any]:
    """Complete paths of every method and seed, their curves, areas and costs; returns what `compare.json` holds.

    With `resume`, what an interrupted run finished is not done again; methods, ratios, seeds and recoveries may be added,
    and other held-out data named, or more samples to recover with: paths are kept, and points measured that are not there yet. A method that has nothing to say of this network is left out, and `refused` has its reason. Raises InputError and what
    a method raises; MethodError when all are refused.
    """
    refuse_a_child()
    run, fingerprint = opened(job, watcher or Watcher())
    with replacing(job.out, job.force, resume=job.resume, kind=COMPARISON):
        claim(job, {k: v for k, v in fingerprint.items() if k != "held_out"})  # only points depend on it
        if job.jobs > 1:
            measure_in_processes(run, fingerprint)
        return _compared(run)


def _compared(run: Run) -> dict[str, Any]:
    job = run.job
    found: dict[str, Any] = {}
    refused: dict[str, str] = {}
    for name in job.methods:
        try:
            found[name] = {str(seed): measured(run, name, seed) for seed in job.seeds}
        except MethodError as error:
            if len(refused) + 1 == len(job.methods):
                raise
            refused[name] = str(error)
            run.watcher.note(f"{name} is left out: {error}")
    unpruned = next(iter(found.values()))[str(job.seeds[0])]["points"][0]
    result = {
        "model": job.source.spec.text, "methods": {n: spread(by_seed, run.task.headline) for n, by_seed in found.items()},
        "unpruned": {k: unpruned[k] for k in ("quality", "params", "macs", "latency_ms") if k in unpruned}, "classes": list(run.classes),
        "headline": run.task.headline, "ratios": list(job.ratios), "kinds": list(job.counted), "seeds": list(job.seeds),
        "recover": list(job.ways), "per_class": job.data.per_class, "recover_per_class": job.recover_per_class or job.data.per_class,
        "held_out_samples": len(run.held_out), "options": job.options.as_dict(), "units": run.structure.units,
        "measured_in": _measured_in(run), "jobs": job.jobs, "round_to": job.round_to, "refused": refused,
    }  # fmt: skip
    write(job, job.out / RESULT, result)
    return result


def _measured_in(run: Run) -> dict[str, Any]:
    """The precision quality was measured in; where it is not float32, the unpruned network in both."""
    if not run.job.eval_amp:
        return {"precision": "float32"}
    file = run.kept / "precision.json"
    if not file.exists():
        both = {
            p: measure_quality({"unpruned": run.model}, run.held_out, run.task, len(run.classes), device=run.device, amp=amp)
            for p, amp in (("float32", False), ("bfloat16", True))
        }  # fmt: skip
        write(run.job, file, {p: q["unpruned"][run.task.headline] for p, q in both.items()})
    return {"precision": "bfloat16", "unpruned": read_json(file)}
