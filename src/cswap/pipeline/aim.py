"""Where on a path a target lies that cannot be counted: a latency, measured on this machine."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from cswap.errors import TargetError
from cswap.evaluate.cost import latency_ms
from cswap.methods.path import PruningPath
from cswap.structure.ledger import RoundedLedger
from cswap.structure.surgery import pruned_copy
from cswap.types import Target

_FEWEST = 0.01  # of the units: prefixes nearer to each other are not told apart


@dataclass(frozen=True)
class Aim:
    """A counted target that stands for the one asked for, and what was measured on the way.

    `reached`: False where --max-drop ended the path before it; `target` is that end then.
    """

    target: Target
    measured: list[dict[str, float]]
    reached: bool = True


def aimed(
    model: nn.Module, path: PruningPath, target: Target, sample: torch.Tensor, *, round_to: int = 1, batch: int = 1, device: str = "cpu"
) -> Aim:  # fmt: skip
    """The shortest prefix, by bisection to a hundredth of the units, that takes the fraction of latency away (ours).

    sample: (1, …). Each prefix is timed in turns with the original, so that the speed of the machine cancels. Latency falls
    in steps and is measured with noise, so of the prefixes tried the smallest that reached the target is timed once more, for
    longer, and longer ones until that holds: the last of `measured` is the one chosen. Raises TargetError where the whole network is out
    of reach.
    """
    if target.kind != "latency" or target.value is None:
        return Aim(target, [])
    steps = _levels(path, round_to)
    measured: list[dict[str, float]] = []
    reached: list[float] = []
    low, high = 0, len(steps) - 1
    while low <= high:
        middle = (low + high) // 2 if measured else high
        units = steps[middle]
        gone = _fraction_gone(model, path, units, sample, round_to, batch, device)
        measured.append({"units": units, "latency": gone})
        if gone >= target.value:
            reached.append(units)
            high = middle - 1
        elif not reached:
            return _end_of(path, target, measured, round_to, batch)
        else:
            low = middle + 1
    at = steps.index(min(reached))
    while True:  # the shortest of noisy figures is a lucky one: it has to hold again, timed for longer
        gone = _fraction_gone(model, path, steps[at], sample, round_to, batch, device, budget_s=4.0)
        measured.append({"units": steps[at], "latency": gone})
        if gone >= target.value:
            return Aim(Target("units", steps[at]), measured)
        at += 1
        if at == len(steps):
            return _end_of(path, target, measured, round_to, batch)


def _end_of(path: PruningPath, target: Target, measured: list[dict[str, float]], round_to: int, batch: int) -> Aim:
    """The end of a path that quality stopped, as of a counted target; of a complete one the target is out of reach."""
    last = measured[-1]
    if path.stopped_by_quality:
        return Aim(Target("units", last["units"]), measured, reached=False)
    raise TargetError(
        f"target {target} is out of reach: with {last['units']:.3f} of the units gone, all that the path allows"
        f"{f' with widths that are multiples of {round_to}' if round_to > 1 else ''}, the network takes {1 - last['latency']:.3f} of the time at "
        f"batch {batch} on this machine"
    )


def _levels(path: PruningPath, round_to: int) -> list[float]:
    """Fractions of units removed along the path, about a hundredth apart."""
    ledger, found = RoundedLedger(path.structure, round_to), [0.0]
    for d in path:
        if d.removed:
            ledger.remove(path.structure[d.group], d.unit)
            units = ledger.ratio().units
            if units - found[-1] >= _FEWEST:
                found.append(units)
    if ledger.ratio().units > found[-1]:
        found.append(ledger.ratio().units)
    return found


def _fraction_gone(
    model: nn.Module, path: PruningPath, units: float, sample: torch.Tensor, round_to: int, batch: int, device: str,
    budget_s: float = 2.0,
) -> float:  # fmt: skip
    removed, _, _ = path.prefix(Target("units", units), round_to)
    nets = {"original": model.eval(), "pruned": pruned_copy(model, path.structure, removed).eval()}
    times = latency_ms(nets, sample, batch, device=device, budget_s=budget_s)
    return 1.0 - times["pruned"] / times["original"]
