"""Data without labels: a folder of images as it came from a camera, and what the network predicts in their place."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from cswap.artifacts.folder import open_artifact
from cswap.data.folder import open_images
from cswap.pipeline.unlabelled import PREDICTED
from cswap.report.again import arguments_of
from tests.end_to_end.commands import FEW, compare_of, ran, refused
from tests.end_to_end.conftest import write_images

TENSORS = """
import torch
from torch.utils.data import TensorDataset

NET = None


def _made(labels):
    import runpy
    from safetensors.torch import load_file

    net = runpy.run_path("{factory}")["colours"]()
    net.load_state_dict(load_file("{weights}"))
    pairs = []
    for seed in (0, 1):
        g = torch.Generator().manual_seed(seed)
        x = torch.rand(60, 3, 8, 8, generator=g) + torch.eye(3)[torch.arange(60) % 3].view(60, 3, 1, 1)
        with torch.no_grad():
            y = net.eval()(x).argmax(1) if labels else torch.randint(0, 3, (60,), generator=g)
        pairs.append(TensorDataset(x, y))
    return tuple(pairs)


def predicted():
    return _made(True)


def senseless():
    return _made(False)
"""


def flat(place, colours=("blue", "green", "red"), per_class: int = 10) -> Path:
    """Images of these colours, all in one folder."""
    write_images(place.root / "sorted", per_class, 3)
    folder = place.root / "camera"
    folder.mkdir()
    for k, file in enumerate(f for c in colours for f in sorted((place.root / "sorted" / c).iterdir())):
        shutil.copy(file, folder / f"{(k * 7) % 31:03}.png")
    return folder


def test_a_folder_of_images_without_classes_is_pruned_applied_measured_and_compared(place, capsys):
    folder = flat(place)
    names = place.root / "names.txt"
    names.write_text("blue\ngreen\nred\n")
    asked = ("--unlabelled", "--labels", str(names), "--per-class", "4", "--json")
    status, out, err = ran(capsys, *place.prune("out", *asked, data=str(folder)))
    assert (status, err) == (0, "")
    summary = json.loads(out)
    assert summary["classes"] == ["blue", "green", "red"]
    held_out = summary["held_out_samples"]
    assert 2 <= held_out <= 12  # a fifth of 30, by their names
    assert summary["baseline"]["quality"]["accuracy"] == 1.0  # with itself
    assert PREDICTED in summary["notes"]
    artifact = open_artifact(place.root / "out")
    assert "--unlabelled" in arguments_of(artifact.manifest)
    status, out, err = ran(capsys, "apply", str(place.root / "out"), "--target", "params=0.1", "--out", str(place.root / "less"), "--recover", "bn", "--trust", "--json", "--quiet")  # fmt: skip
    assert (status, err) == (0, "")
    assert json.loads(out)["classes"] == ["blue", "green", "red"]
    status, out, err = ran(capsys, "eval", str(place.root / "out"), "--trust", "--json", "--quiet")
    assert (status, err) == (0, "")
    assert json.loads(out)["baseline"]["quality"]["accuracy"] == 1.0
    assert (json.loads(out)["held_out_samples"], json.loads(out)["notes"]) == (held_out, [PREDICTED])
    status, out, err = ran(capsys, "eval", str(place.root / "out"), "--trust")
    assert "own predictions" in out
    names.write_text(
        "green\nblue\nred\n"
    )  # other names of the outputs: the same samples, each under its own name still
    status, out, err = ran(capsys, "eval", str(place.root / "out"), "--trust", "--json", "--quiet")
    assert (status, err) == (0, "")
    assert json.loads(out)["baseline"]["quality"]["accuracy"] == 1.0
    for wrong, words in (
        ("blue\nblue\nred", ("'blue' twice",)),
        ('{"blue": 0, "green": 9}', ("output 9",)),
        ('{"blue": 0, "green": 0}', ("each output once",)),
    ):
        names.write_text(wrong)
        refused(capsys, ["eval", str(place.root / "out"), "--trust"], "labels", *words)
    names.write_text("blue\ngreen\nred\n")
    comparison = [str(folder) if a == str(place.data) else a for a in compare_of(place, *FEW, *asked)]
    status, out, err = ran(capsys, *comparison)
    assert (status, err) == (0, "")
    told = json.loads(out)
    assert told["unpruned"]["quality"]["accuracy"] == 1.0
    assert all(PREDICTED in run["notes"] for m in told["methods"].values() for run in m["by_seed"].values())


def test_predictions_stand_for_labels(place, capsys):
    """With the labels that the network predicts, given or found, the same path; labels that mean nothing are not looked at."""
    file = place.root / "tensors.py"
    file.write_text(TENSORS.format(factory=place.factory, weights=place.weights))
    for name, more in (("predicted", ()), ("senseless", ("--unlabelled",))):
        status, _, err = ran(capsys, *place.prune(name, *more, data=f"{file}:{name}"))
        assert (status, err) == (0, "")
    told = [open_artifact(place.root / n).path.decisions for n in ("predicted", "senseless")]
    assert [(d.group, d.unit, d.verdict, d.xi) for d in told[0]] == [
        (d.group, d.unit, d.verdict, d.xi) for d in told[1]
    ]
    assert "chance" in refused(capsys, place.prune("refused", data=f"{file}:senseless"), "calibration quality")


def test_classes_that_are_not_predicted_are_left_out_and_said(place, capsys):
    folder = flat(place, ("blue", "red"), 15)
    status, out, err = ran(capsys, *place.prune("out", "--unlabelled", "--json", data=str(folder)))
    assert status == 0
    assert json.loads(out)["classes"] == ["0", "2"]
    said = " ".join(err.split())
    assert re.search(
        r"1 of the network's 3 classes are predicted for fewer than 6 of \d+ samples and are left out", said
    )
    more = place.prune("more", "--unlabelled", "--per-class", "16", data=str(folder))
    refused(
        capsys,
        more,
        "expected two classes or more that the network predicts for 16 samples each, got 0 by",
    )
    assert not (place.root / "more").exists()


def test_a_certificate_and_other_data_are_of_the_run_s_own_classes(place, capsys):
    folder = flat(place, ("blue", "red"), 15)
    write_images(place.root / "fresh" / "test", 30, 8)
    certify = (
        "--unlabelled",
        "--certify",
        str(place.root / "fresh"),
        "--margin",
        "0.5",
        "--eval-samples",
        "3",
        "--json",
    )
    status, out, _ = ran(capsys, *place.prune("out", *certify, data=str(folder)))
    assert status == 0
    certificate = json.loads(out)["certificate"]
    assert certificate["classes"] == ["0", "2"]
    assert len(certificate["upper"]) == 2
    other = ["--data", str(place.root / "fresh"), "--trust", "--json", "--quiet"]
    status, out, err = ran(capsys, "eval", str(place.root / "out"), *other)
    assert status == 0, err
    assert 1 <= json.loads(out)["held_out_samples"] <= 3  # the run's own limit, of which those of its classes


def test_linked_folders_are_read_once_and_a_fifth_stays_where_it_is(tmp_path):
    """Through links, also one that leads back; new images move none of the others between the two parts."""
    write_images(tmp_path / "elsewhere", 10, 0)
    root = tmp_path / "camera"
    root.mkdir()
    for colour in ("blue", "red"):
        (root / colour).symlink_to(tmp_path / "elsewhere" / colour)
    (root / "back").symlink_to(root)
    parts = [{str(f.relative_to(root)) for f in p.files} for p in open_images(root, str, None, None)]
    assert len(parts[0] | parts[1]) == len(parts[0]) + len(parts[1]) == 20
    write_images(root / "new", 10, 1)
    later = [{str(f.relative_to(root)) for f in p.files} for p in open_images(root, str, None, None)]
    assert all(a <= b for a, b in zip(parts, later, strict=True))
    (root / "test").mkdir()
    shutil.copy(next((root / "new" / "red").iterdir()), root / "test")
    both = open_images(root, str, None, None)
    assert both[0] is both[1]  # a held-out folder alone
    assert len(both[0]) == 1


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (lambda root: None, ("no such folder",)),
        (lambda root: (root / "camera").mkdir(), ("expected images", "found none")),
        (lambda root: [write_images(root / "camera" / "train", 2, 0), (root / "camera" / "val").mkdir()], ("val", "found none")),
        (lambda root: write_images(root / "camera" / "train", 2, 0), ("expected test/ or val/ beside train/",)),
    ],
    ids=["no-folder", "no-images", "no-held-out-images", "no-held-out-folder"],
)  # fmt: skip
def test_where_there_are_no_images_it_is_said(place, capsys, made, words):
    made(place.root)
    refused(capsys, place.prune("out", "--unlabelled", data=str(place.root / "camera")), *words)
    assert not (place.root / "out").exists()
