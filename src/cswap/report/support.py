"""The support report: what can be pruned in a model, what cannot, and why."""

from __future__ import annotations

from typing import Any

import torch

from cswap.data.sources import image_format
from cswap.pipeline import Source
from cswap.structure.discover import discover
from cswap.structure.ledger import highest_ratio


def support_report(source: Source, image_size: int | None = None, channels: int = 3) -> dict[str, Any]:
    """Groups from output to input, what is left out with its reason, and how far pruning could go."""
    model = source.build()
    size = image_format(source.spec, image_size, None, None).size
    generator = torch.Generator().manual_seed(0)
    structure = discover(model, torch.randn(2, channels, size, size, generator=generator))
    return {
        "model": source.spec.text,
        "input": [channels, size, size],
        "params": structure.total_params,
        "macs": structure.total_macs,
        "units": structure.units,
        "highest": highest_ratio(structure).as_dict(),
        "groups": [
            {
                "group": g.name, "units": g.size,
                "producers": [s.module for s in g.producers], "consumers": [s.module for s in g.consumers],
                "channelwise": [s.module for s in g.channelwise],
            }
            for g in structure
        ],
        "left_out": [{"name": x.name, "size": x.size, "reason": x.reason} for x in structure.left_out],
        "never_called": list(structure.uncalled),
    }  # fmt: skip
