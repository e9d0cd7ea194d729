"""Model specs, factories and weights: everything between what a user types and an `nn.Module`. No pickle is loaded."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from cswap.data.hf import hugging_face
from cswap.errors import MissingPartError, ModelError, pass_on_out_of_memory

EXPECTED = "expected torchvision:NAME, timm:NAME, hf:NAME_OR_DIR, FILE.py:FACTORY or package.module:FACTORY"
TRUSTED = ("torchvision", "timm", "hf")


@dataclass(frozen=True)
class ModelSpec:
    """How to build a model: `kind` torchvision, timm, hf, file or module; `where` the file or module; `name`; arguments."""

    text: str
    kind: str
    where: str
    name: str
    arguments: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str, arguments: Mapping[str, Any] | None = None) -> ModelSpec:
        """Read a spec; raises ModelError."""
        where, colon, name = text.rpartition(":")
        if not colon or not where or not name:
            raise ModelError(f"model {text!r}: {EXPECTED}")
        if where == "hf" and Path(name).is_dir():
            name = str(Path(name).resolve())  # so that an artifact can be used from anywhere
            text = f"hf:{name}"
        kind = where if where in TRUSTED else "file" if where.endswith(".py") else "module"
        return cls(text, kind, where, name, dict(arguments or {}))

    @property
    def folder(self) -> Path | None:
        """The local folder of a Hugging Face model."""
        return Path(self.name) if self.kind == "hf" and Path(self.name).is_dir() else None

    @property
    def absolute(self) -> str:
        """The spec, a FILE.py or folder by its whole path: what can be given again from any folder."""
        if self.folder is not None:
            return f"hf:{self.folder.resolve()}"
        return f"{Path(self.where).resolve()}:{self.name}" if self.kind == "file" else self.text

    @property
    def trusted(self) -> bool:
        """Whether building it runs only code of a known library."""
        return self.kind in TRUSTED

    def factory(self) -> Callable[..., nn.Module]:
        """The callable that builds the model; runs the FILE.py or imports the module. Raises ModelError."""
        if self.kind == "torchvision":
            return _torchvision(self.name)
        if self.kind == "timm":
            return _timm(self.name)
        if self.kind == "hf":
            return hugging_face(self.name)  # type: ignore[no-any-return]
        module = module_from_file(Path(self.where)) if self.kind == "file" else module_named(self.where)
        made = getattr(module, self.name, None)
        if not callable(made):
            raise ModelError(f"model {self.text!r}: {self.where} has no factory {self.name!r}")
        return made  # type: ignore[no-any-return]

    def build(self) -> nn.Module:
        """The model in eval mode, its random weights drawn without moving the global random state. Raises ModelError."""
        factory = self.factory()
        with torch.random.fork_rng(devices=[]):
            try:
                model = factory(**self.arguments)
            except ModelError:
                raise
            except (Exception, SystemExit) as error:
                raise ModelError(
                    f"model {self.text!r}: its factory raised {type(error).__name__}: {one_line(error)}"
                ) from error
        if not isinstance(model, nn.Module):
            raise ModelError(
                f"model {self.text!r}: expected its factory to return an nn.Module, got {type(model).__name__}"
            )
        return model.eval()


def one_line(error: BaseException) -> str:
    """The first line of an error's message, shortened."""
    return (str(error).strip().splitlines() or [""])[0][:200]


def _torchvision(name: str) -> Callable[..., nn.Module]:
    from torchvision import models

    try:
        builder = models.get_model_builder(name)
    except ValueError:
        raise ModelError(f"model 'torchvision:{name}': torchvision has no model of that name") from None

    def build(**arguments: Any) -> nn.Module:
        import inspect

        known = inspect.signature(builder).parameters
        unsafe = sorted(a for a, v in arguments.items() if a.startswith(("weights", "pretrained")) and v)
        if unsafe:  # torchvision would download
            raise ModelError(f"model-arg: {unsafe[0]} loads weights by itself; expected --weights F")
        if name in ("googlenet", "inception_v3"):
            arguments = {"init_weights": False, "aux_logits": False, **arguments}
        if "weights_backbone" in known:
            arguments.setdefault("weights_backbone", None)
        return builder(**arguments)  # type: ignore[no-any-return]

    return build


def _timm(name: str) -> Callable[..., nn.Module]:
    try:
        import timm
    except ImportError as error:
        raise MissingPartError.of(error, "timm: models need timm", "timm", "timm") from None
    if not timm.is_model(name):
        raise ModelError(f"model 'timm:{name}': timm has no model of that name")

    def build(**arguments: Any) -> nn.Module:
        unsafe = sorted(a for a in arguments if a.startswith(("pretrained", "checkpoint")))
        if unsafe:  # timm would download, or unpickle a file
            raise ModelError(f"model-arg: {unsafe[0]} loads weights by itself; expected --weights F")
        made: nn.Module = timm.create_model(name, pretrained=False, **arguments)
        return made

    return build


