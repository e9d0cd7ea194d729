"""Images, labels and data factories that are missing, broken or odd."""

from __future__ import annotations

import os
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cswap.cli.app import main
from tests.end_to_end.bad_input.conftest import held, refused
from tests.end_to_end.conftest import Place


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
    before = held(place.root)
    status = main(place.prune("out", data=f"{place.root / 'data.py'}:data"))
    out, err = capsys.readouterr()
    errors = [line for line in err.splitlines() if not line.startswith("cswap: warning")]
    assert status in (1, 2), err
    assert len(errors) == 1, err
    assert "the run failed (" not in err, err
    assert all(w in errors[0] for w in words), errors[0]
    assert out == ""
    assert held(place.root) == before


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
