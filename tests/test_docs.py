"""Documentation: every code block runs, every command and option in it exists, every link leads somewhere; every example runs.

The quick part checks names and links; `make docs-test` (or `-m slow`) runs the blocks and the examples.
"""

from __future__ import annotations

import ast
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

import pytest
import typer

from cswap.cli.app import app, main
from cswap.methods import registry

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(p for p in (ROOT / "docs").rglob("*.md"))
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
NEEDS = {
    "hf_trainer": ("transformers", "accelerate"), "lightning_module": ("lightning",), "timm_checkpoint": ("timm",),
    "quantise_after": ("onnxruntime", "onnxscript"),
}  # fmt: skip
_FENCE = re.compile(r"(?:<!-- not run: (?P<why>[^\n]+) -->\n)?^```(?P<kind>[a-z]*)\n(?P<text>.*?)^```$", re.M | re.S)


@dataclass(frozen=True)
class Block:
    kind: str
    text: str
    runs: bool


def blocks(page: Path) -> list[Block]:
    found = _FENCE.finditer(page.read_text(encoding="utf-8"))
    return [Block(m["kind"], m["text"], m["why"] is None) for m in found]


def commands(block: Block) -> list[list[str]]:
    lines = block.text.replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True) for line in lines if line.startswith(("cswap ", "torchrun "))]


def test_there_is_something_to_test():
    assert sum(b.kind == "python" and b.runs for p in PAGES for b in blocks(p)) > 10
    assert len(EXAMPLES) == 6


def test_the_page_of_options_is_what_the_command_says():
    made = runpy.run_path(str(ROOT / "docs" / "options.py"))["page"]()
    assert (ROOT / "docs" / "options.md").read_text(encoding="utf-8") == made, "run python docs/options.py"


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md"], ids=lambda p: p.stem)
def test_commands_and_options_exist(page):
    known = {c: {o for p in f.params for o in (*p.opts, *p.secondary_opts)} for c, f in typer.main.get_command(app).commands.items()}  # fmt: skip
    for block in blocks(page):
        if block.kind == "python":
            ast.parse(block.text)
        for words in commands(block):
            words = words[words.index("cswap") + 1 :]
            assert words[0] in known, f"no command {words[0]}"
            for word in words[1:]:
                if word.startswith("--"):
                    assert word.partition("=")[0] in known[words[0]], f"cswap {words[0]} has no option {word}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        place = (page.parent / file) if file else page
        assert place.exists(), f"{page.name} links to {target}"
        if anchor:
            slugs = [
                re.sub(r"[^\w\- ]", "", h.lower()).strip().replace(" ", "-")
                for h in re.findall(r"^#+ (.+)$", place.read_text(), re.M)
            ]
            assert re.sub("-+", "-", anchor) in [re.sub("-+", "-", s) for s in slugs], f"{page.name} links to {target}"


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """What `cswap demo` leaves behind, where every page starts."""
    pytest.importorskip("sklearn", reason="scikit-learn's digits are not installed")
    place = tmp_path_factory.mktemp("docs")
    assert main(["demo", "--out", str(place / "cswap-demo"), "--quiet"]) == 0
    return place


@pytest.mark.slow
@pytest.mark.parametrize("page", [p for p in PAGES if any(b.runs and b.kind in ("python", "bash") for b in blocks(p))], ids=lambda p: p.stem)  # fmt: skip
def test_blocks_run(page, demo, tmp_path, monkeypatch):
    if page.stem == "export":
        pytest.importorskip("onnxscript", reason="onnxscript is not installed")
        pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    place = tmp_path / "place"
    shutil.copytree(demo, place)
    monkeypatch.chdir(place)
    before, names = dict(registry.METHODS), {"__name__": "__docs__"}
    try:
        for block in blocks(page):
            if block.runs and block.kind == "python":
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    exec(compile(block.text, str(page), "exec"), names)
            elif block.runs and block.kind == "bash":
                assert len(commands(block)) == len([x for x in block.text.splitlines() if x.strip()])
                for words in commands(block):
                    run(words)
    finally:
        registry.METHODS.clear()
        registry.METHODS.update(before)


def run(words: list[str]) -> None:
    """One line of a page: cswap in this process, torchrun in its own."""
    if words[0] == "cswap":
        assert main(words[1:]) == 0, " ".join(words)
    else:
        subprocess.run([sys.executable, "-m", "torch.distributed.run", *words[1:]], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda p: p.stem)
def test_examples_run(example, tmp_path):
    for name in NEEDS.get(example.stem, ()):
        pytest.importorskip(name, reason=f"{name} is not installed")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(example)], cwd=tmp_path, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    told = [
        line for line in done.stdout.splitlines() if not line.startswith("{")
    ]  # a Trainer's log has losses and seconds
    # how many times as far outputs are is no accuracy
    figures = [float(f) for f in re.findall(r"\b[01]\.\d{3}\b(?!\s+times)", "\n".join(told))]
    assert len(figures) >= 2, done.stdout
    assert figures[0] > 0.9, f"the unpruned network must have learnt something: {done.stdout}"
    assert min(figures[1:]) > 0.3, done.stdout


@pytest.mark.slow
def test_the_site_builds(tmp_path):
    pytest.importorskip("mkdocs", reason="mkdocs is not installed: pip install 'cswap[docs]'")
    pytest.importorskip("mkdocstrings", reason="mkdocstrings is not installed: pip install 'cswap[docs]'")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")], cwd=ROOT,
        capture_output=True, text=True, check=False, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    reference = (tmp_path / "site" / "reference" / "index.html").read_text(encoding="utf-8")
    for name in ("prune_path", "calibration_set", "write_report"):
        assert name in reference
