"""The one way through: model + data → structure → effects → verdicts → path → surgery → evaluation → artifact."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cswap import distributed
from cswap.artifacts.files import MANIFEST
from cswap.artifacts.folder import Artifact, open_artifact, save, spec_of
from cswap.artifacts.journal import (
    PINNED,
    Journal,
    forget_if_empty,
    open_folder,
    packed,
    read_journal,
    read_state,
    replacing,
    rewrite_journal,
    unpacked,
)  # fmt: skip
from cswap.causal.engine import MOST_ROWS, WORKING_SET, Scores
from cswap.causal.stats import EffectStats
from cswap.data.calibration import CalibrationSet, calibration_set
from cswap.data.models import ModelSpec, load_weights, sha256_of
from cswap.data.sources import DataPair, ImageFormat, image_format, limited, names_code, open_data
from cswap.errors import CswapError, DataError, InputError, StructureError
from cswap.evaluate.cost import measure_cost
from cswap.evaluate.quality import measure_quality
from cswap.methods import registry
from cswap.methods.options import Options
from cswap.methods.path import PruningPath, Silence, Sink, Start, Watched
from cswap.recovery import recovered
from cswap.recovery.base import steps_of
from cswap.structure.check import Agreement
from cswap.structure.discover import discover
from cswap.structure.groups import Structure
from cswap.structure.ledger import check_reachable
from cswap.tasks import TASKS, Task
from cswap.types import Cliff, Decision, Target


@dataclass(frozen=True)
class Source:
    """Where a model comes from: its spec and a weights file."""

    spec: ModelSpec
    weights: Path | None = None

    def build(self) -> nn.Module:
        """The original network."""
        model = self.spec.build()
        if self.weights is not None:
            load_weights(model, self.weights)
        return model

    def as_dict(self) -> dict[str, Any]:
        """For the manifest: what `apply` and `eval` need to build the original again."""
        return {
            "spec": self.spec.text,
            "arguments": self.spec.arguments,
            "weights": None if self.weights is None else str(self.weights.resolve()),
            "weights_sha256": None if self.weights is None else sha256_of(self.weights),
        }


@dataclass(frozen=True)
class DataChoice:
    """What the user said about data."""

    text: str
    image_size: int | None = None
    mean: str | None = None
    std: str | None = None
    per_class: int = 128
    allow_imbalance: bool = False
    labels: Path | None = None
    calibration_split: str | None = None
    eval_split: str | None = None
    eval_samples: int | None = None
    tokenizer: Path | None = None
    max_length: int | None = None

    def form(self, spec: ModelSpec | None) -> ImageFormat:
        """How its images become tensors."""
        return image_format(spec, self.image_size, self.mean, self.std)

    def open(self, spec: ModelSpec | None) -> DataPair:
        """Train and evaluation datasets."""
        return open_data(
            self.text, self.form(spec), calibration_split=self.calibration_split, eval_split=self.eval_split,
            labels=self.labels, tokenizer=self.tokenizer or (spec.folder if spec else None), max_length=self.max_length,
        )  # fmt: skip


@dataclass(frozen=True)
class Machine:
    """Where it runs."""

    device: str = "auto"
    memory: int = 4 << 30

    @property
    def torch_device(self) -> str:
        """`auto` is CUDA where there is one."""
        if self.device == "auto":
            return "cuda" if torch.cuda.is_available() else "cpu"
        try:
            torch.empty(0, device=self.device)
        except (RuntimeError, AssertionError):
            raise InputError(f"device: {self.device!r} is not there; expected auto, cpu or cuda") from None
        return self.device


@dataclass
class Clock:
    """Seconds by phase."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time one phase."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = round(self.seconds.get(name, 0.0) + time.perf_counter() - start, 3)


class Watcher(Silence):
    """What a caller may hear of a run: structure, phases, decisions, cliffs. Overridden by the command line."""

    def phase(self, name: str) -> None:
        """A phase begins."""

    def structure(self, structure: Structure, target: Target) -> None:
        """What can be pruned is known."""


