"""The artifact: a folder that is whole or carries only the journal. `save`, `load`, and reading what is in it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_model
from torch import nn

from cswap._version import __version__
from cswap.artifacts.claims import is_ours
from cswap.artifacts.effects import write_effects
from cswap.artifacts.files import (
    CURVE,
    EFFECTS,
    FACTORY,
    MANIFEST,
    NAMES,
    OURS,
    PATH,
    READY,
    RUN,
    SUMMARY,
    WEIGHTS,
    WRITING,
    foreign,
    inside,
    own_files,
    read_json,
    settle,
    write_json,
)  # fmt: skip
from cswap.artifacts.journal import line_of, read_journal
from cswap.data.calibration import counted
from cswap.data.models import ModelSpec, one_line, put_tensors, sha256_of
from cswap.errors import ArtifactError, CswapError, InputError, MismatchError, ModelError
from cswap.methods.options import Options
from cswap.methods.path import PruningPath, Surgery
from cswap.structure.groups import Removed, Structure
from cswap.structure.replaced import replace_
from cswap.structure.surgery import KeptIndices, kept_indices, removed_by, shrink_in_place
from cswap.types import RATIO_KINDS, Cliff, IntArray, Ratio, Target

SCHEMA = "cswap-artifact/1"
_KINDS: dict[str, Any] = {
    "target": str, "ratio": dict, "method": str, "steps": int, "classes": list, "options": dict, "kept": dict, "structure": dict,
    "weights": dict, "factory": dict | None, "run": dict | None, "source": dict | None, "data": dict | None,
    "recovery": dict | None, "certificate": dict | None, "cliffs": list | None, "sensitivity": dict | None,
}  # fmt: skip
"""What a reader takes for granted of a manifest."""


@dataclass(frozen=True, eq=False)
class Artifact:
    """What an artifact says, without building its model."""

    folder: Path
    manifest: dict[str, Any]
    structure: Structure
    path: PruningPath

    @property
    def summary(self) -> dict[str, Any]:
        """`summary.json`."""
        return read_json(self.folder / SUMMARY)


def save(
    model: nn.Module,
    folder: str | Path,
    *,
    path: PruningPath,
    factory: str | ModelSpec | None = None,
    arguments: dict[str, Any] | None = None,
    force: bool = False,
    details: dict[str, Any] | None = None,
    summary: dict[str, Any] | None = None,
    curve: dict[str, Any] | None = None,
) -> Path:
    """Write a pruned module (from `path.apply`) with its path as an artifact folder.

    `factory`: the model spec that builds the ORIGINAL network; a FILE.py is copied into the folder. Without it, `load`
    needs `factory=`. The folder is read back before it is made final. Raises InputError, ArtifactError.
    """
    surgery = getattr(model, "_cswap", None)
    if not isinstance(surgery, Surgery):
        raise InputError("save: expected a module made by path.apply(model, target)")
    if not (factory is None or isinstance(factory, str | ModelSpec)):
        raise InputError(
            f"save: expected factory as a model spec, such as FILE.py:FACTORY, got {type(factory).__name__}; without one, load takes factory="
        )
    folder, spec = Path(folder), ModelSpec.parse(factory, arguments) if isinstance(factory, str) else factory
    fresh, new = folder / WRITING, not folder.exists()
    if spec is not None and spec.kind == "file" and not Path(spec.where).is_file():
        raise InputError(f"save: expected the factory's file at {spec.where}, found none")
    try:
        if folder.exists():
            settle(folder)
            if (folder / MANIFEST).exists() and not force:
                raise InputError(f"save: {folder} holds an artifact; force=True replaces it")
            others = foreign(folder) or [p.name for p in folder.iterdir() if p.name in OURS]
            if others and not is_ours(folder):
                raise InputError(f"save: {folder} holds other files (first {others[0]}); name a new folder")
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir()
        _write_all(model, fresh, surgery, path, spec, details or {})
        write_json(fresh / SUMMARY, _unmeasured(surgery, path) if summary is None else summary)
        if curve is not None:
            write_json(fresh / CURVE, curve)
        if spec is not None:
            _read_back(fresh, model)
        for private in (fresh / WEIGHTS, fresh / EFFECTS):
            private.chmod((fresh / MANIFEST).stat().st_mode)  # safetensors writes files only their owner can read
        write_json(fresh / NAMES, {"names": sorted(f.name for f in fresh.iterdir())})
        fresh.rename(folder / READY)  # from here on the new artifact counts: struck now, whoever comes next ends it
        settle(folder)
    except (OSError, SafetensorError) as error:
        raise ArtifactError(
            f"{folder} cannot be written ({getattr(error, 'strerror', None) or one_line(error)})"
        ) from None
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        if new:  # a failed save leaves no empty folder
            with suppress(OSError):
                folder.rmdir()
    return folder


def _unmeasured(surgery: Surgery, path: PruningPath) -> dict[str, Any]:
    """The summary of what a path alone knows: counts, and neither quality nor latency."""
    s, r = path.structure, surgery.ratio
    left = {"params": round(s.total_params * (1 - r.params)), "macs": round(s.total_macs * (1 - r.macs))}
    none: dict[str, Any] = {"quality": {}, "latency_ms": {}}
    return {
        "method": path.method, "target": str(surgery.target), "ratio": r.as_dict(), "verdicts": path.verdicts(), "classes": list(path.classes),
        "baseline": {**none, "params": s.total_params, "macs": s.total_macs}, "pruned": {**none, **left}, "seconds": {},
    }  # fmt: skip


def _write_all(
    model: nn.Module, fresh: Path, surgery: Surgery, path: PruningPath, spec: ModelSpec | None, details: dict[str, Any]
) -> None:
    save_model(model, str(fresh / WEIGHTS))
    (fresh / PATH).write_text("".join(line_of(d) for d in path.decisions), encoding="utf-8")
    write_effects(fresh / EFFECTS, path.structure, path.classes, path.decisions)
    manifest: dict[str, Any] = {
        "schema": SCHEMA,
        "cswap_version": __version__,
        "torch_version": str(torch.__version__),
        "method": path.method,
        "options": path.options,
        "classes": list(path.classes),
        "target": str(surgery.target),
        "ratio": surgery.ratio.as_dict(),
        "steps": surgery.steps,
        "ended": path.ended,
        "seed": path.options.get("seed"),
        "max_abs_difference": None if surgery.agreement is None else surgery.agreement.difference,
        "mask_visible": None if surgery.agreement is None else surgery.agreement.visible,
        "agreement": None if surgery.agreement is None else str(surgery.agreement),
        "cliffs": [asdict(c) for c in path.cliffs],
        "kept": {t: {str(d): i.tolist() for d, i in dims.items()} for t, dims in surgery.kept.items()},
        "weights": {"file": WEIGHTS, "sha256": sha256_of(fresh / WEIGHTS)},
        "path": {"file": PATH, "sha256": sha256_of(fresh / PATH)},
        "effects": {"file": EFFECTS, "sha256": sha256_of(fresh / EFFECTS)},
        "structure": path.structure.as_dict(),
        **details,
    }
    if spec is not None:
        manifest["factory"] = {"spec": spec.text, "kind": spec.kind, "name": spec.name, "arguments": spec.arguments}
        if spec.kind == "file":
            shutil.copyfile(spec.where, fresh / FACTORY)
            manifest["factory"] |= {"file": FACTORY, "sha256": sha256_of(fresh / FACTORY)}
    write_json(fresh / MANIFEST, manifest)


def _read_back(fresh: Path, model: nn.Module) -> None:
    """What was written must load to the same tensors."""
    again = load(fresh, trust=True).state_dict()
    for name, tensor in model.state_dict().items():
        if name not in again or not torch.equal(again[name].cpu(), tensor.detach().cpu()):
            raise MismatchError(f"the artifact read back differs in {name}; nothing was written")


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """The manifest of a whole artifact, its schema checked. Raises ArtifactError."""
    folder = Path(folder)
    if not folder.is_dir():
        raise ArtifactError(f"expected an artifact folder at {folder}, found none")
    try:
        settle(folder)
    except OSError as error:
        raise ArtifactError(f"{folder}: a save was struck in it, which cannot be ended ({error.strerror})") from None
    if not (folder / MANIFEST).exists() and (folder / PATH).exists():
        if (folder / RUN).exists():
            raise ArtifactError(
                f"{folder} carries only the journal of an unfinished run; `cswap prune … --resume` finishes it"
            )
        raise ArtifactError(
            f"{folder} has lost its {MANIFEST}: expected the whole folder; copy it again, or prune anew"
        )
    own_files(folder)
    manifest = read_json(folder / MANIFEST)
    if manifest.get("schema") != SCHEMA:
        raise ArtifactError(f"{folder}: expected schema {SCHEMA}, got {manifest.get('schema')!r}")
    return manifest


def spec_of(folder: Path, manifest: dict[str, Any], trust: bool) -> ModelSpec:
    """The model spec a manifest names, a FILE.py being the artifact's own copy. Code outside torchvision, timm and transformers runs only with `trust`. Raises ArtifactError."""
    named = manifest.get("factory")
    if not isinstance(named, dict):
        raise ArtifactError(f"{folder} names no factory that builds the original network: give one (factory=, --model)")
    arguments = named.get("arguments", {})
    try:
        spec = ModelSpec.parse(str(named["spec"]), arguments if isinstance(arguments, dict) else {})
    except KeyError:
        raise ArtifactError(f"{folder}: the manifest's factory has no spec") from None
    if spec.trusted:
        return spec
    if not trust:
        raise ArtifactError(
            f"{folder} names the factory {spec.text!r}, code that would run: give another (factory=, --model), or trust it (trust=True, --trust)"
        )
    if spec.kind == "module":
        return spec
    file = inside(folder, named.get("file"))
    if not file.is_file() or sha256_of(file) != named.get("sha256"):
        raise ArtifactError(f"{file} is not the factory that was saved: its hash differs")
    return ModelSpec(spec.text, "file", str(file), spec.name, spec.arguments)


