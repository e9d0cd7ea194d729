"""`cswap prune`: a job from model and data to a whole artifact."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cswap import distributed
from cswap.artifacts.aside import replacing
from cswap.artifacts.claims import PACE, PINNED, claim, forget_if_empty, look_into
from cswap.artifacts.files import MANIFEST
from cswap.artifacts.folder import cliffs_of, read_manifest
from cswap.artifacts.journal import (
    Journal,
    packed,
    read_start,
    rewrite_journal,
    unpacked,
)
from cswap.causal.engine import MOST_ROWS, working_set
from cswap.data.calibration import CalibrationSet
from cswap.data.sources import limited
from cswap.errors import CswapError, InputError, StructureError
from cswap.methods import registry
from cswap.methods.path import PruningPath, Silence, Sink, Start
from cswap.pipeline.checks import check_fits, recovering_with, refuse_routed, task_named, unseen_data
from cswap.pipeline.finish import Finished, finish
from cswap.pipeline.jobs import PruneJob
from cswap.pipeline.pace import check_pace, paced
from cswap.pipeline.watch import Both, Clock, Watcher
from cswap.structure.discover import discover
from cswap.structure.groups import Structure
from cswap.structure.ledger import check_reachable
from cswap.tasks import Task
from cswap.types import Decision


def prune(job: PruneJob, watcher: Watcher | None = None) -> dict[str, Any]:
    """Run a job to a whole artifact; returns `summary.json`. The journal in `job.out` survives any failure.

    Under torchrun the analysis is shared by all processes; the first writes the artifact, and the others return {}.
    """
    with distributed.joined(job.machine.torch_device) as device:
        return _prune(job, watcher or Watcher(), device)


def _prune(job: PruneJob, watcher: Watcher, device: str) -> dict[str, Any]:
    clock = Clock()
    task_named(job.task)  # a wrong name is said before anything is loaded
    with clock.phase("load"):
        watcher.phase("load")
        model = job.source.build()
        pair = job.data.open(job.source.spec, model)
        task = task_named(job.task, pair)
        calibration = job.data.calibration(pair, job.options.seed)
        check_fits(model, calibration, task)
        recovering = recovering_with(job.wish, job.data, pair, job.options.seed, calibration)
        used = max(calibration, recovering, key=len)  # the larger draw holds the other
        unseen = unseen_data(job.wish, job.data, job.source.spec, model, pair.classes, used, job.options.alpha)
        held_out = limited(pair.evaluation, job.data.eval_samples, job.options.seed)
    with clock.phase("structure"):
        watcher.phase("structure")
        structure = discover(model, calibration.some(2))
        refuse_routed(model, structure, calibration)
        if not structure.groups:
            raise StructureError("nothing can be pruned in this model; `cswap support` says why")
        structure = structure.select(job.only, job.exclude)
        watcher.structure(structure, job.target)
        registry.find(job.method)
        check_reachable(structure, job.target, job.wish.round_to)
    analysis = _Analysis(job, model, structure, calibration, recovering, task, device, watcher, clock)
    if distributed.rank() > 0:
        analysis.join()
        return {}
    with replacing(job.out, job.force, resume=job.resume):
        run = job.fingerprint(calibration, model)
        if job.options.stages:  # which refit with them
            run["refit"] = recovering.fingerprint()
        path = analysis.lead(run)
        path.of_run = True
        return finish(
            Finished(model, path, task, held_out, calibration, recovering, job.source, job.data, run, job.wish, job.machine.memory, unseen),
            job.target, job.out, device, clock, watcher,
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class _Analysis:
    """The method's part of a job, in the process that writes and in those that only help."""

    job: PruneJob
    model: nn.Module
    structure: Structure
    calibration: CalibrationSet
    recovering: CalibrationSet
    task: Task
    device: str
    watcher: Watcher
    clock: Clock

    def lead(self, run: dict[str, Any]) -> PruningPath:
        """Open the folder, tell the others what it holds, and run with the journal; `run` gets what is pinned."""
        out, classes = self.job.out, self.calibration.classes
        run[PINNED] = {
            "threads": torch.get_num_threads(), "processes": distributed.world(), "memory": self.job.machine.memory,
            "batch_bytes": working_set(self.device), "batch_rows": MOST_ROWS, "device": self.device.partition(":")[0],
        }  # fmt: skip
        try:
            going_on = look_into(out, run, resume=self.job.resume, force=self.job.force)
            start = self._start(out) if going_on else Start()
            self._pin_pace(run[PINNED])
            claim(out, run)
            if going_on:
                rewrite_journal(out, start)
        except CswapError as error:
            distributed.from_first(f"!{error}".encode())
            raise
        distributed.from_first(json.dumps(run[PINNED]).encode())
        distributed.from_first(packed(out) if going_on else b"")
        with self.clock.phase("analysis"):
            self.watcher.phase("analysis")
            try:
                journal = Journal(out, classes)
                try:
                    return self._call(start, Both(journal, self.watcher), run[PINNED])
                finally:
                    journal.close()
            finally:
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

    def _pin_pace(self, pinned: dict[str, Any]) -> None:
        """What a MAC of each group takes, where time is counted: as the run that goes on began with, else measured now."""
        if self.job.options.per != "latency":
            return
        if PACE in pinned:
            check_pace(self.structure, pinned[PACE])
            return
        with self.clock.phase(PACE):
            self.watcher.phase(PACE)
            sample, batch = self.calibration.inputs(0, 1), self.job.wish.latency_batch
            pinned[PACE] = paced(self.model, self.structure, sample, batch=batch, device=self.device).pace

    def _start(self, folder: Path) -> Start:
        options = self.job.options
        start = read_start(folder, self.structure, self.calibration.classes, options.rule, options.block)
        self._check_goes_on(start.decisions)
        told = cliffs_of(read_manifest(folder)) if (folder / MANIFEST).exists() else ()
        return replace(start, cliffs=told)

    def _check_goes_on(self, decisions: Sequence[Decision]) -> None:
        """A resumed run may go further than the one before it; to end sooner would lose what that found. Raises InputError."""
        target = self.job.analysed_to
        end = next((i for i, d in enumerate(decisions, 1) if d.removed and target.reached(d.ratio)), len(decisions))
        if len(decisions) - end >= self.job.options.block:
            out, ask = self.job.out, self.job.target
            raise InputError(
                f"resume: the path in {out} goes on beyond {ask} ({len(decisions)} decisions, {end} of them to there); nothing was changed: "
                f"`cswap apply {out} --target {ask} --out NEW` prunes to there, and a larger target goes on"
            )

    def _call(self, start: Start, sink: Sink, pinned: dict[str, Any]) -> PruningPath:
        """Run the method as the journal has it: with its threads and its memory, on which batches depend."""
        threads = torch.get_num_threads()
        if pinned.get("processes") == distributed.world():
            torch.set_num_threads(int(pinned.get("threads", threads)))
        try:
            return registry.call(
                self.job.method, self.model, replace(self.structure, pace=pinned.get(PACE, {})), self.calibration, self.task, target=self.job.analysed_to,
                options=self.job.options, start=start, sink=sink, device=self.device,
                memory=int(pinned.get("memory", self.job.machine.memory)),
                **({"refit": self.recovering} if self.job.options.stages else {}),
            )  # fmt: skip
        finally:
            torch.set_num_threads(threads)
