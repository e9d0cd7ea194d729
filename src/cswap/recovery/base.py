"""What every recovery gets and gives: a pruned network, its original, what was kept of it, and notes of what was done."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn
from torch.nn.modules.conv import _ConvTransposeNd

from cswap.causal.behind import norms_behind
from cswap.data.calibration import CalibrationSet
from cswap.errors import InputError
from cswap.linear.patches import hooked, refusal
from cswap.recovery.walk import Chunks
from cswap.structure.calls import call_counts
from cswap.structure.groups import Removed, Structure
from cswap.structure.images import takes_channels_last
from cswap.structure.layers import rule_of
from cswap.structure.recurrent import Gates
from cswap.structure.surgery import KeptIndices, shrink_in_place
from cswap.types import IntArray

HELD_OUT = 5  # the last fifth of a class's samples chooses, and does not fit


@dataclass(eq=False)
class Case:
    """One recovery at work. `small` is changed in place; `teacher`, its original, is not.

    `kept`: original indices of every shrunken dimension; `removed`: units gone, by group of `structure`; `held`: numbers of
    the samples that no step fits on, because they choose; `notes`: what was left as it was, and why.
    """

    small: nn.Module
    teacher: nn.Module
    calibration: CalibrationSet
    structure: Structure
    removed: Removed
    kept: KeptIndices
    device: str = "cpu"
    memory: int = 4 << 30
    held: IntArray = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    notes: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        few = self.calibration.inputs(0, 2).to(self.device)
        self.counts, _ = call_counts(self.teacher, few)
        self.channels_last = takes_channels_last(self.teacher, few)
        self._norms = norms_behind(self.teacher, few)
        self._owners: dict[int, set[str]] = {}
        for name, module in self.teacher.named_modules():
            for p in module.parameters(recurse=False):
                self._owners.setdefault(id(p), set()).add(name)

    def note(self, text: str) -> None:
        """Say something once."""
        if text not in self.notes:
            self.notes.append(text)

    def kept_of(self, layer: str, side: str) -> IntArray | None:
        """Original indices kept of a layer's outputs or inputs (in its weight); None when all are."""
        dims = self.kept.get(f"{layer}.weight", {})
        rule = rule_of(self.teacher.get_submodule(layer))
        if rule is None:
            return None  # what has no rule has not shrunk
        axes = dict(rule.out if side == "out" else rule.inn)
        return dims.get(axes["weight"])

    def readers(self, gates: bool = False) -> list[str]:
        """Layers with weights that mix their inputs, in order of their calls, from the first that reads a removed unit.

        gates: those of recurrent layers too; else a note says that they are left.
        """
        touched = [self.structure[g] for g, units in self.removed.items() if len(units)]
        reads = {s.module for g in touched for s in g.consumers}
        # what is read by a product, not by weights, is made good where it is written
        products = {n for n in reads if not _mixes(self.teacher.get_submodule(n))}
        for name in sorted(n for n in products if isinstance(self.teacher.get_submodule(n), _ConvTransposeNd)):
            self.note(f"{name}: {refusal(self.teacher.get_submodule(name))}")
        reads |= {s.module for g in touched if any(s.module in products for s in g.consumers) for s in g.producers}
        reads -= products
        for name in sorted(reads - set(self.counts)):
            self.note(f"{name} is read inside another layer, not called: left as it is")
        recurrent = {n for n in self.counts if isinstance(self.teacher.get_submodule(n), Gates)}
        if not gates:
            for name in sorted(reads & recurrent):
                self.note(f"{name} is part of a recurrent layer: left as it is")
            reads -= recurrent
        order = [n for n in self.counts if _mixes(self.teacher.get_submodule(n)) and (gates or n not in recurrent)]
        first = next((i for i, n in enumerate(order) if n in reads), len(order))
        return order[first:]

    def called_once(self, layer: str) -> bool:
        """Whether it is, with weights of its own that it uses as they are; else a note says that it is left as it is."""
        if self.counts[layer] != 1:
            self.note(f"{layer} is called {self.counts[layer]} times in a pass: left as it is")
            return False
        others = {n for p in self.teacher.get_submodule(layer).parameters(recurse=False) for n in self._owners[id(p)]}
        if others - {layer}:
            self.note(f"{layer} shares its weights with {', '.join(sorted(others - {layer}))}: left as it is")
            return False
        if hooked(self.teacher.get_submodule(layer)):
            self.note(f"{layer}: a hook changes what it reads or gives: left as it is")
            return False
        return True

    def linear(self, layer: str) -> bool:
        """Whether it is called once and gives its weights times what it reads; else a note says that it is left as it is."""
        if not self.called_once(layer):
            return False
        if (why := refusal(self.teacher.get_submodule(layer))) is not None:
            self.note(f"{layer}: {why}")
        return why is None

    def can_shift(self, layer: str) -> bool:
        """Whether a constant can be added to the layer's outputs: by its bias, or in the mean of the batch norm behind it."""
        return getattr(self.small.get_submodule(layer), "bias", None) is not None or self.norm_behind(layer) is not None

    def constant_of(self, layer: str) -> torch.Tensor:
        """What is added to the layer's outputs beside the original's statistics, (outputs,) float64: see `shift`."""
        module: Any = self.small.get_submodule(layer)
        if getattr(module, "bias", None) is not None:
            bias: torch.Tensor = module.bias.detach().double().cpu().flatten()
            return bias
        norm = self.norm_behind(layer)
        if norm is None:
            width = module.weight.shape[:2].numel() if isinstance(module, Gates) else module.weight.shape[0]
            return torch.zeros(width, dtype=torch.float64)
        return (
            (self._original(norm, "running_mean") - self.small.get_submodule(norm).get_buffer("running_mean"))
            .double()
            .cpu()
        )

    def shift(self, layer: str, by: torch.Tensor) -> None:
        """Add `by` (outputs,) to what the layer gives: to its bias, or off the mean of the batch norm behind it."""
        module: Any = self.small.get_submodule(layer)
        norm = self.norm_behind(layer)
        with torch.no_grad():
            if getattr(module, "bias", None) is not None:
                module.bias.add_(by.to(module.bias).view_as(module.bias))
            elif norm is not None:
                mean = self.small.get_submodule(norm).get_buffer("running_mean")
                mean.sub_(by.to(mean))

    def set_constant(self, layer: str, to: torch.Tensor) -> None:
        """Make `constant_of` this; a batch norm behind gets the original's statistics again, to which `to` belongs."""
        norm = self.norm_behind(layer)
        if norm is not None:
            for buffer in ("running_var", "running_mean"):
                if getattr(self.small.get_submodule(norm), buffer, None) is not None:  # some norms have the mean alone
                    self.small.get_submodule(norm).get_buffer(buffer).copy_(self._original(norm, buffer))
        self.shift(layer, to - self.constant_of(layer).to(to))

    def _original(self, norm: str, buffer: str) -> torch.Tensor:
        whole = self.teacher.get_submodule(norm).get_buffer(buffer)
        index = self.kept.get(f"{norm}.{buffer}", {}).get(0)
        return whole if index is None else whole[torch.from_numpy(index).to(whole.device)]

    def norm_behind(self, layer: str) -> str | None:
        """The batch norm that takes the layer's outputs, and nothing else does; see `norms_behind`."""
        return self._norms.get(layer)

    def note_products(self, step: str) -> None:
        """Say that a step gives nothing back of groups that are read by a product and by no weights."""
        for name, units in self.removed.items():
            readers = [self.teacher.get_submodule(s.module) for s in self.structure[name].consumers]
            if len(units) and not any(_mixes(m) or isinstance(m, _ConvTransposeNd) for m in readers):
                self.note(f"{name} is read by a product, not by weights: {step} gives nothing back of it")

    @property
    def fitting(self) -> IntArray:
        """Numbers of the samples that every step fits on."""
        return np.setdiff1d(np.arange(len(self.calibration)), self.held)

    def chunks(self, *parts: IntArray) -> Chunks:
        """Calibration inputs in chunks on the device: the samples of each part after those of the one before, or all that fit."""
        return Chunks(self.calibration, parts or [self.fitting], self.device, self.channels_last)

    def refuse_changed(self, step: str) -> None:
        """Raises InputError unless the pruned network's tensors are the original's, less what is gone."""
        if (tensor := changed_since(self.small, self.teacher, self.kept)) is not None:
            raise InputError(
                f"recover: {step} starts from the original's weights, and those of this module are others (first {tensor})"
            )


