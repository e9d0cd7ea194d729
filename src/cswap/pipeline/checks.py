"""What must hold before a run begins."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from cswap.artifacts.folder import Artifact
from cswap.data.calibration import CalibrationSet, counted
from cswap.data.models import ModelSpec
from cswap.data.sources import DataPair, in_memory
from cswap.data.truth import inputs_of, kind_of, target_at
from cswap.errors import DataError, InputError, ModelError, StructureError, pass_on_out_of_memory
from cswap.evaluate.certificate import check_enough, refuse_seen
from cswap.methods.options import Options
from cswap.pipeline.jobs import DataChoice, OtherData, Wish
from cswap.structure.calls import outputs_for, run_hooked
from cswap.structure.groups import Structure
from cswap.tasks import TASKS, Classification, Detection, Task


def task_named(name: str, pair: DataPair | None = None) -> Task:
    """A task by name, which knows what output of the model is which class of the data. Raises InputError."""
    if name not in TASKS:
        raise InputError(f"task: expected one of {', '.join(TASKS)}, got {name!r}")
    if pair is not None and pair.outputs is not None:
        if not issubclass(TASKS[name], Classification | Detection):
            _check_kind(getattr(TASKS[name], "targets", None), kind_of(target_at(pair.train, 0)), name)
            raise InputError(f"labels: expected a class for every output of the model with --task {name}")
        chosen: Task = TASKS[name](outputs=pair.outputs)
        return chosen
    task: Task = TASKS[name]()
    return task


def _check_kind(wanted: str | None, came: str, task: str) -> None:
    if wanted not in (None, came):
        raise DataError(f"task {task}: expected data with {wanted}, got {came}")


def check_fits(model: nn.Module, calibration: CalibrationSet, task: Task) -> None:
    """The task must know the data's targets, the model take its inputs and have an output for every class. Raises DataError."""
    _check_kind(getattr(task, "targets", None), calibration.kind, task.name)
    outputs = outputs_for(model, calibration.inputs(0, 1))
    if isinstance(outputs, torch.Tensor) and not torch.isfinite(outputs).all():
        raise DataError(
            "the model's output is not finite on the first calibration sample: NaN or Inf in its weights or its code"
        )
    count = getattr(task, "outputs_of", None)
    width, classes = None if count is None else count(outputs), len(calibration.classes)
    if width is not None and width != classes:
        raise DataError(
            f"the model has {width} outputs and the data {classes} classes: expected the same, in the same order; "
            "--labels FILE says which output is which class"
        )
    refuse_unsteady(model, calibration)


def refuse_unsteady(model: nn.Module, calibration: CalibrationSet) -> None:
    """A sample's output must follow from the sample alone, each time: an effect would not be its own otherwise.

    model: in eval mode. Raises ModelError (ours).
    """
    one, other = (_for(model, x) for x in calibration.ends())
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            first, again, beside_itself = (model(torch.cat([one, second])) for second in (other, other, one))
    except Exception as error:  # noqa: BLE001 — what does not run is told by what runs it next
        pass_on_out_of_memory(error)
        return
    if _apart(tree_leaves(first), tree_leaves(again)):
        raise ModelError(
            "the model: expected the same output for the same input, got another one each time (dropout or noise that eval() does not "
            "switch off, as F.dropout without training=self.training)"
        )
    if _apart(_of_the_first(first), _of_the_first(beside_itself)):
        raise ModelError(
            "the model: expected an output that follows from the sample alone, got one that depends on the other samples of the batch "
            "(a batch norm without running statistics, or a reshape that mixes samples)"
        )


def refuse_routed(model: nn.Module, structure: Structure, calibration: CalibrationSet) -> None:
    """Layers that the structure was not found with must not run for other samples (ours).

    model: in eval mode. Raises StructureError.
    """
    called: list[str] = []
    modules = ((n, m) for n, m in model.named_modules() if n in structure.uncalled)
    handles = [m.register_forward_hook(lambda *_, n=n: called.append(n)) for n, m in modules]
    if not handles:
        return
    with torch.random.fork_rng(devices=[]):
        run_hooked(model, _for(model, calibration.some()), handles)
    if called:
        raise StructureError(
            f"the model calls {called[0]} for some samples and not for others: expected one that sends every sample through the same layers"
        )


