"""`cswap compare`: methods on one curve, from the same network, the same samples and the same held-out data, in one run."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from cswap.artifacts.files import RUN, read_json, write_json
from cswap.artifacts.journal import Journal, open_folder, read_journal, read_state, rewrite_journal
from cswap.causal.store import DifferenceStore, measure_differences
from cswap.data.calibration import CalibrationSet, calibration_set
from cswap.data.sources import limited
from cswap.errors import InputError, StructureError, TargetError
from cswap.evaluate.cost import latency_ms
from cswap.evaluate.curve import sauce
from cswap.evaluate.quality import measure_quality
from cswap.methods import registry
from cswap.methods.options import Options
from cswap.methods.path import PruningPath, Start
from cswap.pipeline import Both, DataChoice, Machine, Source, Watcher, check_fits, state_hash, task_named
from cswap.recovery.batchnorm import reestimated
from cswap.structure.discover import discover
from cswap.structure.groups import Structure
from cswap.tasks import Task
from cswap.types import RATIO_KINDS, Target

RATIOS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
RESULT = "compare.json"


@dataclass(frozen=True)
class CompareJob:
    """All that `cswap compare` needs. `methods`: names, `NAME:global` or `NAME:layer` for a ranking's scope."""

    source: Source
    data: DataChoice
    out: Path
    methods: tuple[str, ...]
    ratios: tuple[float, ...] = RATIOS
    kinds: tuple[str, ...] = RATIO_KINDS
    seeds: tuple[int, ...] = (0,)
    task: str = "classification"
    options: Options = Options()
    recover: str = "none"
    machine: Machine = Machine()
    resume: bool = False
    force: bool = False

    def __post_init__(self) -> None:
        for name in self.methods:
            method, _, scope = name.partition(":")
            registry.find(method)
            if scope not in ("", "layer", "global"):
                raise InputError(f"methods: expected NAME, NAME:layer or NAME:global, got {name!r}")
        if not self.methods or len(set(self.methods)) != len(self.methods):
            raise InputError(f"methods: expected different names, got {','.join(self.methods)!r}")
        if not self.ratios or any(not 0 <= r < 1 for r in self.ratios):
            raise InputError(f"ratios: expected fractions in [0, 1), got {self.ratios}")
        if not self.kinds or any(k not in RATIO_KINDS for k in self.kinds):
            raise InputError(f"ratio-in: expected some of {', '.join(RATIO_KINDS)}, got {','.join(self.kinds)!r}")
        if self.recover not in ("none", "bn"):
            raise InputError(f"recover: compare has 'none' and 'bn', got {self.recover!r}")

    def settings(self, name: str, seed: int) -> tuple[str, Options]:
        """The method and the options a name stands for."""
        method, _, scope = name.partition(":")
        return method, replace(self.options, seed=seed, scope=scope or self.options.scope)


@dataclass(eq=False)
class _Run:
    """What all methods share: one network, its data and structure."""

    job: CompareJob
    model: nn.Module
    task: Task
    train: Any
    held_out: Any
    classes: tuple[str, ...]
    structure: Structure
    watcher: Watcher
    device: str
    stores: dict[int, DifferenceStore] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def calibration(self, seed: int) -> CalibrationSet:
        """The samples of one seed."""
        return calibration_set(
            self.train,
            self.job.data.per_class,
            seed,
            classes=self.classes,
            allow_imbalance=self.job.data.allow_imbalance,
        )

    def store(self, seed: int, calibration: CalibrationSet) -> DifferenceStore:
        """Differences of one seed's samples, measured once and kept in the folder."""
        if seed not in self.stores:
            start = time.perf_counter()
            self.stores[seed] = measure_differences(
                self.model, self.structure, calibration, self.task, file=self.job.out / f"differences.{seed}.safetensors",
                device=self.device, memory=self.job.machine.memory, tell=self.watcher.note,
            )  # fmt: skip
            self.seconds[f"differences.{seed}"] = time.perf_counter() - start
        return self.stores[seed]


def compare(job: CompareJob, watcher: Watcher | None = None) -> dict[str, Any]:
    """Complete paths of every method and seed, their curves, areas and costs; returns what `compare.json` holds.

    With `resume`, what an interrupted run finished is not done again. Raises InputError and what a method raises.
    """
    watcher = watcher or Watcher()
    run = _opened(job, watcher)
    found: dict[str, Any] = {}
    for name in job.methods:
        for seed in job.seeds:
            found.setdefault(name, {})[str(seed)] = _measured(run, name, seed)
    unpruned = found[job.methods[0]][str(job.seeds[0])]["points"][0]
    result = {
        "model": job.source.spec.text, "methods": {n: _spread(by_seed, run.task.headline) for n, by_seed in found.items()},
        "unpruned": {k: unpruned[k] for k in ("quality", "params", "macs", "latency_ms")}, "classes": list(run.classes),
        "headline": run.task.headline, "ratios": list(job.ratios), "kinds": list(job.kinds), "seeds": list(job.seeds),
        "per_class": job.data.per_class, "held_out_samples": len(run.held_out), "options": job.options.as_dict(),
        "units": run.structure.units,
    }  # fmt: skip
    write_json(job.out / RESULT, result)
    return result