def changed_since(small: nn.Module, teacher: nn.Module, kept: KeptIndices) -> str | None:
    """The first tensor of `small` that is not the original's, less what is gone; how many batches a norm has seen is no matter."""
    fresh = shrink_in_place(copy.deepcopy(teacher), kept).state_dict()
    told = {k: v for k, v in small.state_dict().items() if not k.endswith("num_batches_tracked")}
    return next((k for k, v in told.items() if k not in fresh or not torch.equal(fresh[k], v)), None)


def choosing(calibration: CalibrationSet) -> IntArray:
    """Numbers of those of `last_fifth` whose inputs do not come among the samples that fit too: a copy would judge what it fitted."""
    last = last_fifth(calibration)
    if not len(last):
        return last
    digests = calibration.digests()
    fitted = {digests[i] for i in np.setdiff1d(np.arange(len(calibration)), last)}
    return np.array([i for i in last if digests[i] not in fitted], dtype=np.int64)


def last_fifth(calibration: CalibrationSet) -> IntArray:
    """Numbers of the last fifth of each class, in the order drawn, and at least one of two; where samples hold several classes, of the
    last fifth of all.

    A smaller draw is the first part of a larger one, so where a quarter more samples recover than chose the units, these chose nothing.
    """
    if calibration.members is not None:
        last = np.argsort(calibration.ranks, kind="stable")[len(calibration) - max(1, len(calibration) // HELD_OUT) :]
        return np.sort(last if len(last) < len(calibration) else last[:0]).astype(np.int64)
    parts = []
    for k in range(len(calibration.classes)):
        own = np.flatnonzero(calibration.targets == k)
        parts.append(own[-max(1, len(own) // HELD_OUT) :] if len(own) > 1 else own[:0])
    return np.sort(np.concatenate(parts)).astype(np.int64)


def _mixes(module: nn.Module) -> bool:
    """Convolutions and linear layers, depthwise ones too, and the gates of recurrent layers."""
    return isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d | Gates) and isinstance(
        getattr(module, "weight", None), nn.Parameter
    )


class Step(Protocol):
    """One recovery: changes `case.small` in place."""

    def __call__(self, case: Case) -> None:
        """Recover."""


STEPS: dict[str, Callable[[Case], None]] = {}
"""Registry by name: a new recovery is one new file."""


def step(name: str) -> Callable[[Callable[[Case], None]], Callable[[Case], None]]:
    """Register a recovery under its name."""

    def keep(function: Callable[[Case], None]) -> Callable[[Case], None]:
        STEPS[name] = function
        return function

    return keep


def steps_of(how: str) -> list[str]:
    """The recoveries that `how` names, joined by `+`, in order. Raises InputError."""
    names = [n.strip() for n in how.split("+") if n.strip()]
    if names == ["none"]:
        return []
    if len(set(names)) < len(names):
        raise InputError(f"recover: expected each step once, got {how!r}")
    for name in ("merge", "fold"):
        if name in names[1:]:
            raise InputError(f"recover: {name} starts from the original's weights, so it comes first; got {how!r}")
    before = names[: names.index("bias")] if "bias" in names else []
    if {"bn", "lstsq"} & set(before):
        raise InputError(f"recover: bias is of the network as it was cut, so it comes before bn and lstsq; got {how!r}")
    if {"merge", "fold"} & set(before):
        raise InputError(
            f"recover: bias would give back once more what {before[0]} has; expected one of them, got {how!r}"
        )
    unknown = next((n for n in names if n not in STEPS), None)
    if unknown is not None or not names:
        raise InputError(f"recover: expected none or some of {', '.join(sorted(STEPS))} joined by '+', got {how!r}")
    return names