def module_named(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:  # noqa: BLE001 — importing runs the user's code
        raise ModelError(f"model: cannot import {name!r} ({one_line(error)}); {EXPECTED}") from None


def module_from_file(path: Path) -> Any:
    """Run a Python file the user passed, as a module of its own. Raises ModelError."""
    if not path.is_file():
        raise ModelError(f"expected a Python file, found none at {path}")
    name = f"_cswap_user_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ModelError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise ModelError(f"{path} raised {type(error).__name__} while it was read: {one_line(error)}") from error
    return module


def parse_arguments(pairs: list[str]) -> dict[str, Any]:
    """`k=v` pairs; values are read as JSON where they are JSON, else as text. Raises ModelError."""
    arguments: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.isidentifier():
            raise ModelError(f"model-arg: expected NAME=VALUE, got {pair!r}")
        try:
            arguments[key] = json.loads(value)
            json.dumps(arguments[key], allow_nan=False)
        except json.JSONDecodeError:
            arguments[key] = value
        except (
            ValueError,
            RecursionError,
        ) as error:  # NaN, 1e999, thousands of digits or brackets: no manifest could keep it
            raise ModelError(
                f"model-arg {key}: expected text or JSON with finite numbers, got {value[:60]!r} ({one_line(error)})"
            ) from None
    return arguments


def sha256_of(path: Path) -> str:
    """Hash of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _unwrapped(state: Any, path: Path) -> dict[str, torch.Tensor]:
    for key in ("state_dict", "model"):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping) or not all(
        isinstance(n, str) and isinstance(v, torch.Tensor) for n, v in state.items()
    ):
        raise ModelError(f"weights {path}: expected a dict of tensors by name (also under 'state_dict' or 'model')")
    odd = next((n for n, v in state.items() if v.layout != torch.strided or v.is_quantized), None)
    if odd is not None:
        raise ModelError(f"weights {path}: {odd}: expected a dense tensor, got a sparse or quantized one")
    names = list(state)
    for prefix in ("module.", "_orig_mod."):  # of DataParallel, of torch.compile
        if names and all(n.startswith(prefix) for n in state):
            state = {n.removeprefix(prefix): v for n, v in state.items()}
    return dict(state)


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Tensors by name from .safetensors, or from .pt/.pth/.th read with weights_only=True. Raises ModelError."""
    if not path.is_file():
        raise ModelError(f"weights: expected a file, found none at {path}")
    if path.suffix == ".safetensors":
        try:
            return _unwrapped(load_file(path), path)
        except (SafetensorError, OSError, ValueError) as error:
            raise ModelError(f"weights {path}: no readable safetensors file ({one_line(error)})") from None
    if path.suffix not in (".pt", ".pth", ".th"):
        raise ModelError(f"weights {path}: expected .safetensors, .pt, .pth or .th")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 — whatever the reader makes of a file that is none
        pass_on_out_of_memory(error)
        raise ModelError(f"weights {path}: {_unread(path, error)}") from None
    return _unwrapped(state, path)


def _unread(path: Path, error: Exception) -> str:
    """Why a checkpoint is not read, in our words: torch's advice is to run the code in it."""
    with path.open("rb") as stream:
        start = stream.read(16)
    if start[8:9] == b"{":
        return "cannot be read; expected a PyTorch checkpoint, this is a safetensors file: name it .safetensors"
    if not start.startswith((b"PK", b"\x80")):
        return f"cannot be read; expected a PyTorch checkpoint, this file begins with {start[:8]!r}"
    said = str(error)
    if "Weights only load failed" in said:
        found = re.search(r"(?:GLOBAL|global|class) ([\w.]+)", said)
        return (
            f"cannot be read without running code in it{f' ({found[1]})' if found else ''}; save the state_dict alone"
        )
    return f"cannot be read without running code in it ({one_line(error)})"


def load_weights(model: nn.Module, path: Path) -> None:
    """Put weights into the model; every tensor must fit. Raises ModelError that says what was expected and what came."""
    state, own = read_weights(path), model.state_dict()
    missing = [n for n in own if n not in state and not n.endswith("num_batches_tracked")]
    extra = [n for n in state if n not in own]
    wrong = [n for n in own if n in state and own[n].shape != state[n].shape]
    if missing or extra or wrong:
        what = [f"{len(missing)} missing (first {missing[0]})"] if missing else []
        what += [f"{len(extra)} unexpected (first {extra[0]})"] if extra else []
        if wrong:
            n = wrong[0]
            what.append(
                f"{len(wrong)} of another shape (first {n}: expected {tuple(own[n].shape)}, got {tuple(state[n].shape)})"
            )
        raise ModelError(f"weights {path} are of another model: {', '.join(what)}")
    other = next((n for n in own if n in state and _kind(own[n]) != _kind(state[n])), None)
    if other is not None:
        raise ModelError(f"weights {path}: {other}: expected {own[other].dtype} or alike, got {state[other].dtype}")
    bad = next((n for n, v in state.items() if v.is_floating_point() and not torch.isfinite(v.float()).all()), None)
    if bad is not None:
        raise ModelError(f"weights {path}: {bad} holds NaN or Inf")
    put_tensors(model, state)


def _kind(tensor: torch.Tensor) -> str:
    return (
        "complex" if tensor.is_complex() else "float" if tensor.is_floating_point() else str(tensor.dtype == torch.bool)
    )


def put_tensors(model: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    """Copy tensors into the model's own of the same names; a tensor that shares its memory with one of them needs no entry.

    Not `load_state_dict`: some classes take a dict without version numbers for an older checkpoint and change it, or
    themselves (torchvision's MNASNet). Raises ModelError where names or shapes differ.
    """
    own = model.state_dict()
    given = {own[n].data_ptr() for n in state if n in own}
    missing = [n for n, t in own.items() if n not in state and t.numel() and t.data_ptr() not in given]
    extra = [n for n in state if n not in own]
    wrong = [n for n, t in state.items() if n in own and own[n].shape != t.shape]
    optional = [n for n in missing if n.endswith("num_batches_tracked")]
    if len(missing) > len(optional) or extra or wrong:
        first = ([n for n in missing if n not in optional] or extra or wrong)[0]
        expected = tuple(own[first].shape) if first in own else "none"
        came = tuple(state[first].shape) if first in state else "none"
        raise ModelError(f"tensor {first!r}: expected {expected}, got {came}")
    with torch.no_grad():
        for name, tensor in state.items():
            own[name].copy_(tensor)
