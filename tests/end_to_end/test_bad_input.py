"""Whatever is wrong with what came: one line that says what was expected and what came, status 2, and nothing lost."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import struct
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from cswap.cli.app import main
from tests.end_to_end.conftest import FACTORY, Place, _weights, laid_out, place_at


class Boom:
    """Unpickled, it would leave a file behind."""

    def __init__(self, mark: str) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (self.mark,)


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A network, its data, and an artifact made of them."""
    place = laid_out(tmp_path_factory.mktemp("template"))
    assert main(place.prune("art")) == 0
    return place.root


@pytest.fixture
def place(template, tmp_path):
    """A copy of its own for every case."""
    root = tmp_path / "place"
    shutil.copytree(template, root)
    return place_at(root)


def _held(root: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(root)): p.read_bytes()
        for p in sorted(root.rglob("*"))
        if p.is_file() and "__pycache__" not in p.parts
    }


def refused(capsys, place: Place, arguments: list[str], *words: str, status: int = 2) -> None:
    """One line, the right status, no traceback, no log, nothing written or changed."""
    before = _held(place.root)
    capsys.readouterr()
    got = main(arguments)
    out, err = capsys.readouterr()
    errors = [line for line in err.splitlines() if not line.startswith("cswap: warning")]
    assert got == status, (got, err)
    assert len(errors) == 1, err
    assert out == ""
    assert "Traceback" not in err
    assert "the log is" not in err, err
    for word in words:
        assert word in errors[0], errors[0]
    assert _held(place.root) == before


# ---------------------------------------------------------------------------------------------- options

OPTIONS: dict[str, tuple[list[str], tuple[str, ...]]] = {
    "target-word": (["--target", "half"], ("target", "expected", "half")),
    "target-kind": (["--target", "flops=0.5"], ("target", "flops")),
    "target-empty": (["--target", ""], ("target",)),
    "target-no-number": (["--target", "params=lots"], ("lots",)),
    "target-one": (["--target", "params=1"], ("params=1",)),
    "target-above": (["--target", "macs=1.5"], ("1.5",)),
    "target-below": (["--target", "units=-0.1"], ("-0.1",)),
    "target-nan": (["--target", "params=nan"], ("nan",)),
    "target-inf": (["--target", "params=inf"], ("inf",)),
    "target-percent": (["--target", "params=50%"], ("50%",)),
    "target-out-of-reach": (["--target", "params=0.999"], ("out of reach",)),
    "alpha-zero": (["--alpha", "0"], ("alpha", "0")),
    "alpha-one": (["--alpha", "1"], ("alpha", "1")),
    "alpha-negative": (["--alpha", "-0.05"], ("alpha", "-0.05")),
    "alpha-nan": (["--alpha", "nan"], ("alpha", "nan")),
    "alpha-text": (["--alpha", "five"], ("alpha", "five")),
    "vote": (["--vote", "majority"], ("vote", "majority")),
    "vote-score": (["--vote-score", "pixel"], ("vote-score", "pixel")),
    "correction": (["--correction", "bonferroni"], ("correction", "bonferroni")),
    "min-effect": (["--min-effect", "-1"], ("min-effect", "-1")),
    "min-effect-nan": (["--min-effect", "nan"], ("min-effect", "nan")),
    "xi-floor-zero": (["--xi-floor", "0"], ("xi-floor", "0")),
    "xi-floor-negative": (["--xi-floor", "-1"], ("xi-floor", "-1")),
    "min-effect-inf": (["--min-effect", "1e999"], ("min-effect", "inf")),
    "xi-floor-inf": (["--xi-floor", "inf"], ("xi-floor", "inf")),
    "model-arg-nan": (["--model-arg", "x=NaN"], ("model-arg x", "NaN")),
    "model-arg-too-large": (["--model-arg", 'x={"a": 1e999}'], ("model-arg x", "finite")),
    "model-arg-digits": (["--model-arg", f"x={'9' * 5000}"], ("model-arg x", "finite")),
    "cut-of-a-ranking": (["--method", "magnitude", "--cut", "compensated"], ("cut", "magnitude")),
    "effects-of-a-ranking": (["--method", "taylor", "--effects", "verdict"], ("effects", "taylor")),
    "correction-of-a-ranking": (["--method", "random", "--correction", "holm"], ("correction", "random")),
    "buffer-order-of-a-ranking": (["--method", "lamp", "--buffer-order", "abs"], ("buffer-order", "lamp")),
    "scope-of-a-test": (["--scope", "global"], ("scope", "cswap")),
    "xi-floor-nan": (["--xi-floor", "nan"], ("xi-floor", "nan")),
    "effects": (["--effects", "some"], ("effects", "some")),
    "effects-pooled": (["--effects", "verdict", "--vote", "pooled"], ("verdict", "pooled")),
    "effects-holm": (["--effects", "verdict", "--correction", "holm"], ("verdict", "holm")),
    "reference": (["--reference", "first"], ("reference", "first")),
    "granularity": (["--granularity", "layer"], ("granularity", "layer")),
    "granularity-zero": (["--granularity", "block:0"], ("granularity", "block:0")),
    "granularity-text": (["--granularity", "block:four"], ("granularity", "block:four")),
    "order": (["--order", "sorted"], ("order", "sorted")),
    "buffer-order": (["--buffer-order", "up"], ("buffer-order", "up")),
    "cut": (["--cut", "deep"], ("cut", "deep")),
    "scope": (["--scope", "stage"], ("scope", "stage")),
    "per": (["--per", "flop"], ("per", "flop")),
    "per-layer": (["--method", "magnitude", "--per", "params"], ("per", "global")),
    "norm": (["--norm", "l3"], ("norm", "l3")),
    "max-drop": (["--max-drop", "2"], ("max-drop", "2")),
    "max-drop-nan": (["--max-drop", "nan"], ("max-drop", "nan")),
    "method": (["--method", "magic"], ("method", "magic", "cswap")),
    "method-empty": (["--method", ""], ("method",)),
    "task": (["--task", "regression"], ("task", "regression")),
    "recover": (["--recover", "prayer"], ("recover", "prayer")),
    "recover-twice": (["--recover", "bn+bn"], ("recover", "bn")),
    "recover-none-and": (["--recover", "none+bn"], ("recover", "none")),
    "per-class-zero": (["--per-class", "0"], ("per-class", "0")),
    "per-class-one": (["--per-class", "1"], ("1",)),
    "per-class-many": (["--per-class", "1000"], ("1000", "10")),
    "per-class-text": (["--per-class", "few"], ("per-class", "few")),
    "seed": (["--seed", "-1"], ("seed", "-1")),
    "seed-text": (["--seed", "x"], ("seed", "x")),
    "seed-huge": (["--seed", str(10**20), "--eval-samples", "5"], ("seed",)),
    "device": (["--device", "tpu"], ("device", "tpu")),
    "device-cuda": (["--device", "cuda:99"], ("device", "cuda:99")),
    "memory": (["--memory", "lots"], ("memory", "lots")),
    "memory-zero": (["--memory", "0"], ("memory", "0")),
    "memory-little": (["--memory", "1"], ("memory",)),
    "image-size-zero": (["--image-size", "0"], ("image-size", "0")),
    "image-size-huge": (["--image-size", "100000"], ("image-size", "100000")),
    "mean-text": (["--mean", "a,b,c"], ("mean", "a,b,c")),
    "mean-two": (["--mean", "0.5,0.5"], ("mean", "0.5,0.5")),
    "std-zero": (["--std", "0,0.5,0.5"], ("std", "0")),
    "std-nan": (["--std", "nan,1,1"], ("std", "finite", "nan")),
    "mean-inf": (["--mean", "inf,0,0"], ("mean", "inf")),
    "eval-samples": (["--eval-samples", "0"], ("eval-samples", "0")),
    "only": (["--only", "nosuch*"], ("nosuch*", "groups are")),
    "exclude-all": (["--exclude", "*"], ("exclude",)),
    "unknown-option": (["--prune-harder"], ("--prune-harder",)),
    "model-arg": (["--model-arg", "classes"], ("model-arg", "classes")),
    "model-arg-unknown": (["--model-arg", "depth=3"], ("depth",)),
    "model-arg-type": (["--model-arg", "classes=many"], ("factory",)),
    "calibration-split": (["--calibration-split", "nowhere"], ("nowhere",)),
    "eval-split": (["--eval-split", "nowhere"], ("nowhere",)),
    "norm-of-another-method": (["--norm", "l2"], ("norm", "magnitude", "cswap")),
    "swaps-of-another-method": (["--swaps"], ("swaps", "obs", "cswap")),
    "margins-of-another-method": (["--method", "obs", "--margins", "0.1"], ("margins", "joint", "obs")),
    "granularity-of-another-method": (["--method", "cbp", "--granularity", "block:4"], ("granularity", "cswap", "cbp")),
    "margin-alone": (["--margin", "0.1"], ("margin", "--certify")),
    "bound-alone": (["--bound", "t"], ("bound", "--certify")),
    "latency-batch-alone": (["--latency-batch", "4"], ("latency-batch", "latency=F", "params=0.3")),
    "round-to-coarse": (["--round-to", "100"], ("out of reach", "multiple of 100")),
    "ignore-index": (["--ignore-index", "3"], ("ignore-index", "masks")),
    "tokenizer": (["--task", "text", "--tokenizer", "/nowhere"], ("tokenizer", "train.tsv")),
}