def load(folder: str | Path, factory: Callable[[], nn.Module] | None = None, trust: bool = False) -> nn.Module:
    """The pruned module of an artifact, in eval mode, on the CPU.

    Builds the original network by `factory` (or the one the manifest names), replaces attention and recurrent modules and shrinks by the
    manifest, loads the weights. Checks schema, hash, names and shapes. Raises ArtifactError, InputError.
    """
    if not (factory is None or callable(factory)):
        raise InputError(f"load: expected factory as a function that builds the original network, got {factory!r:.60}")
    folder = Path(folder)
    manifest = read_manifest(folder)
    try:
        weights = inside(folder, manifest["weights"]["file"])
        expected_hash = manifest["weights"]["sha256"]
        replaced = [str(name) for name in manifest.get("structure", {}).get("replaced", {})]
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise ArtifactError(
            f"{folder}: the manifest's weights are malformed ({type(error).__name__}: {one_line(error)})"
        ) from None
    kept = kept_of(folder, manifest)
    if not weights.is_file():
        raise ArtifactError(f"expected {weights}, found none")
    if sha256_of(weights) != expected_hash:
        raise ArtifactError(f"{weights} is not the file that was saved: its hash differs")
    build = factory or spec_of(folder, manifest, trust).build
    with torch.random.fork_rng(devices=[]):
        model = build()
    if not isinstance(model, nn.Module):
        raise ArtifactError(f"expected the factory to return an nn.Module, got {type(model).__name__}")
    shrink_in_place(replace_(model, replaced), kept)
    try:
        put_tensors(model, load_file(weights))
    except (ModelError, SafetensorError) as error:
        raise ArtifactError(f"{weights} does not fit the network the factory builds ({one_line(error)})") from None
    made: Any = model
    made._cswap = _surgery(folder, manifest, kept)
    return model.eval()