def _opened(job: CompareJob, watcher: Watcher) -> _Run:
    watcher.phase("load")
    task, device = task_named(job.task), job.machine.torch_device
    model = job.source.build()
    pair = job.data.open(job.source.spec)
    held_out = limited(pair.evaluation, job.data.eval_samples, job.options.seed)
    watcher.phase("structure")
    first = calibration_set(
        pair.train, job.data.per_class, job.seeds[0], classes=pair.classes, allow_imbalance=job.data.allow_imbalance
    )
    check_fits(model, first, task)
    structure = discover(model, first.inputs(0, 2))
    if not structure.groups:
        raise StructureError("nothing can be pruned in this model; `cswap support` says why")
    watcher.structure(structure, Target("complete"))
    fingerprint = {
        "compare": job.source.spec.text, "weights": state_hash(model), "data": first.fingerprint(), "task": job.task,
        "options": job.options.as_dict(), "per_class": job.data.per_class, "eval_samples": job.data.eval_samples,
        "ratios": list(job.ratios), "kinds": list(job.kinds), "recover": job.recover,
    }  # fmt: skip
    _claim(job, fingerprint)
    return _Run(job, model, task, pair.train, held_out, pair.classes, structure, watcher, device)


def _claim(job: CompareJob, fingerprint: dict[str, Any]) -> None:
    """Make the folder ours; raises InputError when it holds something else, or another comparison."""
    out = job.out
    if out.exists() and not out.is_dir():
        raise InputError(f"out: expected a folder, {out} is a file")
    held = sorted(p.name for p in out.iterdir()) if out.exists() else []
    if held and not (out / RUN).exists():
        raise InputError(f"out: {out} holds other files (first {held[0]}); name a new folder")
    if held and not (job.resume or job.force):
        raise InputError(f"out: {out} holds a comparison; --resume goes on with it, --force replaces it")
    if held and job.resume:
        old = read_json(out / RUN)
        for key, value in fingerprint.items():
            if old.get(key) != value:
                was, now = (json.dumps(v)[:80] for v in (old.get(key), value))
                raise InputError(f"resume: {key} was {was} and is {now} now; nothing was changed")
    if held and job.force:
        import shutil

        for name in held:
            path = out / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / RUN, fingerprint)


def _measured(run: _Run, name: str, seed: int) -> dict[str, Any]:
    """One method with one seed: from the folder, or now."""
    file = run.job.out / f"{name.replace(':', '-')}.{seed}.json"
    if file.exists():
        return read_json(file)
    run.watcher.note(f"{name}, seed {seed}")
    calibration = run.calibration(seed)
    path, seconds = _path(run, name, seed, calibration)
    points = _points(run, path, calibration)
    found = {"seconds": seconds, "points": points, "sauce": _area(points, run.task.headline), "engine": path.engine,
             "notes": path.notes, "verdicts": path.verdicts(), "steps": len(path)}  # fmt: skip
    write_json(file, found)
    return found


def _path(run: _Run, name: str, seed: int, calibration: CalibrationSet) -> tuple[PruningPath, float]:
    """The complete path, journaled: seconds include the pass that made the differences, where the method uses them."""
    method, options = run.job.settings(name, seed)
    folder = run.job.out / "paths" / f"{name.replace(':', '-')}.{seed}"
    fingerprint = {"method": method, "options": options.as_dict(), "data": calibration.fingerprint()}
    begin, more = time.perf_counter(), {}
    if method == "cbp" and options.vote_score == "class" and not options.amp:
        more["store"] = run.store(seed, calibration)
    going_on = open_folder(folder, fingerprint, resume=True, force=False)
    start = Start()
    if going_on:
        decisions = read_journal(folder, run.structure, calibration.classes, options.rule)
        start = Start(tuple(decisions), read_state(folder, len(decisions)))
        rewrite_journal(folder, decisions)
    with _journal(folder, calibration.classes) as journal:
        path = registry.call(
            method, run.model, run.structure, calibration, run.task, target=Target("complete"), options=options, start=start,
            sink=Both(journal, run.watcher), device=run.device, memory=run.job.machine.memory, **more,
        )  # fmt: skip
    measured = run.seconds.get(f"differences.{seed}", 0.0) if "store" in more else 0.0
    return path, round(max(time.perf_counter() - begin, measured), 3)


@contextlib.contextmanager
def _journal(folder: Path, classes: tuple[str, ...]) -> Iterator[Journal]:
    journal = Journal(folder, classes)
    try:
        yield journal
    finally:
        journal.close()


