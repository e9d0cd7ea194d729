"""`--force`, `save` and `apply` struck at any moment: what was there or what replaces it is whole, and the same command goes on."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path

import pytest

import cswap
from cswap.artifacts.folder import open_artifact, save
from cswap.cli.app import main
from tests.end_to_end.commands import told
from tests.end_to_end.conftest import Place, copy_of, with_artifact


class Struck(BaseException):
    """As a kill: no handler of ours knows it."""


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A network, its data, and an artifact of them."""
    return with_artifact(tmp_path_factory.mktemp("template"), "out")


@pytest.fixture
def place(template, tmp_path):
    return copy_of(template, tmp_path)


def _target(out: Path) -> str:
    return str(json.loads((out / "manifest.json").read_text())["target"])


def _journal_of(place: Place, name: str) -> None:
    """The folder as a run killed after its analysis leaves it."""
    out = place.root / name
    assert main(place.prune(name, target="params=0.1")) == 0
    run = json.loads((out / "manifest.json").read_text())["run"]
    (out / "run.json").write_text(json.dumps(run))
    for gone in ("manifest.json", "model.safetensors", "summary.json", "curve.json", "factory.py"):
        (out / gone).unlink()


def test_here(place, capsys, monkeypatch):
    (place.root / "here").mkdir()
    monkeypatch.chdir(place.root / "here")
    arguments = place.prune("x", target="params=0.1")
    arguments[arguments.index("--out") + 1] = "."
    told(capsys, arguments, 0)
    before = (place.root / "here" / "manifest.json").read_bytes()
    told(capsys, [*arguments, "--force"], 2, "from inside of it")
    assert (place.root / "here" / "manifest.json").read_bytes() == before


def test_through_a_link(place, capsys):
    (place.root / "link").symlink_to("out")
    told(capsys, place.prune("link", "--force", target="params=0.1"), 0)
    assert (place.root / "link").is_symlink()
    assert _target(place.root / "out") == "params=0.1"
    assert not list(place.root.glob("*.before-force"))


def test_a_parent_that_refuses_is_one_line(place, capsys, monkeypatch):
    def refuses(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "rename", refuses)
    told(capsys, place.prune("out", "--force", target="params=0.1"), 2, "cannot be replaced (Permission denied)")
    assert _target(place.root / "out") == "params=0.3"


