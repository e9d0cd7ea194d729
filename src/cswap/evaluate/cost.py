"""What a network costs: parameters, MACs by torch's own counter, median latency."""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch
from torch import nn

from cswap.structure.discover import macs_of, untouched_rng
from cswap.structure.surgery import count_params

BATCHES = (1, 64)


def latency_ms(
    models: dict[str, nn.Module], sample: torch.Tensor, batch: int, *, device: str = "cpu", budget_s: float = 4.0
) -> dict[str, float]:
    """Median milliseconds of one forward pass at `batch` on the device, models taking turns so that drift hits all alike.

    sample: (1, …). Models are put back where they were. At least 5 and at most 50 rounds, as many as fit `budget_s` seconds.
    """
    inputs = sample.repeat(batch, *([1] * (sample.dim() - 1))).to(device)
    times: dict[str, list[float]] = {name: [] for name in models}
    places = [next((p.device for p in m.parameters()), torch.device("cpu")) for m in models.values()]
    try:
        with torch.inference_mode():
            for model in models.values():
                model.to(device)(inputs)
            _settled(inputs)
            begin = time.perf_counter()
            for turn in range(50):
                for name, model in models.items():
                    start = time.perf_counter()
                    model(inputs)
                    _settled(inputs)
                    times[name].append((time.perf_counter() - start) * 1e3)
                if turn >= 4 and time.perf_counter() - begin > budget_s:
                    break
    finally:
        for model, place in zip(models.values(), places, strict=True):
            model.to(place)
    return {name: round(statistics.median(t), 3) for name, t in times.items()}


def _settled(inputs: torch.Tensor) -> None:
    """A GPU has done what it was told."""
    if inputs.is_cuda:
        torch.cuda.synchronize()


def measure_cost(
    models: dict[str, nn.Module], sample: torch.Tensor, *, device: str = "cpu"
) -> dict[str, dict[str, Any]]:
    """`params`, `macs` (one sample) and `latency_ms` by batch size, of each model; sample: (1, …)."""
    with untouched_rng():
        timed = {n: latency_ms(models, sample, b, device=device) for n, b in ((str(b), b) for b in BATCHES)}
        return {
            name: {
                "params": count_params(model),
                "macs": macs_of(model, sample)[0],
                "latency_ms": {b: t[name] for b, t in timed.items()},
            }
            for name, model in models.items()
        }
