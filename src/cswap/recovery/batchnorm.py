"""Batch norms estimated again on the calibration set: the statistics a smaller network really has."""

from __future__ import annotations

import copy
import itertools
from typing import TypeGuard

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from cswap.data.calibration import CalibrationSet
from cswap.errors import InputError
from cswap.recovery.base import Case, step
from cswap.structure.calls import call_counts, largest_output
from cswap.structure.images import laid, takes_channels_last

LEAST = 16
"""Samples at once, whatever the memory: the statistics of fewer are those of the batch more than of the data."""


@step("bn")
def bn(case: Case) -> None:
    """All batch norms estimated again on the whole calibration set, or, beside `lstsq`, on what fits: see `reestimated`."""
    if not any(_estimable(m) for m in case.small.modules()):
        case.note("no batch norm estimates its statistics (frozen ones do not): bn gives nothing back")
    fitting = case.calibration.part(case.fitting)
    case.small.load_state_dict(reestimated(case.small, fitting, memory=case.memory).state_dict())


def reestimated(
    model: nn.Module, calibration: CalibrationSet, *, batch: int = 128, memory: int | None = None
) -> nn.Module:
    """A copy whose batch norms all have the mean and variance of the calibration inputs: the plain average over batches.

    Norms further down see what the ones before them give in training mode, as when a network is trained (ours; the usual
    control, e.g. Li et al., 2020, arXiv 2007.02491). The model is untouched. memory: bytes that fewer samples than `batch` are taken at once for, and no fewer than
    `LEAST`. Raises InputError where a channel has a single value.
    """
    net = copy.deepcopy(model).eval()
    device = next((p.device for p in net.parameters()), torch.device("cpu"))
    few = calibration.inputs(0, 2).to(device)
    called, _ = call_counts(net, few)
    # before norms are asked: a pass that fails half way would count twice
    last, a_sample = takes_channels_last(net, few), _bytes_a_sample(net, few)
    if memory is not None:
        batch = min(batch, max(LEAST, memory // a_sample))
    norms = [
        m for n, m in net.named_modules() if n in called and _estimable(m)
    ]  # a norm that no pass reaches would be left without statistics
    momenta = [m.momentum for m in norms]
    for m in norms:
        m.reset_running_stats()
        m.momentum = None
        m.train()
    total = len(calibration)
    parts = max(1, min(-(-total // batch), total // 2))  # equal parts: batches count the same in the average
    edges = [round(i * total / parts) for i in range(parts + 1)]
    # samples of all classes in every batch: class order would give each batch the statistics of one class
    order = torch.randperm(total, generator=torch.Generator().manual_seed(0)).numpy()
    with torch.no_grad():
        for start, stop in itertools.pairwise(edges):
            try:
                net(laid(calibration.of(order[start:stop]).to(device), last))
            except ValueError as error:  # torch's: one value a channel has no variance
                raise InputError(
                    f"recover bn: expected more samples to estimate batch norms from, got {total}: {error}"
                ) from error
    for m, momentum in zip(norms, momenta, strict=True):
        m.momentum = momentum
    return net.eval()


def _bytes_a_sample(net: nn.Module, few: torch.Tensor) -> int:
    """What a pass holds of one sample, about: three times what the widest layer gives."""
    return 3 * max(few.numel() * few.element_size(), largest_output(net, net, few)) // len(few) + 1


def _estimable(module: nn.Module) -> TypeGuard[_BatchNorm]:
    return isinstance(module, _BatchNorm) and module.track_running_stats
