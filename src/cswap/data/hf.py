"""Hugging Face models: a local folder, the name of a class with its configuration's arguments, or a name on the hub.

Safetensors only, and never code that comes with a model. A text model takes its tokens and mask as ONE integer tensor
(N, 2, L): `[:, 0]` the token numbers, `[:, 1]` the mask; so that a batch of text is sliced, moved and repeated like a batch
of images. Either kind returns its logits as a tensor.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cswap.errors import CswapWarning, MissingPartError, ModelError

_UNSAFE = ("trust_remote_code", "pretrained_model_name_or_path", "code_revision", "auto_map")


class _Tokens:
    """Puts the packed tokens of text where the model's own forward takes them."""

    def forward(self, tokens: torch.Tensor) -> Any:
        """tokens (N, 2, L) int64 → logits (N, K)."""
        mask = tokens[:, 1]
        if self.takes_added_mask:  # type: ignore[attr-defined]
            dtype: torch.dtype = self.dtype  # type: ignore[attr-defined]
            mask = (1 - mask[:, None, None, :]).to(dtype) * torch.finfo(dtype).min
        return super().forward(input_ids=tokens[:, 0], attention_mask=mask).logits  # type: ignore[misc]


def _given_masks(attention_mask: Any, **_others: Any) -> tuple[Any, None]:
    return attention_mask, None


def _with_added_mask(model: Any) -> bool:
    """Let an encoder add the mask it is given, instead of making one by steps that depend on what is in it.

    Those steps give a tensor for one batch and nothing for another, and no graph can be had of them.
    """
    base: Any = getattr(model, str(getattr(model, "base_model_prefix", "")), None)
    if getattr(model.config, "is_decoder", False) or not hasattr(base, "_create_attention_masks"):
        return False
    base._create_attention_masks = _given_masks
    return True


class _Pixels:
    """Returns the logits alone."""

    def forward(self, pixel_values: torch.Tensor) -> Any:
        """(N, C, H, W) → logits (N, K)."""
        return super().forward(pixel_values=pixel_values).logits  # type: ignore[misc]


def hugging_face(name: str) -> Any:
    """The factory of `hf:NAME`; raises MissingPartError without transformers. What it raises, the caller words."""
    try:
        import transformers
    except ImportError as error:
        raise MissingPartError.of(error, "hf: models need transformers", "hf", "transformers") from None

    def build(**arguments: Any) -> nn.Module:
        unsafe = sorted(a for a in arguments if a in _UNSAFE)
        if unsafe:
            raise ModelError(
                f"model-arg: {unsafe[0]} could bring code or another model; expected what a configuration has"
            )
        named: Any = getattr(transformers, name, None) if name.isidentifier() else None
        configured = getattr(named, "config_class", None)
        if isinstance(named, type) and configured is not None:
            return _simple(named(configured(**arguments)))
        return _simple(_from_folder(transformers, name, arguments))

    return build


def _from_folder(transformers: Any, name: str, arguments: dict[str, Any]) -> nn.Module:
    """From a folder with config.json, and weights where it holds model.safetensors; else from the hub."""
    local = Path(name).is_dir()
    if not local and name.startswith(("/", ".", "~")):
        raise ModelError(f"model 'hf:{name}': expected a folder with config.json, found none there")
    chosen = arguments.pop("architecture", None)
    quiet = {"local_files_only": local, "trust_remote_code": False}
    try:
        config = transformers.AutoConfig.from_pretrained(name, **quiet, **arguments)
    except (OSError, ValueError) as error:
        what = "a folder with config.json" if local else "a folder, a class of transformers or a name on the hub"
        raise ModelError(f"model 'hf:{name}': expected {what}; {_first(error)}") from None
    architecture = chosen or next(iter(getattr(config, "architectures", None) or ()), "")
    kind: Any = getattr(transformers, architecture, None)
    if not _is_module(kind):
        raise ModelError(f"model 'hf:{name}': its architecture {architecture!r} is none of this transformers")
    if local and not list(Path(name).glob("*.safetensors")):
        if list(Path(name).glob("*.bin")):
            raise ModelError(f"model 'hf:{name}': expected model.safetensors, found pickled weights alone")
        return kind(config)  # type: ignore[no-any-return]
    try:
        with _quiet(transformers):
            model, told = kind.from_pretrained(
                name, config=config, use_safetensors=True, output_loading_info=True, **quiet
            )
    except RuntimeError:
        raise ModelError(f"model 'hf:{name}': expected weights of the shapes its configuration says") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"model 'hf:{name}': {_first(error)}") from None
    missing = sorted(told["missing_keys"])
    if missing:
        text = f"model 'hf:{name}' holds no weights for {len(missing)} tensors (first {missing[0]}): they are random"
        warnings.warn(text, CswapWarning, stacklevel=2)
    return model.float()  # type: ignore[no-any-return]


@contextlib.contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """No bars and tables from the library: what counts is said once, by us."""
    logging = transformers.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _is_module(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, nn.Module)


def _first(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]


def example_tokens(model: nn.Module, length: int = 16) -> torch.Tensor | None:
    """Random text (2, 2, length) for a model of text, none of it padding; None for other models."""
    if not isinstance(model, _Tokens):
        return None
    config: Any = model.config
    tokens = torch.ones(2, 2, length, dtype=torch.int64)
    tokens[:, 0] = torch.randint(0, config.vocab_size, (2, length), generator=torch.Generator().manual_seed(0))
    return tokens


def _simple(model: nn.Module) -> nn.Module:
    """The same model with one tensor in and one out; its class is a subclass of its own, its tensors keep their names."""
    takes = getattr(model, "main_input_name", None)
    mixin = {"input_ids": _Tokens, "pixel_values": _Pixels}.get(str(takes))
    if mixin is None:
        raise ModelError(f"{type(model).__name__} takes {takes!r}: expected a model of images or text")
    own: type = type(model)
    if mixin is _Tokens:
        model.takes_added_mask = _with_added_mask(model)  # type: ignore[assignment]
    model.__class__ = type(own.__name__, (mixin, own), {"__module__": own.__module__})
    return model
