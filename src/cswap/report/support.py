"""The support report: what can be pruned in a model, what cannot, and why."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from cswap.data.hf import example_tokens
from cswap.data.models import one_line
from cswap.data.sources import image_format
from cswap.errors import ModelError, StructureError
from cswap.pipeline import Source
from cswap.structure.discover import discover
from cswap.structure.groups import LeftOut, Structure
from cswap.structure.ledger import highest_ratio
from cswap.structure.surgery import count_params


def _example(model: nn.Module, size: int, channels: int, tokens: int | None) -> torch.Tensor:
    """(2, channels, size, size) normal values, or (2, tokens) numbers of the model's first embedding table."""
    generator = torch.Generator().manual_seed(0)
    if tokens is None:
        if channels < 1:
            raise ModelError(f"channels: expected at least 1, got {channels}")
        try:
            return torch.randn(2, channels, size, size, generator=generator)
        except (RuntimeError, MemoryError):
            raise ModelError(
                f"channels, image-size: inputs of {channels} × {size} × {size} do not fit into memory"
            ) from None
    table = next((m for m in model.modules() if isinstance(m, nn.Embedding)), None)
    if table is None or tokens < 1:
        raise ModelError(f"tokens: expected at least 1 and a model with an embedding table, got {tokens}")
    return torch.randint(table.num_embeddings, (2, tokens), generator=generator)


def support_report(
    source: Source, image_size: int | None = None, channels: int = 3, tokens: int | None = None
) -> dict[str, Any]:
    """Groups from output to input, what is left out with its reason, and how far pruning could go.

    tokens: the length of a sequence of token numbers, for a model that takes them instead of images. `nothing`: why nothing
    at all can be pruned, empty where something can.
    """
    model = source.build()
    size = image_format(source.spec, image_size, None, None).size
    text = example_tokens(model) if tokens is None else None
    inputs = _example(model, size, channels, tokens) if text is None else text
    try:
        with torch.no_grad():
            model(inputs)
    except Exception as error:
        raise ModelError(
            f"the model does not take inputs of shape {tuple(inputs.shape)}: --image-size, --channels and --tokens say what it takes "
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
            0,
            tuple(inputs.shape[1:]),
        )
    return {
        "model": source.spec.text,
        "input": list(inputs.shape[1:]),
        "nothing": "" if len(structure) else _why_nothing(structure),
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
        "left_out": [x.as_dict() for x in structure.left_out],
        "never_called": list(structure.uncalled),
    }  # fmt: skip


def _why_nothing(structure: Structure) -> str:
    """The commonest reason, in one line."""
    reasons = [x.reason for x in structure.left_out] or ["no layer writes channels that another one reads"]
    return max(reasons, key=reasons.count)
