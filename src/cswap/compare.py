"""`cswap compare`: methods on one curve, from the same network, the same samples and the same held-out data, in one run."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from cswap.artifacts.aside import Kind, replacing
from cswap.artifacts.files import PATH, RUN, has_decisions, hidden, read_json, write_json
from cswap.artifacts.journal import Journal, open_folder, read_journal, rewrite_journal
from cswap.artifacts.state import read_state
from cswap.causal.engine import emulated_bfloat16, refuse_near_chance
from cswap.causal.replay import engine_for
from cswap.causal.store import DifferenceStore, measure_differences
from cswap.data.calibration import CalibrationSet, calibration_set, labels_of
from cswap.data.sources import in_memory, limited
from cswap.data.truth import members_of
from cswap.errors import ArtifactError, InputError, RunError, StructureError, TargetError
from cswap.evaluate.cost import latency_ms
from cswap.evaluate.curve import sauce
from cswap.evaluate.quality import measure_quality
from cswap.evaluate.significance import mcnemar
from cswap.methods import registry
from cswap.methods.options import Options
from cswap.methods.path import PruningPath, Start
from cswap.pipeline import Both, DataChoice, Machine, Source, Watcher, check_fits, state_hash, task_named
from cswap.recovery import recovered
from cswap.recovery.base import steps_of
from cswap.structure.discover import discover
from cswap.structure.groups import Structure
from cswap.structure.surgery import count_params
from cswap.tasks import Task
from cswap.types import RATIO_KINDS, BoolArray, Ratio, Target

RATIOS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
RESULT = "compare.json"


@dataclass(frozen=True)
class CompareJob:
    """All that `cswap compare` needs.

    methods: names, with `:layer` or `:global` for a ranking's scope, and `:params` or `:macs` behind `:global` for the score a
    parameter or MAC. kinds: what ratios count, `KIND@RATIO/RATIO` for ratios of its own. recover: what is given back, each
    beside the plain network, `NAME@RATIO/RATIO` at some ratios alone. recover_per_class: calibration samples a class for that
    (None: those of the analysis). eval_amp: quality in bfloat16. latency: time every point. Raises InputError.
    """

    source: Source
    data: DataChoice
    out: Path
    methods: tuple[str, ...]
    ratios: tuple[float, ...] = RATIOS
    kinds: tuple[str, ...] = RATIO_KINDS
    seeds: tuple[int, ...] = (0,)
    task: str = "classification"
    options: Options = Options()
    recover: tuple[str, ...] = ("none",)
    recover_per_class: int | None = None
    eval_amp: bool = False
    latency: bool = True
    only: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    machine: Machine = Machine()
    resume: bool = False
    force: bool = False

    def __post_init__(self) -> None:
        for name in self.methods:
            self.settings(name, 0)
        if not self.methods or len(set(self.methods)) != len(self.methods):
            raise InputError(f"methods: expected different names, got {','.join(self.methods)!r}")
        if not self.ratios or any(not 0 <= r < 1 for r in self.ratios):
            raise InputError(f"ratios: expected fractions in [0, 1), got {self.ratios}")
        asked = {r for ratios in self.counted.values() for r in ratios}
        if any(not 0 <= r < 1 for r in asked):
            raise InputError(f"ratio-in: expected fractions in [0, 1), got {','.join(self.kinds)!r}")
        missed = {r for ratios in self.ways.values() for r in ratios or ()} - asked
        if missed:
            raise InputError(f"recover: expected ratios that are asked for, got {min(missed):g}")
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise InputError(f"seeds: expected different numbers, got {','.join(str(s) for s in self.seeds)!r}")
        if not self.counted or any(k not in RATIO_KINDS for k in self.counted):
            raise InputError(f"ratio-in: expected some of {', '.join(RATIO_KINDS)}, got {','.join(self.kinds)!r}")
        for how in self.ways:
            steps_of(how)

    @property
    def ways(self) -> dict[str, tuple[float, ...] | None]:
        """The plain network first, then every recovery; the ratios it is measured at (None: all)."""
        return {"none": None} | {h: at for h, at in _at_ratios("recover", self.recover).items() if h != "none"}

    @property
    def counted(self) -> dict[str, tuple[float, ...]]:
        """What ratios count, and the ratios asked for in it."""
        return {kind: at or self.ratios for kind, at in _at_ratios("ratio-in", self.kinds).items()}

    def settings(self, name: str, seed: int) -> tuple[str, Options]:
        """The method and the options a name stands for. Raises InputError."""
        method, *more = name.split(":")
        registry.find(method)
        scope, per = (*more, "", "")[:2]
        if len(more) > 2 or scope not in ("", "layer", "global") or per not in ("", "params", "macs"):
            raise InputError(
                f"methods: expected NAME, NAME:layer, NAME:global or NAME:global:params (or :macs), got {name!r}"
            )
        chosen: dict[str, Any] = {"scope": scope or self.options.scope, "per": per or self.options.per}
        return method, replace(self.options, seed=seed, **chosen)


def _at_ratios(option: str, texts: tuple[str, ...]) -> dict[str, tuple[float, ...] | None]:
    """`NAME` or `NAME@RATIO/RATIO`: the ratios by name, None for all. Raises InputError."""
    found: dict[str, tuple[float, ...] | None] = {}
    for text in texts:
        name, at, ratios = text.partition("@")
        try:
            found[name] = tuple(float(r) for r in ratios.split("/")) if at else None
        except ValueError:
            raise InputError(f"{option}: expected NAME or NAME@RATIO/RATIO, got {text!r}") from None
    return found


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

    def calibration(self, seed: int, per_class: int | None = None) -> CalibrationSet:
        """The samples of one seed; those of a larger draw hold those of a smaller one."""
        return calibration_set(
            self.train, per_class or self.job.data.per_class, seed, classes=self.classes,
            allow_imbalance=self.job.data.allow_imbalance,
        )  # fmt: skip

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

    With `resume`, what an interrupted run finished is not done again; methods, ratios, seeds and recoveries may be added.
    Raises InputError and what a method raises.
    """
    run, fingerprint = _opened(job, watcher or Watcher())
    with replacing(job.out, job.force, resume=job.resume, kind=COMPARISON):
        _claim(job, fingerprint)
        return _compared(run)


