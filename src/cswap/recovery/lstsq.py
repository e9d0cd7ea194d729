"""`lstsq`: every layer refitted, front to back, to what it gave in the original network."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from cswap.linear.moments import Moments, Ridge, too_large
from cswap.linear.patches import columns_of, groups_of, matrix_of, moving_grid, refusal, set_matrix
from cswap.recovery.attention import query_targets
from cswap.recovery.base import Case, step
from cswap.recovery.walk import Walk
from cswap.structure.recurrent import Gates
from cswap.types import IntArray

ENOUGH = 128  # rows a column: more of the same images tell little
STRENGTHS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)


@step("lstsq")
def lstsq(case: Case) -> None:
    """Refit the weights and the constant of each layer from the first that reads a removed unit to the output.

    x: what the pruned network, as refitted so far, gives the layer; y: what the layer gave in the original network, at
    the outputs that are kept, before any add; for queries that lost inner dimensions see `query_targets`. W minimises Σ(y − xW − c)² + λ·d·‖W − W₀‖², where W₀ are the weights as they
    are, d the mean diagonal of the centred second moments and λ that of `STRENGTHS` with the smallest error (downhill from the middle) on the last
    fifth of each class's calibration samples, which does not fit; a layer whose error there does not fall keeps its weights. Moments are summed
    in float64, of every n-th place where an image has more than `ENOUGH` rows a column need. Source: ours; the closed form is ridge regression, as in Luo et al. (2017, arXiv 1707.06342, ThiNet).
    """
    chunks, own = case.chunks(case.fitting, case.held), len(case.chunks(case.fitting))
    small, teacher = (Walk(net, chunks, case.memory // 2, case.device) for net in (case.small, case.teacher))
    fitted: dict[str, Any] = {}
    queries = query_targets(case)
    for name in case.readers(gates=True):
        if not case.called_once(name):
            continue
        if (why := _refused(case, name)) is not None:
            case.note(f"{name}: {why}")
            continue
        fit, held = _moments(case, small, teacher, name, own, queries.get(name))
        fitted[name] = _refit(case, name, fit, held)
        source: Any = case.small.get_submodule(name)
        _copy_into(small.net.get_submodule(name), source)
        _follow(case, small, name)
    case.facts["lstsq"] = fitted


def _plain(net: torch.nn.Module, name: str) -> Any:
    """The layer; the gates of a recurrent one as one linear layer on the same memory."""
    module = net.get_submodule(name)
    return module.flat() if isinstance(module, Gates) else module


def _kept_outputs(case: Case, name: str) -> IntArray | None:
    """Original indices of the outputs that are kept: of gates, those of every gate, one after the other."""
    kept, module = case.kept_of(name, "out"), case.teacher.get_submodule(name)
    if kept is None or not isinstance(module, Gates):
        return kept
    gates, hidden, _ = module.weight.shape
    return (np.arange(gates)[:, None] * hidden + kept).ravel()


def _refused(case: Case, name: str) -> str | None:
    module = _plain(case.small, name)
    why = refusal(module)
    if why is not None:
        return why
    large = too_large(columns_of(module), case.memory, groups_of(module))
    return None if large is None else f"{large}: not refitted"


def _moments(
    case: Case, small: Walk, teacher: Walk, name: str, own: int, mixed: torch.Tensor | None
) -> tuple[Moments, Moments]:
    """Of the samples that fit (the first `own` chunks), and of those that choose. `mixed`: makes targets of the original's
    outputs, where they are not those that are kept."""
    module = _plain(case.small, name)
    outputs = _kept_outputs(case, name)
    width = module.weight.shape[0]
    fit, held = Moments.of(module, width), Moments.of(module, width)
    index = None if outputs is None else torch.from_numpy(outputs).to(case.device)
    channel = -1 if isinstance(module, torch.nn.Linear) else 1
    for i, (x, y) in enumerate(zip(small.inputs(name), teacher.outputs(name), strict=True)):
        part = moving_grid(module, x, i, len(case.calibration), ENOUGH)
        target = y if index is None else y.index_select(channel, index) if mixed is None else y @ mixed.to(y)
        (fit if i < own else held).add(module, x, target, part)
    return fit, held


def _best(
    fit: Moments, judge: Moments, before: torch.Tensor, constant: torch.Tensor, shift: bool
) -> tuple[float, float, Any, Any]:
    """Error on `judge`, strength, weights and constant of the best fit: from the middle of `STRENGTHS` downhill."""
    problem = Ridge(fit, before, intercept=shift)

    def at(i: int) -> tuple[float, float, Any, Any]:
        try:
            matrix, c = problem.at(STRENGTHS[i])
        except RuntimeError:  # singular at this strength
            return math.inf, STRENGTHS[i], None, None
        return judge.error(matrix, c if shift else constant), STRENGTHS[i], matrix, c

    middle = len(STRENGTHS) // 2
    best = at(middle)
    for way in (-1, 1):
        i, moved = middle + way, False
        while 0 <= i < len(STRENGTHS) and (found := at(i))[0] < best[0]:
            best, i, moved = found, i + way, True
        if moved:
            break
    return best


def _refit(case: Case, name: str, fit: Moments, held: Moments) -> dict[str, Any]:
    """Choose the strength, fit, and put the weights where they are best; returns what happened, in numbers."""
    module = _plain(case.small, name)
    before, shift = matrix_of(module).to(fit.x), case.can_shift(name)
    constant = case.constant_of(name).reshape(before.shape[0], before.shape[2]).to(before)
    judge = held if held.rows else fit
    start = judge.error(before, constant)
    error, strength, matrix, c = _best(fit, judge, before, constant, shift)
    if matrix is None:
        case.note(f"{name}: no strength makes its least squares solvable: left as it is")
    if not error < start:
        error, matrix = start, None
    if matrix is not None:
        set_matrix(module, matrix)
        if shift:
            case.set_constant(name, c.reshape(-1))
    scale = judge.spread()
    return {
        "strength": None if matrix is None else strength,
        "error_before": max(0.0, start) / scale if scale > 0 else 0.0,
        "error_after": max(0.0, error) / scale if scale > 0 else 0.0,
        "rows": fit.rows, "columns": before.shape[1],
    }  # fmt: skip


def _copy_into(target: Any, source: Any) -> None:
    with torch.no_grad():
        for mine, theirs in zip(target.parameters(recurse=False), source.parameters(recurse=False), strict=True):
            mine.copy_(theirs)


def _follow(case: Case, small: Walk, name: str) -> None:
    """The batch norm behind the layer may have taken its constant."""
    norm = case.norm_behind(name)
    if norm is not None:
        for mine, theirs in zip(
            small.net.get_submodule(norm).buffers(), case.small.get_submodule(norm).buffers(), strict=True
        ):
            mine.copy_(theirs)
