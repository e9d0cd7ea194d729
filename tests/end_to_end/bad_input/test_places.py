"""Places that cannot be written, are taken, or are full."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cswap.cli.app import main
from tests.end_to_end.bad_input.conftest import refused
from tests.end_to_end.conftest import Place, place_at

OUT: dict[str, tuple[Callable[[Place], Any], list[str]]] = {
    "holds-an-artifact": (lambda p: None, []),
    "holds-other-files": (lambda p: ((p.root / "out").mkdir(), (p.root / "out" / "mine.txt").write_text("x")), []),
    "other-files-and-force": (
        lambda p: ((p.root / "out").mkdir(), (p.root / "out" / "mine.txt").write_text("x")),
        ["--force"],
    ),
    "a-file": (lambda p: (p.root / "out").write_text("x"), []),
    "below-a-file": (lambda p: None, []),
    "resume-of-another-run": (lambda p: None, ["--resume", "--alpha", "0.01"]),
}


@pytest.mark.parametrize("case", list(OUT))
def test_a_place_to_write(place, capsys, case):
    prepare, more = OUT[case]
    prepare(place)
    name = {"holds-an-artifact": "art", "resume-of-another-run": "art", "below-a-file": "net.py/out"}.get(case, "out")
    refused(capsys, place, place.prune(name, *more), "out" if case in ("a-file", "below-a-file") else "")


NOBODY = 65534


def _asked(place: Place, into: Path, out: Path) -> list[list[str]]:
    """What writes: into a folder, or as a file of the name `out` begins with."""
    art, trust = str(place.root / "art"), "--trust"
    original = ["--weights", str(place.weights), "--data", str(place.data), trust]
    return [
        [*place.prune("x"), "--out", str(into / "pruned")],
        ["apply", art, "--target", "params=0.1", "--out", str(into / "applied"), *original, "--quiet"],
        ["report", art, "--out", f"{out}.html"],
        ["export", art, "--format", "pt2", "--out", f"{out}.pt2", "--data", str(place.data), trust],
        ["explain", art, "--group", "a", "--unit", "0", "--images", f"{out}.jpg", *original],
    ]


def test_folders_that_cannot_be_written(template, capsys):
    """As a user who is not root; as root everything is run once before, for what is imported late may be root's alone."""
    as_root = os.geteuid() == 0
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch) / "place"
        shutil.copytree(template, root)
        place, locked = place_at(root), root / "locked"
        for asked in _asked(place, root / "warm", root / "warm-file") if as_root else []:
            assert main(asked) == 0, capsys.readouterr().err
        locked.mkdir()
        for path in (Path(scratch), root, *root.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
            if as_root:
                os.chown(path, NOBODY, NOBODY)
        locked.chmod(0o555)
        if as_root:
            os.seteuid(NOBODY)
        try:
            for asked in _asked(place, locked, locked / "file"):
                refused(capsys, place, asked, "cannot be written")
        finally:
            if as_root:
                os.seteuid(0)
            locked.chmod(0o755)


@pytest.mark.parametrize("most", [100, 400, 1000, 3000, 5000, 7000, 9000])
def test_a_full_disk_loses_nothing(place, capsys, most):
    """No file may grow beyond so many bytes: one line, and with room again the run goes on to the same path."""
    resource = pytest.importorskip("resource")
    assert main(place.prune("whole", target="params=0.6")) == 0
    whole = (place.root / "whole" / "path.jsonl").read_bytes()
    out = place.root / "out"
    capsys.readouterr()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
    try:
        status = main(place.prune("out", target="params=0.6"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    (line,) = capsys.readouterr().err.splitlines()
    assert status in (1, 2)
    assert "cannot be written (File too large)" in line
    assert not (out / "manifest.json").exists()
    more = ["--resume"] if (out / "run.json").exists() else []
    assert main(place.prune("out", *more, target="params=0.6")) == 0
    assert (out / "path.jsonl").read_bytes() == whole
    assert not list(out.glob("*.tmp"))
