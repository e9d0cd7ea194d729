"""What is done with an artifact later: another target, or its quality once more."""

from __future__ import annotations

import warnings
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

import torch
from torch import nn
from torch.utils.data import Dataset

from cswap.artifacts.aside import clear, replacing
from cswap.artifacts.claims import BY_APPLY, open_folder
from cswap.artifacts.files import MANIFEST, new_file, settle
from cswap.artifacts.folder import Artifact, open_artifact, spec_of
from cswap.data.calibration import CalibrationSet
from cswap.data.models import sha256_of
from cswap.data.sources import DataPair, limited, names_code
from cswap.data.truth import stacked
from cswap.errors import CswapWarning, InputError
from cswap.evaluate.cost import measure_cost
from cswap.evaluate.quality import measure_quality
from cswap.methods.options import Options
from cswap.pipeline.checks import recovering_with, same_classes, task_named, unseen_data
from cswap.pipeline.finish import Finished, finish
from cswap.pipeline.jobs import HERE, PLAIN, DataChoice, Machine, OtherData, Source, Wish, state_hash
from cswap.pipeline.unlabelled import PREDICTED
from cswap.pipeline.watch import Clock, Watcher
from cswap.tasks import Task
from cswap.types import Target


def original_of(
    artifact: Artifact, source: Source | None, trust: bool, weights: Path | None = None
) -> tuple[nn.Module, Source]:
    """The original network of an artifact: from `source` where given, else as the manifest recorded it, with `weights` where those were moved."""
    recorded = artifact.manifest.get("source")
    if source is not None and source.weights is not None:
        return source.build(), source
    if not isinstance(recorded, dict):
        raise InputError("the artifact does not say where its original came from: give --model and --weights")
    spec = source.spec if source else spec_of(artifact.folder, artifact.manifest, trust)
    named = recorded.get("weights")
    if not isinstance(named, str | None):
        raise InputError(f"the artifact's source: expected the path of a weights file, got {named!r:.60}")
    weights = weights or (Path(named) if named else None)
    if weights is not None and not named:
        raise InputError("weights: the artifact's original has no weights file of its own; give --model too")
    if weights is not None and (not weights.is_file() or sha256_of(weights) != recorded.get("weights_sha256")):
        raise InputError(
            f"weights: {weights} is gone or is not the file that the artifact was made from; --weights F says where that is"
        )
    found = Source(spec, weights)
    model, pinned = found.build(), (artifact.manifest.get("run") or {}).get("weights")
    if weights is None and pinned is not None and state_hash(model) != pinned:
        said = "the network that the factory builds is not the one that was pruned: its weights, or its modules, are others"
        if artifact.manifest.get("torch_version") == torch.__version__:
            raise InputError(f"model: {said}; give --model and --weights")
        warnings.warn(f"{said} (or another PyTorch describes it otherwise)", CswapWarning, stacklevel=2)
    return model, found


def choice_of(artifact: Artifact, data: str | OtherData | None, trust: bool) -> DataChoice:
    """The data the artifact was made with, or `data` in its stead; what that does not say is as recorded.

    A FILE.py that only the manifest names runs with `trust` alone. Raises InputError.
    """
    other = data if isinstance(data, OtherData) else OtherData(data)
    if other.text is not None and "data" not in artifact.manifest:
        return _saved_from_python(artifact, other)
    try:
        recorded = dict(artifact.manifest["data"])
        for file in ("labels", "tokenizer"):
            recorded[file] = Path(recorded[file]) if recorded.get(file) else None
        choice = DataChoice(**recorded)
        wrong = [n for n, kind in get_type_hints(DataChoice).items() if not isinstance(getattr(choice, n), kind)]
        if wrong:
            raise InputError(f"the artifact's data: {wrong[0]} came as {recorded.get(wrong[0])!r:.60}")
    except (KeyError, TypeError, ValueError):
        raise InputError("the artifact does not say what data it was made with: it was saved from Python") from None
    if other.text is None and names_code(choice.text) and not trust:
        raise InputError(
            f"the artifact names {choice.text!r} as its data, code that would run: pass --data, or --trust it"
        )
    return other.over(choice)


