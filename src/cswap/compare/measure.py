"""One method with one seed: its complete path, and quality, cost and latency along it. What is known is kept in the folder."""

from __future__ import annotations

import base64
import contextlib
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from cswap.artifacts.claims import open_folder
from cswap.artifacts.files import read_json
from cswap.artifacts.journal import Journal, of_the_original, read_journal, read_start, read_tested, rewrite_journal
from cswap.causal.engine import emulated_bfloat16, refuse_near_chance
from cswap.causal.replay import engine_for
from cswap.causal.store import DifferenceStore, measure_differences
from cswap.compare.clock import KeptClock, timed
from cswap.compare.folder import write
from cswap.compare.job import CompareJob
from cswap.compare.summary import area
from cswap.data.calibration import CalibrationSet, calibration_set, labels_of
from cswap.data.sources import in_memory, limited
from cswap.data.truth import bytes_of, inputs_of, is_dense, raw_bytes, target_at
from cswap.errors import ArtifactError, StructureError, TargetError
from cswap.evaluate.cost import latency_ms
from cswap.evaluate.quality import measure_quality
from cswap.evaluate.significance import mcnemar
from cswap.methods import registry
from cswap.methods.path import PruningPath, Start
from cswap.pipeline import Both, Watcher, check_fits, refuse_routed, state_hash, task_named
from cswap.pipeline.finish import UNCOMPENSATED
from cswap.pipeline.unlabelled import PREDICTED
from cswap.recovery import recovered
from cswap.recovery.base import steps_of
from cswap.structure.discover import discover
from cswap.structure.groups import Structure
from cswap.structure.surgery import count_params
from cswap.tasks import Task
from cswap.types import BoolArray, Ratio, Target


@dataclass(eq=False)
class Run:
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
    kept: Path  # points of these held-out data; paths do not depend on them
    stores: dict[int, DifferenceStore] = field(default_factory=dict)
    seconds: dict[int, float] = field(default_factory=dict)

    def calibration(self, seed: int, per_class: int | None = None) -> CalibrationSet:
        """The samples of one seed; those of a larger draw hold those of a smaller one."""
        return calibration_set(
            self.train, per_class or self.job.data.per_class, seed, classes=self.classes,
            allow_imbalance=self.job.data.allow_imbalance,
        )  # fmt: skip

    def store(self, seed: int, calibration: CalibrationSet) -> DifferenceStore:
        """Differences of one seed's samples, measured once and kept in the folder."""
        if seed not in self.stores:
            file, spent = (
                self.job.out / f"differences.{seed}.safetensors",
                self.job.out / f"differences.{seed}.seconds.json",
            )
            if file.exists() and spent.exists():  # nothing is left to measure
                self.seconds[seed] = KeptClock(spent).seconds
            begun = file.exists() or any(file.parent.glob(f"{file.name}.*.part"))
            with timed(spent, going_on=begun) as clock:

                def tell(text: str) -> None:
                    clock.look()
                    self.watcher.note(text)

                self.stores[seed] = measure_differences(
                    self.model, self.structure, calibration, self.task, file=file, device=self.device,
                    memory=self.job.machine.memory, tell=tell,
                )  # fmt: skip
            self.seconds.setdefault(seed, clock.seconds)
        return self.stores[seed]


def opened(job: CompareJob, watcher: Watcher) -> tuple[Run, dict[str, Any]]:
    """All that is needed, and what must be the same for a resumed run; nothing is written."""
    watcher.phase("load")
    task_named(job.task)  # a wrong name is said before anything is loaded
    device = job.machine.torch_device
    model = job.source.build()
    pair = job.data.open(job.source.spec, model)
    task = task_named(job.task, pair)
    watcher.phase("structure")

    first = job.data.calibration(pair, job.seeds[0])
    same = job.data.calibration(pair, 0) if job.seeds[0] else first  # tells the data, whichever seeds are asked for
    check_fits(model, first, task)
    structure = discover(model, first.some(2))
    refuse_routed(model, structure, first)
    if not structure.groups:
        raise StructureError("nothing can be pruned in this model; `cswap support` says why")
    structure = structure.select(job.only, job.exclude)
    watcher.structure(structure, Target("complete"))
    if job.force and any(n.partition(":")[0] != "cbp" for n in job.methods):  # said before an old one is set aside
        engine = engine_for(model, structure, first, task, device=device, memory=job.machine.memory)
        refuse_near_chance(engine.scores(), first, task)
    held_out = in_memory(limited(pair.evaluation, job.data.eval_samples, job.options.seed))
    held = _fingerprint_of(held_out)
    fingerprint = {
        # hashes last: a changed number changes what was drawn, and is what the user wants to hear of
        "compare": job.source.spec.text, "task": job.task, "per_class": job.data.per_class,
        "options": {k: v for k, v in job.options.as_dict().items() if k != "seed"}, "only": list(job.only), "exclude": list(job.exclude),
        "weights": state_hash(model), "data": same.fingerprint(), "held_out": held,
    }  # fmt: skip
    if job.eval_amp and (slow := emulated_bfloat16(device)):
        watcher.note(f"eval-amp: {slow}")
    widths = f"-of-{job.round_to}" if job.round_to > 1 else ""
    kept = job.out / "points" / (held[:12] + ("-bfloat16" if job.eval_amp else "") + widths)
    run = Run(job, model, task, pair.train, held_out, pair.classes, structure, watcher, device, kept)
    return run, fingerprint


