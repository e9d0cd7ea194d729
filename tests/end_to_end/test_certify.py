"""Certificates on the command line: what is refused before the analysis, and that what was asked is what is certified."""

from __future__ import annotations

import html
import json
import math
import shutil
from pathlib import Path

import pytest

import cswap
from cswap.cli.app import main
from cswap.report.again import arguments_of
from tests.end_to_end.commands import refused
from tests.end_to_end.conftest import write_images

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

def doubled():
    made = _made(3, 120)
    made.tensors = (made.tensors[0].double(), made.tensors[1])
    return _made(2, 6), made

def grey():
    made = _made(3, 120)
    made.tensors = (made.tensors[0][:, :1], made.tensors[1])
    return _made(2, 6), made

def broken():
    made = _made(3, 120)
    made.tensors[0][7, 0, 3, 3] = float("nan")
    return _made(2, 6), made
"""


@pytest.fixture
def tensors(place) -> Path:
    (place.root / "tensors.py").write_text(TENSORS)
    return place.root / "tensors.py"


def test_data_that_hold_nan_are_refused_before_the_analysis(place, tensors, capsys):
    asked = ["--certify", f"{tensors}:broken", "--margin", "0.3"]
    line = refused(capsys, place.prune("out", *asked, data=f"{tensors}:data"))
    assert "certify: sample 7: expected finite inputs, got NaN or Inf" in line
    assert not (place.root / "out").exists()


def test_other_data_do_not_make_the_calibration_samples_new(place, tensors, capsys):
    """With --data OTHER the set drawn again is another: the path's own samples would pass for fresh ones."""
    assert main(place.prune("out")) == 0
    write_images(place.root / "other" / "train", 10, 5)
    write_images(place.root / "other" / "test", 5, 6)
    write_images(place.root / "fresh" / "train", 2, 7)
    write_images(place.root / "fresh" / "test", 20, 8)
    shutil.copytree(place.data / "train", place.root / "seen" / "train")
    shutil.copytree(place.data / "train", place.root / "seen" / "test")
    apply = ["apply", str(place.root / "out"), "--trust", "--target", "units=0.1", "--quiet", "--json", "--out"]
    seen, other = ["--certify", str(place.root / "seen"), "--margin", "0.9"], ["--data", str(place.root / "other")]
    line = refused(capsys, [*apply, str(place.root / "a"), *other, *seen])
    assert "cannot be told from these data; expected --certify without --data" in line
    assert not (place.root / "a").exists()
    assert "cannot be told" in refused(capsys, [*apply, str(place.root / "a"), "--image-size", "4", *seen])
    assert "is one of the calibration samples" in refused(capsys, [*apply, str(place.root / "a"), *seen])
    assert main([*apply, str(place.root / "a"), *other]) == 0  # no certificate, no samples to tell apart
    again = ["apply", str(place.root / "a"), *apply[2:]]
    assert "recorded data, which have changed" in refused(capsys, [*again, str(place.root / "b"), *seen])
    fresh = ["--certify", str(place.root / "fresh"), "--margin", "0.9"]
    capsys.readouterr()
    assert main([*apply, str(place.root / "c"), *fresh]) == 0
    assert json.loads(capsys.readouterr().out)["certificate"]["samples"] == [20, 20, 20]


def test_what_python_saved_cannot_be_certified_later(place, capsys):
    spec = place.saved()
    line = refused(capsys, [
        "apply", str(place.root / "saved"), "--trust", "--model", spec, "--weights", str(place.weights), "--data", str(place.data),
        "--image-size", "8", "--mean", "0.5,0.5,0.5", "--std", "0.5,0.5,0.5", "--target", "units=0.1", "--quiet",
        "--out", str(place.root / "a"), "--certify", str(place.data), "--margin", "0.9",
    ])  # fmt: skip
    assert "does not say which samples its path was chosen by" in line


def test_a_margin_out_of_reach_is_said_before_the_analysis(place, tensors, capsys):
    few = ["--certify", f"{tensors}:fresh", "--margin"]
    capsys.readouterr()
    assert main(place.prune("a", *few, "0.05", data=f"{tensors}:data")) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert "warning: certify: class 'blue' has 40 samples, which can say at best 0.07" in line
    assert main(place.prune("b", *few, "0.1", data=f"{tensors}:data")) == 0
    assert not capsys.readouterr().err


def test_the_error_rate_and_the_bound_asked_for_are_those_of_the_certificate(place, tensors, capsys):
    asked = ["--certify", f"{tensors}:fresh", "--margin", "0.9", "--bound", "bernstein", "--alpha", "0.2", "--json"]
    capsys.readouterr()
    assert main(place.prune("out", *asked, data=f"{tensors}:data")) == 0
    found = json.loads(capsys.readouterr().out)["certificate"]
    assert (found["alpha"], found["bound"], found["margin"]) == (0.2, "bernstein", 0.9)
    assert found["possible"] == pytest.approx(14 * math.log(2 / 0.2) / (3 * 39))
    assert "with confidence 0.8 (bernstein bound)" in found["claim"]
    again = [
        "apply",
        str(place.root / "out"),
        "--trust",
        "--target",
        "units=0.1",
        "--out",
        str(place.root / "b"),
        "--quiet",
    ]
    assert main([*again, *asked[:2], "--margin", "0.01", "--json"]) == 0
    out, err = capsys.readouterr()
    assert (json.loads(out)["certificate"]["alpha"], json.loads(out)["certificate"]["bound"]) == (0.2, "betting")
    assert "with confidence 0.8 (betting bound), and a margin of 0.01 was asked" in err


