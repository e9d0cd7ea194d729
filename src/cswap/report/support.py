"""The support report: what can be pruned in a model, what cannot, and why."""

from __future__ import annotations

from typing import Any

import torch

from cswap.data.hf import example_tokens
from cswap.data.models import one_line
from cswap.data.sources import image_format
from cswap.errors import ModelError, StructureError
from cswap.pipeline import Source
from cswap.structure.discover import count_params, discover, macs_of
from cswap.structure.groups import LeftOut, Structure
from cswap.structure.ledger import highest_ratio


def support_report(source: Source, image_size: int | None = None, channels: int = 3) -> dict[str, Any]:
    """Groups from output to input, what is left out with its reason, and how far pruning could go."""
    model = source.build()
    size = image_format(source.spec, image_size, None, None).size
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(2, channels, size, size, generator=generator)
    tokens = example_tokens(model)
    inputs = inputs if tokens is None else tokens
    try:
        with torch.no_grad():
            model(inputs)
    except Exception as error:
        raise ModelError(
            f"the model does not take inputs of shape {tuple(inputs.shape)}: --image-size and --channels say what it takes "
            f"({one_line(error)})"
        ) from error
    try:
        structure = discover(model, inputs)
    except StructureError as reason:  # the whole model is left out, and that is the report
        structure = Structure(
            (),
            (LeftOut(source.spec.text, 0, str(reason)),),
            (),
            {},
            count_params(model),
            macs_of(model, inputs)[0],
            tuple(inputs.shape[1:]),
        )
    return {
        "model": source.spec.text,
        "input": list(inputs.shape[1:]),
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