def _fingerprint_of(dataset: Any) -> str:
    """Hash of every input and target."""
    dense = is_dense(target_at(dataset, 0))
    digest = hashlib.sha256(b"" if dense else labels_of(dataset).tobytes())
    for i in range(len(dataset)):
        digest.update(raw_bytes(inputs_of(dataset, i)))
        digest.update(bytes_of(target_at(dataset, i)) if dense else b"")
    return digest.hexdigest()


def measured(run: Run, name: str, seed: int) -> dict[str, Any]:
    """One method with one seed: what the folder has, and the rest now."""
    run.watcher.method(name, seed)
    tag = f"{name.replace(':', '-')}.{seed}"
    calibration = run.calibration(seed)
    file = run.job.out / f"{tag}.json"
    if not file.exists():
        path, seconds = _path(run, name, seed, calibration)
        write(run.job, file, {"seconds": seconds, "engine": path.engine, "notes": path.notes, "verdicts": path.verdicts(),
                          "steps": len(path)})  # fmt: skip
    method, options = run.job.settings(name, seed)
    decisions = read_journal(
        run.job.out / "paths" / tag, run.structure, calibration.classes, options.rule, options.block
    )
    path = PruningPath(run.structure, method, options.as_dict(), calibration.classes, decisions)
    kept = read_json(file)
    if len(path) != kept.get("steps", len(path)):
        raise ArtifactError(
            f"resume: expected the {kept['steps']} decisions of {name} in {run.job.out / 'paths' / tag}, got {len(path)}; without {file} it is gone on with"
        )
    points = points_of(run, path, tag, seed)
    areas = {how: area(points, run.task.headline, how) for how in run.job.ways}
    kept["notes"] = [*kept["notes"], *_out_of_reach(path, run.job)]
    if method == "joint" and not any("lstsq" in steps_of(how) for how in run.job.ways):
        kept["notes"] = [*kept["notes"], UNCOMPENSATED]
    if run.job.data.unlabelled:
        kept["notes"] = [*kept["notes"], PREDICTED]
    return {**kept, "points": points, "sauce": areas}


def _path(run: Run, name: str, seed: int, calibration: CalibrationSet) -> tuple[PruningPath, float]:
    """The complete path, journaled. Seconds: all that were spent on it, over every run that was interrupted, and what others took
    to make the differences or the cuts that the method uses.
    """
    method, options = run.job.settings(name, seed)
    folder = run.job.out / "paths" / f"{name.replace(':', '-')}.{seed}"
    fingerprint = {"method": method, "options": options.as_dict(), "data": calibration.fingerprint()}
    more: dict[str, Any] = {}
    if options.stages:
        more["refit"] = run.calibration(seed, run.job.recover_per_class)
        fingerprint["refit"] = more["refit"].fingerprint()
    stored = (options.vote_score, options.amp, options.cut) == ("class", False, "plain") and calibration.members is None
    if method == "cbp" and stored:
        more["store"] = run.store(seed, calibration)
    going_on = open_folder(folder, fingerprint, resume=True, force=False)
    classes, rule = calibration.classes, options.rule
    start = read_start(folder, run.structure, classes, rule, options.block) if going_on else Start()
    spent = run.job.out / f"{folder.name}.seconds.json"
    if not start.tested and (beside := _tested_beside(run, name, seed)):
        run.watcher.note(f"{name} is allocated by the cuts that {beside.name} made")
        theirs = read_tested(beside, run.structure)
        start = replace(start, tested={g: {**f, "shared": True} for g, f in theirs.items() if of_the_original(g)})
    rewrite_journal(folder, start)
    shared = sum(found["seconds"] for found in start.tested.values() if "shared" in found)
    with timed(spent, going_on=going_on) as clock, _journal(folder, calibration.classes) as journal:
        path = registry.call(
            method, run.model, run.structure, calibration, run.task, target=Target("complete"), options=options, start=start,
            sink=Both(journal, Both(clock, run.watcher)), device=run.device, memory=run.job.machine.memory,
            **more,
        )  # fmt: skip
    return path, round(clock.seconds + shared + (run.seconds[seed] if "store" in more else 0.0), 3)


def _tested_beside(run: Run, name: str, seed: int) -> Path | None:
    """The folder of another `joint` of this seed that is done and made the same cuts of the original: all but `per`, `price` and `stages` are alike, and both by price."""
    if run.job.settings(name, seed)[0] != "joint":
        return None

    def cuts(other: str) -> tuple[str, dict[str, Any], bool]:
        method, options = run.job.settings(other, seed)
        alike = {"per": "", "price": options.price if options.price == "outputs" else "", "stages": ""}
        return method, options.as_dict() | alike, options.per == "unit"

    for other in run.job.methods:
        tag = f"{other.replace(':', '-')}.{seed}"
        if other != name and (run.job.out / f"{tag}.json").exists() and cuts(other) == cuts(name):
            return run.job.out / "paths" / tag
    return None


