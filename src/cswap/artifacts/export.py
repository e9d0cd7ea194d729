"""A pruned network for other runtimes: ONNX and torch.export's .pt2, compared on real inputs before anything is written."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cswap.data.models import one_line
from cswap.errors import InputError, MismatchError, MissingPartError, RunError

FORMATS = ("onnx", "pt2")
TOLERANCE = 1e-4  # of max(1, max |output|), as for masked against pruned (method.md)
INPUT, OUTPUT = "input", "output"
Runner = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Exported:
    """What was written, and how far its outputs are from the module's, on `samples` inputs in batches of these sizes."""

    file: Path
    format: str
    difference: float
    allowed: float
    samples: int
    batches: tuple[int, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "file": str(self.file), "format": self.format, "max_abs_difference": self.difference, "allowed": self.allowed,
            "samples": self.samples, "batches": list(self.batches), "bytes": self.file.stat().st_size,
        }  # fmt: skip


def tensor_of(outputs: Any) -> torch.Tensor:
    """The one tensor a task scores: the output itself, its `logits` or `out`, or a tuple's first entry. Raises InputError."""
    for key in ("logits", "out"):
        if isinstance(outputs, dict) and key in outputs:
            outputs = outputs[key]
        elif not isinstance(outputs, torch.Tensor) and hasattr(outputs, key):
            outputs = getattr(outputs, key)
    if isinstance(outputs, tuple) and outputs:
        outputs = outputs[0]
    if not isinstance(outputs, torch.Tensor):
        raise InputError(
            f"export: expected a model whose output is one tensor, or has `logits` or `out`, got {type(outputs).__name__} (a detector's "
            "boxes differ in number from image to image)"
        )
    return outputs


class _OneTensor(nn.Module):
    """The model, giving the tensor a task scores."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return tensor_of(self.model(inputs))


def export(
    model: nn.Module, file: str | Path, inputs: torch.Tensor, *, format: str = "onnx", facts: dict[str, Any] | None = None
) -> Exported:  # fmt: skip
    """Write `model` to `file` with a free batch size, once its outputs on `inputs` (N, …), N ≥ 2, are those of the module.

    onnx: one file, input `input`, output `output`, float32 weights inside; run by onnxruntime to check. pt2: read back by
    torch.export.load to check. facts: JSON values that go along as metadata (`cswap`). Neither file needs cswap to run.
    Raises InputError, MissingPartError, RunError where the model cannot be exported, MismatchError where outputs differ.
    """
    if format not in FORMATS:
        raise InputError(f"format: expected one of {', '.join(FORMATS)}, got {format!r}")
    if len(inputs) < 2:
        raise InputError(
            f"export: expected at least 2 real inputs, which show that the batch size is free, got {len(inputs)}"
        )
    file = Path(file)
    if not file.parent.is_dir():
        raise InputError(f"export: expected a folder at {file.parent}, found none")
    if file.is_dir():
        raise InputError(f"export: expected a file to write, {file} is a folder")
    wrapped = _OneTensor(model).eval().cpu()
    inputs = inputs.cpu()
    with torch.no_grad():
        expected = wrapped(inputs)
    told = json.dumps(facts or {})
    with _scratch(file) as fresh, _quiet():
        run = (_onnx if format == "onnx" else _pt2)(wrapped, inputs[:2], fresh, told)
        sizes = tuple(sorted({1, min(3, len(inputs)), len(inputs)}))
        difference = max(_difference(run, inputs[:n], expected[:n]) for n in sizes)
        allowed = TOLERANCE * max(1.0, float(expected.abs().max()))
        if not difference <= allowed:
            raise MismatchError(
                f"export: {format} gives outputs that differ from the module's by {difference:.3g} (allowed {allowed:.3g}); nothing was written"
            )
        os.replace(fresh, file)  # noqa: PTH105 — within one folder
    return Exported(file, format, difference, allowed, len(inputs), sizes)


@contextlib.contextmanager
def _scratch(file: Path) -> Iterator[Path]:
    """Where the file is made, in a folder beside it whose name is the same each time: what a kill leaves goes with the next."""
    folder = file.with_name(f".export-{file.name}")
    try:
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir()
    except OSError as error:
        raise InputError(f"export: {file} cannot be written ({error.strerror})") from None
    try:
        yield folder / file.name
    except OSError as error:
        raise RunError(f"export: {file} cannot be written ({error.strerror or one_line(error)})") from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _difference(run: Runner, inputs: torch.Tensor, expected: torch.Tensor) -> float:
    try:
        got = run(inputs)
    except Exception as error:
        raise RunError(
            f"export: the written network does not run on a batch of {len(inputs)} ({one_line(error)}); nothing was written"
        ) from error
    if got.shape != expected.shape:
        raise MismatchError(
            f"export: expected outputs of shape {tuple(expected.shape)}, got {tuple(got.shape)}; nothing was written"
        )
    return float((got.double() - expected.double()).abs().max())


def _program(model: nn.Module, example: torch.Tensor) -> Any:
    try:
        return torch.export.export(model, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},), strict=False)
    except Exception as error:
        raise RunError(
            f"export: torch.export cannot trace this model with a free batch size ({type(error).__name__}: {one_line(error)}); nothing was written"
        ) from error


def _pt2(model: nn.Module, example: torch.Tensor, file: Path, told: str) -> Runner:
    held = io.BytesIO()
    torch.export.save(_program(model, example), held, extra_files={"cswap": told})
    file.write_bytes(held.getvalue())
    with file.open("rb") as stream:
        reloaded = torch.export.load(io.BytesIO(stream.read())).module()

    def run(inputs: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            output: torch.Tensor = reloaded(inputs)
        return output

    return run


def _onnx(model: nn.Module, example: torch.Tensor, file: Path, told: str) -> Runner:
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401 — torch.onnx needs it
    except ImportError as error:
        raise MissingPartError.of(
            error, "export to onnx needs onnx, onnxruntime and onnxscript", "export", str(error.name)
        ) from None
    program = _program(model, example)
    try:
        made = torch.onnx.export(program, input_names=[INPUT], output_names=[OUTPUT], dynamo=True, verbose=False)
        assert made is not None
        made.save(str(file), external_data=False)
    except OSError:
        raise
    except Exception as error:
        raise RunError(
            f"export: this model cannot be written as ONNX ({type(error).__name__}: {one_line(error)}); nothing was written"
        ) from error
    proto = onnx.load(str(file))
    onnx.helper.set_model_props(proto, {"cswap": told})
    onnx.checker.check_model(proto)
    onnx.save(proto, str(file))
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return lambda inputs: torch.from_numpy(session.run([OUTPUT], {INPUT: inputs.numpy()})[0])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporters' own chatter is not the user's business."""
    loud = [logging.getLogger(n) for n in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    before = [logger.level for logger in loud]
    try:
        for logger in loud:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loud, before, strict=True):
            logger.setLevel(level)
