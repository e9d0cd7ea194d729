"""`effects.safetensors`: the statistics of every tested unit, units × classes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from cswap.artifacts.files import EFFECTS, MANIFEST, read_json
from cswap.causal.stats import Moments
from cswap.data.models import sha256_of
from cswap.errors import ArtifactError
from cswap.structure.groups import Structure
from cswap.types import TESTS, Decision, FloatArray

_FIELDS = ("count", "mean", "m2")
_PARTS = {
    "": TESTS,
    "score.": ("score",),
    "pick.": ("pick",),
}  # tensors of effects.safetensors, by what their names begin with


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


def read_effects(
    folder: Path, structure: Structure, classes: tuple[str, ...]
) -> dict[tuple[str, str, int], Moments] | None:
    path = folder / EFFECTS
    if not path.exists():
        return None
    first, total = _first_rows(structure)
    found: dict[tuple[str, str, int], Moments] = {}
    if (folder / MANIFEST).exists():
        check_saved(path, read_json(folder / MANIFEST).get("effects"))
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


def check_saved(file: Path, held: Any) -> None:
    """A file is the one whose hash its manifest holds; older artifacts do not say."""
    if isinstance(held, dict) and held.get("sha256") != sha256_of(file):
        raise ArtifactError(f"{file} is not the file that was saved: its hash differs")