@pytest.mark.parametrize("case", list(OPTIONS))
def test_an_option(place, capsys, case):
    more, words = OPTIONS[case]
    refused(capsys, place, place.prune("out", *more), *words)


# ---------------------------------------------------------------------------------------------- weights


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


# ---------------------------------------------------------------------------------------------- models

MODELS: dict[str, tuple[str, tuple[str, ...]]] = {
    "empty": ("", ("model", "expected")),
    "no-colon": ("resnet18", ("model", "expected")),
    "no-name": ("torchvision:", ("model", "expected")),
    "torchvision-unknown": ("torchvision:resnet19", ("resnet19",)),
    "timm-unknown": ("timm:no_such_net", ("no_such_net",)),
    "hf-nowhere": ("hf:/nowhere/at/all", ("/nowhere/at/all",)),
    "no-file": ("/nowhere.py:net", ("/nowhere.py",)),
    "no-factory": ("{root}/net.py:nosuch", ("nosuch",)),
    "raises": ("{root}/net.py:broken", ("this factory fails",)),
    "no-module": ("{root}/net.py:not_a_module", ("nn.Module", "int")),
    "no-package": ("no.such.package:net", ("no.such.package",)),
    "not-callable": ("{root}/net.py:__doc__", ("__doc__",)),
    "syntax": ("{root}/syntax.py:net", ("syntax.py",)),
    "import-fails": ("{root}/imports.py:net", ("imports.py",)),
    "exits": ("{root}/exits.py:net", ("exits.py",)),
    "module-exits": ("builtins:exit", ("raised SystemExit",)),
    "binary": ("{root}/binary.py:net", ("binary.py",)),
    "a-class-that-needs-arguments": ("torch.nn:Linear", ("Linear",)),
}


@pytest.mark.parametrize("case", list(MODELS))
def test_a_model(place, capsys, case):
    spec, words = MODELS[case]
    (place.root / "syntax.py").write_text("def net(:\n")
    (place.root / "imports.py").write_text("import no_such_module_at_all\n")
    (place.root / "exits.py").write_text("import sys\nsys.exit(0)\n")
    (place.root / "binary.py").write_bytes(bytes(range(256)))
    arguments = place.prune("out")
    arguments[arguments.index(f"{place.factory}:colours")] = spec.format(root=place.root)
    refused(capsys, place, arguments, *words)


FACTORIES: dict[str, tuple[str, tuple[str, ...], int]] = {
    "takes-other-inputs": ("def net():\n    return nn.Sequential(nn.Flatten(), nn.Linear(7, 3))\n", ("inputs", "3, 8, 8"), 2),
    "other-number-of-classes": ("def net():\n    return nn.Sequential(nn.Flatten(), nn.Linear(192, 5))\n", ("5", "3"), 2),
    "gives-nan": (
        "class N(nn.Module):\n    def __init__(self):\n        super().__init__()\n        self.a = nn.Conv2d(3, 4, 1)\n        self.f = nn.Linear(4, 3)\n"
        "    def forward(self, x):\n        return self.f(self.a(x).mean((2, 3))) * float('nan')\n\ndef net():\n    return N()\n",
        ("finite",), 2,
    ),
    "gives-a-tuple-of-nothing": (
        "class N(nn.Module):\n    def __init__(self):\n        super().__init__()\n        self.f = nn.Linear(3, 3)\n"
        "    def forward(self, x):\n        return ()\n\ndef net():\n    return N()\n",
        ("logits", "tuple"), 2,
    ),
    "nothing-to-prune": ("def net():\n    return nn.Sequential(nn.Flatten(), nn.Linear(192, 3))\n", ("nothing can be pruned",), 1),
    "no-parameters": ("def net():\n    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())\n", ("no parameters",), 1),
    "scripted": ("def net():\n    return torch.jit.script(nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)))\n", ("script",), 1),
}  # fmt: skip