def test_the_largest_of_several_targets_that_is_certified_is_kept(place, tensors, capsys):
    asked = ["--certify", f"{tensors}:fresh", "--margin", "0.3", "--quiet"]
    assert main(place.prune("out", data=f"{tensors}:data", target="params=0.9")) == 0
    apply = ["apply", str(place.root / "out"), "--trust", *asked, "--json", "--out"]
    capsys.readouterr()
    alone = {}
    for f in ("0.2", "0.4", "0.9"):
        assert main([*apply, str(place.root / f), "--target", f"params={f}"]) == 0
        alone[f] = json.loads(capsys.readouterr().out)
    assert [alone[f]["certificate"]["holds"] for f in alone] == [True, True, False]
    assert main([*apply, str(place.root / "several"), "--target", "params=0.9,0.2,0.4"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["target"], found["ended"], found["ratio"]) == ("params=0.4", "target reached", alone["0.4"]["ratio"])
    certificate = found["certificate"]
    tried = certificate.pop("targets")
    assert certificate.pop("asked") == ["params=0.2", "params=0.4", "params=0.9"]
    assert certificate == alone["0.4"]["certificate"]
    for t, f in zip(tried, alone, strict=True):
        assert (t["target"], t["ratio"]) == (f"params={f}", alone[f]["ratio"])
        assert t["certificate"] | {"data": certificate["data"]} == alone[f]["certificate"]
    same = [(place.root / n / "model.safetensors").read_bytes() for n in ("several", "0.4")]
    assert same[0] == same[1]
    # analysis and surgery in one command, and the command that the report tells makes it again
    assert main([*place.prune("one", *asked[:-1], data=f"{tensors}:data", target="params=0.2,0.4,0.9")]) == 0
    said = capsys.readouterr().out
    for told in ("params=0.4: certified", "params=0.9: not certified", "certificate of params=0.4"):
        assert told in said
    assert (place.root / "one" / "model.safetensors").read_bytes() == same[0]
    manifest = json.loads((place.root / "one" / "manifest.json").read_text())
    words = arguments_of(manifest)
    assert words is not None
    assert words[-2:] == ["--target", "params=0.2,0.4,0.9"]


def test_the_smallest_is_kept_where_none_is_certified(place, tensors, capsys):
    asked = ["--certify", f"{tensors}:fresh", "--margin", "0.1", "--json"]
    capsys.readouterr()
    assert main(place.prune("out", *asked, data=f"{tensors}:data", target="params=0.8,0.9")) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["target"], found["certificate"]["holds"]) == ("params=0.8", False)
    assert [t["target"] for t in found["certificate"]["targets"]] == ["params=0.8"]  # the first that fails ends it


def test_several_targets_without_a_certificate_arerefused(place, capsys):
    line = refused(capsys, place.prune("out", target="params=0.2,0.4"))
    assert "several go with a certificate" in line
    assert "expected --certify DATA" in line
    assert "'' is no number" in refused(capsys, place.prune("out", target="params=0.2,"))
    assert not (place.root / "out").exists()


@pytest.mark.parametrize("other", ["doubled", "grey"])
def test_samples_unlike_those_of_calibration_are_refused_before_the_analysis(place, tensors, capsys, other):
    asked = ["--certify", f"{tensors}:{other}", "--margin", "0.3"]
    line = refused(capsys, place.prune("out", *asked, data=f"{tensors}:data"))
    assert "certify: expected samples like those of calibration, (3, 8, 8) torch.float32, got (" in line
    assert not (place.root / "out").exists()


def test_one_target_s_certificate_is_in_the_report_also_of_a_factory_beside_a_folder(place, tensors, capsys):
    asked = ["--certify", f"{tensors}:fresh", "--margin", "0.5"]
    assert main(place.prune("out", *asked, target="params=0.2")) == 0  # --image-size is for the folder alone
    assert main(["report", str(place.root / "out")]) == 0
    claim = json.loads((place.root / "out" / "manifest.json").read_text())["certificate"]["claim"]
    assert claim in html.unescape((place.root / "out" / "report.html").read_text())


def test_targets_beyond_a_path_that_stopped_are_not_certified(place, tensors, capsys):
    asked = ["--certify", f"{tensors}:fresh", "--margin", "0.9", "--max-drop", "0.1", "--method", "random", "--json"]
    capsys.readouterr()
    assert main(place.prune("out", *asked, data=f"{tensors}:data", target="params=0.05,0.8,0.85")) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["target"], found["certificate"]["holds"]) == ("params=0.05", True)
    assert [t["target"] for t in found["certificate"]["targets"]] == ["params=0.05"]
    assert any("params=0.8 was not tested: the path stopped before it (max-drop" in n for n in found["notes"])
    # the end of such a path in widths that are multiples, too
    assert main(place.prune("wide", "--max-drop", "0.1", "--method", "random", "--round-to", "2", "--json", target="params=0.8")) == 0  # fmt: skip
    found = json.loads(capsys.readouterr().out)
    assert found["ended"].startswith("stopped before the target: max-drop")
    small = cswap.load(place.root / "wide", trust=True)
    assert small.a.out_channels % 2 == small.b.out_channels % 2 == 0


def test_several_latencies_without_a_certificate_are_refused_later_too(place, capsys):
    assert main(place.prune("out")) == 0
    line = refused(capsys, ["apply", str(place.root / "out"), "--trust", "--target", "latency=0.05,0.1", "--out", str(place.root / "b")])  # fmt: skip
    assert "several go with a certificate" in line
