"""The journal: `path.jsonl` and the statistics behind it, appended decision by decision, read back to resume."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from cswap.artifacts.effects import check_saved, read_effects
from cswap.artifacts.files import EFFECTS, EFFECTS_PART, MANIFEST, OURS, PATH, STATES, TESTED, read_json, write_whole
from cswap.artifacts.state import read_state, state_step, write_state
from cswap.causal.engine import Scores
from cswap.causal.stats import EffectStats, Moments
from cswap.causal.verdicts import VoteRule, class_tests
from cswap.errors import ArtifactError, RunError
from cswap.methods.path import Start, Watched, tested_key
from cswap.structure.groups import Structure
from cswap.types import TESTS, Cliff, Decision, FloatArray, Ratio, UnitEffects, Verdict

_TESTED = (*TESTS, "score", "pick")  # phases whose decisions have statistics of their own


def line_of(decision: Decision) -> str:
    """One line of `path.jsonl`."""
    return _signed(decision.as_dict())


def _signed(data: dict[str, Any]) -> str:
    """One line of JSON; `crc`, its last key, is the CRC-32 of the line without it."""
    text = json.dumps(data)
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

    def tested(self, group: str, found: Mapping[str, Any], done: int, groups: int) -> None:
        """Append a line, from which a resumed run goes on. Raises RunError on a full disk."""
        with _told(self.folder), (self.folder / TESTED).open("a", encoding="utf-8") as lines:
            lines.write(_signed({"group": group, **found}))

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
    names = [n for n in (PATH, TESTED, EFFECTS_PART, EFFECTS, *STATES) if (folder / n).exists()]
    return bytes(save({n: np.frombuffer((folder / n).read_bytes() + b"\0", dtype=np.uint8) for n in names}))


def unpacked(data: bytes, folder: Path) -> None:
    """The inverse of `packed`."""
    for name, content in load(data).items():
        if name in OURS:
            (folder / name).write_bytes(content.tobytes()[:-1])


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
    artifact = read_effects(folder, structure, classes) if records is None else None
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


def _check_whole(folder: Path, decisions: int) -> None:
    """The path of a finished artifact is what its manifest says: there a torn end is damage, not what an interruption left."""
    manifest = read_json(folder / MANIFEST)
    steps = manifest.get("steps")
    check_saved(folder / PATH, manifest.get("path"))
    if type(steps) is int and decisions < steps:  # older artifacts say no more
        raise ArtifactError(
            f"{folder / PATH}: expected at least the {steps} decisions of the manifest, got {decisions}"
        )


def read_tested(folder: Path, structure: Structure) -> dict[str, dict[str, Any]]:
    """By group what its tests gave, as a sink was told; a torn last line is dropped. A whole artifact has them in its manifest. Raises
    ArtifactError for a damaged line before the last, or a damaged manifest.
    """
    file, found = folder / TESTED, dict[str, dict[str, Any]]()
    if not file.exists():
        return _tested_of_manifest(folder, structure)
    lines = file.read_bytes().split(b"\n")[:-1]
    for number, line in enumerate(lines, 1):
        try:
            data, _ = _fields(line, True)
            name = str(data.pop("group"))
            _check_order(data, structure, name)
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ArtifactError(f"{file}, line {number} of {len(lines)}: no tests of a group can be read") from None
        found[name] = data
    return found


def of_the_original(key: str) -> bool:
    """Whether these tests are of a group of the whole network, and not of what a stage left of it or of a stage's trial."""
    return " #" not in key and not key.startswith("#")


def _check_order(tested: Mapping[str, Any], structure: Structure, key: str) -> None:
    """`key`: a group's name, behind it ` #N` where a later stage tested what was left of it; `#N` alone is no test of a group."""
    name, later, _ = key.rpartition(" #")
    if key.startswith("#"):
        return
    units, size = sorted(tested["order"]), structure[name if later else key].size
    if units != list(range(size)) and not (later and units == sorted(set(units) & set(range(size)))):
        raise ValueError(f"expected an order of all units of {key}")


def _tested_of_manifest(folder: Path, structure: Structure) -> dict[str, dict[str, Any]]:
    """The tests of a whole artifact; none where there is no manifest, or one of before these were whole in it."""
    held = read_json(folder / MANIFEST).get("sensitivity") if (folder / MANIFEST).exists() else None
    try:
        groups = _by_key(held) if held else {}
        for name, tested in groups.items():
            _check_order(tested, structure, name)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ArtifactError(f"{folder / MANIFEST}: the sensitivity of its groups cannot be read") from None
    return {name: tested for name, tested in groups.items() if "surrogate" in tested or "away" in tested}


def _by_key(sensitivity: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The tests of every stage as a sink was told of them."""
    found: dict[str, dict[str, Any]] = {}
    for number, stage in enumerate([sensitivity, *sensitivity.get("stages", ())]):
        found |= {tested_key(number, str(name)): dict(t) for name, t in stage["groups"].items()}
        if "tried" in stage:
            found[tested_key(number, "")] = dict(stage["tried"])
    return found


def read_start(folder: Path, structure: Structure, classes: tuple[str, ...], rule: VoteRule, block: int = 1) -> Start:
    """What a run goes on with. Raises as `read_journal`, `read_state` and `read_tested` do."""
    decisions = read_journal(folder, structure, classes, rule, block)
    kept = read_state(folder, len(decisions))
    return Start(tuple(decisions), kept, tested=read_tested(folder, structure))


def rewrite_journal(folder: Path, start: Start) -> None:
    """Leave exactly these decisions and tests in the journal, so that new ones follow a whole line, and no state of a later one."""
    decisions, tested = start.decisions, start.tested
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
        if tested:
            groups = "".join(_signed({"group": name, **found}) for name, found in tested.items())
            write_whole(folder / TESTED, groups.encode(), sync=False)
        else:
            (folder / TESTED).unlink(missing_ok=True)


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