@contextlib.contextmanager
def _journal(folder: Path, classes: tuple[str, ...]) -> Iterator[Journal]:
    journal = Journal(folder, classes)
    try:
        yield journal
    finally:
        journal.close()


def _prefixes(path: PruningPath, job: CompareJob) -> list[dict[str, Any]]:
    """Which prefixes are evaluated: each ratio in each kind, as far as the path goes. One that answers two ratios of a kind,
    because a unit is large, is two points.
    """
    # the unpruned network is always the first point
    found: dict[int, list[dict[str, Any]]] = {
        0: [{"steps": 0, "ratio": Ratio().as_dict(), "asked": {}, "target": Target("units", 0.0)}]
    }
    for kind, ratios in job.counted.items():
        for ratio in ratios:
            with contextlib.suppress(TargetError):
                target = Target.parse(f"{kind}={ratio:g}")
                _, steps, reached = path.prefix(target, job.round_to)
                alike = found.setdefault(steps, [])
                point = next((p for p in alike if kind not in p["asked"]), None)
                if point is None:
                    point = {"steps": steps, "ratio": reached.as_dict(), "asked": {}, "target": target}
                    alike.append(point)
                point["asked"][kind] = ratio
    return [p for s in sorted(found) for p in found[s]]


def _out_of_reach(path: PruningPath, job: CompareJob) -> list[str]:
    """The ratios asked for that no prefix reaches, in one note a kind."""
    found = []
    for kind, ratios in job.counted.items():
        most = path.prefix(Target("complete"), job.round_to)[2].as_dict()[kind]
        if beyond := [r for r in ratios if r > most + 1e-12]:
            found.append(
                f"{kind}={', '.join(f'{r:g}' for r in beyond)} lies beyond the end of the path, {kind}={most:.4f}"
            )
    return found


def points_of(run: Run, path: PruningPath, tag: str, seed: int) -> list[dict[str, Any]]:
    """Quality, cost and latency of every prefix on held-out data, plain and recovered, point by point."""
    points: list[dict[str, Any]] = _prefixes(path, run.job)
    nets: dict[str, nn.Module] = {}
    for p in points:
        target, key = p.pop("target"), str(p["steps"])
        small = nets[key] if key in nets else path.apply(run.model, target, run.job.round_to)
        nets[key] = small
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
            raw = _point(run, small, tag, p["steps"], how, seed) if p["steps"] else {**plain, **_NOTHING}
            # what a user gets is the plain network where the recovery is declined
            found: dict[str, Any] = {
                **raw,
                **({k: plain[k] for k in ("quality", "hits") if k in plain} if raw["declined"] else {}),
            }
            p["recovered"][how] = {k: v for k, v in found.items() if k not in ("hits", "each")} | {
                "raw_quality": raw["quality"]
            }
            if "hits" in plain and "hits" in raw:  # of the recovered network itself, whether or not it is declined
                p["recovered"][how]["p_worse"] = mcnemar(bits_of(plain["hits"]), bits_of(raw["hits"]))
    if run.job.latency:
        _timed(run, nets, points, tag)
    return points


_NOTHING = {"seconds": 0.0, "declined": None, "notes": ["nothing was removed: nothing to give back"]}
"""What a recovery of the unpruned network is; its quality is the network's own."""


def _point(run: Run, small: nn.Module, tag: str, steps: int, how: str, seed: int) -> dict[str, Any]:
    """One network, recovered one way and measured; kept in the folder as soon as it is known."""
    by = "" if how == "none" else f".{run.job.recover_per_class or run.job.data.per_class}"
    file = run.kept / f"{tag}.{steps}.{how}{by}.json"
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
    else:
        facts["each"] = base64.b64encode(right.astype("<f4").tobytes()).decode()
    write(run.job, file, {"quality": quality, "samples": len(right), **facts})
    return read_json(file)


def bits_of(packed: str) -> BoolArray:
    """Whether each sample is right; the padding bits are wrong in both networks that are compared."""
    return np.unpackbits(np.frombuffer(base64.b64decode(packed), dtype=np.uint8)).astype(np.bool_)


def _timed(run: Run, nets: dict[str, nn.Module], points: list[dict[str, Any]], tag: str) -> None:
    """Median latency of every point at batch 1 and 64, all in turns."""
    file = run.job.out / f"{tag}.latency.json"
    held = read_json(file) if file.exists() else {}
    if any(n not in held for n in nets):
        sample = run.calibration(run.job.seeds[0]).inputs(0, 1)
        timed = {str(b): latency_ms(nets, sample, b, device=run.device, budget_s=0.05 * len(nets)) for b in (1, 64)}
        held = {n: {b: t[n] for b, t in timed.items()} for n in nets}
        write(run.job, file, held)
    for p in points:
        p["latency_ms"] = held[str(p["steps"])]
