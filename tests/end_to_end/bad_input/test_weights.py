"""Weights that are spoiled, are another network's, or are a pickle that would run."""

from __future__ import annotations

import json
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.end_to_end.bad_input.conftest import refused
from tests.end_to_end.conftest import Place, _weights


class Boom:
    """Unpickled, it would leave a file behind."""

    def __init__(self, mark: str) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (self.mark,)


def _changed(place: Place, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    state = load_file(place.weights)
    state = change(state) or state
    save_file({k: v.contiguous() for k, v in state.items()}, place.weights)


def _bytes(place: Place, change: Callable[[bytes], bytes]) -> None:
    place.weights.write_bytes(change(place.weights.read_bytes()))


def _header(change: Callable[[dict[str, Any]], Any]) -> Callable[[bytes], bytes]:
    def apply(raw: bytes) -> bytes:
        (size,) = struct.unpack("<Q", raw[:8])
        header = json.loads(raw[8 : 8 + size])
        header = change(header) or header
        text = json.dumps(header).encode()
        return struct.pack("<Q", len(text)) + text + raw[8 + size :]

    return apply


def _with(name: str, value: float) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(state: dict[str, torch.Tensor]) -> None:
        state[name].view(-1)[0] = value

    return change


def _swapped(a: str, b: str) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(state: dict[str, torch.Tensor]) -> None:
        state[a], state[b] = state[b].clone(), state[a].clone()

    return change


WEIGHTS: dict[str, tuple[Callable[[Place], Any], tuple[str, ...]]] = {
    "gone": (lambda p: p.weights.unlink(), ("weights", "found none")),
    "empty": (lambda p: p.weights.write_bytes(b""), ("weights", "safetensors")),
    "text": (lambda p: p.weights.write_text("hello"), ("weights", "safetensors")),
    "cut-in-half": (lambda p: _bytes(p, lambda b: b[: len(b) // 2]), ("weights", "safetensors")),
    "cut-in-header": (lambda p: _bytes(p, lambda b: b[:20]), ("weights", "safetensors")),
    "one-byte-short": (lambda p: _bytes(p, lambda b: b[:-1]), ("weights", "safetensors")),
    "one-byte-long": (lambda p: _bytes(p, lambda b: b + b"x"), ("weights", "safetensors")),
    "header-size": (lambda p: _bytes(p, lambda b: struct.pack("<Q", 1 << 60) + b[8:]), ("weights", "safetensors")),
    "header-shape": (lambda p: _bytes(p, _header(lambda h: h["a.weight"].update(shape=[10**9, 10**9]))), ("weights",)),
    "header-dtype": (lambda p: _bytes(p, _header(lambda h: h["a.weight"].update(dtype="F99"))), ("weights",)),
    "header-offsets": (lambda p: _bytes(p, _header(lambda h: h["a.weight"].update(data_offsets=[5, 1]))), ("weights",)),
    "nan": (lambda p: _changed(p, _with("b.weight", float("nan"))), ("b.weight", "NaN")),
    "inf": (lambda p: _changed(p, _with("fc.bias", float("inf"))), ("fc.bias", "Inf")),
    "nan-in-a-buffer": (lambda p: _changed(p, _with("bn.running_var", float("nan"))), ("bn.running_var", "NaN")),
    "missing": (
        lambda p: _changed(p, lambda s: {k: v for k, v in s.items() if k != "b.weight"}),
        ("missing", "b.weight"),
    ),
    "extra": (lambda p: _changed(p, lambda s: {**s, "more": torch.zeros(1)}), ("unexpected", "more")),
    "renamed": (
        lambda p: _changed(p, lambda s: {("x" + k if k == "fc.bias" else k): v for k, v in s.items()}),
        ("fc.bias",),
    ),
    "swapped-shapes": (lambda p: _changed(p, _swapped("a.weight", "b.weight")), ("another shape", "a.weight")),
    "transposed": (
        lambda p: _changed(p, lambda s: {**s, "fc.weight": s["fc.weight"].t()}),
        ("another shape", "fc.weight"),
    ),
    "one-more-class": (
        lambda p: _changed(p, lambda s: {**s, "fc.weight": torch.zeros(4, 6)}),
        ("fc.weight", "(3, 6)", "(4, 6)"),
    ),
    "integers": (lambda p: _changed(p, lambda s: {**s, "b.weight": s["b.weight"].long()}), ("b.weight",)),
    "complex": (lambda p: _changed(p, lambda s: {**s, "b.weight": s["b.weight"].to(torch.complex64)}), ("b.weight",)),
    "booleans": (lambda p: _changed(p, lambda s: {**s, "b.weight": s["b.weight"] > 0}), ("b.weight",)),
    "all-zero": (lambda p: _changed(p, lambda s: {k: torch.zeros_like(v) for k, v in s.items()}), ("chance",)),
    "classes-in-another-order": (
        lambda p: _changed(p, lambda s: {**s, "fc.weight": s["fc.weight"].roll(1, 0)}),
        ("chance", "--labels"),
    ),
    "float8-nan": (
        lambda p: _changed(p, lambda s: {**s, "b.weight": (s["b.weight"] * float("nan")).to(torch.float8_e4m3fn)}),
        ("b.weight", "NaN"),
    ),
    "folder": (lambda p: (p.weights.unlink(), p.weights.mkdir()), ("weights",)),
    "suffix": (lambda p: p.weights.rename(p.weights.with_suffix(".bin")), ("weights",)),
}


@pytest.mark.parametrize("case", list(WEIGHTS))
def test_weights(place, capsys, case):
    spoil, words = WEIGHTS[case]
    spoil(place)
    refused(capsys, place, place.prune("out"), *words)


PICKLES: dict[str, Callable[[Path, str], Any]] = {
    "torch-zip": lambda f, m: torch.save({"x": Boom(m)}, f),
    "torch-legacy": lambda f, m: torch.save({"x": Boom(m)}, f, _use_new_zipfile_serialization=False),
    "plain-pickle": lambda f, m: f.write_bytes(pickle.dumps(Boom(m))),
    "state-dict-and-code": lambda f, m: torch.save({"state_dict": _weights(), "extra": Boom(m)}, f),
    "whole-module": lambda f, m: torch.save(torch.nn.Linear(2, 2), f),
    "list": lambda f, m: torch.save([1, 2, 3], f),
    "numbers": lambda f, m: torch.save({"a": 1}, f),
    "numbered": lambda f, m: torch.save({1: torch.zeros(2)}, f),
    "sparse": lambda f, m: torch.save({"a": torch.eye(3).to_sparse()}, f),
    "words": lambda f, m: f.write_text("test of a text that is no pickle\n"),
    "letters": lambda f, m: f.write_text("abc"),
    "empty": lambda f, m: f.write_bytes(b""),
    "zip-of-nothing": lambda f, m: f.write_bytes(b"PK\x05\x06" + bytes(18)),
}


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".th"])
@pytest.mark.parametrize("case", list(PICKLES))
def test_a_pickle_is_never_run(place, capsys, case, suffix):
    mark = place.root.parent / "it-ran"
    file = place.weights.with_suffix(suffix)
    PICKLES[case](file, str(mark))
    arguments = place.prune("out")
    arguments[arguments.index(str(place.weights))] = str(file)
    refused(capsys, place, arguments, "weights")
    assert not mark.exists()
