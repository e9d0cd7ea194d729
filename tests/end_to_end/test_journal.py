"""An interrupted run goes on to the same path, and its journal is repaired or refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from tests.end_to_end.commands import ran, refused


def test_resume_goes_on_and_a_changed_run_is_refused(place, capsys):
    assert ran(capsys, *place.prune("once", target="params=0.5"))[0] == 0
    whole = (place.root / "once" / "path.jsonl").read_text()
    assert ran(capsys, *place.prune("grown", target="params=0.1"))[0] == 0
    refused(capsys, place.prune("grown", "--resume", "--seed", "1", target="params=0.5"), "options.seed was 0", "is 1")
    refused(
        capsys, place.prune("grown", "--resume", "--alpha", "0.1", target="params=0.5"), "options.alpha", "0.05", "0.1"
    )
    assert ran(capsys, *place.prune("grown", "--resume", target="params=0.5"))[0] == 0
    assert _same_path(whole, (place.root / "grown" / "path.jsonl").read_text())


def test_verdict_mode_grows_from_an_artifact_and_explains_itself(place, capsys):
    verdict = ["--effects", "verdict"]
    assert ran(capsys, *place.prune("v-once", *verdict, target="params=0.5"))[0] == 0
    whole = (place.root / "v-once" / "path.jsonl").read_text()
    assert ran(capsys, *place.prune("v-grown", *verdict, target="noncritical"))[0] == 0
    refused(capsys, place.prune("v-grown", "--resume", target="params=0.5"), "options.effects", "verdict", "full")
    assert ran(capsys, *place.prune("v-grown", "--resume", *verdict, target="params=0.5"))[0] == 0
    grown = (place.root / "v-grown" / "path.jsonl").read_text()
    keys = ("step", "phase", "group", "unit", "verdict", "removed", "reason")
    a, b = ([[json.loads(x)[k] for k in keys] for x in text.splitlines()] for text in (whole, grown))
    assert a == b
    lines = [json.loads(x) for x in whole.splitlines()]
    assert {"walk", "score", "buffer"} == {x["phase"] for x in lines}
    early = next(x for x in lines if x["phase"] == "walk" and x["xi"] is None)
    assert early["verdict"] == "critical"
    assert [c["p"] is None for c in early["classes"]].count(True) in (1, 2)  # null: not asked
    asked = ran(
        capsys, "explain", str(place.root / "v-once"), "--group", early["group"], "--unit", str(early["unit"]), "--json"
    )
    story = json.loads(asked[1])["units"][0]
    assert [e["p"] is not None for e in story["effects"]] == [
        True
    ] * 3  # the buffer's scores fill in what the walk skipped
    assert (
        ran(
            capsys,
            "apply",
            str(place.root / "v-once"),
            "--target",
            "units=0.1",
            "--out",
            str(place.root / "v-less"),
            "--trust",
            "--quiet",
        )[0]
        == 0
    )


def _same_path(a: str, b: str) -> bool:
    la, lb = [json.loads(x) for x in a.splitlines()], [json.loads(x) for x in b.splitlines()]
    keys = ("step", "phase", "group", "unit", "verdict", "removed", "reason")
    return [[x[k] for k in keys] for x in la] == [[x[k] for k in keys] for x in lb] and bool(
        np.allclose([x["xi"] for x in la], [x["xi"] for x in lb], atol=1e-6)
    )


def test_a_torn_journal_is_repaired_and_a_broken_onerefused(place, capsys):
    assert ran(capsys, *place.prune("once", target="params=0.5"))[0] == 0
    whole = (place.root / "once" / "path.jsonl").read_text()
    journal = place.root / "torn"
    assert ran(capsys, *place.prune("torn", target="params=0.3"))[0] == 0
    (journal / "run.json").write_text(json.dumps(json.loads((journal / "manifest.json").read_text())["run"]))
    (journal / "manifest.json").unlink()  # as a run killed on the way leaves it
    text = (journal / "path.jsonl").read_text()
    (journal / "path.jsonl").write_text(text[:-25])
    refused(capsys, ["eval", str(journal)], "unfinished run")
    assert ran(capsys, *place.prune("torn", "--resume", target="params=0.5"))[0] == 0
    assert _same_path(whole, (journal / "path.jsonl").read_text())
    lines = whole.splitlines(keepends=True)
    lines[1] = lines[1][:30] + "\n"
    (journal / "path.jsonl").write_text("".join(lines))
    refused(capsys, place.prune("torn", "--resume", target="params=0.5"), "line 2", "no decision")


def _lines(folder: Path) -> int:
    path = folder / "path.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def test_an_interrupted_run_keeps_its_journal_and_resumes_to_the_same_path(place):
    """Kill a real process at several moments; --resume must end where an uninterrupted run ends."""
    command = [sys.executable, "-m", "cswap"]
    target = "params=0.6"
    subprocess.run([*command, *place.prune("once", target=target)], check=True, capture_output=True)
    whole = (place.root / "once" / "path.jsonl").read_text()
    steps = len(whole.splitlines())
    for i, (how, after) in enumerate(((signal.SIGINT, 2), (signal.SIGTERM, steps // 2), (signal.SIGKILL, steps - 2))):
        out = place.root / f"stopped{i}"
        process = subprocess.Popen(
            [*command, *place.prune(out.name, target=target)], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        while process.poll() is None and _lines(out) < after:
            time.sleep(0.001)
        process.send_signal(how)
        err = process.communicate()[1]
        if how is not signal.SIGKILL and process.returncode == 130:
            assert "--resume" in err
            assert len(err.strip().splitlines()) == 1
        assert not (out / "manifest.json").exists() or process.returncode == 0
        again = "--resume" if out.exists() else "--quiet"
        subprocess.run([*command, *place.prune(out.name, again, target=target)], check=True, capture_output=True)
        assert _same_path(whole, (out / "path.jsonl").read_text())
