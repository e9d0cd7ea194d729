"""The demo: its promises, on the digits that scikit-learn ships."""

from __future__ import annotations

import json

import pytest

import cswap
from cswap.cli.app import main
from cswap.demo import digits


def test_demo_within_two_minutes_and_above_random(tmp_path, capsys):
    assert main(["demo", "--out", str(tmp_path / "d"), "--quiet", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["seconds"]["total"] < 120
    assert data["sauce"]["cswap"] > data["sauce"]["random"]
    assert set(data["curves"]) == {"cswap", "magnitude", "random"}
    for points in data["curves"].values():
        assert [p["asked"] for p in points] == [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]
        assert all(p["ratio"]["params"] >= p["asked"] for p in points)
    assert data["curves"]["cswap"][0]["quality"]["accuracy"] > 0.95
    page = (tmp_path / "d" / "curve.html").read_text(encoding="utf-8")
    assert "plotly" in page
    assert 'src="http' not in page  # opens offline
    small = cswap.load(tmp_path / "d" / "artifact", trust=True)
    _, held_out = digits()
    right = (small(held_out.tensors[0]).argmax(1) == held_out.tensors[1]).double().mean().item()
    summary = json.loads((tmp_path / "d" / "artifact" / "summary.json").read_text())
    assert right == pytest.approx(summary["pruned"]["quality"]["accuracy"], abs=1e-12)
    report = (tmp_path / "d" / "artifact" / "report.html").read_text(encoding="utf-8")
    assert f"{summary['baseline']['params']:,}" in report
