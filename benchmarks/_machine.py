"""What every result says of where it came from, and how results are written."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import cswap

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def machine() -> dict[str, Any]:
    """Processor, cores, GPU, versions, commit; `dirty` when the tree differs from it.

    A copy of the tree without its history is told the commit: CSWAP_COMMIT.
    """
    git = ["git", "-C", str(ROOT)]
    commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    changed = subprocess.run([*git, "status", "--porcelain", "src"], capture_output=True, text=True, check=False).stdout
    names = ("torch", "torchvision", "torch-pruning", "numpy", "scipy")
    gpu = {"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    return {
        "commit": (commit or os.environ.get("CSWAP_COMMIT", "")) + ("+dirty" if changed.strip() else ""),
        "machine": {"cores": os.cpu_count(), "threads": torch.get_num_threads(), "arch": platform.machine(), **gpu},
        "versions": {"python": platform.python_version(), "cswap": cswap.__version__, **{n: version(n) for n in names}},
    }


def begun(work: Path) -> list[dict[str, Any]]:
    """Every machine and commit that measured a part of what a folder keeps, this one now among them: beside it, in `WORK.runs.json`."""
    file = work.with_name(f"{work.name}.runs.json")
    held: list[dict[str, Any]] = json.loads(file.read_text()) if file.exists() else []
    now = machine()
    if not held and work.exists():  # from before this was written down
        held.append({"commit": "not recorded"})
    if now not in held:
        held.append(now)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(held, indent=1) + "\n")
    return held


def write_result(name: str, data: dict[str, Any]) -> None:
    """Write one benchmark's JSON and make RESULTS.md and docs/reliability.md anew."""
    RESULTS.mkdir(exist_ok=True)
    whole = RESULTS / f".{name}.{os.getpid()}"  # another benchmark may be reading
    whole.write_text(json.dumps(data, indent=1) + "\n")
    whole.replace(RESULTS / f"{name}.json")
    from make_results import write_results
    from reliability_page import write_page

    write_results()
    write_page()
