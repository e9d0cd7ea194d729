"""`recover`: what a pruned network lost is given back in closed form, from calibration inputs, without gradients or epochs."""

from __future__ import annotations

import copy
import time
import warnings
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from scipy import special
from torch import nn

from cswap.causal.engine import exact
from cswap.data.calibration import CalibrationSet
from cswap.data.truth import moved
from cswap.errors import ArtifactError, CswapWarning, InputError
from cswap.recovery.base import STEPS, Case, choosing, steps_of
from cswap.structure.check import tensors_of
from cswap.structure.detectors import forward_of
from cswap.structure.discover import discover
from cswap.structure.groups import Structure
from cswap.structure.images import Fed
from cswap.structure.surgery import KeptIndices, kept_indices, prepared_copy
from cswap.structure.twins import removed_units
from cswap.tasks import Classification, Task, completed
from cswap.types import FloatArray

DOUBT = 0.05


@dataclass(frozen=True, eq=False)
class Recovery:
    """A recovered network and what was done.

    `declined`: why the network is as it was, or None; `raw`: the recovered network all the same. `score_before`,
    `score_after`, `quality_before`, `quality_after`: means of σ and of quality on the `judged` calibration samples, those that
    did not fit where `lstsq` is among the steps, else all, on which the statistics of `bn`, `bias` and `merge` were taken too. `notes`: what was left as it was, and why; `facts`: figures by step.
    """

    model: nn.Module
    how: str
    seconds: float
    score_before: float
    score_after: float
    quality_before: float
    quality_after: float
    judged: int
    raw: nn.Module
    declined: str | None = None
    notes: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values, without the network."""
        return {
            "how": self.how, "seconds": self.seconds, "declined": self.declined, "score_before": self.score_before,
            "score_after": self.score_after, "quality_before": self.quality_before, "quality_after": self.quality_after,
            "judged": self.judged, "notes": self.notes, "facts": self.facts,
        }  # fmt: skip


def recover(
    small: nn.Module,
    teacher: nn.Module,
    calibration: CalibrationSet,
    how: str = "lstsq",
    *,
    task: Task | None = None,
    structure: Structure | None = None,
    device: str = "cpu",
    memory: int = 4 << 30,
) -> nn.Module:
    """A copy of the pruned network `small` with what can be given back; `teacher` is its original. Both are untouched.

    how: `bias`, `bn`, `lstsq`, `merge`, `fold`, or several joined by `+`, done in that order. When the score falls on calibration
    samples that did not fit (paired one-sided t-test at 5 %) and quality does not rise by the same test, or quality does and the score does not rise, the
    copy is as `small` was, and a warning says so; unless both figures are as good as the original's, or neither fall is significant and
    the outputs are significantly nearer to the original's; `recovered` gives the facts. A module that `path.apply` did not make is matched to the teacher by its tensors; its
    attention and recurrent layers come back as the equivalents that the structure names.
    Raises InputError when they do not match.
    """
    found = recovered(small, teacher, calibration, how, task=task, structure=structure, device=device, memory=memory)
    if found.declined:
        warnings.warn(f"recover {how}: {found.declined}", CswapWarning, stacklevel=2)
    return found.model


def recovered(
    small: nn.Module,
    teacher: nn.Module,
    calibration: CalibrationSet,
    how: str = "lstsq",
    *,
    task: Task | None = None,
    structure: Structure | None = None,
    device: str = "cpu",
    memory: int = 4 << 30,
) -> Recovery:
    """`recover` with the facts: see `Recovery`."""
    names, task = steps_of(how), completed(task) if task is not None else Classification()
    begin = time.perf_counter()
    made: Any = getattr(small, "_cswap", None)
    _check_dtype(teacher, calibration)
    structure = structure or (
        discover(teacher, calibration.inputs(0, 2).to(_place(teacher))) if made is None else made.structure
    )
    original = prepared_copy(teacher, structure).eval().to(device)
    if made is None:
        small = _prepared(small, structure)
        removed = removed_units(small, original, structure)
        kept: KeptIndices = kept_indices(structure, removed)
    else:
        removed, kept = made.removed, made.kept
    plain, changed = _still(small, device), _still(small, device)
    _check_shapes(small, original, kept)
    held = choosing(calibration) if "lstsq" in names else np.empty(0, dtype=np.int64)
    case = Case(changed, original, calibration, structure, removed, kept, device, memory, held)
    gone = any(len(units) for units in removed.values())
    if not gone:
        case.note("nothing was removed: nothing to give back")
    with exact(torch.device(device), False), torch.no_grad():  # a view of a parameter would keep all that is made of it
        for name in names if gone else []:
            STEPS[name](case)
    numbers = held if len(held) else np.arange(len(calibration))
    judges = calibration.part(numbers)
    before, after = (_measured(net, judges, task, device) for net in (plain, case.small))
    declined = _why_not(before, after)
    back = ""
    if declined is not None and gone and np.isfinite(after[0]).all():
        # the units that went were chosen by these samples, which flatter the network as it was cut: where they say nothing for
        # certain, its outputs do
        certain = any(_surely_below_zero(a - b) for a, b in zip(after, before, strict=True))
        if not certain and _surely_below_zero(
            np.subtract(*(_away(net, original, judges, device) for net in (case.small, plain)))
        ):
            back = "while the outputs came nearer to the original's"
        elif _gave_back(_measured(original, judges, task, device), after):
            back = "to what the original has"
        declined = None if back else declined
    seconds = round(time.perf_counter() - begin, 3)
    for what, was, now in zip(("score", "quality"), before, after, strict=True):
        if declined is None and now.mean() < was.mean():
            case.note(
                f"the mean {what} of {len(numbers)} calibration samples fell, {back or 'not significantly'}, "
                f"from {was.mean():.4f} to {now.mean():.4f}"
            )
    raw = _like(case.small, small)
    return Recovery(
        model=_like(plain, small) if declined else raw, how=how, seconds=seconds, score_before=float(before[0].mean()),
        score_after=float(after[0].mean()), quality_before=float(before[1].mean()), quality_after=float(after[1].mean()),
        judged=len(numbers), raw=raw, declined=declined, notes=case.notes, facts=case.facts,
    )  # fmt: skip


def _check_dtype(teacher: nn.Module, calibration: CalibrationSet) -> None:
    """Raises InputError for a network in another precision than its inputs."""
    inputs = calibration.inputs(0, 1).dtype
    other = next((p.dtype for p in teacher.parameters() if p.is_floating_point() and p.dtype != inputs), None)
    if inputs.is_floating_point and other is not None:
        raise InputError(f"recover: expected networks in {inputs}, as the calibration inputs are, got {other}")


def _prepared(small: nn.Module, structure: Structure) -> nn.Module:
    """The foreign module with the equivalents that the structure names. Raises InputError."""
    try:
        net = prepared_copy(small, structure)
    except ArtifactError as error:
        raise InputError(f"recover: the pruned module is not laid out as the original: {error}") from None
    for name in structure.replaced:
        net.get_submodule(name).train(small.get_submodule(name).training)
    return net


def _check_shapes(small: nn.Module, original: nn.Module, kept: KeptIndices) -> None:
    """Raises InputError where the pruned network is not the original less what is known to be gone."""
    left = small.state_dict()
    known = original.state_dict()
    once = {n for n, _ in (*original.named_parameters(), *original.named_buffers())}  # a layer may have two names
    for name, whole in ((n, t) for n, t in known.items() if n in once):
        gone = kept.get(name, {})
        expected = tuple(len(gone[d]) if d in gone else size for d, size in enumerate(whole.shape))
        if name not in left or tuple(left[name].shape) != expected:
            came = f"is {tuple(left[name].shape)}" if name in left else "is missing"
            raise InputError(
                f"recover: {name} {came} in the pruned module, expected {expected}; pass a module of path.apply"
            )


def _still(net: nn.Module, device: str) -> nn.Module:
    return copy.deepcopy(net).eval().to(device)


def _like(net: nn.Module, given: nn.Module) -> nn.Module:
    """Every module in the mode, and all on the device, of what was given."""
    for mine, theirs in zip(net.modules(), given.modules(), strict=True):
        mine.training = theirs.training
    return net.to(_place(given))


def _place(net: nn.Module) -> torch.device:
    return next((p.device for p in net.parameters()), torch.device("cpu"))


def _measured(net: nn.Module, part: CalibrationSet, task: Task, device: str) -> tuple[FloatArray, FloatArray]:
    """σ and quality of samples, (M',) float64 each."""
    scores, quality = [], []
    fed = Fed(net)
    with torch.no_grad(), exact(torch.device(device), False):
        for inputs, targets in part.batches(128):
            outputs, labels = fed(inputs.to(device)), moved(targets, device)
            scores.append(task.score(outputs, labels).double().cpu().numpy())
            quality.append(task.sample_quality(outputs, labels).double().cpu().numpy())
    return np.concatenate(scores), np.concatenate(quality)


def _away(net: nn.Module, original: nn.Module, part: CalibrationSet, device: str) -> FloatArray:
    """Squared distance of each sample's outputs from the original's, (M',): mean over outputs, of each its share of its mean square."""
    found, both = [], [Fed(forward_of(m)) for m in (net, original)]
    with torch.no_grad(), exact(torch.device(device), False):
        for inputs, _ in part.batches(32):
            given = inputs.to(device)
            pairs = list(zip(*(tensors_of(m(given)) for m in both), strict=True))
            shares = [
                ((a.double() - b.double()).square() / b.double().square().mean().clamp_min(1e-30)).flatten(1).mean(1)
                for a, b in pairs
                if len(a) == len(inputs) and a.shape == b.shape and a.numel()
            ]
            found.append(torch.stack(shares).mean(0).cpu().numpy() if shares else np.zeros(len(inputs)))
    return np.concatenate(found)


def _why_not(before: tuple[FloatArray, FloatArray], after: tuple[FloatArray, FloatArray]) -> str | None:
    """Why a recovery is not taken: scores that are no numbers, or what `calibration` samples say of score and quality.

    Each outweighs the other: a fall of quality where it is not significant itself and the score, which is finer, rises
    significantly; a fall of the score where quality rises significantly (paired one-sided t-tests at 5 %; ours).
    """
    if not np.isfinite(after[0]).all():
        return "declined: the recovered network gives no finite scores"
    score, quality = after[0] - before[0], after[1] - before[1]
    if quality.mean() < 0 and (_surely_below_zero(quality) or not _surely_below_zero(-score)):
        return (
            f"declined: quality on {len(after[1])} calibration samples would fall from {before[1].mean():.4f} to "
            f"{after[1].mean():.4f}"
        )
    if _surely_below_zero(score) and not _surely_below_zero(-quality):
        return (
            f"declined: the mean score of {len(score)} calibration samples would fall from {before[0].mean():.4f} to "
            f"{after[0].mean():.4f}"
        )
    return None


def _gave_back(whole: tuple[FloatArray, FloatArray], after: tuple[FloatArray, FloatArray]) -> bool:
    """Whether score and quality are not significantly below the original network's (paired one-sided t-tests at 5 %)."""
    return bool(np.isfinite(after[0]).all()) and not any(
        _surely_below_zero(a - w) for a, w in zip(after, whole, strict=True)
    )


def _surely_below_zero(d: FloatArray) -> bool:
    """Is the mean of paired differences below zero, by a one-sided t-test at 5 %?"""
    if len(d) < 2 or not d.any():
        return False
    spread = d.std(ddof=1)
    return (
        bool(special.stdtr(len(d) - 1, d.mean() / (spread / len(d) ** 0.5)) < DOUBT) if spread > 0 else bool(d[0] < 0)
    )
