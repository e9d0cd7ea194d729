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