def _compared(run: _Run) -> dict[str, Any]:
    job = run.job
    found: dict[str, Any] = {}
    for name in job.methods:
        for seed in job.seeds:
            found.setdefault(name, {})[str(seed)] = _measured(run, name, seed)
    unpruned = found[job.methods[0]][str(job.seeds[0])]["points"][0]
    result = {
        "model": job.source.spec.text, "methods": {n: _spread(by_seed, run.task.headline) for n, by_seed in found.items()},
        "unpruned": {k: unpruned[k] for k in ("quality", "params", "macs", "latency_ms") if k in unpruned}, "classes": list(run.classes),
        "headline": run.task.headline, "ratios": list(job.ratios), "kinds": list(job.counted), "seeds": list(job.seeds),
        "recover": list(job.ways), "per_class": job.data.per_class, "recover_per_class": job.recover_per_class or job.data.per_class,
        "held_out_samples": len(run.held_out), "options": job.options.as_dict(), "units": run.structure.units,
        "measured_in": _measured_in(run),
    }  # fmt: skip
    _write(job, job.out / RESULT, result)
    return result


def _measured_in(run: _Run) -> dict[str, Any]:
    """The precision quality was measured in; where it is not float32, the unpruned network in both."""
    if not run.job.eval_amp:
        return {"precision": "float32"}
    file = run.job.out / "precision.json"
    if not file.exists():
        both = {
            p: measure_quality({"unpruned": run.model}, run.held_out, run.task, len(run.classes), device=run.device, amp=amp)
            for p, amp in (("float32", False), ("bfloat16", True))
        }  # fmt: skip
        _write(run.job, file, {p: q["unpruned"][run.task.headline] for p, q in both.items()})
    return {"precision": "bfloat16", "unpruned": read_json(file)}


