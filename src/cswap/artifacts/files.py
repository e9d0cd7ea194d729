"""Names inside an artifact, and reading and writing them safely."""

from __future__ import annotations

import json
import os
import re
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

from cswap.errors import ArtifactError, InputError

MANIFEST, WEIGHTS, PATH, EFFECTS = "manifest.json", "model.safetensors", "path.jsonl", "effects.safetensors"
SUMMARY, CURVE, RUN, EFFECTS_PART, FACTORY = "summary.json", "curve.json", "run.json", "effects.part", "factory.py"
REPORT = "report.html"
EXPORTS = ("model.onnx", "model.pt2")
WRITING = ".writing"  # where a new artifact is put together
READY = ".ready"  # the same, whole: it takes the place of what the folder holds
NAMES = "names.json"  # in READY: what the new artifact consists of
STATES = ("state.0.safetensors", "state.1.safetensors")
TESTED = "tested.jsonl"  # of a method that tests whole groups before it decides
OURS = (*STATES, TESTED, MANIFEST, WEIGHTS, PATH, EFFECTS, SUMMARY, CURVE, RUN, EFFECTS_PART, FACTORY, REPORT, *EXPORTS)

MARKS = (RUN, MANIFEST)  # what a folder of ours is told by


def left_over(name: str) -> bool:
    """Whether a write that was killed left this entry: ours, or one of safetensors'."""
    return name.removesuffix(".tmp") in OURS or re.fullmatch(r"\.tmp\w{6}|\.export-.+", name) is not None


def hidden(path: Path) -> bool:
    """Whether it is a file of the kind that systems leave everywhere, and that is in nobody's way."""
    return path.name.startswith(".") and not path.is_dir()


def foreign(folder: Path) -> list[str]:
    """Entries that are none of ours; hidden files do not count."""
    return sorted(
        p.name for p in folder.iterdir() if not (p.name in (WRITING, READY) or left_over(p.name) or hidden(p))
    )


def has_decisions(path: Path) -> bool:
    """Whether a journal holds anything."""
    return path.exists() and path.stat().st_size > 0


def has_work(folder: Path) -> bool:
    """Whether a journal holds anything that took time: decisions, or tests before the first of them."""
    return has_decisions(folder / PATH) or has_decisions(folder / TESTED)


def settle(folder: Path) -> None:
    """Give the folder the whole new artifact that a save left in it, where it was struck while it did. Raises OSError."""
    ready = folder / READY
    if not ready.is_dir() or ready.is_symlink():
        return
    if (ready / MANIFEST).exists():  # it moves last
        names = [n for n in read_json(ready / NAMES).get("names") or () if n in OURS]
        if MANIFEST not in names:
            raise ArtifactError(
                f"{ready / NAMES}: expected the files of an artifact, got {len(names)} without a manifest"
            )
        (folder / MANIFEST).unlink(missing_ok=True)
        for stale in set(OURS) - set(names):
            (folder / stale).unlink(missing_ok=True)
        for name in sorted(names, key=lambda n: n == MANIFEST):
            with suppress(FileNotFoundError):  # it is in its place
                (ready / inside(ready, name).name).replace(folder / name)
    shutil.rmtree(ready)


def inside(folder: Path, name: Any) -> Path:
    """The file `name` of an artifact; raises ArtifactError for a name that could lie outside the folder."""
    if not isinstance(name, str) or name in ("", ".", "..") or "/" in name or "\\" in name or "\0" in name:
        raise ArtifactError(f"manifest of {folder}: expected a plain file name, got {name!r}")
    path = folder / name
    if path.is_symlink() or path.resolve().parent != folder.resolve():
        raise ArtifactError(f"{name} in {folder} leads out of the folder")
    return path


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; raises ArtifactError."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArtifactError(f"expected {path.name} in {path.parent}, found none") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{path} is no readable JSON ({str(error).splitlines()[0][:120]})") from None
    if not isinstance(data, dict):
        raise ArtifactError(f"{path}: expected a JSON object, got {type(data).__name__}")
    return data


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Write a JSON object through a temporary file, so that it is whole or not there."""
    write_whole(path, (json.dumps(data, indent=1, allow_nan=False) + "\n").encode())


def write_whole(path: Path, content: bytes, *, sync: bool = True) -> None:
    """Write a file through a temporary one beside it, whole or not there; nothing is written through a link that lies there.

    sync: wait until the disk has it. Raises OSError.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        temporary.unlink(missing_ok=True)
        with temporary.open("xb") as stream:
            stream.write(content)
            if sync:
                stream.flush()
                os.fsync(stream.fileno())
        temporary.replace(path)
    except OSError:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def new_file(option: str, path: Path, force: bool) -> None:
    """A file the user names must not be there yet, or be one that `force` replaces. Raises InputError."""
    if not path.name or path.is_dir():
        raise InputError(f"{option}: expected a file to write, {path} is a folder")
    held = path.resolve().parent
    if path.resolve().name in set(OURS) - {REPORT, *EXPORTS} and any((held / mark).exists() for mark in MARKS):
        raise InputError(f"{option}: {path} is a part of an artifact; name another file")
    if path.exists() and not force:
        raise InputError(f"{option}: {path} is there already; --force replaces it")


def own_files(folder: Path) -> None:
    """What an artifact holds under our names must be files of its own. Raises ArtifactError."""
    for name in OURS:
        path = folder / name
        if path.is_symlink() and not path.resolve().is_relative_to(folder.resolve()):
            raise ArtifactError(f"{path} leads out of the folder")
        if path.exists() and not path.is_file():
            raise ArtifactError(f"{path}: expected a file, it is none")
