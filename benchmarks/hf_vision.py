"""Hugging Face's vision classifiers with random weights, from configurations made small, as one factory for `--model`."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
)

_SMALL: dict[str, Any] = {
    "image_size": 64, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128, "num_labels": 10,
}  # fmt: skip
KINDS = sorted(MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES)


def classifier(kind: str) -> nn.Module:
    """One kind's classifier; of the small settings those that its own configuration has, then fewer where they do not fit."""
    made = CONFIG_MAPPING[kind]()
    known = {k for k in _SMALL if isinstance(getattr(made, k, None), int)}
    if isinstance(getattr(made, "depths", None), (list, tuple)):
        known.discard("num_hidden_layers")  # where stages have depths of their own it only contradicts them
    last: Exception | None = None
    for names in (list(_SMALL), ["num_hidden_layers", "num_labels"], ["num_labels"]):
        small = {k: _SMALL[k] for k in names if k in known}
        try:
            config = CONFIG_MAPPING[kind](**small)
            chosen: Any = MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING[type(config)]
            model: nn.Module = (chosen[0] if isinstance(chosen, tuple) else chosen)(config)
            return model
        except Exception as error:  # noqa: BLE001 — settings that do not go together
            last = error
    raise ValueError(f"{kind}: {last}")
