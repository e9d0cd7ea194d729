"""`--force`: what a folder held is set aside as NAME.before-force until what replaces it is whole, and found again after a kill."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from cswap.artifacts.claims import is_ours
from cswap.artifacts.files import MANIFEST, MARKS, OURS, READY, WRITING, has_work, left_over, settle
from cswap.errors import CswapWarning, InputError

ASIDE = ".before-force"


@dataclass(frozen=True)
class Kind:
    """How a folder of ours is told: that it is one, that it holds work, decisions, or is done, and which entries are ours."""

    ours: Callable[[Path], bool]
    begun: Callable[[Path], bool]
    decided: Callable[[Path], bool]
    done: Callable[[Path], bool]
    owns: Callable[[str], bool]


ARTIFACT = Kind(
    ours=is_ours,
    begun=lambda folder: (folder / MANIFEST).exists() or has_work(folder),
    decided=lambda folder: (folder / MANIFEST).exists() or has_work(folder),
    done=lambda folder: (folder / MANIFEST).exists(),
    owns=lambda name: name in (*OURS, WRITING, READY) or left_over(name),
)


@contextmanager
def replacing(folder: Path, force: bool, *, resume: bool = False, kind: Kind = ARTIFACT) -> Iterator[None]:
    """With `force`, set what `folder` holds aside until its successor is whole; put it back if nothing came.

    With `resume` too, an unfinished journal is gone on with instead. A run that ends on the way, with decisions made,
    leaves both; a later one takes both up again. Raises InputError.
    """
    try:
        place = folder.resolve()
        aside = place.with_name(place.name + ASIDE) if place.name else None
        if aside is not None:
            settle(place)
            _found_again(place, aside, kind, force, resume)
            if force and place.is_dir() and kind.ours(place) and not (resume and not kind.done(place)):
                _set_aside(folder, place, aside)
    except (OSError, RuntimeError) as error:
        why = getattr(error, "strerror", None) or error
        raise InputError(f"out: {folder} cannot be replaced ({why}); name a new folder") from None
    worth, new = kind.begun, not kind.begun(place)
    try:
        yield
    except InputError:
        if new:  # what was measured on the way to a refusal is of no use
            worth = kind.decided
        raise
    finally:
        if aside is not None and (force or resume) and aside.is_dir():
            with suppress(OSError):
                settle(place)
            if kind.done(place):
                _drop(aside, place, kind)
            elif not worth(place) and kind.ours(aside):
                _put_back(place, aside, kind)


def _set_aside(folder: Path, place: Path, aside: Path) -> None:
    if aside.exists():
        raise InputError(f"out: {aside} is in the way of --force; move it away first")
    if Path.cwd() == place or place in Path.cwd().parents:
        raise InputError(f"out: --force cannot replace {folder} from inside of it; run it from elsewhere")
    place.rename(aside)
    place.mkdir()  # a link to it still leads somewhere


def _found_again(place: Path, aside: Path, kind: Kind, force: bool, resume: bool) -> None:
    """What a run with --force that was killed left: its successor is whole and stays, or has to be made again."""
    if not aside.is_dir() or not kind.ours(aside):
        return
    if not kind.begun(place):
        _put_back(place, aside, kind)
    elif kind.done(place):
        if force or resume:
            _drop(aside, place, kind)
    elif force and not resume and kind.ours(place):
        clear(place, kind)  # the old one stays aside
        place.mkdir(exist_ok=True)


def _put_back(place: Path, aside: Path, kind: Kind) -> None:
    """The old folder again, with what was none of ours in the new one."""
    if place.is_dir() and (kind.ours(place) or all(kind.owns(p.name) for p in place.iterdir())):
        clear(place, kind)
    if place.is_dir() and all(p.name.startswith(".") and p.is_file() for p in place.iterdir()):
        _move(place, aside, lambda _name: True)
        place.rmdir()
    if not place.exists():
        aside.rename(place)


def _drop(aside: Path, place: Path, kind: Kind) -> None:
    """Take the old folder away; what was none of ours in it moves to the new one, or stays."""
    try:
        _move(aside, place, lambda name: not kind.owns(name))
        clear(aside, kind)
        if aside.exists():
            raise OSError(0, "it holds other files")
    except OSError as error:
        warnings.warn(
            CswapWarning(f"{aside}, which was replaced, could not be removed ({error.strerror})"), stacklevel=3
        )


def _move(source: Path, target: Path, chosen: Callable[[str], bool]) -> None:
    for path in sorted(source.iterdir()):
        if chosen(path.name):
            if not (target / path.name).exists():
                path.rename(target / path.name)
            elif path.name.startswith(".") and path.is_file():  # what a file browser or a file server makes anew
                path.unlink()


def clear(folder: Path, kind: Kind = ARTIFACT) -> None:
    """Remove what is ours in a folder, what it is told by last, and the folder if that was all."""
    for path in sorted(folder.iterdir(), key=lambda p: p.name in MARKS):
        if kind.owns(path.name):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
    if not any(folder.iterdir()):
        folder.rmdir()