def _prefixes(path: PruningPath, job: CompareJob) -> list[dict[str, Any]]:
    """Which prefixes are evaluated: each ratio in each kind, as far as the path goes; the same prefix once."""
    found: dict[int, dict[str, Any]] = {}
    for kind in job.kinds:
        for ratio in job.ratios:
            with contextlib.suppress(TargetError):
                target = Target.parse(f"{kind}={ratio:g}")
                _, steps, reached = path.prefix(target)
                point = found.setdefault(
                    steps, {"steps": steps, "ratio": reached.as_dict(), "asked": {}, "target": target}
                )
                point["asked"][kind] = ratio
    return [found[s] for s in sorted(found)]


def _points(run: _Run, path: PruningPath, calibration: CalibrationSet) -> list[dict[str, Any]]:
    """Quality, cost and latency of every prefix on held-out data."""
    points = _prefixes(path, run.job)
    small = {str(i): path.apply(run.model, p.pop("target")) for i, p in enumerate(points)}
    mended = {f"bn {i}": reestimated(m, calibration) for i, m in small.items()} if run.job.recover == "bn" else {}
    quality = measure_quality({**small, **mended}, run.held_out, run.task, len(run.classes), device=run.device)
    timed = {str(b): latency_ms(small, calibration.inputs(0, 1), b, budget_s=0.25 * len(small)) for b in (1, 64)}
    for i, p in enumerate(points):
        net: Any = small[str(i)]
        ratio = p["ratio"]
        p |= {
            "quality": quality[str(i)], "params": sum(t.numel() for t in net.parameters()),
            "macs": round(run.structure.total_macs * (1 - ratio["macs"])), "latency_ms": {b: t[str(i)] for b, t in timed.items()},
        }  # fmt: skip
        if mended:
            p["quality_bn"] = quality[f"bn {i}"]
    return points


def curve_of(
    points: list[dict[str, Any]], kind: str, headline: str, quality: str = "quality"
) -> list[tuple[float, float]]:
    """(fraction removed, quality) of the points asked for in one kind, ascending."""
    return [(p["ratio"][kind], p[quality][headline]) for p in points if kind in p["asked"]]


def _area(points: list[dict[str, Any]], headline: str) -> dict[str, float | None]:
    """SAUCE against parameters, plain and with batch norms estimated again; None where the curve does not reach 0.8."""
    found: dict[str, float | None] = {}
    for name in ("quality", "quality_bn"):
        if name not in points[0]:
            continue
        curve = curve_of(points, "params", headline, name)
        reaches = bool(curve) and curve[0][0] == 0 and curve[-1][0] >= 0.8 - 1e-9
        base = points[0]["quality"][headline]
        found[name] = sauce([x for x, _ in curve], [y for _, y in curve], base) if reaches else None
    return found


def _spread(by_seed: dict[str, Any], headline: str) -> dict[str, Any]:
    """Mean and standard deviation over seeds, where they were asked the same, beside every seed's own."""
    summary: dict[str, Any] = {}
    runs = list(by_seed.values())
    for kind in RATIO_KINDS:
        rows = []
        for ratio in sorted({p["asked"][kind] for r in runs for p in r["points"] if kind in p["asked"]}):
            at = [p for r in runs for p in r["points"] if p["asked"].get(kind) == ratio]
            row: dict[str, Any] = {"asked": ratio, "seeds": len(at)}
            for label, pick in _COLUMNS.items():
                values = [v for p in at if (v := pick(p, headline)) is not None]
                if values:
                    row[label] = {
                        "mean": float(np.mean(values)),
                        "std": float(np.std(values, ddof=1)) if len(values) > 1 else None,
                    }
            rows.append(row)
        if rows:
            summary[kind] = rows
    areas = {n: [r["sauce"][n] for r in runs if r["sauce"].get(n) is not None] for n in runs[0]["sauce"]}
    return {
        "by_seed": by_seed, "curves": summary,
        "sauce": {n: {"mean": float(np.mean(v)), "std": float(np.std(v, ddof=1)) if len(v) > 1 else None} for n, v in areas.items() if v},
        "seconds": float(np.mean([r["seconds"] for r in runs])),
    }  # fmt: skip


_COLUMNS: dict[str, Callable[[dict[str, Any], str], float | None]] = {
    "quality": lambda p, h: p["quality"][h],
    "quality_bn": lambda p, h: p["quality_bn"][h] if "quality_bn" in p else None,
    "params": lambda p, _h: p["ratio"]["params"],
    "macs": lambda p, _h: p["ratio"]["macs"],
    "units": lambda p, _h: p["ratio"]["units"],
    "ms_1": lambda p, _h: p["latency_ms"]["1"],
    "ms_64": lambda p, _h: p["latency_ms"]["64"],
}

__all__ = ["RATIOS", "CompareJob", "compare", "curve_of"]
