"""The journal: `path.jsonl` and the statistics behind it, appended decision by decision, read back to resume."""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load, save, save_file

from cswap.artifacts.files import (
    EFFECTS,
    EFFECTS_PART,
    MANIFEST,
    OURS,
    PATH,
    RUN,
    STATES,
    foreign,
    has_decisions,
    left_over,
    read_json,
    settle,
    write_json,
    write_whole,
)
from cswap.artifacts.state import state_step, write_state
from cswap.causal.engine import Scores
from cswap.causal.stats import EffectStats, Moments
from cswap.causal.verdicts import VoteRule, class_tests
from cswap.data.models import sha256_of
from cswap.errors import ArtifactError, InputError, RunError
from cswap.methods.path import Watched
from cswap.structure.groups import Structure
from cswap.types import TESTS, Cliff, Decision, FloatArray, Ratio, UnitEffects, Verdict

_FIELDS = ("count", "mean", "m2")
_TESTED = (*TESTS, "score", "pick")  # phases whose decisions have statistics of their own
_PARTS = {
    "": TESTS,
    "score.": ("score",),
    "pick.": ("pick",),
}  # tensors of effects.safetensors, by what their names begin with
PINNED = "pinned"
PACE = "pace"  # a pin, where time is counted: what a MAC of each group took when the run began
BY_APPLY = "apply"  # the target, in what an apply that is not done leaves
MOST_THREADS = 1024
TAKEN_OVER = ("threads", "processes", "memory")  # pins that a resumed run goes by; the others must be the same


def line_of(decision: Decision) -> str:
    """One line of `path.jsonl`; `crc`, its last key, is the CRC-32 of the line without it."""
    text = json.dumps(decision.as_dict())
    return f'{text[:-1]}, "crc": "{zlib.crc32(text.encode()):08x}"}}\n'


def _fields(line: bytes, signed: bool) -> tuple[dict[str, Any], bool]:
    """A line's fields, and whether it has a CRC; raises ValueError where that, or its lack after lines that have one, is wrong."""
    data = json.loads(line)
    if not isinstance(data, dict):
        raise ValueError("expected a JSON object")
    crc = data.pop("crc", None)
    if crc is None and not signed:  # written before there was one
        return data, False
    if crc != f"{zlib.crc32(line.rpartition(b', ')[0] + b'}'):08x}":
        raise ValueError("its CRC differs")
    return data, True


def _record(number: int, count: Any, mean: Any, m2: Any) -> bytes:
    """Statistics (3, K) of the `number`-th tested decision and their CRC-32, as float64."""
    content = np.stack([np.asarray(count, dtype=np.float64), mean, m2]).tobytes()
    return content + np.float64(zlib.crc32(content, number + 1)).tobytes()


