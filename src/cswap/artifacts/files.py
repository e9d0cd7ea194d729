"""Names inside an artifact, and reading and writing them safely."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from cswap.errors import ArtifactError

MANIFEST, WEIGHTS, PATH, EFFECTS = "manifest.json", "model.safetensors", "path.jsonl", "effects.safetensors"
SUMMARY, CURVE, RUN, EFFECTS_PART, FACTORY = "summary.json", "curve.json", "run.json", "effects.part", "factory.py"
REPORT = "report.html"
EXPORTS = ("model.onnx", "model.pt2")
WRITING = ".writing"  # where a new artifact is put together
STATES = ("state.0.safetensors", "state.1.safetensors")
OURS = (*STATES, MANIFEST, WEIGHTS, PATH, EFFECTS, SUMMARY, CURVE, RUN, EFFECTS_PART, FACTORY, REPORT, *EXPORTS)


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
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("w", encoding="utf-8") as stream:
            json.dump(data, stream, indent=1, allow_nan=False)
            stream.write("\n")
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
