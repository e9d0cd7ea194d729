"""`cswap compare --jobs`: processes find what one finds, and one that dies is one line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from cswap.cli.app import main
from cswap.compare.workers import _that_travels
from cswap.errors import InputError, RunError
from tests.end_to_end.commands import compare_of, told


def _apart_from_time(result: dict) -> dict:
    """A comparison without what differs from run to run."""
    timed = {"seconds", "latency_ms", "ms_1", "ms_64", "jobs"}

    def kept(value):
        if isinstance(value, dict):
            return {k: kept(v) for k, v in value.items() if k not in timed}
        return [kept(v) for v in value] if isinstance(value, list) else value

    return kept(result)


@pytest.fixture
def one_thread():
    """Sums in the same order, however many processes share the threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
def test_processes_find_what_one_process_finds(place, capsys):
    asked = [
        "--methods",
        "cswap,cbp,cbp:global:macs,magnitude",
        "--ratios",
        "0,0.2,0.5",
        "--recover",
        "bn",
        "--json",
    ]
    assert main(compare_of(place, *asked)) == 0
    alone = json.loads(capsys.readouterr().out)
    assert main(compare_of(place, *asked, "--jobs", "3", "--force")) == 0
    shared = json.loads(capsys.readouterr().out)
    assert shared["jobs"] == 3
    assert _apart_from_time(shared) == _apart_from_time(alone)
    assert all(p["latency_ms"]["1"] > 0 for p in shared["methods"]["cbp"]["by_seed"]["0"]["points"])
    told(capsys, compare_of(place, *asked[:-1], "--jobs", "0", "--force"), 2, "jobs", "at least 1")


def test_processes_say_nothing_of_their_own(place):
    asked = compare_of(place, "--methods", "cbp,magnitude,random", "--ratios", "0,0.5", "--no-latency", "--jobs", "3")
    run = subprocess.run([sys.executable, "-m", "cswap", *asked], capture_output=True, check=True)
    assert run.stderr == b""


def test_what_differs_from_process_to_process_is_refused(place, capsys):
    lines = [
        "import os, torch", "from torch.utils.data import TensorDataset", "def data():",
        "    made = torch.Generator().manual_seed(int.from_bytes(os.urandom(4), 'big'))",
        "    labels = torch.arange(60) % 3",
        "    inputs = torch.rand(60, 3, 8, 8, generator=made) * 0.1",
        "    inputs[torch.arange(60), labels] += 0.9",
        "    return TensorDataset(inputs * 2 - 1, labels), TensorDataset(inputs * 2 - 1, labels)",
    ]  # fmt: skip
    (place.root / "unseeded.py").write_text("\n".join(lines))
    asked = ["compare", "--model", f"{place.factory}:colours", "--weights", str(place.weights), "--per-class", "6",
             "--data", f"{place.root / 'unseeded.py'}:data", "--methods", "magnitude,random", "--ratios", "0,0.5",
             "--no-latency", "--quiet", "--out", str(place.root / "u")]  # fmt: skip
    told(capsys, [*asked, "--jobs", "2"], 2, "in every process", "seed", "--jobs 1")
    told(capsys, [*asked, "--resume"], 2, "resume: data was")


class _Odd(Exception):
    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first} and {second}")


def test_errors_that_cannot_travel_say_what_they_are():
    held = OSError("the disk")
    held.handle = Path(os.devnull).open()  # noqa: SIM115 — an exception that holds an open file
    for error, said in ((_Odd("this", "that"), "_Odd: this and that"), (held, "OSError: the disk")):
        error.add_note("where it was")
        found = _that_travels(error)
        assert (type(found), str(found)) == (RunError, said)
        assert found.__notes__ == ["where it was"]
    held.handle.close()
    error = InputError("one line")
    assert _that_travels(error) is error


def test_a_script_without_a_main_guard_is_told_so(place):
    script = place.root / "script.py"
    script.write_text(
        "import cswap\nfrom pathlib import Path\nfrom cswap.data.models import ModelSpec\n"
        "from cswap.pipeline import DataChoice, Source\n"
        f"cswap.compare_methods(cswap.CompareJob(Source(ModelSpec.parse({str(place.factory) + ':colours'!r}), "
        f"Path({str(place.weights)!r})), DataChoice({str(place.data)!r}, per_class=6, image_size=8, mean='0.5', std='0.5'), "
        f"Path({str(place.root / 'c')!r}), ('magnitude', 'random'), latency=False, jobs=2))\n"
    )
    run = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert "__main__" in run.stderr.strip().splitlines()[-1]


def _worker_of(pid: int) -> int:
    """The first process that measures for this one."""
    while True:
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes():
                return int(child)
        time.sleep(0.05)


def test_a_process_that_dies_is_one_line_and_nothing_is_lost(place, capsys):
    asked = compare_of(place, "--methods", "cswap,greedy", "--ratios", "0,0.5", "--no-latency", "--jobs", "2")
    run = subprocess.Popen([sys.executable, "-m", "cswap", *asked], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    os.kill(_worker_of(run.pid), signal.SIGKILL)
    said = run.communicate()[1].decode().strip().splitlines()
    assert run.returncode == 1, said
    assert "jobs: a process ended with signal 9" in said[-1] or "died (signal 9)" in said[-1]
    assert not any("Traceback" in line for line in said)
    run = subprocess.Popen([sys.executable, "-m", "cswap", *asked, "--resume"])
    worker = _worker_of(run.pid)
    run.kill()  # its processes must not go on writing beside a resumed run
    run.wait()
    until = time.monotonic() + 30
    while Path(f"/proc/{worker}").exists():
        assert time.monotonic() < until, "a process outlived the first one"
        time.sleep(0.05)
    told(capsys, [*asked, "--resume"], 0)
