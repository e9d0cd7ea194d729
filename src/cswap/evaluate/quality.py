"""Quality on held-out data, overall and by class."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset

from cswap.causal.engine import exact
from cswap.data.text import trimmed
from cswap.data.truth import Truth, collated, moved, not_finite, stacked
from cswap.errors import CswapWarning, pass_on_out_of_memory
from cswap.structure.calls import largest_output
from cswap.structure.images import Fed
from cswap.tasks.base import Task

MOST = 128
FEWEST = 16
CACHED = 8 << 20
"""Bytes of a layer's output that a CPU's caches hold of a batch."""


def batches(dataset: Dataset[Any], size: int) -> Iterator[tuple[torch.Tensor, Truth]]:
    """Inputs (N, …) and targets, in order."""
    n = len(dataset)  # type: ignore[arg-type]
    for start in range(0, n, size):
        items = [dataset[i] for i in range(start, min(start + size, n))]
        yield trimmed(stacked([x[0] for x in items])), collated([x[1] for x in items])


def fitting(first: torch.Tensor, device: str, nets: list[Fed]) -> int:
    """How many samples like `first` (…) a batch takes: at most 128; on a CPU no more than keep the largest output of a layer in `CACHED` bytes (measured: MobileNetV2 twice as fast);
    on a GPU, where small batches launch more than they compute, up to 1,024 of them in 16 MiB."""
    if torch.device(device).type == "cpu":
        largest = max(_largest_output(net, trimmed(stacked([first]))) for net in nets)
        return max(FEWEST, min(MOST, CACHED // max(1, largest)))
    return max(MOST, min(1024, (16 << 20) // max(1, first.numel() * first.element_size())))


def _largest_output(fed: Fed, inputs: torch.Tensor) -> int:
    """Bytes of the largest tensor that a layer gives for these inputs; 0 where the network does not take them alone."""
    try:
        return largest_output(fed.net, fed, inputs)
    except RuntimeError as error:
        pass_on_out_of_memory(error)
        return 0


def measure_quality(
    models: dict[str, nn.Module],
    dataset: Dataset[Any],
    task: Task,
    classes: int,
    *,
    device: str = "cpu",
    batch: int | None = None,
    amp: bool = False,
    samples: dict[str, list[float]] | None = None,
) -> dict[str, dict[str, Any]]:
    """Figures of each model on the same data, read once. Models are put back into the mode they were in.

    amp: in bfloat16 where autocast sees fit (ours: four times as fast on a CPU that has it; figures may differ by a sample
    or two). batch: by default 128, fewer where a CPU's caches would not hold what layers give, of small inputs more on a GPU. samples: gets `task.sample_quality` of every sample, by model.
    """
    meters = {name: task.meter(classes) for name in models}
    modes = {name: m.training for name, m in models.items()}
    places = {name: next((p.device for p in m.parameters()), torch.device("cpu")) for name, m in models.items()}
    place = torch.device(device)
    try:
        for model in models.values():
            model.eval().to(device)
        fed = {name: Fed(model) for name, model in models.items()}
        wrong = 0
        if batch is None:
            some = len(dataset)  # type: ignore[arg-type]
            batch = fitting(torch.as_tensor(dataset[0][0]), device, list(fed.values())) if some else MOST
        for inputs, targets in batches(dataset, batch):
            wrong += not_finite(inputs)
            for name, given in fed.items():
                with torch.no_grad(), exact(place, amp), torch.autocast(place.type, torch.bfloat16, enabled=amp):
                    outputs = given(inputs.to(device))
                with torch.no_grad():
                    meters[name].update(outputs, moved(targets, device))
                    if samples is not None:
                        quality = task.sample_quality(outputs, moved(targets, device))
                        samples.setdefault(name, []).extend(quality.tolist())
    finally:
        for name, model in models.items():
            model.train(modes[name]).to(places[name])
    if wrong:
        total = len(dataset)  # type: ignore[arg-type]
        warnings.warn(
            f"{wrong} of the {total} samples that quality is measured on hold NaN or Inf", CswapWarning, stacklevel=2
        )
    return {name: meter.result() for name, meter in meters.items()}
