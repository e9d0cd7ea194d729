"""Targets that pay: widths a kernel likes, a latency, and a certificate of what was lost."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import cswap
from cswap.artifacts.folder import load, open_artifact
from cswap.cli.app import main
from cswap.errors import TargetError
from cswap.evaluate import cost
from cswap.pipeline import aim, pace
from cswap.structure.surgery import count_params
from tests.end_to_end.conftest import write_images


def _json(capsys, arguments: list[str]) -> dict:
    capsys.readouterr()
    assert main([*arguments, "--json"]) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


def test_widths_are_multiples_and_the_target_is_reached(place, capsys):
    summary = _json(capsys, place.prune("out", "--round-to", "4", target="params=0.4"))
    manifest = json.loads((place.root / "out" / "manifest.json").read_text())
    widths = {
        t: len(i["0"]) for t, i in manifest["kept"].items() if t.endswith(".weight") and "0" in i and t != "fc.weight"
    }
    assert widths
    assert all(w % 4 == 0 for w in widths.values())
    assert summary["ratio"]["params"] >= 0.4
    assert summary["ended"] == "target reached"  # though the path was made to its end, to look for the prefix
    assert (manifest["round_to"], summary["round_to"]) == (4, 4)
    small = load(place.root / "out", trust=True)
    assert count_params(small) == summary["pruned"]["params"]
    status = main(place.prune("far", "--round-to", "64", "--quiet"))
    assert status == 2
    told = capsys.readouterr().err
    assert "out of reach" in told
    assert "multiple of 64" in told
    assert not (place.root / "far").exists(), "said before anything is analysed"


@pytest.mark.parametrize("multiple", [2, 3, 8])
def test_a_rounded_prefix_is_the_longest_that_fits(digits_case, multiple):
    """By hand: of the units that the plain prefix removes, each group gives back the last ones until its width fits."""
    model, calibration, structure = digits_case
    path = cswap.prune_path(model, calibration, structure=structure, method="random", scope="global")
    whole, _, _ = path.prefix(cswap.Target("complete"), multiple)
    for group in structure:
        order = [d.unit for d in path if d.removed and d.group == group.name]
        fitting = [k for k in range(len(order) + 1) if (group.size - k) % multiple == 0 and k < group.size]
        most = max(fitting, default=0)
        assert sorted(whole.get(group.name, np.empty(0, int)).tolist()) == sorted(order[:most])
    plain, steps, _ = path.prefix("params=0.3")
    _, rounded_steps, ratio = path.prefix("params=0.3", multiple)
    assert ratio.params >= 0.3
    assert rounded_steps >= steps
    assert plain


def test_a_latency_is_aimed_at_by_bisection(digits_case, monkeypatch):
    """With a clock that says what parameters say, the prefix found is the shortest of its grid that reaches the target."""
    model, calibration, structure = digits_case
    path = cswap.prune_path(model, calibration, structure=structure, method="magnitude")
    asked = []

    def clock(models, _sample, batch, **_more):
        asked.append(batch)
        return {n: float(count_params(m)) for n, m in models.items()}

    monkeypatch.setattr(aim, "latency_ms", clock)
    found = aim.aimed(model, path, cswap.Target.parse("latency=0.5"), calibration.inputs(0, 1), batch=3)
    _, _, ratio = path.prefix(found.target)
    assert ratio.params >= 0.5
    _, _, before = path.prefix(cswap.Target("units", found.target.value - 0.02))
    assert before.params < 0.5
    assert set(asked) == {3}
    assert len(asked) <= 10  # the last of them times what was chosen once more
    assert len(found.measured) == len(asked)
    with pytest.raises(TargetError, match="out of reach"):
        aim.aimed(model, path, cswap.Target.parse("latency=0.9999"), calibration.inputs(0, 1))
    with pytest.raises(TargetError, match="measured by"):
        path.prefix("latency=0.5")


def test_a_lucky_measurement_does_not_stand(digits_case, monkeypatch):
    """Of noisy figures the shortest prefix is the luckiest; it is timed once more, and a longer one taken where that fails."""
    model, calibration, structure = digits_case
    path = cswap.prune_path(model, calibration, structure=structure, method="magnitude")
    short = 0
    for seed in range(8):
        rng = np.random.default_rng(seed)

        def clock(models, _sample, _batch, budget_s, rng=rng, **_more):
            noise = 0.08 if budget_s < 3 else 0.005
            return {n: float(count_params(m)) * (1 + noise * rng.standard_normal()) for n, m in models.items()}

        monkeypatch.setattr(aim, "latency_ms", clock)
        found = aim.aimed(model, path, cswap.Target.parse("latency=0.5"), calibration.inputs(0, 1))
        assert found.measured[-1]["latency"] >= 0.5
        assert found.measured[-1]["units"] == found.target.value
        short += path.prefix(found.target)[2].params < 0.48
    assert short == 0


def test_a_target_that_only_luck_reached_is_out_of_reach(digits_case, monkeypatch):
    """The whole path seemed to reach it; timed for longer it does not, and no longer one is left."""
    model, calibration, structure = digits_case
    path = cswap.prune_path(model, calibration, structure=structure, method="magnitude")

    def clock(models, _sample, _batch, budget_s, **_more):
        whole = count_params(models["pruned"]) < 0.1 * count_params(models["original"])
        return {"original": 1.0, "pruned": 0.4 if whole and budget_s < 3 else 0.6}

    monkeypatch.setattr(aim, "latency_ms", clock)
    with pytest.raises(TargetError, match="out of reach.*takes 0.600 of the time"):
        aim.aimed(model, path, cswap.Target.parse("latency=0.5"), calibration.inputs(0, 1))


def test_the_latency_that_is_told_is_the_second_one(place, capsys, monkeypatch):
    def clock(models, _sample, _batch, budget_s, **_more):
        small = count_params(models["pruned"]) < 0.7 * count_params(models["original"])
        return {"original": 1.0, "pruned": (0.3 if budget_s < 3 else 0.5) if small else 1.0}

    monkeypatch.setattr(aim, "latency_ms", clock)
    assert main(place.prune("out", target="latency=0.4")) == 0
    assert "latency at batch 1: 0.5000 removed" in capsys.readouterr().out


def test_a_latency_beyond_a_path_that_quality_ended_gives_the_end_of_it(place, capsys, monkeypatch):
    """As a counted target does: what is there is written, and said to fall short; of several targets it is not tested again."""

    def clock(models, _sample, _batch, **_more):
        return {n: float(count_params(m)) for n, m in models.items()}

    monkeypatch.setattr(aim, "latency_ms", clock)
    limits = ("--method", "magnitude", "--max-drop", "0.05")
    summary = _json(capsys, place.prune("end", *limits, target="latency=0.99"))
    assert summary["ended"].startswith("stopped before the target: max-drop")
    assert 0 < summary["ratio"]["params"] < 0.9
    assert summary["aim"]["measured"][-1]["latency"] == pytest.approx(summary["ratio"]["params"], abs=1e-9)
    apply = ["apply", str(place.root / "end"), "--trust", "--target", "latency=0.99", "--out", str(place.root / "a")]
    assert _json(capsys, apply)["ended"].startswith("stopped before the target: max-drop")
    reached = summary["ratio"]["params"]
    write_images(place.root / "more" / "train", 2, 7)
    write_images(place.root / "more" / "test", 40, 8)
    certify = ("--certify", str(place.root / "more"), "--margin", "0.9")
    asked = f"latency={reached / 4:.3f},0.98,0.99"
    summary = _json(capsys, place.prune("some", *limits, *certify, target=asked))
    assert [t["target"] for t in summary["certificate"]["targets"]] == [asked.split(",", maxsplit=1)[0]]
    assert any("was not tested: the path stopped before it" in n for n in summary["notes"])


def test_what_joint_tested_is_refitted_or_a_note_says_so(place, capsys):
    few = ("--method", "joint", "--margins", "0.9")
    plain = _json(capsys, place.prune("out", *few, target="units=0.1"))
    assert any("--recover lstsq refits those layers" in n for n in plain["notes"])
    fitted = _json(capsys, place.prune("fitted", *few, "--recover", "lstsq", target="units=0.1"))
    assert not any("was tested" in n for n in fitted["notes"])
    for forgotten in (["--vote", "pooled"], ["--correction", "holm"], ["--min-effect", "0.3"], ["--xi-floor", "0.1"]):
        assert main(place.prune("no", *few, *forgotten, target="units=0.1")) == 2
        assert "got --method joint" in capsys.readouterr().err


def test_a_latency_target_makes_an_artifact(place, capsys, monkeypatch):
    monkeypatch.setattr(
        aim, "latency_ms", lambda models, *_a, **_k: {n: float(count_params(m)) for n, m in models.items()}
    )
    summary = _json(capsys, place.prune("out", "--round-to", "2", target="latency=0.4"))
    assert summary["ratio"]["params"] >= 0.4
    assert summary["aim"]["batch"] == 1
    assert summary["aim"]["measured"]
    assert summary["ended"] == "target reached"  # though the path was made to its end, to look for the prefix
    again = _json(
        capsys, ["apply", str(place.root / "out"), "--target", "latency=0.2", "--out", str(place.root / "b"), "--trust"]
    )
    assert 0.2 <= again["ratio"]["params"] < summary["ratio"]["params"]
    assert cost.latency_ms is not aim.latency_ms


def test_a_certificate_is_in_the_manifest(place, capsys):
    write_images(place.root / "more" / "train", 2, 7)
    write_images(place.root / "more" / "test", 40, 8)
    certify = ["--certify", str(place.root / "more"), "--margin", "0.3"]
    summary = _json(capsys, place.prune("out", *certify, target="units=0.1"))
    found = summary["certificate"]
    assert found == json.loads((place.root / "out" / "manifest.json").read_text())["certificate"]
    assert found["holds"] == (found["smallest"] <= 0.3)
    assert found["samples"] == [40, 40, 40]
    assert 3 / 40 < found["possible"] <= found["smallest"]
    assert open_artifact(place.root / "out").manifest["certificate"]["bound"] == "betting"
    harder = _json(capsys, ["apply", str(place.root / "out"), "--target", "units=0.1", "--out", str(place.root / "b"), "--trust", *certify[:2],
                            "--margin", "0.01"])  # fmt: skip
    assert not harder["certificate"]["holds"]
    assert "not certified" in harder["certificate"]["claim"]


def test_samples_that_were_calibrated_with_certify_nothing(place, capsys):
    shutil.copytree(place.data / "train", place.root / "seen" / "test")
    shutil.copytree(place.data / "train", place.root / "seen" / "train")
    assert main(place.prune("out", "--certify", str(place.root / "seen"))) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "is one of the calibration samples" in line
    assert not (place.root / "out").exists()


def _pinned_in(folder: Path) -> dict[str, Any]:
    pinned: dict[str, Any] = json.loads((folder / "manifest.json").read_text())["run"]["pinned"]
    return pinned


def test_a_resumed_run_keeps_its_paces(place, monkeypatch, capsys):
    asked = ["--method", "joint", "--per", "latency", "--latency-batch", "2", "--margins", "0.3,0.6"]
    batches = []

    def timed(models: dict[str, nn.Module], sample: torch.Tensor, batch: int, **_: Any) -> dict[str, float]:
        batches.append(batch)
        return cost.latency_ms(models, sample, batch, budget_s=0.01)

    monkeypatch.setattr(pace, "latency_ms", timed)
    assert main(place.prune("out", *asked, target="params=0.2")) == 0
    assert set(batches) == {2}
    out = place.root / "out"
    held = _pinned_in(out)["pace"]
    first = (out / "path.jsonl").read_bytes()
    monkeypatch.setattr(pace, "latency_ms", None)  # nothing is timed again
    assert main(place.prune("out", *asked, "--resume", target="params=0.5")) == 0
    assert (out / "path.jsonl").read_bytes().startswith(first[: first.rfind(b"\n", 0, -1)])
    assert _pinned_in(out)["pace"] == held
    manifest = json.loads((out / "manifest.json").read_text())
    manifest["run"]["pinned"]["pace"] = dict.fromkeys(held, 0)
    (out / "manifest.json").write_text(json.dumps(manifest))
    capsys.readouterr()
    assert main(place.prune("out", *asked, "--resume", target="params=0.6")) == 2
    assert "expected the pace of each of" in capsys.readouterr().err