def _saved_from_python(artifact: Artifact, data: OtherData) -> DataChoice:
    """Data for an artifact that records none: images of the size the network was analysed at, the rest as its library has it."""
    shape = artifact.structure.input_shape
    images = len(shape) == 3 and shape[1] == shape[2] and not names_code(str(data.text))
    if images and (data.mean is None or data.std is None):
        warnings.warn(
            f"the artifact was saved from Python and does not say how its images were made: read at {data.image_size or shape[1]} px, with the mean "
            "and std of the model's library (--mean, --std)",
            CswapWarning,
            stacklevel=2,
        )
    known = [int(d.effects.count.max()) for d in artifact.path if d.effects is not None]
    per_class = max(known, default=DataChoice.per_class)
    return data.over(
        DataChoice(str(data.text), per_class=per_class, image_size=shape[1] if images else None, allow_imbalance=True)
    )


@dataclass(frozen=True, eq=False)
class Reopened:
    """An artifact's original network with its data, opened as they were for the analysis."""

    artifact: Artifact
    model: nn.Module
    source: Source
    choice: DataChoice
    pair: DataPair

    def calibration(self, allow_imbalance: bool = False) -> CalibrationSet:
        """The samples that the units were judged by. Raises DataError."""
        return self.choice.calibration(self.pair, self.seed, allow_imbalance=allow_imbalance)

    def held_out(self) -> Dataset[Any]:
        """The samples that quality is measured on. Raises DataError."""
        return limited(self.pair.evaluation, self.choice.eval_samples, self.seed)

    def task(self) -> Task:
        """What the network is for. Raises InputError."""
        return task_named(str(self.artifact.manifest.get("task", "classification")), self.pair)

    @property
    def seed(self) -> int:
        """What samples were drawn with."""
        return int(self.artifact.path.options.get("seed", 0))


def reopened(
    artifact: Artifact, source: Source | None, data: str | OtherData | None, trust: bool, weights: Path | None = None
) -> Reopened:
    """The original network and the data, each as recorded or as given. Raises InputError, ArtifactError, ModelError, DataError."""
    model, found = original_of(artifact, source, trust, weights)
    choice = choice_of(artifact, data, trust)
    pair = choice.open(found.spec, model, known=artifact.path.classes)
    same_classes(pair, artifact)
    return Reopened(artifact, model, found, choice, pair)


def _samples_of(artifact: Artifact) -> str:
    """Fingerprint of the samples that the path was chosen by. Raises InputError where the artifact records none."""
    drawn = (artifact.manifest.get("run") or {}).get("data")
    if not isinstance(drawn, str):
        raise InputError(
            "certify: the artifact does not say which samples its path was chosen by (it was saved from Python), so none can be told from "
            "them; certificate_of certifies in Python"
        )
    return drawn


def _check_drawn_again(drawn: str, calibration: CalibrationSet, data: str | OtherData | None) -> None:
    """A certificate's samples are told from those drawn again, so these must be the ones that the path was chosen by.

    data: what was given in the recorded data's stead. Raises InputError.
    """
    if calibration.fingerprint() == drawn:
        return
    given = isinstance(data, str) or (data is not None and data.given)
    raise InputError(
        "certify: the calibration samples that the path was chosen by cannot be told from "
        + ("these data; expected --certify without --data" if given else "the recorded data, which have changed since")
    )