@dataclass(frozen=True)
class Both:
    """Two sinks as one."""

    first: Sink
    second: Sink

    def decided(self, decision: Decision, stats: EffectStats | None) -> None:
        self.first.decided(decision, stats)
        self.second.decided(decision, stats)

    def keep(self, step: int, scores: Scores, watched: Watched) -> None:
        self.first.keep(step, scores, watched)
        self.second.keep(step, scores, watched)

    def cliff(self, cliff: Cliff) -> None:
        self.first.cliff(cliff)
        self.second.cliff(cliff)

    def note(self, text: str) -> None:
        self.first.note(text)
        self.second.note(text)


def task_named(name: str) -> Task:
    """A task by name; raises InputError."""
    if name not in TASKS:
        raise InputError(f"task: expected one of {', '.join(TASKS)}, got {name!r}")
    task: Task = TASKS[name]()
    return task


def check_fits(model: nn.Module, calibration: CalibrationSet, task: Task) -> None:
    """The model must take the data and have an output for every class. Raises DataError."""
    sample = calibration.inputs(0, 1)
    try:
        with torch.inference_mode():
            outputs = model(sample)
    except Exception as error:
        line = (str(error).splitlines() or [""])[0][:160]
        raise DataError(
            f"the model does not take inputs of shape {tuple(sample.shape)} ({type(error).__name__}: {line})"
        ) from error
    if task.name in ("classification", "text"):
        from cswap.tasks.classification import logits_of

        width, classes = logits_of(outputs).shape[1], len(calibration.classes)
        if width != classes:
            raise DataError(
                f"the model has {width} outputs and the data {classes} classes: expected the same, in the same order; "
                "--labels FILE says which output is which class"
            )


@dataclass(frozen=True)
class PruneJob:
    """All that `cswap prune` needs."""

    source: Source
    data: DataChoice
    out: Path
    target: Target
    method: str = "cswap"
    task: str = "classification"
    options: Options = Options()
    only: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    machine: Machine = Machine()
    resume: bool = False
    force: bool = False
    recover: str = "none"

    def __post_init__(self) -> None:
        steps_of(self.recover)

    def fingerprint(self, calibration: CalibrationSet, model: nn.Module) -> dict[str, Any]:
        """What must be the same for a resumed run; the target may grow, and what is recovered may change."""
        return {
            "model": {"spec": self.source.spec.text, "arguments": self.source.spec.arguments},
            "weights": state_hash(model),
            "data": calibration.fingerprint(),
            "per_class": self.data.per_class,
            "method": self.method,
            "task": self.task,
            "options": self.options.as_dict(),
            "only": list(self.only),
            "exclude": list(self.exclude),
        }


