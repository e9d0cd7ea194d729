"""`recover`: what a pruned network lost is given back in closed form, from calibration inputs, without gradients or epochs."""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Sequence
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
from cswap.recovery.base import STEPS, Case, changed_since, choosing, last_fifth, steps_of
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
ALIKE = 1e-6
"""Share of the outputs' mean square: networks nearer than that are told apart by rounding."""
CHOOSING = {"lstsq", "merge"}
"""Steps that choose by the last fifth of each class's samples, which then judge the recovery too."""
NONE = np.empty(0, dtype=np.int64)


@dataclass(frozen=True, eq=False)
class Recovery:
    """A recovered network and what was done.

    `declined`: why the network is as it was, or None; `raw`: the recovered network all the same. `score_before`,
    `score_after`, `quality_before`, `quality_after`: means of σ and of quality on the `judged` calibration samples, those that
    did not fit where `lstsq` or `merge` is among the steps, else all, on which the statistics of `bn` and `bias` were taken too.
    `samples`: those that fitted and those that judged. `notes`: what was left as it was, and why; `facts`: figures by step.
    """

    model: nn.Module
    how: str
    seconds: float
    score_before: float
    score_after: float
    quality_before: float
    quality_after: float
    judged: int
    samples: int
    raw: nn.Module
    declined: str | None = None
    notes: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values, without the network."""
        return {
            "how": self.how, "seconds": self.seconds, "declined": self.declined, "score_before": self.score_before,
            "score_after": self.score_after, "quality_before": self.quality_before, "quality_after": self.quality_after,
            "judged": self.judged, "samples": self.samples, "notes": self.notes, "facts": self.facts,
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

    how: `bias`, `bn`, `lstsq`, `merge`, `fold`, or several joined by `+`, done in that order. The result is taken on evidence, by
    paired one-sided t-tests at 5 % on calibration samples, those that did not fit where `lstsq` or `merge` is among the steps: score or
    quality rises or the outputs come nearer to the original's, and neither falls; a fall is outweighed by a rise of the other, or,
    where the outputs come nearer, by being insignificant or by ending where the original is. Else the copy is as `small` was, and a
    warning says why; `recovered` gives the facts. A module that `path.apply` did not make is matched to the teacher by its tensors; its
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
    tensor = changed_since(plain, original, kept)
    if made is None and tensor is not None:
        raise InputError(
            f"recover: {tensor} of the pruned module is not the original's, less what is gone; expected a module as it was cut, not one "
            "that was trained or recovered since"
        )
    last, held = (last_fifth(calibration), choosing(calibration)) if CHOOSING & set(names) else (NONE, NONE)
    case = Case(changed, original, calibration, structure, removed, kept, device, memory, held)
    if len(held) < len(last):
        case.note(
            f"{len(last) - len(held)} of the {len(last)} samples that choose and judge come among those that fit too: they fit alone"
        )
    gone = any(len(units) for units in removed.values())
    if tensor is not None:
        case.note(f"{tensor} is not as it was cut: what the network learnt since is refitted to the original too")
    if not gone:
        case.note("nothing was removed: nothing to give back")
    with exact(torch.device(device), False), torch.no_grad():  # a view of a parameter would keep all that is made of it
        for name in names if gone else []:
            STEPS[name](case)
    numbers = held if len(held) else np.arange(len(calibration))
    judges = calibration.part(numbers)
    (before, after, whole), away = _measured((plain, case.small, original), judges, task, device)
    declined, back = _decided(before, after, whole, Outputs(*away))
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
        judged=len(numbers), samples=len(calibration), raw=raw, declined=declined, notes=case.notes, facts=case.facts,
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


Figures = tuple[FloatArray, FloatArray]
"""σ and quality of samples."""


def _measured(
    nets: Sequence[nn.Module], part: CalibrationSet, task: Task, device: str
) -> tuple[list[Figures], list[FloatArray]]:
    """Figures of each network on samples, (M',) float64, and how far the outputs of all but the last are from its: see `_away`."""
    figures: list[list[tuple[torch.Tensor, torch.Tensor]]] = [[] for _ in nets]
    away: list[list[torch.Tensor]] = [[] for _ in nets[:-1]]
    fed = [Fed(net) for net in nets]
    raw = [f if (plain := forward_of(net)) is net else Fed(plain) for f, net in zip(fed, nets, strict=True)]
    with torch.no_grad(), exact(torch.device(device), False):
        for inputs, targets in part.batches(32):
            given, labels = inputs.to(device), moved(targets, device)
            outputs = [f(given) for f in fed]
            for found, out in zip(figures, outputs, strict=True):
                found.append((task.score(out, labels).double().cpu(), task.sample_quality(out, labels).double().cpu()))
            tensors = [tensors_of(o if r is f else r(given)) for f, r, o in zip(fed, raw, outputs, strict=True)]
            for at, mine in zip(away, tensors[:-1], strict=True):
                at.append(_away(mine, tensors[-1], len(inputs)))
    told = [(torch.cat([s for s, _ in f]).numpy(), torch.cat([q for _, q in f]).numpy()) for f in figures]
    return told, [torch.cat(a).numpy() for a in away]


def _away(mine: list[torch.Tensor], original: list[torch.Tensor], samples: int) -> torch.Tensor:
    """Squared distance of each sample's outputs from the original's, (N,): mean over outputs, of each its share of its mean square."""
    shares = [
        ((a.double() - b.double()).square() / b.double().square().mean().clamp_min(1e-30)).flatten(1).mean(1)
        for a, b in zip(mine, original, strict=True)
        if len(a) == samples and a.shape == b.shape and a.numel()
    ]
    return torch.stack(shares).mean(0).cpu() if shares else torch.zeros(samples, dtype=torch.float64)


@dataclass(frozen=True, eq=False)
class Outputs:
    """How far each sample's outputs were and are from the original's, (M',) each, and what that says by one-sided t-tests."""

    before: FloatArray
    after: FloatArray

    @property
    def nearer(self) -> bool:
        """Whether the mean squared distance fell."""
        with np.errstate(invalid="ignore"):  # of outputs that are no numbers nothing is known
            return _surely_below_zero(self.after - self.before)

    @property
    def further(self) -> bool:
        """Whether samples lie further away, by their factors: some that went very far would hide the others in a mean."""
        with np.errstate(invalid="ignore"):
            return _surely_below_zero(np.log(np.maximum(self.before, ALIKE)) - np.log(np.maximum(self.after, ALIKE)))

    @property
    def factor(self) -> float:
        """How many times as far they lie."""
        return float(np.sqrt(self.after.mean() / max(self.before.mean(), ALIKE)))


def _decided(before: Figures, after: Figures, whole: Figures, outputs: Outputs) -> tuple[str | None, str]:
    """Why a recovery is not taken, or None; and what speaks for one that is taken though a figure fell, or nothing.

    `whole`: figures of the original network. The units that went were chosen by these samples, which flatter the network as it
    was cut: where the outputs come nearer to the original's, a fall that is not certain, or one to what the original has, is
    taken (ours).
    """
    why = _why_not(before, after, outputs)
    if why is None:
        return _nothing_for(before, after, outputs), ""
    if not outputs.nearer:
        return why, ""
    if not any(_surely_below_zero(a - b) for a, b in zip(after, before, strict=True)):
        return None, "while the outputs came nearer to the original's"
    if not any(_surely_below_zero(a - w) for a, w in zip(after, whole, strict=True)):
        return None, "not significantly below what the original has"
    return why, ""


def _why_not(before: Figures, after: Figures, outputs: Outputs) -> str | None:
    """What speaks against a recovery: scores that are no numbers, or what calibration samples say of score, quality and outputs.

    Score and quality outweigh each other: a fall of quality where it is not significant itself and the score, which is finer,
    rises significantly; a fall of the score where quality rises significantly. Outputs that went further from the original's
    are outweighed by either (paired one-sided t-tests at 5 %; ours).
    """
    if not np.isfinite(after[0]).all():
        return "declined: the recovered network gives no finite scores"
    score, quality = after[0] - before[0], after[1] - before[1]
    rises = [_surely_below_zero(-d) for d in (score, quality)]
    if quality.mean() < 0 and (_surely_below_zero(quality) or not rises[0]):
        return (
            f"declined: quality on {len(after[1])} calibration samples would fall from {before[1].mean():.4f} to "
            f"{after[1].mean():.4f}"
        )
    if _surely_below_zero(score) and not rises[1]:
        return (
            f"declined: the mean score of {len(score)} calibration samples would fall from {before[0].mean():.4f} to "
            f"{after[0].mean():.4f}"
        )
    if outputs.further and not any(rises):
        return (
            f"declined: the outputs on {len(score)} calibration samples would be {outputs.factor:.3g} times as far from the "
            "original's, and neither score nor quality would rise"
        )
    return None


def _nothing_for(before: Figures, after: Figures, outputs: Outputs) -> str | None:
    """Why a recovery that changes something is not taken on a guess: score and quality do not rise, and the outputs come no nearer (the same tests)."""
    falls = (before[0] - after[0], before[1] - after[1], outputs.after - outputs.before)
    if not any(d.any() for d in falls) or any(_surely_below_zero(d) for d in falls):
        return None
    return (
        f"declined: {len(after[0])} calibration samples do not show that it gives anything back: score {before[0].mean():.4f} to "
        f"{after[0].mean():.4f}, quality {before[1].mean():.4f} to {after[1].mean():.4f}, outputs {outputs.factor:.3g} times as "
        "far from the original's"
    )


def _surely_below_zero(d: FloatArray) -> bool:
    """Is the mean of paired differences below zero, by a one-sided t-test at 5 %?"""
    if len(d) < 2 or not d.any():
        return False
    spread = d.std(ddof=1)
    return (
        bool(special.stdtr(len(d) - 1, d.mean() / (spread / len(d) ** 0.5)) < DOUBT) if spread > 0 else bool(d[0] < 0)
    )
