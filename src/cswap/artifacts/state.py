"""The state behind the journal: scores and the watch on quality after a step, whole or not there, with a CRC of its own."""

from __future__ import annotations

import json
import zlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from cswap.artifacts.files import STATES, write_whole
from cswap.causal.engine import Scores
from cswap.errors import ArtifactError
from cswap.methods.path import Kept, Watched
from cswap.types import Cliff, FloatArray


def write_state(path: Path, step: int, scores: Scores, watched: Watched) -> None:
    """σ and quality after a step, and the watch on quality: whole or not there."""
    tensors = {"sigma": scores.sigma, "quality": scores.quality}
    if scores.by_class is not None:
        tensors["by_class"] = scores.by_class
    for i, (_, _, by_class) in enumerate(watched.seen):
        tensors[f"seen.{i}"] = by_class
    told = {
        "step": step,
        "seen": [[gone, q] for gone, q, _ in watched.seen],
        "cliffs": [asdict(c) for c in watched.cliffs],
    }
    told["crc"] = _crc_of(told, tensors)
    content = save({n: np.ascontiguousarray(t) for n, t in tensors.items()}, metadata={"state": json.dumps(told)})
    write_whole(path, content, sync=False)  # save_file leaves a file of a name of its own when it is killed


def _crc_of(told: dict[str, Any], tensors: dict[str, FloatArray]) -> int:
    crc = zlib.crc32(json.dumps({k: v for k, v in told.items() if k != "crc"}).encode())
    for name in sorted(tensors):
        crc = zlib.crc32(np.ascontiguousarray(tensors[name]).tobytes(), zlib.crc32(name.encode(), crc))
    return crc


def _state(path: Path) -> tuple[dict[str, Any], dict[str, FloatArray]]:
    """What a state says, and its tensors. Raises ArtifactError."""
    try:
        with safe_open(path, framework="numpy") as stored:
            told = json.loads(stored.metadata()["state"])
            tensors = {n: stored.get_tensor(n) for n in stored.keys()}  # noqa: SIM118 — not a dict
        if _crc_of(told, tensors) != told["crc"]:
            raise ValueError("its CRC differs")
        told["step"] = int(told["step"])
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(
            f"{path} is damaged ({str(error).splitlines()[0][:80]}); --force starts again, and without this file --resume goes "
            "on from scores measured anew"
        ) from None
    return told, tensors


def state_step(path: Path) -> int:
    """Its step, or −1 where there is none that can be read."""
    try:
        return int(_state(path)[0]["step"])
    except ArtifactError:
        return -1


def read_state(folder: Path, steps: int) -> Kept | None:
    """The latest whole state at or before decision `steps`. Raises ArtifactError for a damaged one."""
    found = [_state(folder / name) for name in STATES if (folder / name).exists()]
    found = [(told, tensors) for told, tensors in found if 0 < told["step"] <= steps]
    if not found:
        return None
    told, tensors = max(found, key=lambda s: s[0]["step"])
    seen = tuple((int(gone), float(q), tensors[f"seen.{i}"]) for i, (gone, q) in enumerate(told["seen"]))
    cliffs = tuple(Cliff(**{**c, "classes": tuple(c["classes"])}) for c in told["cliffs"])
    scores = Scores(tensors["sigma"], tensors["quality"], tensors.get("by_class"))
    return Kept(told["step"], scores, Watched(seen, cliffs))