def apply(
    folder: Path, target: Target, out: Path, *, source: Source | None = None, weights: Path | None = None, data: str | OtherData | None = None, trust: bool = False,
    force: bool = False, machine: Machine = HERE, watcher: Watcher | None = None, wish: Wish = PLAIN,
) -> dict[str, Any]:  # fmt: skip
    """Another target from a stored path, without new analysis; returns the summary."""
    watcher, clock = watcher or Watcher(), Clock()
    artifact = open_artifact(folder)
    wish.check_target(target, artifact.path.options.get("per", "unit"))
    if target.kind != "latency":
        artifact.path.prefix(target, wish.round_to)  # beyond the end: said before anything is loaded
    if out.resolve() == folder.resolve():
        raise InputError(f"out: {out} is the artifact itself; name another folder")
    drawn = _samples_of(artifact) if wish.certify is not None else None
    with clock.phase("load"):
        again = reopened(artifact, source, data, trust, weights)
        calibration = again.calibration()
        if drawn is not None:
            _check_drawn_again(drawn, calibration, data)
        alpha = float(artifact.path.options.get("alpha", Options.alpha))
        recovering = recovering_with(wish, again.choice, again.pair, again.seed, calibration)
        used = max(calibration, recovering, key=len)  # the larger draw holds the other
        unseen = unseen_data(wish, again.choice, again.source.spec, again.model, again.pair.classes, used, alpha)
        held_out = again.held_out()
    run = artifact.manifest.get("run", {})
    done = Finished(
        again.model, artifact.path, again.task(), held_out, calibration, recovering, again.source, again.choice, run, wish,
        machine.memory, unseen,
    )  # fmt: skip
    with replacing(out, force):
        open_folder(out, {BY_APPLY: str(target), **(run or {})}, resume=False, force=force)
        try:
            return finish(done, target, out, machine.torch_device, clock, watcher)
        finally:
            with suppress(OSError):
                settle(out)
                if not (out / MANIFEST).exists():
                    clear(out)


def evaluate(
    folder: Path, *, source: Source | None = None, weights: Path | None = None, data: str | OtherData | None = None, trust: bool = False,
    machine: Machine = HERE, watcher: Watcher | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Quality and cost of original and pruned, side by side."""
    from cswap.artifacts.folder import load

    watcher = watcher or Watcher()
    artifact = open_artifact(folder)
    again = reopened(artifact, source, data, trust, weights)
    small = load(folder, factory=source.spec.build if source else None, trust=trust)
    held_out, device = again.held_out(), machine.torch_device
    watcher.phase("evaluation")
    models = {"baseline": again.model, "pruned": small}
    quality = measure_quality(models, held_out, again.task(), len(artifact.path.classes), device=device)
    watcher.phase("cost")
    cost = measure_cost(models, torch.as_tensor(held_out[0][0]).unsqueeze(0), device=device)
    return {
        "target": artifact.manifest["target"],
        "ratio": artifact.manifest["ratio"],
        "held_out_samples": len(held_out),  # type: ignore[arg-type]
        "classes": list(artifact.path.classes),
        "notes": [PREDICTED] if again.choice.unlabelled else [],
        **{n: {"quality": quality[n], **cost[n]} for n in models},
    }


def export(
    folder: Path, format: str, out: Path | None = None, *, source: Source | None = None, data: str | OtherData | None = None,
    trust: bool = False, force: bool = False, samples: int = 64,
) -> dict[str, Any]:  # fmt: skip
    """Write an artifact's network as ONNX or .pt2 (by default into it), checked on held-out inputs; returns what was written."""
    from cswap.artifacts.export import FORMATS
    from cswap.artifacts.export import export as export_model
    from cswap.artifacts.folder import load

    if format not in FORMATS:
        raise InputError(f"format: expected one of {', '.join(FORMATS)}, got {format!r}")
    if samples < 1:
        raise InputError(f"samples: expected at least 1, got {samples}")
    artifact = open_artifact(folder)
    file = out or folder / f"model.{format}"
    new_file("out", file, force)
    choice = choice_of(artifact, data, trust)
    spec = source.spec if source else spec_of(artifact.folder, artifact.manifest, trust)
    small = load(folder, factory=spec.build, trust=trust)
    held_out = choice.open(spec).evaluation
    size = min(max(2, samples), len(held_out))  # type: ignore[arg-type]
    inputs = stacked([held_out[i][0] for i in range(size)])
    facts = {
        "classes": list(artifact.path.classes), "target": artifact.manifest["target"], "ratio": artifact.manifest["ratio"],
        "input_shape": list(inputs.shape[1:]), "weights_sha256": artifact.manifest["weights"]["sha256"],
    }  # fmt: skip
    return export_model(small, file, inputs, format=format, facts=facts).as_dict()