@pytest.mark.parametrize("case", list(FACTORIES))
def test_a_network(place, capsys, case):
    source, words, status = FACTORIES[case]
    (place.root / "other.py").write_text("import torch\nfrom torch import nn\n\n\n" + source)
    arguments = place.prune("out")
    arguments[arguments.index(f"{place.factory}:colours")] = f"{place.root / 'other.py'}:net"
    del arguments[arguments.index("--weights") : arguments.index("--weights") + 2]
    refused(capsys, place, arguments, *words, status=status)


# ---------------------------------------------------------------------------------------------- data


def _file(name: str, content: bytes) -> Callable[[Place], Any]:
    return lambda p: (p.data / name).write_bytes(content)


def _images(mode: str, size: tuple[int, int], where: str = "train/red") -> Callable[[Place], Any]:
    def put(place: Place) -> None:
        for file in (place.data / where).iterdir():
            Image.new(mode, size).save(file)

    return put


def _emptied(where: str) -> Callable[[Place], Any]:
    return lambda p: [f.unlink() for f in (p.data / where).iterdir()]


DATA: dict[str, tuple[Callable[[Place], Any], tuple[str, ...]]] = {
    "gone": (lambda p: shutil.rmtree(p.data), ("data",)),
    "a-file": (lambda p: (shutil.rmtree(p.data), p.data.write_text("x")), ("data",)),
    "empty": (lambda p: (shutil.rmtree(p.data), p.data.mkdir()), ("train",)),
    "no-train": (lambda p: shutil.rmtree(p.data / "train"), ("train",)),
    "no-test": (lambda p: shutil.rmtree(p.data / "test"), ("test",)),
    "no-classes": (lambda p: (shutil.rmtree(p.data / "train"), (p.data / "train").mkdir()), ("train",)),
    "one-class": (
        lambda p: [shutil.rmtree(p.data / s / c) for s in ("train", "test") for c in ("red", "blue")],
        ("1", "3"),
    ),
    "one-class-empty": (_emptied("train/red"), ("red",)),
    "one-class-gone": (lambda p: shutil.rmtree(p.data / "train/red"), ("2",)),
    "too-few": (lambda p: [f.unlink() for f in sorted((p.data / "train/red").iterdir())[3:]], ("red", "3", "6")),
    "another-class": (lambda p: shutil.copytree(p.data / "train/red", p.data / "train/pink"), ("4",)),
    "test-classes-differ": (lambda p: (p.data / "test/red").rename(p.data / "test/pink"), ("pink",)),
    "test-empty": (lambda p: [_emptied(f"test/{c}")(p) for c in ("red", "green", "blue")], ("test",)),
    "corrupt": (
        lambda p: [f.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(50)) for f in (p.data / "train/red").iterdir()],
        ("train/red",),
    ),
    "truncated": (
        lambda p: [f.write_bytes(f.read_bytes()[:40]) for f in (p.data / "train/red").iterdir()],
        ("train/red",),
    ),
    "no-image": (lambda p: [f.write_bytes(b"") for f in (p.data / "train/red").iterdir()], ("train/red",)),
    "html": (lambda p: [f.write_text("<html>404</html>") for f in (p.data / "train/red").iterdir()], ("train/red",)),
    "bomb": (lambda p: [_bomb(f) for f in (p.data / "train/red").iterdir()], ("train/red",)),
    "labels-gone": (lambda p: None, ("labels",)),
    "labels-text": (_file("../labels.json", b"hello"), ("labels",)),
    "labels-list-short": (_file("../labels.json", b'["red", "green"]'), ("labels",)),
    "labels-unknown": (_file("../labels.json", b'{"red": 0, "green": 1, "cyan": 2}'), ("labels",)),
    "labels-out-of-range": (_file("../labels.json", b'{"red": 0, "green": 1, "blue": 99}'), ("labels",)),
    "labels-negative": (_file("../labels.json", b'{"red": 0, "green": 1, "blue": -1}'), ("labels",)),
    "labels-twice": (_file("../labels.json", b'{"red": 0, "green": 1, "blue": 1}'), ("labels",)),
    "labels-a-name-twice": (
        _file("../labels.json", b'{"red": 0, "green": 1, "blue": 2, "red": 3}'),
        ("labels", "'red' comes twice"),
    ),
    "labels-line-twice": (_file("../labels.json", b"red\ngreen\nblue\nred\n"), ("labels", "'red' comes twice")),
    "labels-fractions": (
        _file("../labels.json", b'{"red": 0.9, "green": 1.2, "blue": 2.7}'),
        ("labels", "whole numbers"),
    ),
    "labels-truth": (_file("../labels.json", b'{"red": false, "green": true, "blue": 2}'), ("labels", "whole numbers")),
    "labels-inf": (_file("../labels.json", b'{"red": Infinity, "green": 1, "blue": 2}'), ("labels", "whole numbers")),
    "labels-comma": (_file("../labels.json", b'{"red": 0, "green": 1, "blue": 2,}'), ("labels", "JSON")),
    "labels-deep": (_file("../labels.json", b"[" * 100_000), ("labels", "JSON")),
    "folder-in-latin-1": (
        lambda p: (p.data / "train/red").rename(os.fsdecode(os.fsencode(p.data / "train") + b"/r\xf6d")),
        ("UTF-8",),
    ),
    "labels-words": (_file("../labels.json", b'{"red": "x", "green": 1, "blue": 2}'), ("labels",)),
}


