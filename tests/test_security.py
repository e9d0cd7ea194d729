"""No pickle, no eval, no shell: read from the syntax trees of everything that ships."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SOURCES = sorted((Path(__file__).resolve().parents[1] / "src").rglob("*.py"))
MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "subprocess", "pty"}
NAMES = {"eval", "exec", "compile", "__import__"}
FROM = {
    "torch": ("load",), "os": ("system", "popen", "execv", "execve", "execl", "execvp", "spawnv", "posix_spawn", "startfile"),
    "builtins": tuple(NAMES), "numpy": ("load",), "torch.jit": ("load",), "torch.hub": ("load",), "runpy": ("run_path", "run_module"),
}  # fmt: skip
ATTRIBUTES = {("os", "system"), ("os", "popen"), ("np", "load"), ("numpy", "load"), ("jit", "load"), ("hub", "load")}


def dangers(source: str) -> list[str]:
    """What a source file does that this product must not."""
    found = []
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [a.name for a in node.names if a.name.split(".")[0] in MODULES - {"pickle"}]
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in MODULES:
            found.append(str(node.module))
        if isinstance(node, ast.ImportFrom):
            owner = node.module or ""
            found += [f"from {owner} import {a.name}" for a in node.names if a.name in FROM.get(owner, ())]
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "builtins":
            found.append(f"builtins.{node.attr}")
        if isinstance(node, ast.Call):
            f = node.func
            if isinstance(f, ast.Name) and f.id in NAMES:
                found.append(f.id)
            if isinstance(f, ast.Attribute):
                owner = f.value.id if isinstance(f.value, ast.Name) else getattr(f.value, "attr", "")
                if owner == "os" and f.attr.startswith(("exec", "spawn", "posix_spawn")):
                    found.append(f"os.{f.attr}")
                if (owner, f.attr) in ATTRIBUTES or (owner == "pickle" and f.attr in ("load", "loads", "Unpickler")):
                    found.append(f"{owner}.{f.attr}")
                safe = any(
                    k.arg == "weights_only" and isinstance(k.value, ast.Constant) and k.value.value is True
                    for k in node.keywords
                )
                if (owner, f.attr) == ("torch", "load") and not safe:
                    found.append("torch.load without weights_only=True")
            if any(k.arg == "shell" for k in node.keywords):
                found.append("shell=")
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.name)
def test_a_source_file_is_harmless(path):
    assert dangers(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "bad",
    [
        "torch.load('x')", "torch.load('x', weights_only=False)", "import dill", "from pickle import loads",
        "pickle.loads(b'')", "eval('1')", "os.system('x')", "run('x', shell=True)", "np.load('x', allow_pickle=True)",
        "from torch import load", "from os import system", "builtins.eval('1')", "os.execv('x', [])", "from runpy import run_path",
    ],
)  # fmt: skip
def test_the_check_itself_can_fail(bad):
    assert dangers(bad)
