"""Methods in processes of their own, each with its share of the threads; what they find is kept in the folder."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from multiprocessing.process import BaseProcess

import torch

from cswap.compare.job import CompareJob
from cswap.compare.measure import Run, measured, opened
from cswap.errors import RunError
from cswap.pipeline import Watcher

_CONTEXT = multiprocessing.get_context("spawn")  # a forked process may inherit a lock that torch holds
Task = tuple[str, int]


def measure_in_processes(run: Run, tasks: Sequence[Task]) -> None:
    """Measure (method, seed) pairs, `run.job.jobs` at a time, each in a process of its own; latency is not timed there.

    Raises what a method raises, RunError when a process dies; the others are stopped then, and their journals stay.
    """
    count = min(run.job.jobs, len(tasks))
    threads = max(1, torch.get_num_threads() // count)
    job = replace(run.job, latency=False, jobs=1)
    left = list(tasks)
    workers: dict[Connection, SpawnProcess] = {}
    try:
        for _ in range(count):
            mine, its = _CONTEXT.Pipe()
            process = _CONTEXT.Process(target=_work, args=(its, job, threads), daemon=True)
            process.start()
            its.close()
            workers[mine] = process
            _sent(mine, left.pop(0))
        busy = list(workers)
        while busy:
            ready = wait(busy)
            for pipe in [p for p in busy if p in ready]:
                name, seed = _heard(pipe, run)
                run.watcher.note(f"{name}, seed {seed}: measured")
                if left:
                    _sent(pipe, left.pop(0))
                else:
                    busy.remove(pipe)
    finally:
        for pipe, process in workers.items():
            pipe.close()
            process.terminate()  # one that is done has nothing left to lose
            process.join()


def _sent(pipe: Connection, task: Task) -> None:
    with suppress(OSError):  # one that is dead is found when it is listened to
        pipe.send(task)


def _heard(pipe: Connection, run: Run) -> Task:
    """What a process has measured; raises what it raised."""
    try:
        said: Task | BaseException = pipe.recv()
    except (EOFError, OSError):
        kept = f"what was done is kept in {run.job.out}: the same command with --resume goes on"
        raise RunError(f"a process that measured a method died; {kept}") from None
    if isinstance(said, BaseException):
        raise said
    return said


def _end_with(parent: BaseProcess | None) -> None:
    """Two processes must not write one journal: this one ends when the first does, killed or not."""
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _work(pipe: Connection, job: CompareJob, threads: int) -> None:
    """What a process does: measure what it is sent, until it is ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the first process, which ends this one
    threading.Thread(target=_end_with, args=(multiprocessing.parent_process(),), daemon=True).start()
    torch.set_num_threads(threads)
    try:
        run = opened(job, Watcher())[0]
        while True:
            task: Task = pipe.recv()
            measured(run, *task)
            pipe.send(task)
    except BaseException as error:  # noqa: BLE001 — it is raised again in the first process
        pipe.send(error)
