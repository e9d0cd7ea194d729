"""Whose an artifact's folder is: made ready for a run, and whether that run goes on with what it holds."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from cswap.artifacts.files import (
    EFFECTS_PART,
    MANIFEST,
    OURS,
    PATH,
    RUN,
    STATES,
    TESTED,
    foreign,
    has_work,
    left_over,
    read_json,
    settle,
    write_json,
)
from cswap.errors import ArtifactError, InputError
from cswap.methods.options import AS_BEFORE, Options

PINNED = "pinned"
PACE = "pace"  # a pin, where time is counted: what a MAC of each group took when the run began
BY_APPLY = "apply"  # the target, in what an apply that is not done leaves
MOST_THREADS = 1024
TAKEN_OVER = ("threads", "processes", "memory")  # pins that a resumed run goes by; the others must be the same


def open_folder(folder: Path, run: dict[str, Any], *, resume: bool, force: bool) -> bool:
    """Make ready to write an artifact; returns whether there is a journal to resume. Raises what `look_into` raises."""
    going_on = look_into(folder, run, resume=resume, force=force)
    claim(folder, run)
    return going_on


def look_into(folder: Path, run: dict[str, Any], *, resume: bool, force: bool) -> bool:
    """Whether there is a journal to resume; nothing is written, but what a killed run left half moved is put in its place.

    `run`: what must be the same for a resumed run, but for `pinned`, which a resumed run takes over from the journal.
    Raises InputError when the folder holds something and neither `resume` nor `force` was asked for, or when the run differs:
    the first difference is named.
    """
    with _writable(folder):
        if folder.exists() and not folder.is_dir():
            raise InputError(f"out: expected a folder, {folder} is a file")
        if folder.exists():
            settle(folder)
        held = sorted(p.name for p in folder.iterdir()) if folder.exists() else []
        mine = is_ours(folder)
        others = (foreign(folder) if held else []) or [n for n in held if n in OURS]
        if others and not mine:
            raise InputError(f"out: {folder} holds other files (first {others[0]}); name a new folder")
        if mine and not (resume or force or _by_apply(folder)):
            state = "an artifact" if MANIFEST in held else "the journal of an unfinished run"
            goes_on = "" if BY_APPLY in run else "--resume goes on with it, "  # apply has nothing to go on with
            raise InputError(f"out: {folder} holds {state}; {goes_on}--force replaces it")
        old = _recorded_run(folder)
        if resume and (folder / PATH).exists():
            if old is None:
                raise InputError(f"resume: {folder} does not say what run its path came from; nothing was changed")
            was, now = old.get(PINNED) or {}, run.get(PINNED) or {}
            counts = [was.get(n, 1) for n in TAKEN_OVER] if isinstance(was, dict) else [None]
            if not all(type(c) is int and c > 0 for c in counts) or was.get("threads", 1) > MOST_THREADS:
                raise ArtifactError(
                    f"resume: expected what is pinned in {folder}, got {recorded(old, PINNED)}; nothing was changed"
                )
            _same_run({**up_to_date(old, run), PINNED: None}, {**run, PINNED: None})
            fixed = [{k: v for k, v in pins.items() if k not in (*TAKEN_OVER, PACE)} for pins in (was or now, now)]
            _same_run(fixed[0], fixed[1], f"{PINNED}.")
            run[PINNED] = was or now
    return bool(resume and (folder / PATH).exists())


def claim(folder: Path, run: dict[str, Any]) -> None:
    """Say in the folder whose run it holds from now on, and take away what an earlier one left. Raises InputError."""
    new = not folder.exists()
    with _writable(folder, new):
        folder.mkdir(parents=True, exist_ok=True)
        for name in sorted(p.name for p in folder.iterdir()):
            if name not in OURS and left_over(name):
                shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink()
        write_json(folder / RUN, run)


@contextmanager
def _writable(folder: Path, new: bool = False) -> Iterator[None]:
    """`new`: the folder goes again if it cannot be written; one that was there is the user's, empty or not."""
    try:
        yield
    except OSError as error:
        if new:
            with suppress(OSError):
                folder.rmdir()
        raise InputError(f"out: {folder} cannot be written ({error.strerror})") from None


def _by_apply(folder: Path) -> bool:
    """Whether all that a folder holds is the beginning of an `apply` that was killed: no decision is lost with it."""
    if (folder / MANIFEST).exists() or (folder / PATH).exists() or not (folder / RUN).exists():
        return False
    return BY_APPLY in read_json(folder / RUN)


def is_ours(folder: Path) -> bool:
    """Whether a folder holds an artifact or a journal of ours, and not just files that are named alike."""
    if (folder / MANIFEST).exists():
        try:
            return str(read_json(folder / MANIFEST).get("schema", "")).startswith("cswap-artifact/")
        except ArtifactError:
            return (folder / PATH).exists()
    return (folder / RUN).exists() and not foreign(folder)


def forget_if_empty(folder: Path) -> None:
    """Take a journal without a single decision or test away again, and the folder when nothing else is in it."""
    if (folder / MANIFEST).exists() or has_work(folder):
        return
    with suppress(OSError):
        for name in (PATH, TESTED, EFFECTS_PART, RUN, *STATES):
            (folder / name).unlink(missing_ok=True)
        if not any(folder.iterdir()):
            folder.rmdir()


def _recorded_run(folder: Path) -> dict[str, Any] | None:
    if (folder / RUN).exists():
        return read_json(folder / RUN)
    if (folder / MANIFEST).exists():
        run = read_json(folder / MANIFEST).get("run")
        return run if isinstance(run, dict) else None
    return None


def up_to_date(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """The recorded run `old`, where options that its version did not have (`AS_BEFORE`) are at their defaults, as far as `new` names them."""
    had, has = old.get("options"), new.get("options")
    if not isinstance(had, dict) or not isinstance(has, dict):
        return old
    added = {k: v for k, v in Options().as_dict().items() if k in AS_BEFORE and k in has and k not in had}
    return {**old, "options": {**had, **added}}


def _same_run(old: dict[str, Any], new: dict[str, Any], where: str = "") -> None:
    # hashes last: a changed option changes what was drawn, and is what the user wants to hear of
    for key in sorted(
        old.keys() | new.keys(), key=lambda k: (isinstance(new.get(k), str) and len(str(new.get(k))) == 64, k)
    ):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            _same_run(a, b, f"{where}{key}.")
        elif a != b:
            raise InputError(
                f"resume: {where}{key} was {recorded(old, key)} in the journal and is {recorded(new, key)} now; nothing was changed"
            )


def recorded(table: dict[str, Any], key: str) -> str:
    """A recorded value in a message; what a version did not know, it did not record."""
    text = json.dumps(table[key]) if key in table else "unknown to that version"
    return text if len(text) <= 60 else text[:57] + "..."