def _bomb(file: Path) -> None:
    """A PNG whose header claims 60,000 × 60,000 pixels."""
    import zlib

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    file.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("case", list(DATA))
def test_data(place, capsys, case):
    spoil, words = DATA[case]
    spoil(place)
    labels = ["--labels", str(place.root / "labels.json")] if case.startswith("labels") else []
    refused(capsys, place, place.prune("out", *labels), *words)


def test_a_broken_test_image_keeps_the_journal(place, capsys):
    """It comes up when quality is measured: what was decided by then is not lost, and the run goes on with a whole image."""
    good = (place.data / "test/red/000.png").read_bytes()
    (place.data / "test/red/000.png").write_bytes(b"")
    assert main(place.prune("out")) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "test/red/000.png" in line
    assert not (place.root / "out" / "manifest.json").exists()
    (place.data / "test/red/000.png").write_bytes(good)
    assert main(place.prune("out", "--resume")) == 0
    assert (place.root / "out" / "manifest.json").exists()


@pytest.mark.parametrize(
    ("mode", "size"),
    [
        ("L", (8, 8)),
        ("RGBA", (8, 8)),
        ("P", (8, 8)),
        ("I;16", (8, 8)),
        ("1", (8, 8)),
        ("RGB", (1, 1)),
        ("RGB", (20000, 1)),
    ],
)
def test_odd_images_are_images(place, capsys, mode, size):
    """Grey, palette, alpha, one pixel, and 20,000 pixels wide: read as RGB, and the run goes on or says that it is near chance."""
    _images(mode, size, "test/red")(place)
    assert main(place.prune("out")) == 0
    capsys.readouterr()