def state_hash(model: nn.Module) -> str:
    """Hash of all parameters and buffers by name, wherever they came from."""
    digest = hashlib.sha256(repr(model).encode())
    for name, tensor in model.state_dict().items():
        digest.update(name.encode() + tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def prune(job: PruneJob, watcher: Watcher | None = None) -> dict[str, Any]:
    """Run a job to a whole artifact; returns `summary.json`. The journal in `job.out` survives any failure.

    Under torchrun the analysis is shared by all processes; the first writes the artifact, and the others return {}.
    """
    with distributed.joined(job.machine.torch_device) as device:
        return _prune(job, watcher or Watcher(), device)


def _prune(job: PruneJob, watcher: Watcher, device: str) -> dict[str, Any]:
    task, clock = task_named(job.task), Clock()
    with clock.phase("load"):
        watcher.phase("load")
        model = job.source.build()
        pair = job.data.open(job.source.spec)
        calibration = calibration_set(
            pair.train, job.data.per_class, job.options.seed, classes=pair.classes,
            allow_imbalance=job.data.allow_imbalance,
        )  # fmt: skip
        check_fits(model, calibration, task)
        held_out = limited(pair.evaluation, job.data.eval_samples, job.options.seed)
    with clock.phase("structure"):
        watcher.phase("structure")
        structure = discover(model, calibration.inputs(0, 2))
        if not structure.groups:
            raise StructureError("nothing can be pruned in this model; `cswap support` says why")
        structure = structure.select(job.only, job.exclude)
        watcher.structure(structure, job.target)
        registry.find(job.method)
        check_reachable(structure, job.target)
    analysis = _Analysis(job, model, structure, calibration, task, device, watcher, clock)
    if distributed.rank() > 0:
        analysis.join()
        return {}
    with replacing(job.out, job.force):
        run = job.fingerprint(calibration, model)
        path = analysis.lead(run)
        return finish(
            Finished(model, path, task, held_out, calibration, job.source, job.data, run, job.recover, job.machine.memory),
            job.target, job.out, device, clock, watcher,
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class _Analysis:
    """The method's part of a job, in the process that writes and in those that only help."""

    job: PruneJob
    model: nn.Module
    structure: Structure
    calibration: CalibrationSet
    task: Task
    device: str
    watcher: Watcher
    clock: Clock

    def lead(self, run: dict[str, Any]) -> PruningPath:
        """Open the folder, tell the others what it holds, and run with the journal; `run` gets what is pinned."""
        out, classes = self.job.out, self.calibration.classes
        run[PINNED] = {
            "threads": torch.get_num_threads(), "processes": distributed.world(), "memory": self.job.machine.memory,
            "batch_bytes": WORKING_SET, "batch_rows": MOST_ROWS, "device": self.device.partition(":")[0],
        }  # fmt: skip
        try:
            going_on = open_folder(out, run, resume=self.job.resume, force=self.job.force)
            start = self._start(out) if going_on else Start()
        except CswapError as error:
            distributed.from_first(f"!{error}".encode())
            raise
        distributed.from_first(json.dumps(run[PINNED]).encode())
        distributed.from_first(packed(out) if going_on else b"")
        if going_on:
            rewrite_journal(out, list(start.decisions))
        with self.clock.phase("analysis"):
            self.watcher.phase("analysis")
            journal = Journal(out, classes)
            try:
                return self._call(start, Both(journal, self.watcher), run[PINNED])
            finally:
                journal.close()
                forget_if_empty(out)

    def join(self) -> None:
        """Help the process that leads."""
        said = distributed.from_first(None)
        if said.startswith(b"!"):
            raise InputError(said[1:].decode())
        held, start = distributed.from_first(None), Start()
        if held:
            with tempfile.TemporaryDirectory() as scratch:
                unpacked(held, Path(scratch))
                start = self._start(Path(scratch))
        self._call(start, Silence(), json.loads(said))

    def _start(self, folder: Path) -> Start:
        decisions = read_journal(folder, self.structure, self.calibration.classes, self.job.options.rule)
        return Start(tuple(decisions), read_state(folder, len(decisions)))

    def _call(self, start: Start, sink: Sink, pinned: dict[str, Any]) -> PruningPath:
        """Run the method as the journal has it: with its threads and its memory, on which batches depend."""
        threads = torch.get_num_threads()
        if pinned.get("processes") == distributed.world():
            torch.set_num_threads(int(pinned.get("threads", threads)))
        try:
            return registry.call(
                self.job.method, self.model, self.structure, self.calibration, self.task, target=self.job.target,
                options=self.job.options, start=start, sink=sink, device=self.device,
                memory=int(pinned.get("memory", self.job.machine.memory)),
            )  # fmt: skip
        finally:
            torch.set_num_threads(threads)


@dataclass(frozen=True, eq=False)
class Finished:
    """A path and all that is needed to turn it into an artifact."""

    model: nn.Module
    path: PruningPath
    task: Task
    held_out: Any
    calibration: CalibrationSet
    source: Source
    data: DataChoice
    run: dict[str, Any]
    recover: str = "none"
    memory: int = 4 << 30


def verified_copy(
    model: nn.Module, path: PruningPath, target: Target, inputs: torch.Tensor
) -> tuple[nn.Module, Agreement]:
    """The pruned module and how well it agrees with the masked one; raises MismatchError when it does not."""
    path.example = inputs
    small: Any = path.apply(model, target)
    agreed: Agreement = small._cswap.agreement
    return small, agreed


def finish(done: Finished, target: Target, out: Path, device: str, clock: Clock, watcher: Watcher) -> dict[str, Any]:
    """Surgery, check, evaluation, artifact; returns the summary."""
    path, reached = done.path, done.path.ended
    if target.value is not None and not target.reached(path.ratio):
        reached = f"stopped before the target: {path.ended}"
        target_used = Target("units", path.ratio.units)
    else:
        target_used = target
    with clock.phase("surgery"):
        watcher.phase("surgery")
        inputs = done.calibration.inputs(0, min(32, len(done.calibration)))
        small, agreed = verified_copy(done.model, path, target_used, inputs)
    surgery: Any = small._cswap
    recovery = None
    if steps_of(done.recover) and surgery.steps:
        with clock.phase("recovery"):
            watcher.phase("recovery")
            recovery = recovered(
                small, done.model, done.calibration, done.recover, task=done.task, device=device, memory=done.memory
            )
            small = recovery.model
    with clock.phase("evaluation"):
        watcher.phase("evaluation")
        models = {"baseline": done.model, "pruned": small}
        quality = measure_quality(models, done.held_out, done.task, len(path.classes), device=device)
    with clock.phase("cost"):
        watcher.phase("cost")
        cost = measure_cost(models, done.calibration.inputs(0, 1))
    summary = {
        "method": path.method,
        "engine": path.engine,
        "notes": path.notes,
        "target": str(target),
        "ended": reached,
        "ratio": surgery.ratio.as_dict(),
        "verdicts": path.verdicts(),
        "classes": list(path.classes),
        **{n: {"quality": quality[n], **cost[n]} for n in models},
        "held_out_samples": len(done.held_out),
        "calibration_samples": len(done.calibration),
        "max_abs_difference": agreed.difference,
        "recovery": None if recovery is None else recovery.as_dict(),
        "cliffs": [{"step": c.step, "group": c.group, "before": c.before, "after": c.after, "classes": list(c.classes)}
                   for c in path.cliffs],
        "seconds": clock.seconds,
    }  # fmt: skip
    points = [
        {"ratio": {"params": 0.0, "macs": 0.0, "units": 0.0}, **summary["baseline"]},
        {"ratio": summary["ratio"], **summary["pruned"]},
    ]
    save(
        small, out, path=path, factory=done.source.spec, force=True, summary=summary, curve={"points": points},
        details={
            "run": done.run, "source": done.source.as_dict(),
            "data": {k: str(v) if isinstance(v, Path) else v for k, v in vars(done.data).items()},
            "task": done.task.name, "recovery": summary["recovery"],
        },
    )  # fmt: skip
    return summary


def original_of(artifact: Artifact, source: Source | None, trust: bool) -> tuple[nn.Module, Source]:
    """The original network of an artifact: from `source` where given, else as the manifest recorded it."""
    recorded = artifact.manifest.get("source")
    if source is not None and source.weights is not None:
        return source.build(), source
    if not isinstance(recorded, dict):
        raise InputError("the artifact does not say where its original came from: give --model and --weights")
    spec = source.spec if source else spec_of(artifact.folder, artifact.manifest, trust)
    weights = Path(recorded["weights"]) if recorded.get("weights") else None
    if weights is not None and (not weights.is_file() or sha256_of(weights) != recorded.get("weights_sha256")):
        raise InputError(f"the original weights {weights} are gone or have changed; --weights F says where they are")
    found = Source(spec, weights)
    return found.build(), found


def choice_of(artifact: Artifact, data: str | None, trust: bool) -> DataChoice:
    """The data the artifact was made with, or `data` in its stead with the same format.

    A FILE.py that only the manifest names runs with `trust` alone. Raises InputError.
    """
    if data is not None and "data" not in artifact.manifest:
        return DataChoice(data)  # saved from Python: the model's own image format
    try:
        recorded = dict(artifact.manifest["data"])
        for file in ("labels", "tokenizer"):
            recorded[file] = Path(recorded[file]) if recorded.get(file) else None
        choice = DataChoice(**recorded)
    except (KeyError, TypeError, ValueError):
        raise InputError("the artifact does not say what data it was made with: it was saved from Python") from None
    if data is not None:
        return DataChoice(**{**vars(choice), "text": data})
    if names_code(choice.text) and not trust:
        raise InputError(
            f"the artifact names {choice.text!r} as its data, code that would run: pass --data, or --trust it"
        )
    return choice


def same_classes(pair: DataPair, artifact: Artifact) -> None:
    """Data given later must have the artifact's classes in its order. Raises DataError."""
    if pair.classes != artifact.path.classes:
        raise DataError(
            f"data: expected the artifact's {len(artifact.path.classes)} classes ({', '.join(artifact.path.classes[:4])}, …), "
            f"got {len(pair.classes)} ({', '.join(pair.classes[:4])}, …)"
        )


def apply(
    folder: Path, target: Target, out: Path, *, source: Source | None = None, data: str | None = None, trust: bool = False,
    force: bool = False, machine: Machine = Machine(), watcher: Watcher | None = None, recover: str = "none",
) -> dict[str, Any]:  # fmt: skip
    """Another target from a stored path, without new analysis; returns the summary."""
    watcher, clock = watcher or Watcher(), Clock()
    steps_of(recover)
    artifact = open_artifact(folder)
    artifact.path.prefix(target)  # beyond the end: said before anything is loaded
    if out.resolve() == folder.resolve():
        raise InputError(f"out: {out} is the artifact itself; name another folder")
    with clock.phase("load"):
        model, found = original_of(artifact, source, trust)
        choice = choice_of(artifact, data, trust)
        pair = choice.open(found.spec)
        same_classes(pair, artifact)
        calibration = calibration_set(
            pair.train, choice.per_class, artifact.path.options.get("seed", 0), classes=pair.classes,
            allow_imbalance=choice.allow_imbalance,
        )  # fmt: skip
        held_out = limited(pair.evaluation, choice.eval_samples, artifact.path.options.get("seed", 0))
    run = artifact.manifest.get("run", {})
    task = task_named(str(artifact.manifest.get("task", "classification")))
    done = Finished(model, artifact.path, task, held_out, calibration, found, choice, run, recover, machine.memory)
    with replacing(out, force):
        open_folder(out, run, resume=False, force=force)
        try:
            return finish(done, target, out, machine.torch_device, clock, watcher)
        finally:
            if not (out / MANIFEST).exists():
                shutil.rmtree(out)


def evaluate(
    folder: Path, *, source: Source | None = None, data: str | None = None, trust: bool = False,
    machine: Machine = Machine(), watcher: Watcher | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Quality and cost of original and pruned, side by side."""
    from cswap.artifacts.folder import load

    watcher = watcher or Watcher()
    artifact = open_artifact(folder)
    model, found = original_of(artifact, source, trust)
    small = load(folder, factory=source.spec.build if source else None, trust=trust)
    choice = choice_of(artifact, data, trust)
    pair = choice.open(found.spec)
    same_classes(pair, artifact)
    held_out = limited(pair.evaluation, choice.eval_samples, artifact.path.options.get("seed", 0))
    task, device = task_named(str(artifact.manifest.get("task", "classification"))), machine.torch_device
    watcher.phase("evaluation")
    models = {"baseline": model, "pruned": small}
    quality = measure_quality(models, held_out, task, len(artifact.path.classes), device=device)
    watcher.phase("cost")
    cost = measure_cost(models, torch.as_tensor(held_out[0][0]).unsqueeze(0))
    return {
        "target": artifact.manifest["target"],
        "ratio": artifact.manifest["ratio"],
        "held_out_samples": len(held_out),  # type: ignore[arg-type]
        "classes": list(artifact.path.classes),
        **{n: {"quality": quality[n], **cost[n]} for n in models},
    }


def prune_path(
    model: nn.Module,
    calibration: CalibrationSet,
    *,
    task: Task | None = None,
    method: str = "cswap",
    target: Target | str = Target("complete"),  # noqa: B008 — frozen
    structure: Structure | None = None,
    sink: Sink | None = None,
    device: str = "auto",
    memory: int = 4 << 30,
    **options: Any,
) -> PruningPath:
    """The path of a method for a model in memory; `model` and the random state are untouched.

    By default the path is complete, so that any target lies on it; a `target` (or "noncritical") stops it there.

    `options`: fields of `Options` (alpha=0.05, vote="class", …). Raises InputError, StructureError, DataError.
    """
    try:
        chosen = Options(**options)
    except TypeError as error:
        raise InputError(f"prune_path: {error}") from None
    chosen_task = task if task is not None else task_named("classification")
    structure = structure or discover(model, calibration.inputs(0, 2))
    if not structure.groups:
        raise StructureError("nothing can be pruned in this model")
    path = registry.call(
        method, model, structure, calibration, chosen_task, target=Target.parse(target), options=chosen, start=Start(),
        sink=sink or Silence(), device=Machine(device).torch_device, memory=memory,
    )  # fmt: skip
    path.example = calibration.inputs(0, min(32, len(calibration)))
    return path
