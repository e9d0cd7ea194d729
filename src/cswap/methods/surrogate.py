"""Surrogates of `joint`: in what order a group's units go, by what can be had without a cut."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import nn

from cswap.causal.cut import PlainEngine
from cswap.causal.first_order import first_order_all
from cswap.data.calibration import CalibrationSet
from cswap.linear.elimination import Inverse
from cswap.methods.obs import obs_scores
from cswap.methods.options import Options
from cswap.structure.groups import Group, Structure
from cswap.tasks.base import Task
from cswap.types import FloatArray, IntArray

GRADED = 32
"""Samples of a class that gradients are taken from, where there are more: they only order."""

Order = tuple[IntArray, FloatArray]
"""Units of a group in the order in which they go, and what each adds at its turn, both (size,)."""


def orders_of(
    model: nn.Module, units: Structure, calibration: CalibrationSet, task: Task, options: Options, *, device: str = "cpu",
    memory: int = 4 << 30, kept: dict[str, Inverse], outputs: bool = False,
) -> tuple[dict[str, Order], frozenset[str]]:  # fmt: skip
    """By group: its units in the order of `options.surrogate`; and the groups whose scores say what the error after a refit is (`obs`).

    `obs`: what a removal adds to E[(Δσ)²] once the readers are refitted (`obs_scores`); `kept` takes their moments. `taylor`: the
    mean |first-order Δσ|. `fisher`: what it adds to E[(Σ first-order Δσ)²] of all that went before it (`by_fisher`). Where `obs`
    cannot tell (what reads a group is no plain layer), the mean square of Δσ. `outputs`: `obs` follows the outputs in the place of σ. Raises MethodError for what is not laid out by samples.
    """
    machine: dict[str, Any] = {"device": device, "memory": memory}
    graded, found = first_of_each(calibration.targets, GRADED), dict[str, Order]()
    if options.surrogate == "obs":
        scores = obs_scores(
            model,
            units,
            calibration,
            task,
            swaps=options.swaps,
            inverses=kept,
            graded=graded,
            outputs=outputs,
            **machine,
        )
        found = {name: _ascending(score) for name, score in scores.items()}
    rest, predicted = [g for g in units if g.name not in found], frozenset(found)
    if not rest:
        return found, predicted
    engine = PlainEngine(model, units, calibration, task, **machine)
    numbers = np.arange(len(calibration)) if options.surrogate == "obs" else graded
    for part in _parts(rest, len(numbers), memory):
        for name, change in first_order_all(engine, part, numbers).items():
            found[name] = _ALONE[options.surrogate](change)
    return found, predicted


def by_fisher(change: FloatArray) -> Order:
    """Greedily, the unit that adds least to E[(Σ_{n ∈ S} d_n)²] of the set S of those that went before it.

    change: first-order d, (N, size). E[d dᵀ] is the group's block of the Fisher matrix of a factor on each unit's output: off its diagonal is
    what units do together, so two that make good for each other may go as a pair, and the second of two that do the same costs
    three times the first. An addition may be negative. Source: ours, after Liu et al. (2021, arXiv 2108.00708), who keep the diagonal.
    """
    left, gone = np.ones(change.shape[1], dtype=bool), np.zeros(len(change))
    own = (change**2).mean(0)
    order, adds = [], []
    for _ in range(len(own)):
        added = np.where(left, own + 2 * (gone @ change) / max(1, len(change)), np.inf)
        unit = int(added.argmin())
        order.append(unit)
        adds.append(added[unit])
        left[unit] = False
        gone += change[:, unit]
    return np.asarray(order, dtype=np.int64), np.asarray(adds)


def by_square(change: FloatArray) -> Order:
    """Ascending mean square of the first-order d, (N, size): the Fisher matrix's diagonal."""
    return _ascending((change**2).mean(0))


def by_size(change: FloatArray) -> Order:
    """Ascending mean |first-order d|, (N, size)."""
    return _ascending(np.abs(change).mean(0))


_ALONE = {"obs": by_square, "taylor": by_size, "fisher": by_fisher}
"""What orders a group by its first-order changes, by surrogate; with `obs` the groups that it cannot tell of."""


def first_of_each(classes: IntArray, most: int) -> IntArray:
    """Numbers of the first `most` samples of every class, ascending."""
    own = [np.flatnonzero(classes == k)[:most] for k in np.unique(classes)]
    return np.sort(np.concatenate(own))


def _ascending(score: FloatArray) -> Order:
    order = np.argsort(score, kind="stable")
    return order, score[order]


def _parts(groups: list[Group], samples: int, memory: int) -> list[list[Group]]:
    """Groups whose estimates, float64, lie in a quarter of the memory together; one at least."""
    parts: list[list[Group]] = [[]]
    for group in groups:
        held = sum(g.size for g in parts[-1])
        if parts[-1] and 8 * samples * (held + group.size) > memory // 4:
            parts.append([])
        parts[-1].append(group)
    return parts
