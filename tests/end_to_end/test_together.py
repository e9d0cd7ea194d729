"""What `joint` writes is tested once more as a whole: by the bound of its sets, on the calibration samples, against the original."""

from __future__ import annotations

import json

import pytest
import torch
from scipy import stats

import cswap
from cswap.cli.app import main
from tests.end_to_end.commands import ran

JOINT = ("--method", "joint", "--margins", "0.05,0.2", "--alpha", "0.1")


@pytest.mark.parametrize("more", [(), ("--recover", "lstsq")])
def test_the_whole_network_is_bounded_class_by_class(place, capsys, more):
    status, out, _ = ran(capsys, *place.prune("out", *JOINT, *more, "--json", target="params=0.5"))
    assert status == 0
    summary = json.loads(out)
    found, calibration, small = summary["together"], place.calibration(), cswap.load(place.root / "out", trust=True)
    inputs = calibration.inputs(0, len(calibration))
    with torch.no_grad():
        scores = [m.eval()(inputs).double().softmax(1).numpy() for m in (place.original(), small)]
    t = float(stats.t.ppf(1 - 0.1, 5))
    for k, name in enumerate(calibration.classes):
        own = calibration.targets == k
        lost = (scores[0] - scores[1])[own, k]
        assert found["upper"][name] == pytest.approx(lost.mean() + t * lost.std(ddof=1) / 6**0.5, abs=1e-6)
    assert found["margin"] == max(found["upper"].values()) == found["upper"][found["worst"]]
    assert (found["alpha"], found["samples"]) == (0.1, 18)
    (note,) = (n for n in summary["notes"] if n.startswith("all sets together"))
    assert f"({found['worst']}; t bound at 0.9, 18 calibration samples)" in note
    margin = found["margin"]
    place_said = "margin 0.05" if margin <= 0.05 else "margin 0.2" if margin <= 0.2 else "beyond the last margin, 0.2"
    assert place_said in note


def test_it_goes_on_beyond_the_last_margin_and_is_said_of_joint_alone(place, capsys):
    status, out, _ = ran(
        capsys, *place.prune("far", "--method", "joint", "--margins", "0.01", "--json", target="params=0.9")
    )
    assert status == 0
    summary = json.loads(out)
    assert summary["together"]["margin"] > 0.01
    assert any("beyond the last margin, 0.01; they chose it" in n for n in summary["notes"])
    assert main(place.prune("other", "--method", "random")) == 0
    assert json.loads((place.root / "other" / "summary.json").read_text())["together"] is None


def test_a_prefix_of_the_path_is_tested_as_its_own(place, capsys):
    assert main(place.prune("out", *JOINT, target="params=0.5")) == 0
    apply = ["apply", str(place.root / "out"), "--trust", "--target", "params=0.2", "--out", str(place.root / "b")]
    _, out, _ = ran(capsys, *apply, "--json", "--quiet")
    straight = ran(capsys, *place.prune("c", *JOINT, "--json", target="params=0.2"))[1]
    assert json.loads(out)["together"] == json.loads(straight)["together"]