def kept_of(folder: Path, manifest: dict[str, Any]) -> KeptIndices:
    """The original indices kept, by tensor and dimension, each (n,) int64 and ascending. Raises ArtifactError."""
    try:
        kept: KeptIndices = {
            str(t): {int(d): _indices(i) for d, i in dims.items()} for t, dims in manifest["kept"].items()
        }
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise ArtifactError(
            f"{folder}: the indices kept are malformed ({type(error).__name__}: {one_line(error)})"
        ) from None
    if any((np.diff(i) <= 0).any() for dims in kept.values() for i in dims.values()):
        raise ArtifactError(f"{folder}: indices kept must ascend without repeats")
    return kept


def removed_from(folder: Path, structure: Structure, kept: KeptIndices) -> Removed:
    """The units that `kept` lacks. Raises ArtifactError where one tensor lacks a unit that another one tied to it keeps."""
    removed = removed_by(structure, kept)
    expected = kept_indices(structure, removed)
    for tensor in sorted(expected.keys() | kept.keys()):
        for dim in sorted(expected.get(tensor, {}).keys() | kept.get(tensor, {}).keys()):
            due, found = expected.get(tensor, {}).get(dim), kept.get(tensor, {}).get(dim)
            if due is None or found is None or not np.array_equal(due, found):
                raise ArtifactError(
                    f"{folder}: the indices kept contradict each other: dimension {dim} of {tensor} keeps "
                    f"{_some(found)}; by the tensors tied to it, expected {_some(due)}"
                )
    return removed


