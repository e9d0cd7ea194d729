"""A pruned Hugging Face model under its library's own config, where the config can say its widths; else the true reason. Ours."""

from __future__ import annotations

import copy
import sys
from typing import Any

import torch
from torch import nn

from cswap.errors import InputError
from cswap.methods.path import Surgery
from cswap.structure.replaced import replace_

_WIDTHS = ("intermediate_size", "ffn_dim", "hidden_dim", "d_ff", "n_inner", "encoder_ffn_dim")
"""Config fields that set one width for every block."""


def with_own_config(model: nn.Module) -> Any:
    """The same network as an object of the library's own class, whose `config` tells its widths.

    `save_pretrained` and `from_pretrained` then bring it back without cswap. model: a pruned Hugging Face model, from
    `path.apply` or `cswap.load`; untouched. Raises InputError with the reason where one number a width cannot say what is
    left, as when blocks end with different widths, or heads or their inner dimensions are gone.
    """
    surgery, config = getattr(model, "_cswap", None), getattr(model, "config", None)
    if not isinstance(surgery, Surgery) or config is None or not hasattr(config, "to_dict"):
        raise InputError(f"own config: expected a pruned Hugging Face model, got {type(model).__name__}")
    kind, names = _library_class(model), list(surgery.structure.replaced)
    state = model.state_dict()
    fitted = copy.deepcopy(config)
    before = _shapes(kind, fitted, names)
    for field in _WIDTHS:
        width = getattr(config, field, None)
        left = {
            new
            for name, shape in before.items()
            if name in state and len(shape) == state[name].dim()
            for old, new in zip(shape, state[name].shape, strict=True)
            if old == width != new
        }
        if len(left) > 1:
            raise InputError(
                f"own config: {type(config).__name__} has one {field} for all blocks, and they are {min(left)} to {max(left)} wide"
            )
        if left:
            setattr(fitted, field, left.pop())
    for name, shape in _shapes(kind, fitted, names).items():
        if name not in state or tuple(state[name].shape) != shape:
            came = tuple(state[name].shape) if name in state else "none"
            raise InputError(
                f"own config: {type(config).__name__} cannot say the shape of {name}, which is {came} where it would make {shape}"
            )
    with torch.random.fork_rng(devices=[]):
        native = kind(fitted)
    hosts = {name: native.get_submodule(name) for name in names}
    replace_(native, names)  # an equivalent holds its host's own projections, so that loading it loads the host
    native.load_state_dict(state)
    for name, host in hosts.items():
        native.set_submodule(name, host)
    return native.eval()


def _shapes(kind: Any, config: Any, replaced: list[str]) -> dict[str, tuple[int, ...]]:
    """Shapes by name of what the config makes, attention replaced as in the pruned network."""
    with torch.random.fork_rng(devices=[]):
        model = replace_(kind(config), replaced)
    return {n: tuple(t.shape) for n, t in model.state_dict().items()}


def _library_class(model: nn.Module) -> Any:
    """The class transformers itself exports, of which `hf:` models are a subclass. Raises InputError."""
    for kind in type(model).__mro__:
        module = sys.modules.get(kind.__module__)
        if kind.__module__.startswith("transformers.") and getattr(module, kind.__name__, None) is kind:
            return kind
    raise InputError(f"own config: expected a class of transformers, got {type(model).__name__}")