def _opened(job: CompareJob, watcher: Watcher) -> tuple[_Run, dict[str, Any]]:
    """All that is needed, and what must be the same for a resumed run; nothing is written."""
    watcher.phase("load")
    task_named(job.task)  # a wrong name is said before anything is loaded
    device = job.machine.torch_device
    model = job.source.build()
    pair = job.data.open(job.source.spec)
    task = task_named(job.task, pair)
    watcher.phase("structure")
    first = calibration_set(
        pair.train, job.data.per_class, job.seeds[0], classes=pair.classes, allow_imbalance=job.data.allow_imbalance
    )
    check_fits(model, first, task)
    structure = discover(model, first.inputs(0, 2))
    if not structure.groups:
        raise StructureError("nothing can be pruned in this model; `cswap support` says why")
    structure = structure.select(job.only, job.exclude)
    watcher.structure(structure, Target("complete"))
    if job.force and any(n.partition(":")[0] != "cbp" for n in job.methods):  # said before an old one is set aside
        engine = engine_for(model, structure, first, task, device=device, memory=job.machine.memory)
        refuse_near_chance(engine.scores(), first, task)
    held_out = limited(pair.evaluation, job.data.eval_samples, job.options.seed)
    fingerprint = {
        "compare": job.source.spec.text, "weights": state_hash(model), "data": first.fingerprint(), "task": job.task,
        "options": job.options.as_dict(), "per_class": job.data.per_class, "eval_samples": job.data.eval_samples,
        "held_out": _fingerprint_of(held_out), "recover_per_class": job.recover_per_class, "eval_amp": job.eval_amp, "only": list(job.only), "exclude": list(job.exclude),
    }  # fmt: skip
    if job.eval_amp and (slow := emulated_bfloat16(device)):
        watcher.note(f"eval-amp: {slow}")
    run = _Run(job, model, task, pair.train, in_memory(held_out), pair.classes, structure, watcher, device)
    return run, fingerprint


def _fingerprint_of(dataset: Any) -> str:
    """Hash of the labels, the first and the last input."""
    members = members_of(dataset)
    digest = hashlib.sha256((labels_of(dataset) if members is None else members).tobytes())
    for i in (0, len(dataset) - 1):
        digest.update(np.ascontiguousarray(torch.as_tensor(dataset[i][0]).numpy()).tobytes())
    return digest.hexdigest()


def _claim(job: CompareJob, fingerprint: dict[str, Any]) -> None:
    """Make the folder ours; raises InputError when it holds something else, or another comparison."""
    out = job.out
    try:
        if out.exists() and not out.is_dir():
            raise InputError(f"out: expected a folder, {out} is a file")
        held = sorted(p.name for p in out.iterdir()) if out.exists() else []
        mine = _is_comparison(out)
        others = [n for n in held if n != f"{RUN}.tmp" and not hidden(out / n)]
        others = [n for n in others if not _owns(n)] or others  # what is named is none of ours, if there is one
        if others and not mine:
            raise InputError(f"out: {out} holds other files (first {others[0]}); name a new folder")
        if mine and not (job.resume or job.force):
            raise InputError(f"out: {out} holds a comparison; --resume goes on with it, --force replaces it")
        if not mine:
            out.mkdir(parents=True, exist_ok=True)
            write_json(out / RUN, fingerprint)
    except OSError as error:
        raise InputError(f"out: {out} cannot be written ({error.strerror})") from None
    if mine:
        old = read_json(out / RUN)
        for key, value in fingerprint.items():
            if old.get(key) != value:
                was, now = (json.dumps(v)[:80] for v in (old.get(key), value))
                raise InputError(f"resume: {key} was {was} and is {now} now; nothing was changed")


def _write(job: CompareJob, file: Path, data: dict[str, Any]) -> None:
    """Raises RunError for a disk that takes no more."""
    try:
        file.parent.mkdir(exist_ok=True)
        write_json(file, data)
    except OSError as error:
        raise RunError(
            f"{file} cannot be written ({error.strerror}); what was done is kept in {job.out}: the same command with --resume goes on"
        ) from None


def _owns(name: str) -> bool:
    plain = name.removesuffix(".tmp")
    return (
        plain in (RUN, RESULT, "precision.json", "compare.html", "paths", "points")
        or re.fullmatch(r"[\w-]+\.\d+(\.latency)?\.json|differences\.\d+\.safetensors(\.\d+\.part)?", plain) is not None
        or re.fullmatch(r"\.tmp\w{6}", name) is not None
    )


def _is_comparison(folder: Path) -> bool:
    try:
        return "compare" in read_json(folder / RUN)
    except ArtifactError:
        return False


def _is_decided(folder: Path) -> bool:
    return (folder / RESULT).exists() or any(has_decisions(path) for path in folder.glob(f"paths/*/{PATH}"))


COMPARISON = Kind(
    ours=_is_comparison,
    begun=lambda folder: _is_decided(folder) or any(folder.glob("differences.*")),
    decided=_is_decided,
    done=lambda folder: (folder / RESULT).exists(),
    owns=_owns,
)


