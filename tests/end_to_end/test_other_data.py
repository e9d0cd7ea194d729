"""An artifact with other data than it was made with: what is said takes the place of what is recorded, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cswap.cli.app import main
from cswap.cli.options import resolved
from cswap.data.models import ModelSpec

TENSORS = """
import torch
from torch.utils.data import TensorDataset

def data():
    g = torch.Generator().manual_seed(0)
    y = torch.arange(30) % 3
    x = 0.2 * torch.rand(30, 3, 8, 8, generator=g)
    x[torch.arange(30), y] += 0.5
    made = TensorDataset(x, y)
    made.classes = ["blue", "green", "red"]
    return made, made
"""


def _eval(capsys, *args: str) -> tuple[dict, str]:
    capsys.readouterr()
    status = main(["eval", *args, "--json", "--quiet"])
    out, err = capsys.readouterr()
    assert status == 0, err
    return json.loads(out), err


@pytest.fixture
def artifact(place, capsys) -> str:
    assert main(place.prune("out")) == 0
    capsys.readouterr()
    return str(place.root / "out")


def test_how_images_become_tensors_can_be_said_anew(place, artifact, capsys):
    recorded, _ = _eval(capsys, artifact, "--trust")
    smaller, _ = _eval(capsys, artifact, "--trust", "--image-size", "4")
    assert recorded["baseline"]["quality"]["accuracy"] == 1.0
    assert smaller["baseline"]["macs"] < recorded["baseline"]["macs"] / 2
    blind, _ = _eval(capsys, artifact, "--trust", "--mean", "0,0,9")  # no image looks red any more
    assert blind["baseline"]["quality"]["accuracy"] < 1.0
    assert blind["baseline"]["macs"] == recorded["baseline"]["macs"]


def test_a_factory_takes_the_place_of_a_folder_whose_form_was_recorded(place, artifact, capsys):
    (place.root / "tensors.py").write_text(TENSORS)
    told, _ = _eval(capsys, artifact, "--trust", "--data", f"{place.root / 'tensors.py'}:data")
    assert told["held_out_samples"] == 30
    status = main(["eval", artifact, "--trust", "--data", f"{place.root / 'tensors.py'}:data", "--image-size", "8"])
    assert (status, "makes its own tensors" in " ".join(capsys.readouterr().err.split())) == (2, True)


def test_what_python_saved_is_read_as_the_user_says(place, capsys):
    spec = place.saved()
    out = [
        str(place.root / "saved"),
        "--trust",
        "--data",
        str(place.data),
        "--model",
        spec,
        "--weights",
        str(place.weights),
    ]
    form = ["--image-size", "8", "--mean", "0.5,0.5,0.5", "--std", "0.5,0.5,0.5"]
    told, err = _eval(capsys, *out, *form)
    assert told["baseline"]["quality"]["accuracy"] == 1.0
    assert "does not say how its images were made" not in " ".join(err.split())
    _, err = _eval(capsys, *out)
    assert "--mean, --std" in " ".join(err.split())


def test_folders_are_recorded_by_their_whole_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "model").mkdir()
    (tmp_path / "rows").mkdir()
    monkeypatch.chdir(tmp_path)
    assert ModelSpec.parse("hf:model").absolute == f"hf:{tmp_path / 'model'}"
    assert resolved("hf:rows@plain") == f"hf:{tmp_path / 'rows'}@plain"
    assert resolved("hf:someone/rows") == "hf:someone/rows"
    assert resolved("rows") == str(tmp_path / "rows")
