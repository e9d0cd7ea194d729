"""The store of differences: d of every unit and sample on the original network, from which verdicts need no network."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from torch import nn

from cswap.causal.judge import Judgement, judgement
from cswap.causal.replay import engine_for
from cswap.causal.stats import EffectStats, effect_stats
from cswap.causal.verdicts import VoteRule
from cswap.data.calibration import CalibrationSet
from cswap.errors import ArtifactError, InputError, RunError
from cswap.structure.groups import Structure
from cswap.tasks.base import Task
from cswap.types import FloatArray, IntArray

SCHEMA = "cswap-differences/1"


@dataclass(frozen=True, eq=False)
class DifferenceStore:
    """d = σ* − σ by group, (size, M) float32; `sigma` (M,) float64 of the uncut network; `targets` (M,) class numbers.

    Samples are in class order as the calibration set drew them, so that fewer a class are a prefix of more.
    """

    differences: dict[str, npt.NDArray[np.float32]]
    sigma: FloatArray
    targets: IntArray
    classes: tuple[str, ...]
    source: str = ""  # hash of network and calibration set

    def samples(self, per_class: int | None = None) -> IntArray:
        """Numbers of the first `per_class` samples of every class (all, for None). Raises InputError for too many."""
        if per_class is None:
            return np.arange(len(self.targets), dtype=np.int64)
        parts = []
        for k, name in enumerate(self.classes):
            own = np.flatnonzero(self.targets == k)
            if not 2 <= per_class <= len(own):
                raise InputError(
                    f"store: class {name!r} has {len(own)} samples, {per_class} were asked for (at least 2)"
                )
            parts.append(own[:per_class])
        return np.concatenate(parts).astype(np.int64)

    def stats(self, group: str, unit: int, *, per_class: int | None = None, xi_floor: float = 1e-3) -> EffectStats:
        """Effects of one unit, as they would have been measured on those samples."""
        at = self.samples(per_class)
        base = self.sigma[at]
        cut = base + self.differences[group][unit, at].astype(np.float64)
        return effect_stats(base, cut, self.targets[at], len(self.classes), xi_floor=xi_floor)

    def judge(
        self, group: str, unit: int, rule: VoteRule, *, per_class: int | None = None, xi_floor: float = 1e-3
    ) -> Judgement:
        """Verdict of one unit under any rule: vote, α, correction, least effect, sample size."""
        return judgement(self.stats(group, unit, per_class=per_class, xi_floor=xi_floor), rule, self.classes)

    def save(self, file: Path) -> None:
        """One safetensors file, whole or not there. Raises RunError."""
        told = {
            "schema": SCHEMA,
            "classes": list(self.classes),
            "groups": list(self.differences),
            "source": self.source,
        }
        tensors: dict[str, Any] = {f"d.{i}": d for i, d in enumerate(self.differences.values())}
        tensors |= {"sigma": self.sigma, "targets": self.targets}
        temporary = file.with_name(file.name + ".tmp")
        content = save({n: np.ascontiguousarray(t) for n, t in tensors.items()}, metadata={"store": json.dumps(told)})
        try:
            temporary.write_bytes(content)  # save_file leaves a file of a name of its own when it is killed
            temporary.replace(file)
        except OSError as error:
            raise RunError(f"{file} cannot be written ({error.strerror})") from None

    @classmethod
    def load(cls, file: Path) -> DifferenceStore:
        """The inverse of `save`; raises ArtifactError."""
        try:
            with safe_open(file, framework="numpy") as stored:
                told = json.loads(stored.metadata()["store"])
                if told["schema"] != SCHEMA:
                    raise ArtifactError(f"{file}: expected schema {SCHEMA}, got {told['schema']!r}")
                differences = {str(g): stored.get_tensor(f"d.{i}") for i, g in enumerate(told["groups"])}
                sigma, targets = stored.get_tensor("sigma"), stored.get_tensor("targets")
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise ArtifactError(f"{file} is no store of differences ({str(error).splitlines()[0][:120]})") from None
        if any(d.ndim != 2 or d.shape[1] != len(sigma) for d in differences.values()) or len(targets) != len(sigma):
            raise ArtifactError(f"{file}: its tensors do not fit each other")
        return cls(differences, sigma, targets, tuple(str(c) for c in told["classes"]), str(told["source"]))


def source_of(model: nn.Module, structure: Structure, calibration: CalibrationSet, task: Task) -> str:
    """Hash of what differences depend on: weights, groups, samples, and the score that the task reads from the outputs."""
    digest = hashlib.sha256(calibration.fingerprint().encode())
    digest.update(f"{type(task).__module__}.{type(task).__qualname__} {task.name}".encode())
    for setting, value in sorted(getattr(task, "__dict__", {}).items()):  # which output is which class, and the like
        digest.update(f"{setting}={value.tolist() if isinstance(value, torch.Tensor) else value!r}".encode())
    digest.update(json.dumps([[g.name, g.size] for g in structure]).encode())
    for name, tensor in model.state_dict().items():
        digest.update(name.encode() + tensor.detach().cpu().contiguous().flatten().numpy().tobytes())
    return digest.hexdigest()


def measure_differences(
    model: nn.Module,
    structure: Structure,
    calibration: CalibrationSet,
    task: Task,
    *,
    file: Path | None = None,
    device: str = "cpu",
    memory: int = 4 << 30,
    tell: Callable[[str], None] = lambda _text: None,
) -> DifferenceStore:
    """One pass over the original network. With `file`, groups that are done are kept beside it, so that an interrupted
    pass goes on; a whole file of the same network and samples is read instead.

    Raises InputError for a task that scores by class, and for a file of something else.
    """
    if hasattr(task, "class_scores") or calibration.members is not None:
        raise InputError(f"store: expected a task with one score a sample, {task.name} scores by class")
    source = source_of(model, structure, calibration, task)
    if file is not None and file.exists():
        held = DifferenceStore.load(file)
        if held.source != source:
            raise InputError(f"store: {file} was measured on another network or other samples; name a new file")
        return held
    engine = engine_for(model, structure, calibration, task, device=device, memory=memory)
    first, found = engine.scores(), {}
    for i, group in enumerate(structure):
        part = None if file is None else file.with_name(f"{file.name}.{i}.part")
        kept = DifferenceStore.load(part) if part is not None and part.exists() else None
        if kept is not None and kept.source == source:
            found[group.name] = kept.differences[group.name]
            continue
        found[group.name] = np.stack(
            [
                (cut.sigma - base.sigma).astype(np.float32)
                for _, cut, base in engine.one_by_one(group, range(group.size))
            ]
        )
        tell(f"differences of {group.name}: {i + 1} of {len(structure)} groups")
        if part is not None:
            DifferenceStore(
                {group.name: found[group.name]}, first.sigma, calibration.targets, calibration.classes, source
            ).save(part)
    store = DifferenceStore(found, first.sigma, calibration.targets, calibration.classes, source)
    if file is not None:
        store.save(file)
        for part in file.parent.glob(f"{file.name}.*.part"):
            part.unlink()
    return store