def _for(model: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    """On the model's device, and of its type where they are of a floating one."""
    like = next((p for p in model.parameters() if p.is_floating_point()), inputs)
    return inputs.to(like.device, like.dtype if inputs.is_floating_point() else inputs.dtype)


def _of_the_first(outputs: Any) -> list[torch.Tensor]:
    """What two samples' outputs hold of the first, where samples come first; detections are a list by sample."""
    if isinstance(outputs, list | tuple) and any(isinstance(o, dict) for o in outputs):
        return []
    return [t[0] for t in tree_leaves(outputs) if isinstance(t, torch.Tensor) and t.dim() and len(t) == 2]


def _apart(ones: list[Any], others: list[Any]) -> bool:
    """Whether tensors differ by more than rounding; where NaN or Inf is, or shapes differ, it is not for this to say."""
    pairs = [
        (a.float(), b.float())
        for a, b in zip(ones, others, strict=False)
        if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) and a.shape == b.shape and a.numel()
    ]
    return any(bool((a - b).abs().max() > 1e-3 * b.abs().max()) for a, b in pairs)


def recovering_with(
    wish: Wish, data: DataChoice, pair: DataPair, seed: int, calibration: CalibrationSet
) -> CalibrationSet:
    """The samples to recover with: those of the analysis, `calibration`, or as many as are wished. Raises DataError."""
    n = wish.recover_per_class
    if n in (None, data.per_class):
        return calibration
    try:
        return data.calibration(pair, seed, n)
    except DataError as error:
        raise DataError(f"recover-per-class: {str(error).replace('--per-class', '--recover-per-class')}") from None


def unseen_data(
    wish: Wish, data: DataChoice, spec: ModelSpec, model: nn.Module, classes: tuple[str, ...], calibration: CalibrationSet,
    alpha: float = Options.alpha,
) -> Any:  # fmt: skip
    """The samples for a certificate, none where none is asked for; warns where they are too few for its margin.

    classes: those of the run, which these must have; alpha: the certificate's error rate. Raises DataError when they were calibrated
    with, repeat, or hold NaN.
    """
    if wish.certify is None:
        return None
    choice = OtherData(text=wish.certify).over(data)
    whole = replace(choice, eval_samples=None)  # a limit is of the run's own held-out data
    pair = whole.open(spec, model, known=classes)
    if pair.classes != classes:
        raise DataError(f"certify: expected the data's {len(classes)} classes, got {len(pair.classes)} or others")
    unseen = in_memory(pair.evaluation)  # read here, and again for the certificate
    _check_alike(inputs_of(unseen, 0), calibration.inputs(0, 1)[0])
    refuse_seen(unseen, calibration)
    check_enough(unseen, classes, margin=wish.margin, alpha=alpha, bound=wish.bound)
    return unseen


def _check_alike(given: torch.Tensor, used: torch.Tensor) -> None:
    """Samples of another type, or of other channels or features, would fail when all else is done. Raises DataError."""
    sized = 1 if used.is_floating_point() and used.dim() in (1, 3) else 0  # tokens and maps may be longer
    if (given.dtype, given.dim(), given.shape[:sized]) != (used.dtype, used.dim(), used.shape[:sized]):
        raise DataError(
            f"certify: expected samples like those of calibration, {tuple(used.shape)} {used.dtype}, got {tuple(given.shape)} {given.dtype}"
        )


def same_classes(pair: DataPair, artifact: Artifact) -> None:
    """Data given later must have the artifact's classes in its order. Raises DataError."""
    if pair.classes != artifact.path.classes:
        raise DataError(
            f"data: expected the artifact's classes, {counted(artifact.path.classes)}, got {counted(pair.classes)}"
        )
