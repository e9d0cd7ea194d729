"""The commands as a user types them: what they write and what they print."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

import cswap
from cswap.artifacts.folder import load, open_artifact
from cswap.cli.app import main
from cswap.cli.options import bytes_of
from tests.end_to_end.commands import ran, refused
from tests.end_to_end.conftest import write_images


def test_apply_eval_explain_support(place, capsys):
    assert ran(capsys, *place.prune("out"))[0] == 0
    out = str(place.root / "out")
    status, text, _ = ran(
        capsys,
        "apply",
        out,
        "--target",
        "params=0.1",
        "--out",
        str(place.root / "small"),
        "--trust",
        "--json",
        "--quiet",
    )
    assert status == 0
    first = json.loads(text)
    assert 0.1 <= first["ratio"]["params"] < 0.3
    assert cswap.load(place.root / "small", trust=True)(torch.zeros(1, 3, 8, 8)).shape == (1, 3)
    full = [(d.group, d.unit) for d in open_artifact(out).path if d.removed]
    removed = open_artifact(place.root / "small").path.prefix("params=0.1")[0]
    count = sum(map(len, removed.values()))
    assert {(g, int(n)) for g, units in removed.items() for n in units} == set(full[:count])

    status, text, _ = ran(capsys, "eval", out, "--data", str(place.data), "--trust", "--json", "--quiet")
    assert status == 0
    assert json.loads(text)["baseline"]["quality"]["accuracy"] == 1.0
    for more in ([], ["--group", "b"], ["--class", "red"], ["--group", "b", "--unit", "0"]):
        status, text, _ = ran(capsys, "explain", out, *more)
        assert status == 0
        assert "b" in text
    status, text, _ = ran(capsys, "explain", out, "--group", "b", "--unit", "2", "--json")
    (unit,) = json.loads(text)["units"]
    assert unit["needed_by"] == ["red"]
    status, text, _ = ran(capsys, "support", "--model", f"{place.factory}:colours", "--image-size", "8")
    assert status == 0
    assert "model's output" in " ".join(text.split())
    refused(
        capsys, ["apply", out, "--target", "params=0.8", "--out", str(place.root / "no")], "beyond the path", "--resume"
    )
    assert not (place.root / "no").exists()
    refused(capsys, ["apply", out, "--target", "params=0.1", "--out", str(place.root / "no")], "--trust")
    manifest = json.loads((place.root / "out" / "manifest.json").read_text())
    evil = place.root / "evil.py"
    evil.write_text(f"import pathlib; pathlib.Path({str(place.root / 'ran')!r}).touch()")
    manifest["data"]["text"] = f"{evil}:data"
    (place.root / "out" / "manifest.json").write_text(json.dumps(manifest))
    model = ["--model", f"{place.factory}:colours", "--weights", str(place.weights)]
    refused(capsys, ["eval", out, *model], "code that would run", "--data")
    assert not (place.root / "ran").exists()
    refused(capsys, ["explain", out, "--group", "zzz"], "no group 'zzz'")
    refused(capsys, ["explain", out, "--group", "b", "--unit", "99"], "units 0 to 5")
    refused(capsys, ["explain", out, "--class", "purple"], "blue")


@pytest.mark.parametrize("method", ["magnitude", "random"])
def test_the_other_methods_give_artifacts_too(place, capsys, method):
    status, text, _ = ran(
        capsys, *place.prune("out", "--method", method, "--scope", "global", "--json", target="units=0.2")
    )
    assert status == 0
    assert json.loads(text)["ratio"]["units"] >= 0.2
    assert cswap.load(place.root / "out", trust=True) is not None


def test_prune_and_apply_give_back_what_can_be_given_back(place, capsys):
    """Recovered weights go into the artifact, with what was done; apply recovers another target from the same path."""
    place = replace(place, data=place.root / "more")
    write_images(place.data / "train", 30, 0)
    write_images(place.data / "test", 5, 1)
    many = ("--method", "random", "--per-class", "30", "--json")  # six of each class judge
    status, out, err = ran(capsys, *place.prune("mended", "--recover", "lstsq", *many, target="units=0.6"))
    assert (status, err) == (0, "")
    summary = json.loads(out)
    recovery = summary["recovery"]
    assert recovery["how"] == "lstsq"
    assert recovery["declined"] is None
    assert recovery["score_after"] > recovery["score_before"]
    assert set(recovery["facts"]["lstsq"]) <= {"a", "b", "fc"}
    assert summary["seconds"]["recovery"] > 0
    folder = place.root / "mended"
    assert json.loads((folder / "manifest.json").read_text())["recovery"] == recovery
    status, out, _ = ran(capsys, *place.prune("plain", *many, target="units=0.6"))
    assert status == 0
    assert json.loads(out)["recovery"] is None
    assert summary["pruned"]["quality"]["accuracy"] >= json.loads(out)["pruned"]["quality"]["accuracy"]
    mended, cut = (load(place.root / n, trust=True) for n in ("mended", "plain"))
    x = torch.randn(4, 3, 8, 8)
    assert not torch.allclose(mended(x), cut(x))
    again = cswap.recover(cut, place.original(), place.calibration(30), "lstsq")  # a loaded module knows what it lacks
    assert torch.allclose(again(x), mended(x), atol=1e-5)
    status, out, err = ran(
        capsys, "apply", str(folder), "--target", "units=0.3", "--recover", "bn+lstsq", "--out", str(place.root / "less"), "--trust", "--json", "--quiet",
    )  # fmt: skip
    assert (status, err) == (0, "")
    assert json.loads(out)["recovery"]["how"] == "bn+lstsq"
    status, out, _ = ran(
        capsys, "apply", str(folder), "--target", "units=0.6", "--recover", "bias", "--out", str(place.root / "means"), "--trust", "--quiet",
    )  # fmt: skip
    assert status == 0
    judged = len(place.calibration(30))  # nothing is held back where nothing is fitted
    told = " ".join(out.split())
    assert f"recovery bias: declined: the outputs on {judged} calibration samples would be" in told, told
    refused(
        capsys,
        ["apply", str(folder), "--target", "units=0.3", "--recover", "x", "--out", str(place.root / "no"), "--trust"],
        "recover",
    )
    assert not (place.root / "no").exists()


def test_more_samples_may_recover_than_chose_the_units(place, capsys):
    """By prune, by apply, and by hand: the same network; and none of them is a certificate's sample."""
    place = replace(place, data=place.root / "more")
    write_images(place.data / "train", 30, 0)
    write_images(place.data / "test", 5, 1)
    few = ("--method", "random", "--per-class", "6", "--json")
    more = ("--recover", "lstsq", "--recover-per-class", "30")
    status, out, err = ran(capsys, *place.prune("few", *few, target="units=0.6"))
    assert (status, err) == (0, "")
    status, out, err = ran(capsys, *place.prune("pruned", *few, *more, target="units=0.6"))
    assert (status, err) == (0, "")
    assert {n: json.loads(out)["recovery"][n] for n in ("samples", "judged", "per_class")} == {
        "samples": 90, "judged": 18, "per_class": 30,
    }  # fmt: skip
    assert json.loads(out)["calibration_samples"] == 18
    asked = ["apply", str(place.root / "few"), "--target", "units=0.6", "--trust", "--json", "--quiet", *more]
    status, out, err = ran(capsys, *asked, "--out", str(place.root / "applied"))
    assert (status, err) == (0, "")
    assert json.loads(out)["recovery"]["samples"] == 90
    pruned, applied, cut = (load(place.root / n, trust=True) for n in ("pruned", "applied", "few"))
    by_hand = cswap.recover(cut, place.original(), place.calibration(30), "lstsq")
    x = torch.randn(4, 3, 8, 8)
    assert torch.equal(pruned(x), applied(x))
    assert torch.allclose(by_hand(x), pruned(x), atol=1e-5)
    assert not torch.allclose(cut(x), pruned(x), atol=1e-3)
    for part in ("train", "test"):
        shutil.copytree(place.data / "train", place.root / "seen" / part)
    seen = ["--certify", str(place.root / "seen"), "--margin", "0.9"]
    refused(capsys, [*asked, "--out", str(place.root / "no"), *seen], "is one of the calibration samples")


def test_sizes_are_read_as_people_write_them():
    assert [bytes_of(t) for t in ("4GiB", "512 MiB", "2e9", "1k")] == [4 << 30, 512 << 20, 2_000_000_000, 1024]


def test_version_and_module_entry():
    done = subprocess.run([sys.executable, "-m", "cswap", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == cswap.__version__


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_closed_pipe_ends_a_command_without_a_word(place, unbuffered):
    """As of `cswap explain out | head -2`: nobody reads on, which is no failure of the model or the data."""
    assert main(place.prune("out")) == 0
    command = [sys.executable, "-m", "cswap", "explain", str(place.root / "out")]
    read, write = os.pipe()
    os.close(read)
    try:
        done = subprocess.run(
            command, stdout=write, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": unbuffered}
        )
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.parametrize("where", ["cswap.types.Target.parse", "cswap.pipeline.prune"])
def test_an_interrupt_says_so_wherever_it_comes(place, capsys, monkeypatch, where):
    def interrupted(*_args, **_more):
        raise KeyboardInterrupt

    monkeypatch.setattr(where, interrupted)
    assert main(place.prune("out")) == 130
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("cswap: interrupted")
