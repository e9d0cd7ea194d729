"""Joint compensated cuts by hand, in float64: dense solves on unfolded inputs, one sample's scores at a time."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import nn

from cswap.linear.elimination import DAMPING
from cswap.structure.groups import Group
from tests.reference.least_squares import rows_by_hand


def joint_cut(model: nn.Module, group: Group, units: list[int], inputs: torch.Tensor) -> nn.Module:
    """A float64 copy in which the readers of the group make up for the units, each by one dense solve, and read them no more.

    Readers with a bias, or with a batch norm behind them named `bn…` in the place of `conv…`, may shift their constant.
    """
    original: Any = copy.deepcopy(model).double().eval()
    cut: Any = copy.deepcopy(original)
    for slot in group.consumers:
        layer, seen = original.get_submodule(slot.module), []
        handle = layer.register_forward_pre_hook(lambda _m, args, seen=seen: seen.append(args[0].detach()))
        with torch.no_grad():
            original(inputs.double())
        handle.remove()
        (rows,) = rows_by_hand(layer, seen[0])
        rows = rows.double()
        mean = rows.mean(0)
        second = (rows - mean).T @ (rows - mean) / len(rows)
        second = second + DAMPING * second.diagonal().mean() * torch.eye(len(second)).double()
        places = layer.weight[0, 0].numel()
        gone = [int(p) * places + i for p in slot.of(np.asarray(units)) for i in range(places)]
        rest = [i for i in range(len(second)) if i not in set(gone)]
        weight = layer.weight.detach().flatten(1).T
        new = torch.zeros_like(weight)
        new[rest] = torch.linalg.solve(second[rest][:, rest], second[rest] @ weight)
        target = cut.get_submodule(slot.module)
        shift = mean @ (weight - new)
        with torch.no_grad():
            target.weight.copy_(new.T.reshape(layer.weight.shape))
            if layer.bias is not None:
                target.bias.add_(shift)
            else:
                cut.get_submodule(slot.module.replace("conv", "bn")).running_mean.sub_(shift)
    return cut


def differences_by_hand(model: nn.Module, cut: nn.Module, inputs: torch.Tensor, targets: Any) -> dict[int, list[float]]:
    """By class, what each sample lost of the true class's probability."""
    losses: dict[int, list[float]] = {}
    original = copy.deepcopy(model).double().eval()
    with torch.no_grad():
        for x, t in zip(inputs.double(), targets.tolist(), strict=True):
            before, after = (float(net(x.unsqueeze(0)).softmax(1)[0, t]) for net in (original, cut))
            losses.setdefault(t, []).append(before - after)
    return losses


def squares_by_hand(model: nn.Module, cut: nn.Module, inputs: torch.Tensor, targets: Any) -> list[float]:
    """The square of what each sample lost or gained."""
    return [d**2 for own in differences_by_hand(model, cut, inputs, targets).values() for d in own]


def margin_by_hand(model: nn.Module, cut: nn.Module, inputs: torch.Tensor, targets: Any, alpha: float) -> float:
    """The largest class's one-sided t bound of the mean loss of the true class's probability."""
    bounds = []
    for d in differences_by_hand(model, cut, inputs, targets).values():
        a = np.asarray(d)
        bounds.append(a.mean() + stats.t.ppf(1 - alpha, len(a) - 1) * a.std(ddof=1) / len(a) ** 0.5)
    return float(max(bounds))
