"""Every benchmark and experiment at least imports: a name that moved is found here, not an hour into a run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


def test_every_benchmark_imports() -> None:
    names = sorted(p.stem for folder in (BENCHMARKS, BENCHMARKS / "experiments") for p in folder.glob("*.py"))
    assert len(names) > 25
    code = f"""
import importlib, sys
sys.path[:0] = [{str(BENCHMARKS)!r}, {str(BENCHMARKS / "experiments")!r}, {str(BENCHMARKS / "networks")!r}]
for name in {names!r}:
    importlib.import_module(name)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr.strip().splitlines()[-1]
