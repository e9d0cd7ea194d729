"""Certificates on the command line: what is refused before the analysis, and that what was asked is what is certified."""

from __future__ import annotations

from pathlib import Path

import pytest

from cswap.cli.app import main

TENSORS = """
import torch
from torch.utils.data import TensorDataset

def _made(seed, size):
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(size) % 3
    x = 0.2 * torch.rand(size, 3, 8, 8, generator=g)
    x[torch.arange(size), y] += 0.5
    made = TensorDataset(x, y)
    made.classes = ["blue", "green", "red"]
    return made

def data():
    return _made(0, 30), _made(1, 30)

def fresh():
    return _made(2, 6), _made(3, 120)

def broken():
    made = _made(3, 120)
    made.tensors[0][7, 0, 3, 3] = float("nan")
    return _made(2, 6), made
"""


@pytest.fixture
def tensors(place) -> Path:
    (place.root / "tensors.py").write_text(TENSORS)
    return place.root / "tensors.py"


def _refused(capsys, arguments: list[str]) -> str:
    capsys.readouterr()
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_data_that_hold_nan_are_refused_before_the_analysis(place, tensors, capsys):
    asked = ["--certify", f"{tensors}:broken", "--margin", "0.3"]
    line = _refused(capsys, place.prune("out", *asked, data=f"{tensors}:data"))
    assert "certify: sample 7: expected finite inputs, got NaN or Inf" in line
    assert not (place.root / "out").exists()
