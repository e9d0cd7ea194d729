"""The lower bounds that pyproject.toml gives of the dependencies, and the newest versions they allow: does a quick part of the tests pass at both ends?

    python benchmarks/bounds_of_dependencies.py [--only lower] [--keep-installed torch,torchvision] [--work DIR] [--tests FILE ...]

Each end is a virtual environment of its own, made of this Python with the site packages of this environment under it (pytest
and the like); what is always installed and what the extras bring is installed by pip, at its lower bound (name==bound) or at
its newest. torch's lower bound has no wheel for every Python: what --keep-installed names stays as it is here. What was
installed and how the tests ended goes to benchmarks/results/dependency_bounds.json, an end that is not run staying as it is.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
import tomllib
from pathlib import Path
from typing import Any

from _machine import ROOT, machine, write_result

TESTS = (
    "tests/test_structure.py", "tests/test_effects.py", "tests/test_attention.py", "tests/test_attention_equivalents.py", "tests/test_attention_methods.py",
    "tests/test_attention_saved.py", "tests/test_hf.py", "tests/test_text.py",
    "tests/test_hub.py", "tests/test_recurrent.py", "tests/test_relevance.py", "tests/test_deeplift.py", "tests/test_lrp.py", "tests/test_detection.py", "tests/end_to_end/test_commands.py",
    "tests/end_to_end/test_report.py",
)  # fmt: skip
EXTRAS = ("demo", "timm", "hf", "frame", "deeplift", "lrp", "dense")  # what the product imports; ONNX goes with torch


def bounds() -> dict[str, str]:
    """Lower bound by name of everything that is always installed, and of what the extras bring."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found = {}
    for line in [*project["dependencies"], *(x for e in EXTRAS for x in project["optional-dependencies"][e])]:
        name, bound = re.match(r"([\w-]+)\s*>=\s*([\d.]+)", line).groups()  # type: ignore[union-attr]
        found[name] = bound
    return found


def one_end(end: str, kept: set[str], tests: list[str], folder: Path) -> dict[str, Any]:
    """Install, run, and say what came of it."""
    if not folder.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = folder / "bin" / "python"
    inherited = sysconfig.get_paths()["purelib"]
    site = next((folder / "lib").glob("python*/site-packages"))
    (site / "below.pth").write_text(inherited + "\n")  # after the environment's own packages
    ask = [f"{n}=={b}" if end == "lower" else n for n, b in bounds().items() if n not in kept]
    install = [str(python), "-m", "pip", "install", "--quiet", "--upgrade", *ask]
    installed = subprocess.run(install, capture_output=True, text=True, check=False)
    if installed.returncode:
        return {"installed": False, "why": installed.stderr.strip().splitlines()[-1][:300]}
    names = json.dumps(list(bounds()))
    show = f"import json; from importlib.metadata import version; print(json.dumps({{n: version(n) for n in {names}}}))"
    versions = json.loads(subprocess.run([str(python), "-c", show], capture_output=True, text=True, check=True).stdout)
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    run = [str(python), "-m", "pytest", "-p", "no:cacheprovider", "-W", "default", *tests]
    ran = subprocess.run(run, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    lines = ran.stdout.strip().splitlines()
    summary = next(
        (x.strip("= ") for x in reversed(lines) if re.search(r"\d (passed|failed|error)", x)), "no tests ran"
    )
    failed = [x.removeprefix("FAILED ")[:200] for x in lines if x.startswith(("FAILED", "ERROR"))]
    return {"installed": True, "versions": versions, "status": ran.returncode, "summary": summary, "failed": failed}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=["lower", "upper"])
    parser.add_argument("--keep-installed", default="")
    parser.add_argument("--tests", nargs="+", default=list(TESTS))
    parser.add_argument("--work", type=Path, help="where the environments are kept for another time")
    asked = parser.parse_args()
    kept = {n for n in asked.keep_installed.split(",") if n}
    told = f" --only {asked.only}" if asked.only else ""
    told += f" --keep-installed {asked.keep_installed}" if kept else ""
    known = ROOT / "benchmarks" / "results" / "dependency_bounds.json"
    before = json.loads(known.read_text(encoding="utf-8")) if asked.only and known.exists() else {"ends": {}}
    ends = {end: {"commit": before["commit"], **x} for end, x in before["ends"].items()}
    for end in [asked.only] if asked.only else ["lower", "upper"]:
        with tempfile.TemporaryDirectory() as scratch:
            ends[end] = one_end(end, kept, asked.tests, (asked.work or Path(scratch)) / end)
        ends[end]["commit"] = machine()["commit"]  # the other end's may be another
        print(json.dumps({end: ends[end]}, indent=1), flush=True)
    write_result(
        "dependency_bounds",
        {
            "command": "python benchmarks/bounds_of_dependencies.py" + told, "seed": 0,
            **machine(), "kept_as_installed": sorted(kept), "tests": asked.tests, "ends": ends,
        },
    )  # fmt: skip


if __name__ == "__main__":
    main()