def _measured(run: _Run, name: str, seed: int) -> dict[str, Any]:
    """One method with one seed: what the folder has, and the rest now."""
    run.watcher.note(f"{name}, seed {seed}")
    tag = f"{name.replace(':', '-')}.{seed}"
    calibration = run.calibration(seed)
    file = run.job.out / f"{tag}.json"
    if not file.exists():
        path, seconds = _path(run, name, seed, calibration)
        _write(run.job, file, {"seconds": seconds, "engine": path.engine, "notes": path.notes, "verdicts": path.verdicts(),
                          "steps": len(path)})  # fmt: skip
    method, options = run.job.settings(name, seed)
    decisions = read_journal(
        run.job.out / "paths" / tag, run.structure, calibration.classes, options.rule, options.block
    )
    path = PruningPath(run.structure, method, options.as_dict(), calibration.classes, decisions)
    points = _points(run, path, tag, seed)
    areas = {how: _area(points, run.task.headline, how) for how in run.job.ways}
    return {**read_json(file), "points": points, "sauce": areas}


def _path(run: _Run, name: str, seed: int, calibration: CalibrationSet) -> tuple[PruningPath, float]:
    """The complete path, journaled: seconds include the pass that made the differences, where the method uses them."""
    method, options = run.job.settings(name, seed)
    folder = run.job.out / "paths" / f"{name.replace(':', '-')}.{seed}"
    fingerprint = {"method": method, "options": options.as_dict(), "data": calibration.fingerprint()}
    begin, more = time.perf_counter(), {}
    stored = (options.vote_score, options.amp, options.cut) == ("class", False, "plain") and calibration.members is None
    if method == "cbp" and stored:
        more["store"] = run.store(seed, calibration)
    going_on = open_folder(folder, fingerprint, resume=True, force=False)
    start = Start()
    if going_on:
        decisions = read_journal(folder, run.structure, calibration.classes, options.rule, options.block)
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
    # the unpruned network is always the first point
    found: dict[int, dict[str, Any]] = {
        0: {"steps": 0, "ratio": Ratio().as_dict(), "asked": {}, "target": Target("units", 0.0)}
    }
    for kind, ratios in job.counted.items():
        for ratio in ratios:
            with contextlib.suppress(TargetError):
                target = Target.parse(f"{kind}={ratio:g}")
                _, steps, reached = path.prefix(target)
                point = found.setdefault(
                    steps, {"steps": steps, "ratio": reached.as_dict(), "asked": {}, "target": target}
                )
                point["asked"][kind] = ratio
    return [found[s] for s in sorted(found)]


def _points(run: _Run, path: PruningPath, tag: str, seed: int) -> list[dict[str, Any]]:
    """Quality, cost and latency of every prefix on held-out data, plain and recovered, point by point."""
    points, nets = _prefixes(path, run.job), {}
    for p in points:
        small = path.apply(run.model, p.pop("target"))
        nets[str(p["steps"])] = small
        p |= {
            "params": count_params(small),
            "macs": round(run.structure.total_macs * (1 - p["ratio"]["macs"])),
            "recovered": {},
        }
        plain = _point(run, small, tag, p["steps"], "none", seed)
        p["quality"] = plain["quality"]
        for how, ratios in run.job.ways.items():
            if how == "none" or (ratios is not None and not set(ratios) & set(p["asked"].values())):
                continue
            raw = _point(run, small, tag, p["steps"], how, seed)
            # what a user gets is the plain network where the recovery is declined
            found: dict[str, Any] = {
                **raw,
                **({k: plain[k] for k in ("quality", "hits") if k in plain} if raw["declined"] else {}),
            }
            p["recovered"][how] = {k: v for k, v in found.items() if k != "hits"} | {"raw_quality": raw["quality"]}
            if "hits" in plain and "hits" in found:
                p["recovered"][how]["p_worse"] = mcnemar(_bits(plain["hits"]), _bits(found["hits"]))
    if run.job.latency:
        _timed(run, nets, points, tag)
    return points


def _point(run: _Run, small: nn.Module, tag: str, steps: int, how: str, seed: int) -> dict[str, Any]:
    """One network, recovered one way and measured; kept in the folder as soon as it is known."""
    file = run.job.out / "points" / f"{tag}.{steps}.{how}.json"
    if file.exists():
        return read_json(file)
    facts: dict[str, Any] = {}
    if how != "none":
        calibration = run.calibration(seed, run.job.recover_per_class)
        found = recovered(
            small, run.model, calibration, how, task=run.task, device=run.device, memory=run.job.machine.memory
        )
        small, facts = found.raw, {"seconds": found.seconds, "declined": found.declined, "notes": found.notes}
    samples: dict[str, list[float]] = {}
    quality = measure_quality(
        {how: small}, run.held_out, run.task, len(run.classes), device=run.device, amp=run.job.eval_amp, samples=samples
    )[how]
    right = np.asarray(samples[how])
    if np.isin(right, (0.0, 1.0)).all():
        facts["hits"] = base64.b64encode(np.packbits(right.astype(bool)).tobytes()).decode()
    _write(run.job, file, {"quality": quality, "samples": len(right), **facts})
    return read_json(file)


