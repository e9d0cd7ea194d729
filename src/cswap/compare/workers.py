"""Methods in processes of their own, each with its share of threads and memory; what they find is kept in the folder."""

from __future__ import annotations

import copy
import multiprocessing
import os
import signal
import threading
import time
import traceback
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import ForkingPickler
from typing import Any

import torch

from cswap.causal.stats import EffectStats
from cswap.compare.job import CompareJob
from cswap.compare.measure import Run, measured, opened
from cswap.data.models import one_line
from cswap.errors import InputError, MethodError, RunError
from cswap.pipeline import Watcher
from cswap.types import Decision

_CONTEXT = multiprocessing.get_context("spawn")  # a forked process may inherit a lock that torch holds
_EVERY = 15.0  # seconds between lines on a method's progress
Task = tuple[str, int]
Work = tuple[Task, ...]


@dataclass
class _Worker:
    process: SpawnProcess
    doing: Work = ()
    ready: bool = False


def refuse_a_child() -> None:
    """A script without a main guard is run again in every process that it starts. Raises InputError there."""
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise InputError("jobs: expected `if __name__ == '__main__':` around what starts processes, found none")


def measure_in_processes(run: Run, fingerprint: dict[str, Any]) -> None:
    """Measure every method with every seed, `run.job.jobs` at a time, each in a process of its own; latency is not timed there.

    fingerprint: what every process must find too. Raises what a method raises, InputError for a model or data that are others
    in each process, RunError when a process dies; the others are stopped then, and their journals stay.
    """
    left = _work(run.job)
    count = min(run.job.jobs, len(left))
    threads = max(1, torch.get_num_threads() // count)
    machine = replace(run.job.machine, memory=run.job.machine.memory // count)
    job = replace(run.job, latency=False, jobs=1, force=False, machine=machine)
    workers: dict[Connection, _Worker] = {}
    try:
        with _deaf_to_ctrl_c():
            for _ in range(count):
                mine, its = _CONTEXT.Pipe()
                process = _CONTEXT.Process(target=_measure, args=(its, job, fingerprint, threads))
                process.start()
                its.close()
                workers[mine] = _Worker(process)
        while workers:
            for pipe in [p for p in wait(list(workers)) if isinstance(p, Connection)]:
                if _done(pipe, workers[pipe], run):
                    _next(pipe, workers, left)
    finally:
        for pipe, worker in workers.items():
            worker.process.terminate()
            worker.process.join()
            pipe.close()


def _work(job: CompareJob) -> list[Work]:
    """What a process is given at once: a method with a seed; all C-BPs of a seed, which share one store of differences."""
    work: dict[Any, list[Task]] = {}
    for name in job.methods:
        for seed in job.seeds:
            shared = job.settings(name, seed)[0] == "cbp"
            work.setdefault(("cbp", seed) if shared else (name, seed), []).append((name, seed))
    return [tuple(tasks) for tasks in work.values()]


@contextmanager
def _deaf_to_ctrl_c() -> Iterator[None]:
    """Processes that start here never hear Ctrl-C: it is for the first process, which ends them."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _done(pipe: Connection, worker: _Worker, run: Run) -> bool:
    """Hear what a process says, and whether it wants more; raises what it raised."""
    try:
        said: Any = pipe.recv()
    except (EOFError, OSError):
        worker.process.join(10)
        raise _died(worker, run) from None
    if isinstance(said, BaseException):
        raise said
    if isinstance(said, str):
        run.watcher.note(said)
        return False
    worker.ready = True
    for name, seed in worker.doing:
        run.watcher.note(f"{name}, seed {seed}: measured")
    return True


def _next(pipe: Connection, workers: dict[Connection, _Worker], left: list[Work]) -> None:
    """More work for a process, or its end."""
    worker = workers[pipe]
    worker.doing = left.pop(0) if left else ()
    with suppress(OSError):  # one that is dead is found when it is listened to
        pipe.send(worker.doing)
    if not worker.doing:
        worker.process.join()
        pipe.close()
        del workers[pipe]


def _died(worker: _Worker, run: Run) -> RunError:
    code = worker.process.exitcode
    how = f"signal {-code}" if code is not None and code < 0 else f"status {code}"
    if not worker.ready:
        return RunError(
            f"jobs: a process ended with {how} before it could measure; a script needs `if __name__ == '__main__':` around what "
            "starts processes"
        )
    names = ", ".join(f"{name}, seed {seed}" for name, seed in worker.doing)
    return RunError(
        f"the process that measured {names} died ({how}); what was done is kept in {run.job.out}: the same command with --resume goes on"
    )


# in a process that measures


class _Heard(Watcher):
    """What a method says on its way, told to the first process."""

    def __init__(self, pipe: Connection) -> None:
        self.pipe, self.name, self.decisions, self.last = pipe, "", 0, time.monotonic()

    def note(self, text: str) -> None:
        self.pipe.send(text if text.startswith(self.name) else f"{self.name}: {text}")

    def tested(self, group: str, found: Mapping[str, Any], done: int, groups: int) -> None:
        if time.monotonic() - self.last >= _EVERY:
            self.last = time.monotonic()
            self.note(f"{done} of {groups} groups tested")

    def decided(self, decision: Decision, stats: EffectStats | None) -> None:
        self.decisions += 1
        if time.monotonic() - self.last >= _EVERY:
            self.last = time.monotonic()
            removed = decision.ratio.as_dict()["params"]
            self.note(f"{decision.phase} {decision.group}, {self.decisions} decisions, params {removed:.4f} removed")


def _end_with(parent: BaseProcess | None) -> None:
    """Two processes must not write one journal: this one ends when the first does, killed or not."""
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _measure(pipe: Connection, job: CompareJob, fingerprint: dict[str, Any], threads: int) -> None:
    """What a process does: measure what it is sent, until it is sent nothing."""
    threading.Thread(target=_end_with, args=(multiprocessing.parent_process(),), daemon=True).start()
    warnings.simplefilter("ignore")  # the first process has said them
    torch.set_num_threads(threads)
    doing = "before it measured"
    try:
        run = _same(job, fingerprint)
        run.watcher = heard = _Heard(pipe)
        pipe.send(())
        while work := pipe.recv():
            for name, seed in work:
                doing, heard.name, heard.decisions = f"{name}, seed {seed}", f"{name}, seed {seed}", 0
                with suppress(MethodError):  # the first process meets it again, and says so
                    measured(run, name, seed)
            pipe.send(work)
    except EOFError:
        return
    except BaseException as error:  # noqa: BLE001 — it is raised again in the first process
        error.add_note(f"in the process that measured ({doing}):\n{traceback.format_exc()}")
        with suppress(OSError):
            pipe.send(_that_travels(error))


def _same(job: CompareJob, fingerprint: dict[str, Any]) -> Run:
    """What the first process opened, opened again. Raises InputError where it is not the same."""
    for name in job.methods:
        try:
            job.settings(name, 0)
        except InputError as error:
            raise InputError(
                f"jobs: a new process does not know what the first one does; register it where its module is imported, or use --jobs 1 ({error})"
            ) from None
    run, mine = opened(job, Watcher())
    differs = next((k for k in fingerprint if mine.get(k) != fingerprint[k]), None)
    if differs is not None:
        raise InputError(
            f"jobs: expected the same model and data in every process, found another {differs}; give the factory a seed, or --jobs 1"
        )
    return run


def _that_travels(error: BaseException) -> BaseException:
    """The error itself if it can be sent to another process, else one that says the same."""
    try:
        ForkingPickler.dumps(error)
        copy.copy(error)  # made again from its arguments, as on the other side
    except Exception:  # noqa: BLE001 — an exception's class may do anything here
        said = RunError(f"{type(error).__name__}: {one_line(error)}")
        for note in getattr(error, "__notes__", ()):
            said.add_note(note)
        return said
    return error
