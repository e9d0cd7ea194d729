"""RESULTS.md is what its JSON says, byte for byte."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def _beside_the_benchmarks(monkeypatch):
    """Each test finds the benchmarks' modules by itself, whichever ran before it in the same process."""
    monkeypatch.syspath_prepend(BENCHMARKS)


def test_results_regenerate_byte_for_byte():
    made = runpy.run_path(str(BENCHMARKS / "make_results.py"))["results"]()
    assert made == (BENCHMARKS / "RESULTS.md").read_text(encoding="utf-8")
    assert "| cswap |" in made


def test_findings_regenerate_byte_for_byte():
    made = runpy.run_path(str(BENCHMARKS / "make_findings.py"))["findings"]()
    assert made == (BENCHMARKS.parent / "docs" / "findings.md").read_text(encoding="utf-8")


def test_the_reliability_page_regenerates_byte_for_byte():
    made = runpy.run_path(str(BENCHMARKS / "reliability_page.py"))["page"]()
    assert made == (BENCHMARKS.parent / "docs" / "reliability.md").read_text(encoding="utf-8")
    assert "## Faults at random moments" in made
    assert "## Spoiled files" in made


def test_the_overview_counts_a_declined_recovery_as_the_plain_network():
    from results_overview import _row

    def method(plain: float, fitted: float, *declined: str):
        point = {
            "asked": {"params": 0.5},
            "accuracy": {"none": plain, "lstsq": fitted},
            "declined": list(declined),
        }
        return {"points": [point]}

    data = {"unpruned": {"quality": {"accuracy": 0.9}}, "classes": ["a", "b"], "scopes": ["layer"]}
    data["methods"] = {"cswap": method(0.5, 0.7), "taylor": method(0.8, 0.85, "lstsq")}
    row = _row(data, "a network", "accuracy", "params", 0.5)
    assert row[2:] == ["90.00", "50.00", "70.00", "80.00 (taylor)", "**80.00** (taylor, plain)", "+10.00"]
    data["methods"]["taylor"] = method(0.8, 0.85)
    assert _row(data, "a network", "accuracy", "params", 0.5)[6:] == ["**85.00** (taylor, lstsq)", "+5.00"]
    assert _row(data, "a network", "accuracy", "params", 0.6) is None


def test_the_area_of_joint_is_that_of_the_curve_up_to_where_all_of_them_reach():
    from results_joint import areas

    def method(*points: tuple[float, float, float], declined: tuple[str, ...] = ()):
        return {
            "points": [
                {
                    "asked": {"params": r},
                    "ratio": {"params": r + 0.01},
                    "accuracy": {"none": plain, "lstsq": plain if declined else fitted},
                    "raw_accuracy": {"lstsq": fitted},
                    "declined": list(declined),
                }
                for r, plain, fitted in points
            ]
        }

    data = {"unpruned": {"quality": {"accuracy": 0.8}}, "scopes": ["layer"]}
    data["methods"] = {
        "joint": method((0.39, 0.4, 0.8), (0.59, 0.2, 0.6)),
        "cswap": method((0.39, 0.2, 0.4), declined=("lstsq",)),
    }
    end, plain = areas(data, "accuracy", "params", "none")
    assert end == pytest.approx(0.4)
    assert plain["joint"] == pytest.approx((0.8 + 0.4) / 2 / 0.8)
    assert areas(data, "accuracy", "params", "lstsq")[1]["cswap"] == pytest.approx((0.8 + 0.4) / 2 / 0.8)
    data["methods"]["cswap"] = method((0.39, 0.2, 0.4), (0.89, 0.0, 0.0))
    end, plain = areas(data, "accuracy", "params", "none")
    assert end == pytest.approx(0.6)
    assert plain["joint"] == pytest.approx(((0.8 + 0.4) / 2 * 0.4 + (0.4 + 0.2) / 2 * 0.2) / (0.6 * 0.8))
