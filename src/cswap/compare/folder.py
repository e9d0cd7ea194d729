"""The folder of a comparison: whose it is, and what is written there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from cswap.artifacts.aside import Kind
from cswap.artifacts.claims import recorded, up_to_date
from cswap.artifacts.files import RUN, has_work, hidden, read_json, write_json
from cswap.compare.job import CompareJob
from cswap.errors import ArtifactError, InputError, RunError

RESULT = "compare.json"


def claim(job: CompareJob, fingerprint: dict[str, Any]) -> None:
    """Make the folder ours; raises InputError when it holds something else, or another comparison."""
    out = job.out
    try:
        if out.exists() and not out.is_dir():
            raise InputError(f"out: expected a folder, {out} is a file")
        held = sorted(p.name for p in out.iterdir()) if out.exists() else []
        mine = _is_comparison(out)
        others = [n for n in held if n != f"{RUN}.tmp" and not hidden(out / n)]
        others = [n for n in others if not _owns(n)] or others  # what is named is none of ours, if there is one
        if others and not mine:
            raise InputError(f"out: {out} holds other files (first {others[0]}); name a new folder")
        if mine and not (job.resume or job.force):
            raise InputError(f"out: {out} holds a comparison; --resume goes on with it, --force replaces it")
        if not mine:
            out.mkdir(parents=True, exist_ok=True)
            write_json(out / RUN, fingerprint)
    except OSError as error:
        raise InputError(f"out: {out} cannot be written ({error.strerror})") from None
    if mine:
        old = up_to_date(read_json(out / RUN), fingerprint)
        for key, value in fingerprint.items():
            if old.get(key) != value:
                what, was, now = _first_difference(key, old, fingerprint)
                raise InputError(f"resume: {what} was {was} and is {now} now; nothing was changed")


def _first_difference(name: str, old: dict[str, Any], new: dict[str, Any]) -> tuple[str, str, str]:
    """What differs under a name, the first of it where it is a table, as it was and as it is."""
    was, now = old.get(name), new.get(name)
    if isinstance(was, dict) and isinstance(now, dict):
        return _first_difference(next(k for k in (*now, *was) if was.get(k) != now.get(k)), was, now)
    return name.replace("_", "-"), recorded(old, name), recorded(new, name)


def write(job: CompareJob, file: Path, data: dict[str, Any]) -> None:
    """Raises RunError for a disk that takes no more."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, data)
    except OSError as error:
        raise RunError(
            f"{file} cannot be written ({error.strerror}); what was done is kept in {job.out}: the same command with --resume goes on"
        ) from None


def _owns(name: str) -> bool:
    plain = name.removesuffix(".tmp")
    return (
        plain in (RUN, RESULT, "compare.html", "paths", "points")
        or re.fullmatch(r"[\w-]+\.\d+(\.latency|\.seconds)?\.json|differences\.\d+\.safetensors(\.\d+\.part)?", plain)
        is not None
        or re.fullmatch(r"\.tmp\w{6}", name) is not None
    )


def _is_comparison(folder: Path) -> bool:
    try:
        return "compare" in read_json(folder / RUN)
    except ArtifactError:
        return False


def _is_decided(folder: Path) -> bool:
    return (folder / RESULT).exists() or any(has_work(path) for path in folder.glob("paths/*"))


COMPARISON = Kind(
    ours=_is_comparison,
    begun=lambda folder: _is_decided(folder) or any(folder.glob("differences.*")),
    decided=_is_decided,
    done=lambda folder: (folder / RESULT).exists(),
    owns=_owns,
)