def _bits(packed: str) -> BoolArray:
    """Whether each sample is right; the padding bits are wrong in both networks that are compared."""
    return np.unpackbits(np.frombuffer(base64.b64decode(packed), dtype=np.uint8)).astype(np.bool_)


def _timed(run: _Run, nets: dict[str, nn.Module], points: list[dict[str, Any]], tag: str) -> None:
    """Median latency of every point at batch 1 and 64, all in turns."""
    file = run.job.out / f"{tag}.latency.json"
    held = read_json(file) if file.exists() else {}
    if any(n not in held for n in nets):
        sample = run.calibration(run.job.seeds[0]).inputs(0, 1)
        timed = {str(b): latency_ms(nets, sample, b, budget_s=0.1 * len(nets)) for b in (1, 64)}
        held = {n: {b: t[n] for b, t in timed.items()} for n in nets}
        _write(run.job, file, held)
    for p in points:
        p["latency_ms"] = held[str(p["steps"])]


def quality_of(point: dict[str, Any], how: str = "none") -> dict[str, Any]:
    """The figures of a point, plain or recovered in some way."""
    found: dict[str, Any] = point["quality"] if how == "none" else point["recovered"][how]["quality"]
    return found


def curve_of(points: list[dict[str, Any]], kind: str, headline: str, how: str = "none") -> list[tuple[float, float]]:
    """(fraction removed, quality) of the points asked for in one kind, ascending."""
    return [(p["ratio"][kind], quality_of(p, how)[headline]) for p in points if kind in p["asked"]]


def _area(points: list[dict[str, Any]], headline: str, how: str) -> float | None:
    """SAUCE against parameters; None where the curve does not reach 0.8, or was not measured everywhere."""
    if any("params" in p["asked"] and how != "none" and how not in p["recovered"] for p in points):
        return None
    curve = curve_of(points, "params", headline, how)
    reaches = bool(curve) and curve[0][0] == 0 and curve[-1][0] >= 0.8 - 1e-9
    return sauce([x for x, _ in curve], [y for _, y in curve], points[0]["quality"][headline]) if reaches else None


def _spread(by_seed: dict[str, Any], headline: str) -> dict[str, Any]:
    """Mean and standard deviation over seeds, where they were asked the same, beside every seed's own."""
    summary: dict[str, Any] = {}
    runs = list(by_seed.values())
    ways = list(runs[0]["sauce"])
    for kind in RATIO_KINDS:
        rows = []
        for ratio in sorted({p["asked"][kind] for r in runs for p in r["points"] if kind in p["asked"]}):
            at = [p for r in runs for p in r["points"] if p["asked"].get(kind) == ratio]
            row: dict[str, Any] = {"asked": ratio, "seeds": len(at)}
            measured = {how: [p for p in at if how == "none" or how in p["recovered"]] for how in ways}
            row["quality"] = {
                how: _mean_std([quality_of(p, how)[headline] for p in m]) for how, m in measured.items() if m
            }
            for label, pick in _COLUMNS.items():
                values = [v for p in at if (v := pick(p)) is not None]
                if values:
                    row[label] = _mean_std(values)
            rows.append(row)
        if rows:
            summary[kind] = rows
    areas = {n: [r["sauce"][n] for r in runs if r["sauce"].get(n) is not None] for n in ways}
    return {
        "by_seed": by_seed, "curves": summary, "sauce": {n: _mean_std(v) for n, v in areas.items() if v},
        "seconds": float(np.mean([r["seconds"] for r in runs])),
    }  # fmt: skip


def _mean_std(values: list[float]) -> dict[str, float | None]:
    return {"mean": float(np.mean(values)), "std": float(np.std(values, ddof=1)) if len(values) > 1 else None}


_COLUMNS: dict[str, Callable[[dict[str, Any]], float | None]] = {
    "params": lambda p: p["ratio"]["params"],
    "macs": lambda p: p["ratio"]["macs"],
    "units": lambda p: p["ratio"]["units"],
    "ms_1": lambda p: p.get("latency_ms", {}).get("1"),
    "ms_64": lambda p: p.get("latency_ms", {}).get("64"),
}

__all__ = ["RATIOS", "CompareJob", "compare", "curve_of", "quality_of"]