def _some(indices: IntArray | None) -> str:
    return "all" if indices is None else counted(indices, 4)


@contextmanager
def told_by(folder: Path) -> Iterator[None]:
    """What Python raises while a manifest or a summary is read becomes ArtifactError: they are files that anyone may have changed."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError, ZeroDivisionError) as error:
        raise ArtifactError(
            f"{folder}: the manifest or the summary is malformed ({type(error).__name__}: {one_line(error)})"
        ) from None


def _indices(given: Any) -> IntArray:
    """Whole numbers, and nothing that would be rounded to them."""
    if not isinstance(given, list) or not all(type(i) is int for i in given):
        raise ValueError("expected a list of whole numbers")
    return np.asarray(given, dtype=np.int64)


def _surgery(folder: Path, manifest: dict[str, Any], kept: KeptIndices) -> Surgery:
    """What was done to the module, so that it can be recovered and saved again."""
    with told_by(folder):
        structure = Structure.from_dict(manifest["structure"])
        target, ratio = _target(manifest), Ratio(**manifest["ratio"])
        return Surgery(target, ratio, int(manifest["steps"]), removed_from(folder, structure, kept), kept, structure)


def _target(manifest: dict[str, Any]) -> Target:
    """What was asked for; in Python that may be the whole path."""
    text = manifest["target"]
    return Target("complete") if text == "complete" else Target.parse(text)


def cliffs_of(manifest: dict[str, Any]) -> tuple[Cliff, ...]:
    """The cliffs a finished run told of. Raises ArtifactError."""
    try:
        return tuple(Cliff(**{**c, "classes": tuple(c["classes"])}) for c in manifest.get("cliffs") or [])
    except (KeyError, TypeError) as error:
        raise ArtifactError(f"the manifest's cliffs are malformed ({one_line(error)})") from None


def open_artifact(folder: str | Path) -> Artifact:
    """Manifest, structure and path of a whole artifact. Raises ArtifactError."""
    folder = Path(folder)
    manifest = read_manifest(folder)
    with told_by(folder):
        for name, kind in _KINDS.items():
            if not isinstance(manifest.get(name), kind):
                raise ValueError(f"{name} is of type {type(manifest.get(name)).__name__}")
        _target(manifest)
        ratio = {k: float(v) for k, v in manifest["ratio"].items()}
        if ratio.keys() != set(RATIO_KINDS) or not all(0 <= v <= 1 for v in ratio.values()):
            raise ValueError("ratio is not that of " + ", ".join(RATIO_KINDS))
    if not (folder / EFFECTS).is_file():
        raise ArtifactError(f"expected {EFFECTS} in {folder}, found none")
    try:
        structure = Structure.from_dict(manifest["structure"])
        options = Options(**manifest["options"])
        classes = tuple(str(c) for c in manifest["classes"])
        decisions = read_journal(folder, structure, classes, options.rule, options.block)
        cliffs = list(cliffs_of(manifest))
    except CswapError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, IndexError, OSError) as error:
        raise ArtifactError(f"{folder}: the manifest or the path is malformed ({one_line(error)})") from None
    path = PruningPath(
        structure,
        str(manifest["method"]),
        manifest["options"],
        classes,
        decisions,
        cliffs,
        ended=str(manifest.get("ended", "")),
        sensitivity=manifest.get("sensitivity"),
        of_run=isinstance(manifest.get("run"), dict),
    )
    return Artifact(folder, manifest, structure, path)
