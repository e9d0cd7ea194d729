"""Stages of `joint`: the network as pruned and refitted so far, on which what is left is tested anew against the original."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import nn

from cswap.causal.engine import exact
from cswap.data.calibration import CalibrationSet
from cswap.data.truth import moved
from cswap.methods.path import Surgery, tested_key
from cswap.methods.ranking import Ranked
from cswap.methods.surrogate import GRADED, first_of_each
from cswap.recovery.base import choosing
from cswap.recovery.recover import recovered
from cswap.structure.groups import Structure
from cswap.structure.images import Fed
from cswap.structure.ledger import Ledger
from cswap.structure.shrunk import shrunk
from cswap.structure.surgery import kept_indices, prepared_copy, pruned_copy
from cswap.tasks.base import Task
from cswap.types import FloatArray, IntArray, Ratio, Target

TRIED = {"measured": 1.0, "between": 0.5, "predicted": 0.0}
"""Allocations that a stage tries, by what they take for the price of a set: see `by_price`."""
_BATCH = 64


@dataclass(frozen=True, eq=False)
class Case:
    """What is refitted, and from what: `refit` are the samples that recoveries take."""

    model: nn.Module
    units: Structure
    refit: CalibrationSet
    task: Task
    device: str
    memory: int

    @cached_property
    def judges(self) -> CalibrationSet:
        """Samples that no refit takes a weight from."""
        return self.refit.part(choosing(self.refit))

    @cached_property
    def few(self) -> CalibrationSet:
        """Of the others those that a trial is refitted from."""
        rest = np.setdiff1d(np.arange(len(self.refit)), choosing(self.refit))
        return self.refit.part(rest[first_of_each(self.refit.targets[rest], GRADED)])

    def refitted(self, ledger: Ledger, samples: CalibrationSet) -> tuple[nn.Module, list[str]]:
        """The network without what is gone, every layer behind a cut refitted to the original; and what was left as it was, and why."""
        removed = ledger.removed()
        small: Any = pruned_copy(self.model, self.units, removed)
        steps, ratio = sum(map(len, removed.values())), ledger.ratio()
        small._cswap = Surgery(
            Target("units", ratio.units), ratio, steps, removed, kept_indices(self.units, removed), self.units
        )
        found = recovered(small, self.model, samples, task=self.task, device=self.device, memory=self.memory)
        net: Any = found.model
        if hasattr(net, "_cswap"):
            del net._cswap
        return net.eval(), [f"the cuts stand alone: {found.declined}"] if found.declined else []

    def away(self, net: nn.Module) -> float:
        """How far the network is from the original on the judges: the mean square of the outputs' difference as a share of their own, or of
        the score's difference where the task has no vectors of outputs."""
        mine, theirs = self._seen(net), self._originally
        whole = float((theirs**2).sum(1).mean()) if hasattr(self.task, "outputs_vector") else 1.0
        return float(((mine - theirs) ** 2).sum(1).mean()) / max(whole, 1e-30)

    @cached_property
    def _originally(self) -> FloatArray:
        return self._seen(prepared_copy(self.model, self.units).eval())

    def _seen(self, net: nn.Module) -> FloatArray:
        fed, found, place = Fed(net.to(self.device)), list[torch.Tensor](), torch.device(self.device)
        with torch.inference_mode(), exact(place, False):
            for inputs, targets in self.judges.batches(_BATCH):
                outputs = fed(inputs.to(place))
                if hasattr(self.task, "outputs_vector"):
                    found.append(self.task.outputs_vector(outputs).cpu())
                else:
                    found.append(self.task.score(outputs, moved(targets, place)).cpu().unsqueeze(1))
        return torch.cat(found).double().numpy()


@dataclass(eq=False)
class Stage:
    """One of them: `number` (0: the original), the network, its structure, and by group which unit of the original each of its units is."""

    number: int
    units: Structure
    original: dict[str, IntArray]
    make: Callable[[], nn.Module]
    bound: float | None = None
    ratio: Ratio = field(default_factory=Ratio)
    _net: nn.Module | None = None

    @property
    def net(self) -> nn.Module:
        """The network, made when it is first asked for."""
        if self._net is None:
            self._net = self.make()
        return self._net

    def key(self, group: str) -> str:
        """What a group's tests are told as: a later stage's with its number."""
        return tested_key(self.number, group)

    @property
    def trial(self) -> str:
        """What the trial of this stage's allocations is told as."""
        return tested_key(self.number, "")


def first_stage(case: Case) -> Stage:
    """The original."""
    whole = {g.name: np.arange(g.size, dtype=np.int64) for g in case.units}
    return Stage(0, case.units, whole, lambda: case.model)


def next_stage(case: Case, before: Stage, bound: float, ledger: Ledger, notes: list[str]) -> Stage:
    """The network without what is gone by now, refitted."""

    def make() -> nn.Module:
        net, said = case.refitted(ledger, case.refit)
        notes.extend(f"stage {before.number + 1}: {s}" for s in said)
        return net

    units, original = shrunk(case.units, ledger.removed())
    return Stage(before.number + 1, units, original, make, bound, ledger.ratio())


def gone(units: Structure, order: Sequence[Ranked], kind: str = "", bound: float | None = None) -> Ledger:
    """What is gone after the units of this order, or the first of them that reach `bound` in `kind`; groups keep one."""
    ledger = Ledger(units)
    _take(ledger, order, kind, bound)
    return ledger


def until(units: Structure, before: Sequence[Ranked], order: Sequence[Ranked], kind: str, bound: float) -> list[Ranked]:
    """The first of `order` with which, after those before, `bound` is reached in `kind`."""
    return _take(gone(units, before), order, kind, bound)


def _take(ledger: Ledger, order: Sequence[Ranked], kind: str, bound: float | None) -> list[Ranked]:
    """Count units as gone, one after the other, and return those that could go."""
    taken: list[Ranked] = []
    for r in order:
        if bound is not None and ledger.ratio().as_dict()[kind] >= bound:
            break
        group = ledger.structure[r.group]
        if not ledger.last(group, [r.unit]):
            ledger.remove(group, r.unit)
            taken.append(r)
    return taken


def tried(
    case: Case, before: Sequence[Ranked], orders: Mapping[str, Sequence[Ranked]], kind: str, bound: float
) -> dict[str, float]:
    """By allocation, how far its network is from the original at `bound` once it is refitted, from few samples; those that remove the same
    units are tried once."""
    found, seen = dict[str, float](), list[tuple[dict[str, list[int]], float]]()
    for name, order in orders.items():
        ledger = gone(case.units, [*before, *order], kind, bound)
        removed = {g: u.tolist() for g, u in ledger.removed().items()}
        away = next((a for r, a in seen if r == removed), None)
        if away is None:
            away = case.away(case.refitted(ledger, case.few)[0])
            seen.append((removed, away))
        found[name] = away
    return found