@contextmanager
def _told(folder: Path) -> Iterator[None]:
    """A disk that takes no more ends the run; what was decided before is not lost."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        why = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise RunError(
            f"{folder} cannot be written ({why}); the journal is kept there: the same command with --resume goes on"
        ) from None


class Journal:
    """Appends decisions to an artifact folder; a sink. Statistics of the i-th walk decision are the i-th record (3, K)."""

    def __init__(self, folder: Path, classes: tuple[str, ...]) -> None:
        self.folder, self.classes = folder, classes
        self._turn = 0 if state_step(folder / STATES[0]) <= state_step(folder / STATES[1]) else 1
        with _told(folder):
            self._lines: IO[str] = (folder / PATH).open("a", encoding="utf-8")
            self._records: IO[bytes] = (folder / EFFECTS_PART).open("ab")
            self._number = (folder / EFFECTS_PART).stat().st_size // _record_size(len(classes))

    def decided(self, decision: Decision, stats: EffectStats | None) -> None:
        """Append: the record first, so that a line never lacks its statistics. Raises RunError on a full disk."""
        with _told(self.folder):
            if stats is not None:
                m = stats.by_class
                self._records.write(_record(self._number, m.count, m.mean, m.m2))
                self._records.flush()
                self._number += 1
            self._lines.write(line_of(decision))
            self._lines.flush()

    def keep(self, step: int, scores: Scores, watched: Watched) -> None:
        """The state that step `step` leaves, before its line: a torn run has this one or the one before it."""
        with _told(self.folder):
            write_state(self.folder / STATES[self._turn], step, scores, watched)
        self._turn = 1 - self._turn

    def cliff(self, cliff: Cliff) -> None:
        """Cliffs are part of the state, and go to the summary."""

    def note(self, text: str) -> None:
        """The manifest has it in the end."""

    def close(self) -> None:
        """Close the files; what a full disk did not take is lost, and made again by a resumed run."""
        for file in (self._lines, self._records):
            with suppress(OSError):
                file.close()


def packed(folder: Path) -> bytes:
    """What a resume needs of a folder, for the other processes of a run."""
    names = [n for n in (PATH, EFFECTS_PART, EFFECTS, *STATES) if (folder / n).exists()]
    return bytes(save({n: np.frombuffer((folder / n).read_bytes() + b"\0", dtype=np.uint8) for n in names}))


def unpacked(data: bytes, folder: Path) -> None:
    """The inverse of `packed`."""
    for name, content in load(data).items():
        if name in OURS:
            (folder / name).write_bytes(content.tobytes()[:-1])


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
                    f"resume: expected what is pinned in {folder}, got {_short(was)}; nothing was changed"
                )
            _same_run({**old, PINNED: None}, {**run, PINNED: None})
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
    """Take a journal without a single decision away again, and the folder when nothing else is in it."""
    if (folder / MANIFEST).exists() or has_decisions(folder / PATH):
        return
    with suppress(OSError):
        for name in (PATH, EFFECTS_PART, RUN, *STATES):
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
                f"resume: {where}{key} was {_short(a)} in the journal and is {_short(b)} now; nothing was changed"
            )


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def read_journal(
    folder: Path, structure: Structure, classes: tuple[str, ...], rule: VoteRule, block: int = 1
) -> list[Decision]:
    """Decisions of a journal or a whole artifact, with their statistics. A torn last line is dropped, and with it those of
    the same block of units; a torn middle line, or lines that do not fit the network, raise ArtifactError.
    """
    raw = (folder / PATH).read_bytes()
    lines = raw.split(b"\n")
    whole = lines[:-1]  # what follows the last newline is torn, or nothing
    records = _records(folder, len(classes))
    artifact = _read_effects(folder, structure, classes) if records is None else None
    decisions: list[Decision] = []
    latest: dict[tuple[str, int], Moments | None] = {}
    tested, signed = 0, False
    for number, line in enumerate(whole, 1):
        try:
            data, signed = _fields(line, signed)
            moments = None
            if data["phase"] in _TESTED:
                if records is not None:
                    if tested >= len(records):
                        break
                    moments = Moments(records[tested][0].astype(np.int64), records[tested][1], records[tested][2])
                elif artifact is not None:
                    moments = artifact[data["phase"], data["group"], data["unit"]]
                tested += 1
                latest[data["group"], data["unit"]] = moments
            else:
                moments = latest.get((data["group"], data["unit"]))
            decisions.append(_decision(data, moments, classes, rule))
            if structure[data["group"]].size <= data["unit"] or data["step"] != number:
                raise ArtifactError(f"{folder / PATH}, line {number}: does not fit the network or the lines before it")
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
            raise ArtifactError(f"{folder / PATH}, line {number} of {len(whole)}: no decision can be read") from None
    if records is None and (folder / MANIFEST).exists():
        _check_whole(folder, len(decisions))
    if decisions and decisions[-1].phase == "walk":
        group = structure[decisions[-1].group]
        of_it = sum(d.phase == "walk" and d.group == group.name for d in decisions)
        torn = of_it % block if of_it < group.size else 0
        del decisions[len(decisions) - torn :]
    return decisions


def _check_saved(file: Path, held: Any) -> None:
    """A file is the one whose hash its manifest holds; older artifacts do not say."""
    if isinstance(held, dict) and held.get("sha256") != sha256_of(file):
        raise ArtifactError(f"{file} is not the file that was saved: its hash differs")


def _check_whole(folder: Path, decisions: int) -> None:
    """The path of a finished artifact is what its manifest says: there a torn end is damage, not what an interruption left."""
    manifest = read_json(folder / MANIFEST)
    steps = manifest.get("steps")
    _check_saved(folder / PATH, manifest.get("path"))
    if type(steps) is int and decisions < steps:  # older artifacts say no more
        raise ArtifactError(
            f"{folder / PATH}: expected at least the {steps} decisions of the manifest, got {decisions}"
        )


def rewrite_journal(folder: Path, decisions: list[Decision]) -> None:
    """Leave exactly these decisions in the journal, so that new ones follow a whole line, and no state of a later one."""
    lines = "".join(line_of(d) for d in decisions)
    records = b"".join(
        _record(i, e.count, e.mean, e.m2)
        for i, e in enumerate(d.effects for d in decisions if d.phase in _TESTED and d.effects is not None)
    )
    with _told(folder):
        for name in STATES:
            if state_step(folder / name) > len(decisions):
                (folder / name).unlink()
        for name, content in ((EFFECTS_PART, records), (PATH, lines.encode())):
            write_whole(folder / name, content, sync=False)


def _record_size(k: int) -> int:
    return 8 * (3 * k + 1)


def _records(folder: Path, k: int) -> FloatArray | None:
    """Whole records (n, 3, K); a last one that is torn is left out. Raises ArtifactError for a damaged one before it."""
    part = folder / EFFECTS_PART
    if not part.exists():
        return None
    raw, size = part.read_bytes(), _record_size(k)
    whole = [raw[i : i + size] for i in range(0, len(raw) - size + 1, size)]
    for i, record in enumerate(whole):
        if np.frombuffer(record[-8:], dtype=np.float64)[0] != zlib.crc32(record[:-8], i + 1):
            if i < len(whole) - 1:
                raise ArtifactError(f"{part}, record {i + 1} of {len(whole)}: is damaged, its CRC differs")
            del whole[i]
    return np.frombuffer(b"".join(r[:-8] for r in whole), dtype=np.float64).reshape(-1, 3, k)


def _decision(data: dict[str, Any], moments: Moments | None, classes: tuple[str, ...], rule: VoteRule) -> Decision:
    effects = None
    if moments is not None:
        asked = moments.count > 0
        p, pi = class_tests(EffectStats(moments, moments, np.asarray(0.0)), rule)
        effects = UnitEffects(
            classes,
            moments.count,
            np.where(asked, moments.mean, np.nan),
            np.where(asked, moments.m2, np.nan),
            np.where(asked, p, np.nan),
            pi,
        )
    if not isinstance(data["phase"], str) or not isinstance(data["removed"], bool) or data["unit"] < 0:
        raise ValueError(f"phase {data['phase']!r}, removed {data['removed']!r}, unit {data['unit']!r}")
    if not all(
        v is None or type(v) in (int, float)
        for v in (data["xi"], data["score"], data["quality"], *data["ratio"].values())
    ):
        raise ValueError("expected numbers")
    return Decision(
        step=int(data["step"]), phase=str(data["phase"]), group=str(data["group"]), unit=int(data["unit"]),
        removed=bool(data["removed"]), reason=str(data["reason"]),
        verdict=None if data["verdict"] is None else Verdict(data["verdict"]),
        xi=data["xi"], score=data["score"], ratio=Ratio(**data["ratio"]), quality=data["quality"], effects=effects,
        knife_edge=bool(data.get("knife_edge", False)),
    )  # fmt: skip


def write_effects(path: Path, structure: Structure, classes: tuple[str, ...], decisions: list[Decision]) -> None:
    """`effects.safetensors`: count, mean, m2 (units, K) and xi (units,) of the walk; units in group order, count 0 where a
    class was not asked. `score.count` and so on: the same of units that were scored for the buffer.
    """
    first, total = _first_rows(structure)
    tensors: dict[str, FloatArray] = {}
    for before, phases in _PARTS.items():
        own = [d for d in decisions if d.phase in phases and d.effects is not None]
        if own or not before:
            tensors |= {before + name: np.zeros((total, len(classes))) for name in _FIELDS}
            tensors[before + "xi"] = np.full(total, np.nan)
        for d in own:
            row = first[d.group] + d.unit
            for name in _FIELDS:
                tensors[before + name][row] = getattr(d.effects, name)
            tensors[before + "xi"][row] = np.nan if d.xi is None else d.xi
    where = json.dumps([[g.name, g.size] for g in structure])
    save_file(tensors, path, metadata={"groups": where, "classes": json.dumps(list(classes))})


def _first_rows(structure: Structure) -> tuple[dict[str, int], int]:
    first, total = {}, 0
    for group in structure:
        first[group.name] = total
        total += group.size
    return first, total


def _read_effects(
    folder: Path, structure: Structure, classes: tuple[str, ...]
) -> dict[tuple[str, str, int], Moments] | None:
    path = folder / EFFECTS
    if not path.exists():
        return None
    first, total = _first_rows(structure)
    found: dict[tuple[str, str, int], Moments] = {}
    if (folder / MANIFEST).exists():
        _check_saved(path, read_json(folder / MANIFEST).get("effects"))
    try:
        with safe_open(path, framework="numpy") as stored:
            for before, phases in _PARTS.items():
                if before + "count" not in stored.keys():  # noqa: SIM118 — not a dict
                    continue
                count, mean, m2 = (stored.get_tensor(before + name) for name in _FIELDS)
                if not count.shape == mean.shape == m2.shape == (total, len(classes)):
                    raise ArtifactError(f"{path}: expected tensors of shape {(total, len(classes))}, got {count.shape}")
                found |= {
                    (phase, g.name, n): Moments(count[r].astype(np.int64), mean[r], m2[r])
                    for phase in phases
                    for g in structure
                    for n in range(g.size)
                    for r in (first[g.name] + n,)
                }
    except (SafetensorError, OSError, ValueError) as error:
        raise ArtifactError(f"{path} cannot be read ({str(error).splitlines()[0][:120]})") from None
    return found
