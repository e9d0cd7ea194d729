"""A run killed at any moment resumes to the very same path; several processes decide what one decides."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from safetensors.torch import save_file

from cswap.artifacts.state import read_state

SPAWN = multiprocessing.get_context("forkserver")
SPAWN.set_forkserver_preload(["cswap.cli.app", "cswap.demo", "cswap.pipeline", "torchvision", "sklearn.datasets"])


def _command(arguments: list[str]) -> None:
    """In a process of its own, which the caller may kill."""
    import torch

    from cswap.cli.app import main

    torch.set_num_threads(1)
    sys.exit(main(arguments))


def _run(arguments: list[str], out: Path, kill_after: float | None = None) -> int:
    """Exit status; killed so many seconds after its journal is open (or was, when it resumes)."""
    process = SPAWN.Process(target=_command, args=([*arguments, "--out", str(out)],))
    process.start()
    while kill_after is not None and process.is_alive() and not (out / "run.json").exists():
        time.sleep(0.001)
    process.join(kill_after)
    if process.is_alive():
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    return process.exitcode


@pytest.fixture(scope="module")
def job(digits_case, tmp_path_factory):
    """Arguments of a job of a few seconds, less --out and --effects."""
    root = tmp_path_factory.mktemp("job")
    save_file(digits_case[0].state_dict(), root / "digits.safetensors")
    (root / "data.py").write_text("from cswap.demo import digits\n\n\ndef data():\n    return digits()\n")
    return root, [
        "prune", "--model", "cswap.demo:digits_resnet", "--model-arg", "width=16", "--weights", str(root / "digits.safetensors"),
        "--data", f"{root / 'data.py'}:data", "--per-class", "48", "--target", "params=0.55", "--alpha", "0.0001", "--quiet",
        "--eval-samples", "20",
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "memory", "pieces"),
    [("full", "4GiB", "unit"), ("verdict", "4GiB", "unit"), ("full", "6MiB", "unit"), ("full", "4GiB", "block:3")],
)
def test_kill_9_at_random_moments_and_resume_to_the_same_bytes(job, mode, memory, pieces):
    """At 6 MiB part of the frontier is made again for every cut."""
    root, arguments = job
    arguments = [*arguments, "--effects", mode, "--memory", memory, "--granularity", pieces]
    name = f"{mode}-{memory}-{pieces}"
    out = root / f"whole-{name}"
    assert _run(arguments, out) == 0
    seconds = json.loads((out / "summary.json").read_text())["seconds"]
    lasts = seconds["analysis"] + seconds["surgery"] + 0.1
    cliffs = json.loads((out / "summary.json").read_text())["cliffs"]
    effects = load_file(out / "effects.safetensors")
    whole = (out / "path.jsonl").read_bytes()
    phases = [json.loads(line)["phase"] for line in whole.splitlines()]
    assert {"walk", "buffer"} <= set(phases)
    assert any(json.loads(line)["removed"] for line in whole.splitlines() if b'"walk"' in line)
    moments, interrupted = random.Random(name), 0
    for i in range(30):
        if interrupted >= 8:
            break
        out = root / f"killed-{name}-{i}"
        kills, status = 0, -1
        while status != 0:
            after = lasts * moments.random() if kills < 1 + i % 3 else None
            held = any(
                (out / name).exists() for name in ("run.json", "manifest.json")
            )  # also a kill just after the end
            resume = ["--resume"] if held else []
            status = _run([*arguments, *resume], out, after)
            assert status in (0, -signal.SIGKILL)
            kills += 1
            interrupted += status != 0 and (out / "path.jsonl").exists()
        assert (out / "path.jsonl").read_bytes() == whole, f"after {kills - 1} kills"
        for tensor, held in load_file(out / "effects.safetensors").items():
            np.testing.assert_array_equal(held, effects[tensor], tensor)
        assert json.loads((out / "summary.json").read_text())["cliffs"] == cliffs
        assert (out / "manifest.json").exists()
        assert not list(out.glob("state*"))
    assert interrupted >= 5  # runs that were killed with a journal open


def test_a_finished_artifact_that_is_resumed_keeps_its_cliffs(job):
    """It keeps no state: what the run told of is in the manifest alone, and goes on from there."""
    root, (*given,) = job
    place, out = given.index("params=0.55"), root / "cliffs"
    arguments, further = ([*given[:place], f"params={f}", *given[place + 1 :]] for f in (0.75, 0.8))
    assert _run(arguments, out) == 0
    cliffs = json.loads((out / "manifest.json").read_text())["cliffs"]
    assert cliffs, "without a cliff nothing is shown"
    for asked in (arguments, further):
        assert _run([*asked, "--resume"], out) == 0
        assert json.loads((out / "manifest.json").read_text())["cliffs"] == cliffs


def test_the_state_follows_the_journal(job):
    root, arguments = job
    out = root / "stopped"
    process = SPAWN.Process(target=_command, args=([*arguments, "--out", str(out)],))
    process.start()
    while process.is_alive() and not (
        (out / "path.jsonl").exists() and b'"removed": true' in (out / "path.jsonl").read_bytes()
    ):
        time.sleep(0.002)
    time.sleep(0.2)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    lines = [json.loads(x) for x in (out / "path.jsonl").read_bytes().split(b"\n")[:-1]]
    kept = read_state(out, len(lines))
    gone = [x for x in lines if x["removed"]]
    assert kept is not None
    assert kept.step == gone[-1]["step"]
    assert kept.scores.quality.mean() == pytest.approx(gone[-1]["quality"], abs=1e-12)
    assert read_state(out, gone[0]["step"] - 1) is None
    run = json.loads((out / "run.json").read_text())
    assert run["pinned"]["threads"] == 1
    assert run["pinned"]["batch_bytes"] > 0


def test_what_a_killed_write_left_is_no_reason_to_refuse(job, capsys):
    """Ours, safetensors' own, and the first file of all; a user's file is one, and stays."""
    root, arguments = job
    whole, out = root / "left-whole", root / "left"
    assert _run(arguments, whole) == 0
    out.mkdir()
    (out / "run.json.tmp").write_text("{")  # killed before anything was there
    assert _run(arguments, out) == 0
    assert not (out / "run.json.tmp").exists()
    torn = root / "left-torn"
    assert _run(arguments, torn, 0.3) == -signal.SIGKILL
    for name in (".tmpVZssVU", "state.0.safetensors.tmp"):
        (torn / name).write_bytes(b"torn")
    assert _run([*arguments, "--resume"], torn) == 0
    assert (torn / "path.jsonl").read_bytes() == (whole / "path.jsonl").read_bytes()
    assert not list(torn.glob("*.tmp*")) + list(torn.glob(".tmp*"))
    other = root / "left-other"
    other.mkdir()
    (other / "notes.tmp").write_text("mine")
    assert _run(arguments, other) == 2
    assert (other / "notes.tmp").read_text() == "mine"


def _torchrun(arguments: list[str], program: Sequence[str] = ("-m", "cswap"), **more: str) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        *program,
        *arguments,
    ]
    return subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **more},
    )


def _decisions(folder: Path) -> tuple[list[list[object]], np.ndarray]:
    lines = [json.loads(x) for x in (folder / "path.jsonl").read_text().splitlines()]
    keys = ("step", "phase", "group", "unit", "verdict", "removed", "reason", "ratio")
    numbers = [[np.nan if x["xi"] is None else x["xi"], *(c["mean"] for c in x.get("classes", ()))] for x in lines]
    return [[x[k] for k in keys] for x in lines], np.array(
        [np.pad(n, (0, 4 - len(n)), constant_values=np.nan) for n in numbers]
    )


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["full", "verdict"])
def test_two_processes_decide_as_one(job, mode):
    root, arguments = job
    arguments = [*arguments, "--effects", mode, "--json"]
    assert _run(arguments, root / f"one-{mode}") == 0
    process = _torchrun([*arguments, "--out", str(root / f"two-{mode}")])
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert json.loads(out)["pruned"]["params"] > 0  # one JSON document: the first process alone speaks
    one, two = _decisions(root / f"one-{mode}"), _decisions(root / f"two-{mode}")
    assert one[0] == two[0]
    np.testing.assert_allclose(one[1], two[1], atol=1e-6)
    assert json.loads((root / f"two-{mode}" / "manifest.json").read_text())["run"]["pinned"]["processes"] == 2


@pytest.mark.slow
def test_no_thread_of_the_group_is_left_at_the_end(job):
    """One that lets go of a tensor while the interpreter ends takes the process down (SIGABRT)."""
    root, arguments = job
    (root / "ending.py").write_text(
        "import os, sys\nfrom pathlib import Path\n\nfrom cswap.cli.app import main\n\n"
        "def gloo():\n    return sum('gloo' in p.read_text() for p in Path('/proc/self/task').glob('*/comm'))\n\n\n"
        "import cswap.distributed\nfirst, told = cswap.distributed.from_first, []\n"
        "cswap.distributed.from_first = lambda data: (told.append(gloo()), first(data))[1]\n"
        "assert main(sys.argv[1:]) == 0\nos.write(2, f'threads: {max(told) > 0} {gloo()}\\n'.encode())\n"
    )
    arguments = [*arguments, "--target", "params=0.02", "--quiet", "--out", str(root / "ended")]
    _, err = _torchrun(arguments, program=[str(root / "ending.py")]).communicate(timeout=300)
    assert err.count("threads: True 0") == 2, err


def _one_of_two(process: subprocess.Popen[str]) -> int:
    """The number of the second of the two processes that torchrun started."""
    listed = subprocess.run(["ps", "-eo", "pid,ppid,args"], capture_output=True, text=True, check=True).stdout
    mine = [int(x.split()[0]) for x in listed.splitlines() if x.split()[1] == str(process.pid) and "cswap" in x]
    assert len(mine) == 2
    return max(mine)


@pytest.mark.slow
def test_two_processes_go_on_with_the_groups_that_joint_had_left(job):
    root, arguments = job
    arguments = [*arguments, "--method", "joint", "--per", "params", "--target", "params=0.3"]
    out = root / "joint"
    process = _torchrun([*arguments, "--out", str(out)])
    while process.poll() is None and not ((out / "tested.jsonl").exists() and (out / "tested.jsonl").stat().st_size):
        time.sleep(0.01)
    os.kill(_one_of_two(process), signal.SIGKILL)
    process.communicate(timeout=120)
    before = len((out / "tested.jsonl").read_text().splitlines())
    assert not (out / "path.jsonl").read_bytes()
    process = _torchrun([*arguments, "--resume", "--out", str(out)])
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert _run(arguments, root / "joint-alone") == 0
    one, two = _decisions(root / "joint-alone"), _decisions(out)
    assert [x[:4] for x in one[0]] == [x[:4] for x in two[0]]
    groups = json.loads((out / "manifest.json").read_text())["sensitivity"]["groups"]
    assert 0 < before < len(groups)


@pytest.mark.slow
def test_a_process_that_dies_ends_the_others_and_the_journal_resumes(job):
    root, arguments = job
    out = root / "dying"
    process = _torchrun([*arguments, "--out", str(out)])
    while process.poll() is None and not ((out / "path.jsonl").exists() and (out / "path.jsonl").stat().st_size > 4000):
        time.sleep(0.01)
    os.kill(_one_of_two(process), signal.SIGKILL)
    _, err = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "--resume" in err
    assert not (out / "manifest.json").exists()
    assert _run([*arguments, "--resume"], out) == 0
    assert _run(arguments, root / "alone") == 0
    one, two = _decisions(root / "alone"), _decisions(out)
    assert one[0] == two[0]
    np.testing.assert_allclose(one[1], two[1], atol=1e-6)
