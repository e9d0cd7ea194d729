"""Modules that an equivalent, whose units can go, takes the place of: attention and recurrent layers."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from cswap.structure.hosts import replace_attention_
from cswap.structure.recurrent import Recurrent, replace_recurrent_


def replace_(model: nn.Module, names: Iterable[str]) -> nn.Module:
    """Put the equivalent in the place of each named module; returns `model`. What is replaced already stays.

    Raises ArtifactError where there is none.
    """
    modules = dict(model.named_modules())
    for name in names:
        recurrent = isinstance(modules.get(name), nn.RNNBase | Recurrent)
        (replace_recurrent_ if recurrent else replace_attention_)(model, [name])
    return model
