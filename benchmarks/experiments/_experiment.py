"""What the experiments share: arguments, JSON with its origin, a plot made from the JSON, and a section of RESULTS.md."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from _machine import RESULTS, ROOT, machine, write_result  # noqa: E402
from _real import unpacked  # noqa: E402
from plots import keep, pyplot  # noqa: E402

NAMES = (
    "headline",
    "voting",
    "sample_size",
    "alpha",
    "stale",
    "conservatism",
    "classes",
    "text_order",
    "blocks",
    "scores",
    "joint_margins",
)
"""In the order of the seed's questions."""


@dataclass(frozen=True)
class Given:
    """What an experiment is told."""

    images: Path
    work: Path
    seed: int
    networks: tuple[str, ...] = ()
    per_class: tuple[int, ...] = ()
    jobs: int = 1

    def sizes(self, usual: tuple[int, ...]) -> tuple[int, ...]:
        """Samples a class: those that were asked for, or what is usual on two cores."""
        return self.per_class or usual


def main(name: str, run: Callable[[Given], dict[str, Any]], doc: str, networks: tuple[str, ...] = ()) -> None:
    """Run one experiment from the command line: JSON, plot, RESULTS.md. networks: those that it can be run on."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar", type=Path, help="an unpacked cifar10 folder")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "experiments", help="what is kept for a resume")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--note", help="where parts of --work were measured, when not all of it here")
    parser.add_argument("--jobs", type=int, default=1, help="methods of a comparison at a time, each in a process")
    parser.add_argument(
        "--per-class", help="samples a class, separated by commas, in the place of what two cores can do"
    )
    if networks:
        parser.add_argument("--networks", default=",".join(networks), help="some of them, separated by commas")
    given = parser.parse_args()
    chosen = tuple(given.networks.split(",")) if networks else ()
    if wrong := set(chosen) - set(networks):
        parser.error(f"--networks: expected some of {', '.join(networks)}, got {', '.join(sorted(wrong))}")
    work = given.work / name
    work.mkdir(parents=True, exist_ok=True)
    sizes = tuple(int(m) for m in given.per_class.split(",")) if given.per_class else ()
    found = run(Given(unpacked("cifar10", given.cifar, given.work), work, given.seed, chosen, sizes, given.jobs))
    told = {"networks": ",".join(chosen), "per-class": given.per_class}
    command = f"python benchmarks/experiments/{name}.py --seed {given.seed}" + "".join(
        f" --{k} {v}" for k, v in told.items() if v
    )
    note = {"note": given.note} if given.note else {}
    now = {"command": command, **machine(), **note, "seed": given.seed}
    write_result(f"experiment_{name}", with_earlier(name, now, found))
    draw(name)


def with_earlier(name: str, now: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """What was found, and of `networks` those that an earlier run found too, each with its origin (`now`: this one's)."""
    file = RESULTS / f"experiment_{name}.json"
    if "networks" not in found or not file.exists():
        return {**now, **found}
    earlier = json.loads(file.read_text())
    of_earlier = {k: earlier[k] for k in ("command", "commit", "machine", "versions", "note", "seed") if k in earlier}
    kept = {n: {"origin": of_earlier, **d} for n, d in earlier["networks"].items() if n not in found["networks"]}
    networks = {**kept, **{n: {**d, "origin": now} if kept else d for n, d in found["networks"].items()}}
    return {**now, **found, "networks": networks}


def modules() -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """Name, module and JSON of every experiment that has been run."""
    for name in NAMES:
        path = RESULTS / f"experiment_{name}.json"
        if path.exists():
            yield name, importlib.import_module(name), json.loads(path.read_text())


def draw(name: str) -> None:
    """The plot of one experiment, from its JSON."""
    module, data = importlib.import_module(name), json.loads((RESULTS / f"experiment_{name}.json").read_text())
    plt = pyplot(name)
    keep(module.figure(data, plt), name, plt)


def wilson(hits: int, of: int) -> tuple[float, float]:
    """95 % interval of a proportion (Wilson, 1927)."""
    if not of:
        return 0.0, 1.0
    z, p = 1.96, hits / of
    middle, half = p + z * z / (2 * of), z * float(np.sqrt(p * (1 - p) / of + z * z / (4 * of * of)))
    return max(0.0, (middle - half) / (1 + z * z / of)), min(1.0, (middle + half) / (1 + z * z / of))


def spearman(a: Any, b: Any) -> float:
    """Rank correlation; NaN where one side is constant."""
    from scipy.stats import spearmanr

    a, b = np.asarray(a), np.asarray(b)
    return float(spearmanr(a, b).statistic) if np.ptp(a) and np.ptp(b) else float("nan")