FACTORY_DATA: dict[str, tuple[str, tuple[str, ...]]] = {
    "raises": ("def data():\n    raise OSError('no disk')\n", ("no disk",)),
    "none": ("def data():\n    return None\n", ("data",)),
    "one": ("def data():\n    return [1, 2, 3]\n", ("data",)),
    "three": ("def data():\n    return good(), good(), good()\n", ("data",)),
    "empty": ("def data():\n    return TensorDataset(torch.zeros(0, 3, 8, 8), torch.zeros(0).long()), good()\n", ("data",)),
    "float-labels": ("def data():\n    return TensorDataset(torch.zeros(30, 3, 8, 8), torch.zeros(30)), good()\n", ("label",)),
    "negative-labels": ("def data():\n    return TensorDataset(torch.zeros(30, 3, 8, 8), torch.arange(30) % 3 - 1), good()\n", ("label",)),
    "broken-labels": (
        "def data():\n    return TensorDataset(torch.zeros(30, 3, 8, 8), torch.arange(30) % 3 + 0.5), good()\n",
        ("label", "0.5"),
    ),
    "held-out-labels-negative": (
        "def data():\n    bad = TensorDataset(torch.zeros(30, 3, 8, 8), torch.arange(30) % 3 - 1)\n    return good(), bad\n",
        ("label", "-1"),
    ),
    "held-out-labels-beyond": (
        "def data():\n    bad = TensorDataset(torch.zeros(30, 3, 8, 8), torch.arange(30) % 4)\n    return good(), bad\n",
        ("label", "3"),
    ),
    "labels-out-of-range": ("def data():\n    return TensorDataset(torch.zeros(40, 3, 8, 8), torch.arange(40) % 4), good()\n", ("4",)),
    "nan-inputs": ("def data():\n    return TensorDataset(torch.full((30, 3, 8, 8), float('nan')), torch.arange(30) % 3), good()\n", ("finite",)),
    "no-length": ("def data():\n    return iter([]), good()\n", ("data",)),
    "items-of-one": ("def data():\n    return TensorDataset(torch.zeros(30, 3, 8, 8)), good()\n", ("data",)),
    "text-inputs": ("def data():\n    return [('a', i % 3) for i in range(30)], good()\n", ("",)),
    "inputs-of-many-shapes": ("def data():\n    return [(torch.zeros(3, 8 + i, 8), i % 3) for i in range(30)], good()\n", ("shape",)),
    "item-raises": (
        "class D:\n    targets = [i % 3 for i in range(30)]\n    def __len__(self):\n        return 30\n    def __getitem__(self, i):\n        raise ValueError('sample is broken')\n"
        "def data():\n    return D(), good()\n",
        ("sample is broken",),
    ),
    "exits": ("def data():\n    raise SystemExit(0)\n", ("SystemExit",)),
    "exits-later": (
        "class D:\n    targets = [i % 3 for i in range(30)]\n    def __len__(self):\n        return 30\n    def __getitem__(self, i):\n        raise SystemExit(0)\n"
        "def data():\n    return D(), good()\n",
        ("ended the program",),
    ),
    "length-below-zero": (
        "class D:\n    def __len__(self):\n        return -1\n    def __getitem__(self, i):\n        return good()[i]\ndef data():\n    return D(), good()\n",
        ("length",),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", list(FACTORY_DATA))
def test_a_data_factory(place, capsys, case):
    source, words = FACTORY_DATA[case]
    head = (
        "import torch\nfrom torch.utils.data import TensorDataset\n\n\ndef good():\n"
        "    y = torch.arange(30) % 3\n    x = torch.zeros(30, 3, 8, 8)\n    x[torch.arange(30), y] = 1\n    return TensorDataset(x, y)\n\n\n"
    )
    (place.root / "data.py").write_text(head + source)
    capsys.readouterr()
    before = _held(place.root)
    status = main(place.prune("out", data=f"{place.root / 'data.py'}:data"))
    out, err = capsys.readouterr()
    errors = [line for line in err.splitlines() if not line.startswith("cswap: warning")]
    assert status in (1, 2), err
    assert len(errors) == 1, err
    assert "the log is" not in err, err
    assert all(w in errors[0] for w in words), errors[0]
    assert out == ""
    assert _held(place.root) == before


# ---------------------------------------------------------------------------------------------- artifacts


def _manifest(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def spoil(art: Path) -> None:
        file = art / "manifest.json"
        data = json.loads(file.read_text())
        data = change(data) or data
        file.write_text(json.dumps(data))

    return spoil


def _set(*path: Any, to: Any) -> Callable[[Path], None]:
    def change(data: dict[str, Any]) -> None:
        for key in path[:-1]:
            data = data[key]
        data[path[-1]] = to

    return _manifest(change)


def _without(*path: str) -> Callable[[Path], None]:
    def change(data: dict[str, Any]) -> None:
        for key in path[:-1]:
            data = data[key]
        del data[path[-1]]

    return _manifest(change)


def _raw(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda art: (art / name).write_bytes(content)  # type: ignore[return-value]


def _kept(change: Callable[[list[int]], Any]) -> Callable[[Path], None]:
    def apply(data: dict[str, Any]) -> None:
        indices = data["kept"]["a.weight"]["0"]
        data["kept"]["a.weight"]["0"] = change(indices)

    return _manifest(apply)


ARTIFACTS: dict[str, Callable[[Path], Any]] = {
    "manifest-gone": lambda art: (art / "manifest.json").unlink(),
    "manifest-empty": _raw("manifest.json", b""),
    "manifest-text": _raw("manifest.json", b"hello"),
    "manifest-list": _raw("manifest.json", b"[]"),
    "manifest-null": _raw("manifest.json", b"null"),
    "manifest-cut": lambda art: (art / "manifest.json").write_bytes((art / "manifest.json").read_bytes()[:200]),
    "manifest-not-utf8": _raw("manifest.json", b"\xff\xfe{}"),
    "manifest-deep": _raw("manifest.json", b"[" * 100_000),
    "schema-gone": _without("schema"),
    "schema-unknown": _set("schema", to="cswap-artifact/99"),
    "schema-number": _set("schema", to=7),
    "weights-elsewhere": _set("weights", "file", to="../net.safetensors"),
    "weights-absolute": _set("weights", "file", to="/etc/passwd"),
    "weights-backslash": _set("weights", "file", to="..\\net.safetensors"),
    "weights-nul": _set("weights", "file", to="a\0b"),
    "weights-number": _set("weights", "file", to=3),
    "weights-gone": _without("weights"),
    "weights-hash": _set("weights", "sha256", to="0" * 64),
    "weights-hash-gone": _without("weights", "sha256"),
    "weights-file-gone": lambda art: (art / "model.safetensors").unlink(),
    "weights-file-empty": _raw("model.safetensors", b""),
    "weights-link": lambda art: ((art / "model.safetensors").rename(art.parent / "m"), (art / "model.safetensors").symlink_to(art.parent / "m")),
    "kept-gone": _without("kept"),
    "kept-list": _set("kept", to=[]),
    "kept-text": _set("kept", "a.weight", to="all"),
    "kept-duplicate": _kept(lambda i: [i[0], *i]),
    "kept-descending": _kept(lambda i: i[::-1]),
    "kept-negative": _kept(lambda i: [-1, *i]),
    "kept-beyond": _kept(lambda i: [*i[:-1], 10**6]),
    "kept-huge": _kept(lambda i: [10**30]),
    "kept-floats": _kept(lambda i: [x + 0.5 for x in i]),
    "kept-words": _kept(lambda i: ["a"]),
    "kept-nested": _kept(lambda i: [i]),
    "kept-empty": _kept(lambda i: []),
    "kept-another": _kept(lambda i: i[:-1]),
    "kept-unknown-tensor": _set("kept", "nosuch.weight", to={"0": [0]}),
    "kept-unknown-dimension": _set("kept", "a.weight", "9", to=[0]),
    "structure-gone": _without("structure"),
    "structure-text": _set("structure", to="big"),
    "classes-gone": _without("classes"),
    "classes-fewer": _set("classes", to=["red"]),
    "options-gone": _without("options"),
    "options-unknown": _set("options", "speed", to=11),
    "options-alpha": _set("options", "alpha", to=7),
    "options-granularity": _set("options", "granularity", to="block:x"),
    "target-wrong": _set("target", to="params=9"),
    "ratio-text": _set("ratio", to="half"),
    "factory-hash": _set("factory", "sha256", to="0" * 64),
    "factory-elsewhere": _set("factory", "file", to="../net.py"),
    "factory-changed": lambda art: (art / "factory.py").write_text("raise SystemExit('it ran')\n"),
    "factory-gone": lambda art: (art / "factory.py").unlink(),
    "factory-link": lambda art: ((art / "factory.py").rename(art.parent / "f.py"), (art / "factory.py").symlink_to(art.parent / "f.py")),
    "factory-no-spec": _without("factory", "spec"),
    "path-gone": lambda art: (art / "path.jsonl").unlink(),
    "path-text": _raw("path.jsonl", b"hello\n"),
    "path-middle": lambda art: (art / "path.jsonl").write_bytes(_torn_middle((art / "path.jsonl").read_bytes())),
    "path-shuffled": lambda art: (art / "path.jsonl").write_bytes(b"".join((art / "path.jsonl").read_bytes().splitlines(keepends=True)[::-1])),
    "path-other-group": lambda art: _line(art, group="nosuch"),
    "path-unit-beyond": lambda art: _line(art, unit=10**6),
    "path-unit-negative": lambda art: _line(art, unit=-1),
    "path-step": lambda art: _line(art, step=77),
    "path-verdict": lambda art: _line(art, verdict="maybe"),
    "path-phase": lambda art: _line(art, phase=7),
    "path-ratio": lambda art: _line(art, ratio={"flops": 1}),
    "path-removed": lambda art: _line(art, removed="false"),
    "path-xi": lambda art: _line(art, xi="much"),
    "path-score": lambda art: _line(art, score=[1]),
    "path-quality": lambda art: _line(art, quality="good"),
    "path-ratio-text": lambda art: _line(art, ratio={"params": "all", "macs": 0, "units": 0}),
    "path-step-inf": lambda art: _line(art, step=float("inf")),
    "path-link": lambda art: ((art / "path.jsonl").rename(art.parent / "p"), (art / "path.jsonl").symlink_to(art.parent / "p")),
    "path-pipe": lambda art: ((art / "path.jsonl").unlink(), os.mkfifo(art / "path.jsonl")),
    "structure-huge": _set("structure", "groups", 0, "slots", 0, "identity", to=10**13),
    "structure-inf": _set("structure", "total_params", to=float("inf")),
    "structure-positions": _set("structure", "groups", 0, "slots", 0, to={"module": "a", "side": "out", "role": "producer", "positions": [10**30], "owner": [0]}),
    "effects-gone": lambda art: (art / "effects.safetensors").unlink(),
    "effects-text": _raw("effects.safetensors", b"hello"),
    "effects-cut": lambda art: (art / "effects.safetensors").write_bytes((art / "effects.safetensors").read_bytes()[:-9]),
    "effects-of-another": lambda art: shutil.copy(art / "model.safetensors", art / "effects.safetensors"),
}  # fmt: skip


def _torn_middle(raw: bytes) -> bytes:
    lines = raw.splitlines(keepends=True)
    return b"".join([lines[0], lines[1][:20] + b"\n", *lines[2:]])


def _line(art: Path, **change: Any) -> None:
    """Changed by somebody who knows of the CRC."""
    lines = (art / "path.jsonl").read_text().splitlines()
    data = {**json.loads(lines[1]), **change}
    del data["crc"]
    text = json.dumps(data)
    lines[1] = f'{text[:-1]}, "crc": "{zlib.crc32(text.encode()):08x}"}}'
    (art / "path.jsonl").write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize("case", list(ARTIFACTS))
def test_an_artifact(place, capsys, case):
    """`eval` reads everything of it; trust is given, so that what is checked is what is left."""
    art = place.root / "art"
    ARTIFACTS[case](art)
    refused(capsys, place, ["eval", str(art), "--trust", "--quiet"])


@pytest.mark.parametrize("command", ["explain", "report"])
@pytest.mark.parametrize("case", ["path-xi", "path-link", "path-pipe", "structure-huge", "structure-positions"])
def test_whoever_reads_an_artifact_reads_it_alike(place, capsys, command, case):
    art = place.root / "art"
    ARTIFACTS[case](art)
    refused(capsys, place, [command, str(art)])


def test_a_file_that_is_there_is_not_written_over(place, capsys):
    art, file = place.root / "art", place.root / "mine.txt"
    file.write_text("mine")
    refused(capsys, place, ["report", str(art), "--out", str(file)], "out", "--force")
    refused(capsys, place, ["report", str(art), "--out", str(place.root)], "out", "folder")
    refused(
        capsys, place, ["explain", str(art), "--group", "a", "--unit", "0", "--images", str(file)], "images", "--force"
    )
    assert main(["report", str(art), "--out", str(file), "--force"]) == 0
    assert b"<html" in file.read_bytes()


@pytest.mark.parametrize("name", ["manifest.json", "path.jsonl", "effects.safetensors", "model.safetensors"])
def test_a_part_of_an_artifact_is_not_written_over_even_with_force(place, capsys, name):
    art = place.root / "art"
    for asked in (
        ["report", str(art), "--out", str(art / name), "--force"],
        ["explain", str(art), "--group", "a", "--unit", "0", "--images", str(art / name), "--force", "--trust"],
        ["export", str(art), "--format", "pt2", "--out", str(art / name), "--force", "--trust"],
    ):
        refused(capsys, place, asked, "is a part of an artifact")
    refused(capsys, place, ["demo", "--out", str(art), "--force"], "holds an artifact")


def test_an_original_that_its_factory_draws_anew_is_no_baseline(place, capsys):
    """Without a weights file the factory's own weights must be those that were pruned."""
    _set("source", "weights", to=None)(place.root / "art")
    refused(capsys, place, ["eval", str(place.root / "art"), "--trust", "--quiet"], "its weights", "--weights")


def test_what_a_factory_prints_is_no_json(place, capsys):
    place.factory.write_text(place.factory.read_text() + "\n\nprint('hello')\n")
    assert main(["support", "--model", f"{place.factory}:colours", "--image-size", "8", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["groups"]
    assert "hello" in err


@pytest.mark.parametrize("content", ["<html>", "safetensors"])
def test_torch_s_advice_to_load_unsafely_is_not_passed_on(place, capsys, content):
    file = place.weights.with_suffix(".pt")
    file.write_bytes(place.weights.read_bytes() if content == "safetensors" else content.encode())
    arguments = place.prune("out")
    arguments[arguments.index(str(place.weights))] = str(file)
    refused(capsys, place, arguments, "weights", "expected a PyTorch checkpoint", content)


def test_an_artifact_without_its_manifest_is_told_what_it_lacks(place, capsys):
    (place.root / "art" / "manifest.json").unlink()
    refused(capsys, place, ["report", str(place.root / "art")], "has lost its manifest.json")


def test_labels_in_the_ways_people_write_them(place, capsys):
    file = place.root / "labels.json"
    for text in (
        b"\xef\xbb\xbfblue\r\ngreen\r\nred\r\n",
        b'["blue", "green", "red"]',
        b'\xef\xbb\xbf{"blue": 0, "green": 1, "red": 2}',
    ):
        file.write_bytes(text)
        assert main(place.prune("out", "--labels", str(file), "--force")) == 0, capsys.readouterr().err


def test_quality_on_the_samples_that_units_are_judged_by_is_said(place, capsys):
    assert main(place.prune("out", "--eval-split", "train")) == 0
    assert "judged by" in capsys.readouterr().err


@pytest.mark.parametrize(("option", "value"), [("channels", "-3"), ("channels", "9999999999")])
def test_inputs_that_cannot_be(place, capsys, option, value):
    refused(capsys, place, ["support", "--model", f"{place.factory}:colours", f"--{option}", value], option)


def test_a_link_in_an_artifact_is_not_written_through(place, capsys):
    art, outside = place.root / "art", place.root / "outside"
    outside.write_text("mine")
    (art / "report.html.tmp").symlink_to(outside)
    assert main(["report", str(art)]) == 0
    capsys.readouterr()
    assert outside.read_text() == "mine"
    assert (art / "report.html").is_file()


def test_half_a_character_in_a_manifest_is_printed_all_the_same(place, capsys):
    art = place.root / "art"
    _set("method", to="\ud800")(art)
    assert main(["report", str(art)]) == 0
    capsys.readouterr()


@pytest.mark.parametrize("seeds", ["nan", "inf", "0,-1", "0.5"])
def test_seeds_of_a_comparison(place, capsys, seeds):
    arguments = place.prune("out")[1:]
    at = arguments.index("--target")
    del arguments[at : at + 2]
    refused(capsys, place, ["compare", *arguments, "--methods", "magnitude", "--seeds", seeds], "seeds")


@pytest.mark.parametrize("command", ["explain", "report", "eval", "apply", "resume"])
@pytest.mark.parametrize("most", [0, 0.5, -30])
def test_a_finished_path_that_was_cut_is_not_the_whole_path(place, capsys, command, most):
    """Torn ends are what an interruption leaves; a finished artifact has none."""
    art = place.root / ("own" if command == "resume" else "art")
    if command == "resume":  # a run is resumed where it was begun
        assert main(place.prune("own")) == 0
    raw = (art / "path.jsonl").read_bytes()
    (art / "path.jsonl").write_bytes(raw[: int(most * len(raw)) if 0 <= most < 1 else most])
    more = {"apply": ["--target", "params=0.1", "--out", str(place.root / "new"), "--trust"], "eval": ["--trust"]}
    asked = place.prune("own", "--resume") if command == "resume" else [command, str(art), *more.get(command, [])]
    refused(capsys, place, asked, "path.jsonl")
    manifest = json.loads((art / "manifest.json").read_text())
    del manifest["path"]  # older artifacts have no hash of it
    (art / "manifest.json").write_text(json.dumps(manifest))
    if most != -30:
        refused(capsys, place, asked, "path.jsonl", "decisions")


@pytest.mark.parametrize("method", ["cswap", "magnitude"])
def test_a_resumed_run_to_a_smaller_target_loses_nothing(place, capsys, method):
    assert main(place.prune("big", "--method", method, target="units=0.5")) == 0
    words = ("resume", "beyond params=0.05", "cswap apply")
    refused(capsys, place, place.prune("big", "--method", method, "--resume", target="params=0.05"), *words)
    again = _held(place.root)
    assert main(place.prune("big", "--method", method, "--resume", target="units=0.5")) == 0, (
        "to the same target it is done"
    )
    assert _held(place.root)["big/path.jsonl"] == again["big/path.jsonl"]
    assert main(place.prune("big", "--method", method, "--resume", target="units=0.6")) == 0
    capsys.readouterr()


def test_options_that_a_data_factory_would_forget(place, capsys):
    (place.root / "data.py").write_text("def data():\n    raise SystemExit('not asked')\n")
    for option, value in (
        ("image-size", "8"),
        ("mean", "0.5"),
        ("calibration-split", "a"),
        ("eval-split", "b"),
        ("ignore-index", "1"),
    ):
        refused(
            capsys,
            place,
            place.prune("out", f"--{option}", value, data=f"{place.root / 'data.py'}:data"),
            option,
            "own tensors",
        )


@pytest.mark.parametrize("most", ["0", "-1"])
def test_rows_and_samples_that_are_none(place, capsys, most):
    art = str(place.root / "art")
    refused(capsys, place, ["explain", art, "--most", most], "most", "at least 1")
    refused(capsys, place, ["export", art, "--format", "pt2", "--samples", most, "--trust"], "samples", "at least 1")


def test_names_in_an_artifact_cannot_steer_the_terminal(place, capsys):
    art = place.root / "art"
    _set("classes", 0, to="\x1b]0;owned\x07\x1b[31mred\u202e\ud800")(art)
    assert main(["explain", str(art), "--class", "0"]) == 0
    out, err = capsys.readouterr()
    assert "owned" in out
    refused_lines = (main(["explain", str(art), "--class", "q"]), capsys.readouterr().err)
    assert refused_lines[0] == 2
    assert "owned" in refused_lines[1]
    for text in (out, err, refused_lines[1]):
        assert not set(text) & set("\x1b\x07\u202e\ud800")


def test_weights_that_were_moved_are_found_by_the_option_that_is_advised(place, capsys):
    art, moved = place.root / "own", place.root / "elsewhere.safetensors"
    assert main(place.prune("own")) == 0
    shutil.copy(place.weights, moved)
    place.weights.unlink()
    asked = ["apply", str(art), "--target", "params=0.1", "--out", str(place.root / "new"), "--trust", "--quiet"]
    refused(capsys, place, asked, "weights", "--weights F")
    other = place.root / "other.safetensors"
    save_file({k: v + 1 for k, v in load_file(moved).items()}, other)
    refused(capsys, place, [*asked, "--weights", str(other)], "weights", "is not the file")
    assert main([*asked, "--weights", str(moved)]) == 0
    capsys.readouterr()


def test_apply_onto_an_artifact_does_not_advise_what_it_has_not(place, capsys):
    art = str(place.root / "art")
    assert main(["apply", art, "--target", "params=0.1", "--out", str(place.root / "new"), "--trust", "--quiet"]) == 0
    asked = ["apply", art, "--target", "params=0.1", "--out", str(place.root / "new"), "--trust", "--quiet"]
    capsys.readouterr()
    assert main(asked) == 2
    told = capsys.readouterr().err
    assert "--force" in told
    assert "--resume" not in told


@pytest.mark.parametrize("name", ["²", "٣", "-1", "99"])
def test_no_such_class(place, capsys, name):
    refused(capsys, place, ["explain", str(place.root / "art"), "--class", name], "class")


@pytest.mark.parametrize("command", ["explain", "report"])
def test_whoever_reads_what_was_kept_wants_whole_numbers(place, capsys, command):
    art = place.root / "art"
    ARTIFACTS["kept-floats"](art)
    refused(capsys, place, [command, str(art)])


@pytest.mark.parametrize(
    "name",
    [
        "manifest.json",
        "model.safetensors",
        "path.jsonl",
        "effects.safetensors",
        "factory.py",
        "summary.json",
        "curve.json",
    ],
)
def test_flipped_bits_in_every_file(place, capsys, name):
    """Refused in one line, or without any consequence: never a traceback, never another network."""
    art, x = place.root / "art", torch.randn(4, 3, 8, 8)
    from cswap.artifacts.folder import load
    from cswap.errors import CswapError

    raw, before = (art / name).read_bytes(), load(art, trust=True)(x)
    rng, refusals = np.random.default_rng(len(raw)), 0
    for position in sorted(rng.choice(8 * len(raw), 24, replace=False).tolist()):
        flipped = bytearray(raw)
        flipped[position // 8] ^= 1 << (position % 8)
        (art / name).write_bytes(bytes(flipped))
        capsys.readouterr()
        status = main(["eval", str(art), "--trust", "--quiet", "--json"])
        err = capsys.readouterr().err
        assert status in (0, 2), (position, err)
        assert "Traceback" not in err
        assert "the log is" not in err, (position, err)
        refusals += status == 2
        try:
            after = load(art, trust=True)(x)
        except CswapError:
            continue
        assert torch.equal(before, after), position
    assert refusals or name in ("summary.json", "curve.json")


@pytest.mark.parametrize(
    "command",
    [["apply", "{art}", "--target", "params=0.2", "--out", "{root}/o2"], ["eval", "{art}"], ["explain", "{art}"]],
)
@pytest.mark.parametrize("what", ["gone", "empty", "file", "journal"])
def test_no_artifact_at_all(place, capsys, command, what):
    art = place.root / "art"
    if what in ("gone", "empty", "file"):
        shutil.rmtree(art)
    if what == "empty":
        art.mkdir()
    if what == "file":
        art.write_text("x")
    if what == "journal":
        (art / "manifest.json").unlink()
    refused(capsys, place, [c.format(art=art, root=place.root) for c in command])


# ---------------------------------------------------------------------------------------------- where it is written

OUT: dict[str, tuple[Callable[[Place], Any], list[str]]] = {
    "holds-an-artifact": (lambda p: None, []),
    "holds-other-files": (lambda p: ((p.root / "out").mkdir(), (p.root / "out" / "mine.txt").write_text("x")), []),
    "other-files-and-force": (
        lambda p: ((p.root / "out").mkdir(), (p.root / "out" / "mine.txt").write_text("x")),
        ["--force"],
    ),
    "a-file": (lambda p: (p.root / "out").write_text("x"), []),
    "below-a-file": (lambda p: None, []),
    "resume-of-another-run": (lambda p: None, ["--resume", "--alpha", "0.01"]),
}


@pytest.mark.parametrize("case", list(OUT))
def test_a_place_to_write(place, capsys, case):
    prepare, more = OUT[case]
    prepare(place)
    name = {"holds-an-artifact": "art", "resume-of-another-run": "art", "below-a-file": "net.py/out"}.get(case, "out")
    refused(capsys, place, place.prune(name, *more), "out" if case in ("a-file", "below-a-file") else "")


NOBODY = 65534


def _asked(place: Place, into: Path, out: Path) -> list[list[str]]:
    """What writes: into a folder, or as a file of the name `out` begins with."""
    art, trust = str(place.root / "art"), "--trust"
    original = ["--weights", str(place.weights), "--data", str(place.data), trust]
    return [
        [*place.prune("x"), "--out", str(into / "pruned")],
        ["apply", art, "--target", "params=0.1", "--out", str(into / "applied"), *original, "--quiet"],
        ["report", art, "--out", f"{out}.html"],
        ["export", art, "--format", "pt2", "--out", f"{out}.pt2", "--data", str(place.data), trust],
        ["explain", art, "--group", "a", "--unit", "0", "--images", f"{out}.jpg", *original],
    ]


def test_folders_that_cannot_be_written(template, capsys):
    """As a user who is not root; as root everything is run once before, for what is imported late may be root's alone."""
    as_root = os.geteuid() == 0
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch) / "place"
        shutil.copytree(template, root)
        place, locked = place_at(root), root / "locked"
        for asked in _asked(place, root / "warm", root / "warm-file") if as_root else []:
            assert main(asked) == 0, capsys.readouterr().err
        locked.mkdir()
        for path in (Path(scratch), root, *root.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
            if as_root:
                os.chown(path, NOBODY, NOBODY)
        locked.chmod(0o555)
        if as_root:
            os.seteuid(NOBODY)
        try:
            for asked in _asked(place, locked, locked / "file"):
                refused(capsys, place, asked, "cannot be written")
        finally:
            if as_root:
                os.seteuid(0)
            locked.chmod(0o755)


@pytest.mark.parametrize("most", [100, 400, 1000, 3000, 5000, 7000, 9000])
def test_a_full_disk_loses_nothing(place, capsys, most):
    """No file may grow beyond so many bytes: one line, and with room again the run goes on to the same path."""
    resource = pytest.importorskip("resource")
    assert main(place.prune("whole", target="params=0.6")) == 0
    whole = (place.root / "whole" / "path.jsonl").read_bytes()
    out = place.root / "out"
    capsys.readouterr()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
    try:
        status = main(place.prune("out", target="params=0.6"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    (line,) = capsys.readouterr().err.splitlines()
    assert status in (1, 2)
    assert "cannot be written (File too large)" in line
    assert not (out / "manifest.json").exists()
    more = ["--resume"] if (out / "run.json").exists() else []
    assert main(place.prune("out", *more, target="params=0.6")) == 0
    assert (out / "path.jsonl").read_bytes() == whole
    assert not list(out.glob("*.tmp"))


# ---------------------------------------------------------------------------------------------- the last line of defence


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_that_native_code_turns_into_another_error_is_told_as_one(place, capsys, number):
    place.factory.write_text(
        f"import os, time\n\ndef colours(classes=3):\n    try:\n        os.kill(os.getpid(), {int(number)})\n        time.sleep(5)\n"
        "    except KeyboardInterrupt:\n        raise RuntimeError('could not determine the shape') from None\n"
    )
    # a shell may have started this process with Ctrl-C ignored
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        refused(capsys, place, place.prune("out"), "interrupted; nothing was written", status=130)
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_stop_that_native_code_swallows_is_heeded(place, capsys):
    place.factory.write_text(
        FACTORY + "\n_made = colours\n\ndef colours(classes=3):\n    import os, signal, time\n    try:\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n        time.sleep(5)\n    except KeyboardInterrupt:\n        pass\n    return _made(classes)\n"
    )
    refused(capsys, place, place.prune("out"), "interrupted; nothing was written", status=130)


def test_an_error_nobody_thought_of_is_one_line_also_without_room_for_its_log(place, capsys, monkeypatch):
    def fails(*_: Any, **__: Any) -> None:
        raise KeyError("nobody thought of it")

    monkeypatch.setattr("cswap.pipeline.prune", fails)
    monkeypatch.setattr(tempfile, "tempdir", str(place.root / "nowhere"))
    refused(capsys, place, place.prune("out"), "KeyError", "no log could be written", status=1)


def test_what_the_system_refuses_is_one_line(place, capsys, monkeypatch):
    def fails(*_: Any, **__: Any) -> None:
        (place.root / "net.py" / "below").open()

    monkeypatch.setattr("cswap.pipeline.prune", fails)
    refused(capsys, place, place.prune("out"), "net.py/below: Not a directory", status=1)
