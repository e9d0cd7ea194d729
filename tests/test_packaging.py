"""The wheel and the sdist: what they hold, that an installed copy works without the checkout, and the notebook."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def test_every_extra_that_an_error_names_exists():
    import re

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    said = r"""cswap\[([a-z]+)\]|MissingPartError\.of\(\s*error,\s*"[^"]*",\s*"([a-z]+)",\s"""
    named = {a or b for f in (ROOT / "src").rglob("*.py") for a, b in re.findall(said, f.read_text())}
    assert {"export", "frame", "demo", "timm"} <= named
    assert named <= set(extras), f"errors name extras that do not exist: {named - set(extras)}"


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A sdist, and the wheel made from it."""
    pytest.importorskip("build", reason="build is not installed")
    pytest.importorskip("hatchling", reason="hatchling is not installed")
    out = tmp_path_factory.mktemp("dist")
    done = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(ROOT)], capture_output=True, text=True, check=False
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return out


@pytest.mark.slow
def test_both_hold_what_is_needed(built):
    (wheel,), (sdist,) = built.glob("*.whl"), built.glob("*.tar.gz")
    names = zipfile.ZipFile(wheel).namelist()
    for needed in ("cswap/py.typed", "cswap/report/assets/report.html.j2", "cswap/report/assets/report.js", "cswap/report/assets/report.css"):  # fmt: skip
        assert needed in names
    assert any(n.endswith("licenses/LICENSE") for n in names)
    assert all(n.startswith(("cswap/", "cswap-")) for n in names)
    with tarfile.open(sdist) as archive:
        inside = [n.partition("/")[2] for n in archive.getnames()]
    assert {"pyproject.toml", "README.md", "src/cswap/py.typed", "tests/conftest.py"} <= set(inside)
    assert not [n for n in inside if n.endswith(".safetensors")], "weights and results do not belong into the sdist"
    assert sdist.stat().st_size < 5e6


@pytest.mark.slow
def test_an_installed_copy_runs_the_demo(built, tmp_path):
    pytest.importorskip("sklearn", reason="scikit-learn's digits are not installed")
    (wheel,) = built.glob("*.whl")
    place = tmp_path / "site"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(place), str(wheel)], check=True
    )
    env = {**os.environ, "PYTHONPATH": str(place)}
    where = subprocess.run(
        [sys.executable, "-c", "import cswap; print(cswap.__file__)"], cwd=tmp_path, env=env, capture_output=True, text=True, check=True
    )  # fmt: skip
    assert where.stdout.startswith(str(place))
    for words in (["demo", "--out", "d", "--quiet"], ["report", "d/artifact"]):
        subprocess.run([sys.executable, "-m", "cswap", *words], cwd=tmp_path, env=env, check=True, capture_output=True)
    assert (tmp_path / "d" / "artifact" / "report.html").stat().st_size > 50_000


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom(tmp_path, monkeypatch):
    nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed")
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed")
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    notebook = nbformat.read(ROOT / "examples" / "five_minutes.ipynb", as_version=4)
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        done = nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    results = [o for c in done.cells if c.cell_type == "code" for o in c.outputs]
    assert not [o for o in results if o.output_type == "error"]
    assert any("image/png" in o.get("data", {}) for o in results)


def test_the_command_starts_without_what_only_some_runs_need():
    """Torch-Pruning brings timm and torchvision, SciPy's statistics a second: a command that needs none waits for none."""
    show = "import sys, cswap.cli.app; print(*sorted(sys.modules))"
    ran = subprocess.run([sys.executable, "-c", show], capture_output=True, text=True, check=True)
    loaded = set(ran.stdout.split())
    assert {"torch", "cswap.pipeline.prune"} <= loaded
    heavy = {"torch_pruning", "torchvision", "timm", "scipy.stats", "transformers", "datasets", "plotly", "pandas"}
    assert not heavy & loaded
