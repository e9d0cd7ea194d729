"""Does a job of a few seconds, struck at a random moment, resume to the artifact of the run that nothing struck?

    python benchmarks/faults.py [--count 50] [--seed 0] [--kinds kill-9,sigterm,…] [--work DIR]

Kinds: `kill -9`, SIGTERM and Ctrl-C at a random moment from the start of the command to its end; no room on the disk
(RLIMIT_FSIZE put on the running process, and a write of the journal that fails halfway); no more memory (RLIMIT_AS put on the
running process); one of two processes under torchrun killed. Each time the same command is given again, with `--resume`
where a journal is held, and path, weights and effects are compared with those of the whole run. A trial that the job outran
is drawn again. What is done is kept in DIR, so that this may be killed as well. Writes benchmarks/results/faults.json.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _machine import machine, write_result

KINDS = ("kill-9", "sigterm", "ctrl-c", "disk-full", "write-fails", "out-of-memory", "rank-dies")
SAYS = {
    "kill-9": "`kill -9`",
    "sigterm": "SIGTERM",
    "ctrl-c": "Ctrl-C (SIGINT)",
    "disk-full": "disk full (RLIMIT_FSIZE)",
    "write-fails": "a write of the journal fails halfway",
    "out-of-memory": "out of memory (RLIMIT_AS)",
    "rank-dies": "one of two processes killed (torchrun)",
}
SIGNALS = {"kill-9": signal.SIGKILL, "sigterm": signal.SIGTERM, "ctrl-c": signal.SIGINT}
SPAWN = multiprocessing.get_context("forkserver")
SPAWN.set_forkserver_preload(["cswap.cli.app", "cswap.demo", "cswap.pipeline", "torchvision", "sklearn.datasets"])
MOST_DRAWS = 12  # of a moment, for one trial
WIDTH = 8  # of the digits network


def command(arguments: list[str], said: str, torn_at: int | None) -> None:
    """In a process of its own, that can be struck. `torn_at`: the journal's disk takes so many bytes more."""
    import torch

    from cswap.cli.app import main

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    torch.set_num_threads(1)
    if torn_at is not None:
        tear(torn_at)
    sys.exit(main(arguments))