@pytest.mark.parametrize("left", ["nothing", "empty", "run", "journal", "whole"])
@pytest.mark.parametrize("more", [["--force"], ["--force", "--resume"]])
def test_killed_and_again(place, capsys, left, more):
    """Whatever a killed --force left, the same command ends it, and no old folder stays."""
    out, aside = place.root / "out", place.root / "out.before-force"
    out.rename(aside)
    (aside / "notes.txt").write_text("mine")
    if left == "empty":
        out.mkdir()
    if left == "run":
        out.mkdir()
        (out / "run.json").write_text("{}")
    if left == "journal":
        _journal_of(place, "new")
        (place.root / "new").rename(out)
    if left == "whole":
        assert main(place.prune("new", target="params=0.1")) == 0
        (place.root / "new").rename(out)
    told(capsys, place.prune("out", *more, target="params=0.1"), 0)
    assert _target(out) == "params=0.1"
    assert not aside.exists()
    assert (out / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("left", ["nothing", "empty", "run"])
def test_killed_before_anything_came_the_old_one_is_back(place, capsys, left):
    out = place.root / "out"
    out.rename(place.root / "out.before-force")
    if left != "nothing":
        out.mkdir()
    if left == "run":
        (out / "run.json").write_text("{}")
    told(capsys, place.prune("out", target="params=0.1"), 2, "holds an artifact")
    assert _target(out) == "params=0.3"


def test_resume_and_force_go_on_with_a_journal(place, capsys):
    _journal_of(place, "new")
    steps = (place.root / "new" / "path.jsonl").read_bytes()
    assert steps
    told(
        capsys, place.prune("new", "--resume", "--force", "--alpha", "0.01", target="params=0.1"), 2, "resume: options"
    )
    assert (place.root / "new" / "path.jsonl").read_bytes() == steps
    told(capsys, place.prune("new", "--resume", "--force", target="params=0.1"), 0)
    assert (place.root / "new" / "path.jsonl").read_bytes() == steps


def test_what_is_none_of_ours_is_named_and_hidden_files_do_not_matter(place, capsys):
    _journal_of(place, "new")
    for name in (".DS_Store", ".nfs000012"):
        (place.root / "new" / name).write_text("x")
    (place.root / "new" / "prune.log").write_text("mine")
    told(capsys, place.prune("new", "--resume", target="params=0.1"), 2, "other files (first prune.log)")
    (place.root / "new" / "prune.log").unlink()
    told(capsys, place.prune("new", "--resume", target="params=0.1"), 0)
    assert (place.root / "new" / ".DS_Store").read_text() == "x"
    told(capsys, place.prune("new", "--force", target="params=0.2"), 0)
    assert (place.root / "new" / ".DS_Store").read_text() == "x"


# ---------------------------------------------------------------------------------------------- save


def _pruned(place: Place, target: str = "params=0.1"):
    artifact = open_artifact(place.root / "out")
    model = cswap.data.models.ModelSpec.parse(f"{place.factory}:colours", {}).build()
    return artifact.path.apply(model, target), artifact.path


@pytest.mark.parametrize("force", [False, True])
def test_a_save_struck_while_it_writes(place, force):
    small, path = _pruned(place)
    out, fresh = place.root / "saved", place.root / "saved" / ".writing"
    fresh.mkdir(parents=True)
    (fresh / "model.safetensors").write_bytes(b"torn")
    save(small, out, path=path, factory=f"{place.factory}:colours", force=force)
    assert _target(out) == "params=0.1"
    assert not fresh.exists()


@pytest.mark.parametrize("at", range(12))
def test_a_save_struck_while_the_new_takes_the_old_one_s_place(place, monkeypatch, at):
    """At every single change of the folder: the old artifact or the new one is whole for whoever reads it next."""
    small, path = _pruned(place)
    out, changes = place.root / "out", []
    real = {name: getattr(Path, name) for name in ("unlink", "replace", "rename")}

    def counted(name):
        def change(self, *rest, **more):
            if out in self.parents and not self.name.endswith(".tmp"):
                changes.append(self.name)
                if len(changes) > at:
                    raise Struck
            return real[name](self, *rest, **more)

        return change

    with monkeypatch.context() as m:
        for name in real:
            m.setattr(Path, name, counted(name))
        m.setattr(shutil, "rmtree", lambda *_, **__: None)
        with contextlib.suppress(Struck):
            save(small, out, path=path, factory=f"{place.factory}:colours", force=True)
    assert len(changes) > at or at > 10
    cswap.load(out, trust=True)
    assert _target(out) == ("params=0.3" if at == 0 else "params=0.1")
    save(small, out, path=path, factory=f"{place.factory}:colours", force=True)
    assert _target(out) == "params=0.1"
    assert not [p.name for p in out.iterdir() if p.name.startswith(".")]


# ---------------------------------------------------------------------------------------------- apply


def _apply(place: Place, *more: str) -> list[str]:
    return ["apply", str(place.root / "out"), "--target", "params=0.1", "--out", str(place.root / "small"), "--trust", "--quiet", *more]  # fmt: skip


def test_an_apply_that_was_killed_is_taken_over(place, capsys):
    small = place.root / "small"
    (small / ".writing").mkdir(parents=True)
    (small / "run.json").write_text(json.dumps({"apply": "params=0.1"}))
    told(capsys, _apply(place), 0)
    assert _target(small) == "params=0.1"
    assert sorted(p.name for p in small.iterdir() if p.name.startswith(".") or p.name == "run.json") == []


def test_an_apply_marks_what_it_leaves(place, monkeypatch):
    held = []

    def fails(*_):
        held.append(json.loads((place.root / "small" / "run.json").read_text()))
        raise cswap.errors.RunError("struck")

    monkeypatch.setattr("cswap.pipeline.later.finish", fails)
    assert main(_apply(place)) == 1
    assert held[0]["apply"] == "params=0.1"
    assert not (place.root / "small").exists()


# ---------------------------------------------------------------------------------------------- export, demo, a full disk


def test_an_export_that_cannot_be_written_is_one_line(place, capsys, monkeypatch):
    out = place.root / "out"
    export = ["export", str(out), "--format", "pt2", "--trust", "--force"]
    (out / ".export-model.pt2").mkdir()  # killed before
    (out / ".export-model.pt2" / "model.pt2").write_bytes(b"torn")
    (place.root / "folder.pt2").mkdir()
    told(capsys, [*export, "--out", str(place.root / "folder.pt2")], 2, "is a folder")

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as m:
        m.setattr(Path, "write_bytes", full)
        told(capsys, export, 1, "model.pt2 cannot be written (No space left on device)")
    assert not (out / "model.pt2").exists()
    told(capsys, export, 0)
    assert (out / "model.pt2").exists()
    assert not list(out.glob(".export*"))


def test_a_demo_needs_a_folder(place, capsys):
    told(capsys, ["demo", "--out", str(place.factory)], 2, "is a file")
    told(capsys, ["demo", "--out", str(place.factory / "below")], 2, "below")
    told(capsys, ["demo", "--out", str(place.data)], 2, "other files (first test)")


@pytest.mark.parametrize("most", [10, 2000])
def test_a_disk_that_is_full_when_a_run_resumes(place, capsys, most):
    resource = pytest.importorskip("resource")
    _journal_of(place, "new")
    steps = (place.root / "new" / "path.jsonl").read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
    try:
        told(capsys, place.prune("new", "--resume", target="params=0.1"), 1 if most > 100 else 2, "cannot be written")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (place.root / "new" / "path.jsonl").read_bytes() == steps
    told(capsys, place.prune("new", "--resume", target="params=0.1"), 0)
    assert (place.root / "new" / "path.jsonl").read_bytes() == steps


def test_a_folder_that_cannot_be_listed_is_one_line(place, capsys, monkeypatch):
    (place.root / "new").mkdir()

    def refuses(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuses)
    with pytest.raises(cswap.errors.InputError, match=r"cannot be written \(Permission denied\)"):
        cswap.artifacts.claims.open_folder(place.root / "new", {}, resume=False, force=False)