def launcher(arguments: list[str], out: str) -> None:
    """torchrun's launcher, its two processes forked from this one."""
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=2, run_id=out, rdzv_backend="c10d", rdzv_endpoint="localhost:0",
        max_restarts=0, monitor_interval=0.05, start_method="fork",
    )  # fmt: skip
    os.dup2(os.open(f"{out}.err", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    try:
        elastic_launch(config, one_of_two)(arguments, out)
    except ChildFailedError:
        sys.exit(1)


def one_of_two(arguments: list[str], out: str) -> None:
    Path(f"{out}.rank{os.environ['RANK']}").write_text(str(os.getpid()))
    command(arguments, f"{out}.err", None)


def tear(room: int) -> None:
    """The journal's files take `room` bytes together, then ENOSPC, the last write in part."""
    from cswap.artifacts import journal

    left = [room]

    class Torn:
        def __init__(self, file: Any) -> None:
            self.file = file

        def write(self, data: Any) -> None:
            fits = data[: left[0]]
            left[0] -= len(fits)
            self.file.write(fits)
            if len(fits) < len(data):
                self.file.flush()
                raise OSError(28, os.strerror(28))

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

    start = journal.Journal.__init__

    def begin(self: Any, *args: Any) -> None:
        start(self, *args)
        self._lines, self._records = Torn(self._lines), Torn(self._records)

    journal.Journal.__init__ = begin  # type: ignore[method-assign]


class Job:
    """The command, where it works, and how long it takes."""

    def __init__(self, root: Path) -> None:
        from safetensors.torch import save_file

        from cswap.demo import digits, digits_resnet, train

        self.root = root
        root.mkdir(parents=True, exist_ok=True)
        if not (root / "digits.safetensors").exists():
            save_file(train(digits_resnet(WIDTH), digits()[0], epochs=12).state_dict(), root / "part")
            (root / "part").replace(root / "digits.safetensors")
        (root / "data.py").write_text("from cswap.demo import digits\n\n\ndef data():\n    return digits()\n")
        self.arguments = [
            "prune", "--model", "cswap.demo:digits_resnet", "--model-arg", f"width={WIDTH}", "--weights",
            str(root / "digits.safetensors"), "--data", f"{root / 'data.py'}:data", "--per-class", "24", "--target",
            "params=0.55", "--alpha", "0.0001", "--quiet", "--eval-samples", "20",
        ]  # fmt: skip

    def start(self, out: Path, *, torn_at: int | None = None) -> Any:
        """The command on this folder, going on with what it holds."""
        held = any((out / name).exists() for name in ("run.json", "manifest.json"))
        more = ["--out", str(out), *(["--resume"] if held else [])]
        process = SPAWN.Process(target=command, args=([*self.arguments, *more], f"{out}.err", torn_at))
        process.start()
        return process

    def run(self, out: Path) -> int:
        """To its end; returns the exit status."""
        process = self.start(out)
        process.join()
        return int(process.exitcode)

    def start_two(self, out: Path) -> Any:
        """The same by two processes under torchrun's launcher."""
        held = any((out / name).exists() for name in ("run.json", "manifest.json"))
        more = ["--out", str(out), *(["--resume"] if held else [])]
        process = SPAWN.Process(target=launcher, args=([*self.arguments, *more], str(out)))
        process.start()
        return process

    def run_two(self, out: Path) -> int:
        """To its end; returns the exit status."""
        process = self.start_two(out)
        process.join()
        return int(process.exitcode)

    def whole(self, processes: int) -> tuple[Path, float]:
        """The run that nothing strikes, and its seconds."""
        out, took = self.root / f"whole-{processes}", self.root / f"whole-{processes}.seconds"
        if not took.exists():
            shutil.rmtree(out, ignore_errors=True)
            warm = SPAWN.Process(target=len, args=("",))  # the libraries are imported once, for all
            warm.start()
            warm.join()
            start = time.perf_counter()
            status = self.run(out) if processes == 1 else self.run_two(out)
            if status:
                raise SystemExit(f"the run that nothing strikes ended with {status}: {Path(f'{out}.err').read_text()}")
            took.write_text(str(time.perf_counter() - start))
        return out, float(took.read_text())


def differs(out: Path, whole: Path) -> str:
    """What of an artifact is not the whole run's; empty where nothing is."""
    import numpy as np
    from safetensors.numpy import load_file

    for name in ("path.jsonl", "model.safetensors"):
        if (out / name).read_bytes() != (whole / name).read_bytes():
            return name
    got, expected = load_file(out / "effects.safetensors"), load_file(whole / "effects.safetensors")
    if got.keys() != expected.keys() or not all(np.array_equal(got[n], expected[n], equal_nan=True) for n in got):
        return "effects.safetensors"  # tensors: the header's own keys come in any order
    told = [json.loads((f / "manifest.json").read_text()) for f in (out, whole)]
    return next((k for k in ("kept", "ratio", "target", "steps", "cliffs", "ended") if told[0][k] != told[1][k]), "")


def address_space(pid: int) -> int:
    """Bytes of a process's address space."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * resource.getpagesize()


def strike(kind: str, pid: int, out: Path, draw: random.Random) -> None:
    """Do it to the running process."""
    if kind in SIGNALS:
        os.kill(pid, SIGNALS[kind])
    elif kind == "disk-full":
        journal = out / "path.jsonl"
        size = journal.stat().st_size if journal.exists() else 0
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (size + draw.randrange(3000), resource.RLIM_INFINITY))
    elif kind == "out-of-memory":
        resource.prlimit(
            pid, resource.RLIMIT_AS, (address_space(pid) + draw.randrange(1 << 20), resource.RLIM_INFINITY)
        )


def one_process(job: Job, kind: str, out: Path, draw: random.Random) -> int:
    """Exit status of a job that was struck."""
    whole, lasts = job.whole(1)
    if kind == "write-fails":
        room = (whole / "path.jsonl").stat().st_size
        process = job.start(out, torn_at=draw.randrange(room))
        process.join()
        return int(process.exitcode)
    process = job.start(out)
    process.join(lasts * draw.random())
    if process.is_alive():
        with contextlib.suppress(ProcessLookupError, FileNotFoundError):  # it ended at that very moment
            strike(kind, process.pid, out, draw)
    process.join()
    return int(process.exitcode)


def two_processes(job: Job, out: Path, draw: random.Random) -> int:
    """Exit status of the launcher, one of its processes killed."""
    lasts = job.whole(2)[1]
    for who in range(2):
        Path(f"{out}.rank{who}").unlink(missing_ok=True)
    process = job.start_two(out)
    process.join(lasts * draw.random())
    with contextlib.suppress(ProcessLookupError, FileNotFoundError, ValueError):  # not there yet, or no more
        os.kill(int(Path(f"{out}.rank{draw.randrange(2)}").read_text()), signal.SIGKILL)
    process.join()
    return int(process.exitcode)


def trial(job: Job, kind: str, number: int, seed: int) -> dict[str, Any]:
    """One fault and what became of it: outcome `identical`, `refused`, `differs` or `outran`."""
    draw = random.Random(f"{seed}-{kind}-{number}")
    out = job.root / f"{kind}-{number}"
    two = kind == "rank-dies"
    whole, _ = job.whole(2 if two else 1)
    about = {"kind": kind, "number": number}
    for _attempt in range(MOST_DRAWS):
        shutil.rmtree(out, ignore_errors=True)
        Path(f"{out}.err").unlink(missing_ok=True)
        status = two_processes(job, out, draw) if two else one_process(job, kind, out, draw)
        if status:
            break
        if why := differs(out, whole):
            return {
                **about,
                "status": 0,
                "journal": True,
                "traceback": False,
                "outcome": "differs",
                "why": f"unresumed: {why}",
            }
    else:
        return {**about, "outcome": "outran"}
    told = Path(f"{out}.err")  # none where it was struck before it had opened one
    said = told.read_text(errors="replace") if told.exists() else ""
    found = {**about, "status": status, "journal": (out / "path.jsonl").exists()}
    found["traceback"] = "Traceback" in said and not two  # the launcher prints its own
    found["said"] = said.strip().splitlines()[-1][:300] if said.strip() else ""
    again = job.run_two(out) if two else job.run(out)
    if again:
        lines = Path(f"{out}.err").read_text(errors="replace").strip().splitlines()
        return {**found, "outcome": "refused", "why": lines[-1][:300] if lines else ""}
    why = differs(out, whole)
    stray = sorted(
        p.name for p in out.iterdir() if p.name.endswith((".tmp", ".part")) or p.name.startswith((".", "state"))
    )
    if not why and not stray:
        shutil.rmtree(out)
        Path(f"{out}.err").unlink(missing_ok=True)
    return {**found, "outcome": "differs" if why else "identical", "why": why, "left_over": stray}


def summed(trials: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Counts by kind."""
    found: dict[str, dict[str, Any]] = {}
    for kind in KINDS:
        own = [t for t in trials if t["kind"] == kind]
        if not own:
            continue
        count: Callable[[str], int] = lambda outcome, own=own: sum(t["outcome"] == outcome for t in own)  # type: ignore[misc]  # noqa: E731
        struck = [t for t in own if t["outcome"] != "outran"]
        found[kind] = {
            "says": SAYS[kind], "struck": len(struck), "with_a_journal": sum(t["journal"] for t in struck),
            "identical": count("identical"), "refused": count("refused"), "differs": count("differs"),
            "tracebacks": sum(t["traceback"] for t in struck), "left_over": sum(bool(t.get("left_over")) for t in struck),
            "commits": sorted({t["commit"] for t in struck if "commit" in t}),  # none: that of the whole result
            "statuses": dict(sorted(Counter(str(t["status"]) for t in struck).items())),
        }  # fmt: skip
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--work", type=Path, default=None)
    asked = parser.parse_args()
    work = asked.work or Path(tempfile.gettempdir()) / f"cswap-faults-{asked.seed}"
    job, log = Job(work), work / "trials.jsonl"
    origin = work / "machine.json"
    if not origin.exists():  # what these trials ran with, also when they go on later
        origin.write_text(json.dumps(machine()))
    done = [json.loads(x) for x in log.read_text().splitlines() if x.endswith("}")] if log.exists() else []
    kinds, here = asked.kinds.split(","), machine()["commit"]
    for number in range(asked.count):
        for kind in kinds:
            if any(t["kind"] == kind and t["number"] == number for t in done):
                continue
            done.append(trial(job, kind, number, asked.seed) | {"commit": here})
            with log.open("a") as stream:
                stream.write(json.dumps(done[-1]) + "\n")
            print(json.dumps(done[-1]), flush=True)
    mine = [t for t in done if t["kind"] in kinds and t["number"] < asked.count]
    seconds = {str(n): round(job.whole(n)[1], 1) for n in (1, 2) if (work / f"whole-{n}.seconds").exists()}
    where = json.loads(origin.read_text())
    where["machine"]["threads"] = 1  # of every struck process, whatever this one has
    which = "" if kinds == list(KINDS) else f" --kinds {asked.kinds}"
    write_result(
        "faults",
        {
            "command": f"python benchmarks/faults.py --count {asked.count} --seed {asked.seed}{which}", "seed": asked.seed, **where,
            "count": asked.count, "seconds_of_the_whole_run_by_processes": seconds, "kinds": summed(mine),
            "not_identical": [t for t in mine if t["outcome"] in ("refused", "differs")],
        },
    )  # fmt: skip


if __name__ == "__main__":
    main()
