"""How far `joint`'s area under the curve is from every other method's, with the spread of the test samples: the same samples, paired.

    python benchmarks/paired_areas.py RESULT FOLDER

methods.py and methods_text.py say this themselves; here it is for what they wrote before. FOLDER: the `--work` folder of the comparison that
wrote benchmarks/results/RESULT.json, which gets a field `paired`. An area is a weighted
sum of accuracies, and so a mean over samples; intervals are 95 %, of these test samples for this one draw of calibration samples. Where quality is no mean
over samples, as the mIoU of a data set, they are of the mean quality of a sample, as that of an image's own mIoU.
"""

from __future__ import annotations

import argparse
import base64
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np

from _machine import RESULTS, write_result
from cswap.compare.measure import bits_of
from cswap.evaluate.curve import sauce
from cswap.types import FloatArray


def hits(folder: Path, tag: str, steps: int, how: str, samples: int) -> FloatArray:
    """Whether each test sample is right, or its own quality, (n,), after one recovery whether or not it is declined."""
    for file in sorted(folder.glob(f"points/*/{tag}.{steps}.{how}.*json")):
        held = json.loads(file.read_text())
        if held["samples"] == samples and "hits" in held:
            return bits_of(held["hits"])[:samples].astype(np.float64)
        if held["samples"] == samples and "each" in held:
            return np.frombuffer(base64.b64decode(held["each"]), dtype="<f4").astype(np.float64)
    raise FileNotFoundError(f"{folder}: no hits of {tag} with {steps} steps, {how}, on {samples} samples")


def weights(ratios: list[float], end: float) -> FloatArray:
    """What the area makes of the accuracy at each ratio, of an unpruned accuracy of 1."""
    alone = np.eye(len(ratios))
    return np.array([sauce(ratios, list(row), 1.0, end) for row in alone])


def by_sample(folder: Path, tag: str, points: list[dict[str, Any]], kind: str, how: str, end: float, samples: int) -> FloatArray:  # fmt: skip
    """Each test sample's share of the area, (n,): their mean is the area times the unpruned accuracy."""
    asked = sorted((p["ratio"][kind], p["steps"]) for p in points if p["asked"].get(kind))
    w = weights([0.0, *(r for r, _ in asked)], end)
    found = w[0] * hits(folder, tag, 0, "none", samples)
    for share, (_, steps) in zip(w[1:], asked, strict=True):
        found = found + share * hits(folder, tag, steps, how, samples)
    return found


CURVE = 3
"""Points that a curve has at least, the unpruned one aside."""


def kinds_of(points: list[dict[str, Any]]) -> list[str]:
    """The kinds of ratio that a curve was asked for by, the one of most points first."""
    asked = {k: sum(bool(p["asked"].get(k)) for p in points) for k in ("params", "macs")}
    return sorted((k for k in asked if asked[k] >= CURVE), key=lambda k: -asked[k])


def for_kind(names: list[str], kind: str) -> str:
    """Of several allocations of a method the one that is made for this kind of ratio, in stages where there is one, else the first."""
    return next((n for end in (f":{kind}{STAGED}", f":{kind}") for n in names if n.endswith(end)), names[0])


STAGED = ":staged"
"""The end of the names of those that test in stages."""


def once(names: list[str], kind: str) -> str:
    """The one for this kind of ratio that tests once."""
    return for_kind([n for n in names if not n.endswith(STAGED)] or names, kind)


def told_as(how: str, kind: str, kinds: list[str]) -> str:
    """The name of a recovery's areas by one kind of ratio, in the field `paired`."""
    return how if kind == kinds[0] else f"{how} by {kind}"


def paired(folder: Path, seed: int = 0) -> dict[str, Any]:
    """`joint` against each of the others, by recovery and kind of ratio (see `told_as`): where the areas end, and the difference with half its 95 %
    interval."""
    compared = json.loads((folder / "compare.json").read_text())
    points = {n: m["by_seed"][str(seed)]["points"] for n, m in compared["methods"].items()}
    ours = [n for n in points if n.startswith("joint")]
    samples, told = compared["held_out_samples"], dict[str, Any]()
    if not ours:
        return {}
    base = float(hits(folder, f"{ours[0].replace(':', '-')}.{seed}", 0, "none", samples).mean())
    kinds = kinds_of(points[ours[0]])
    for how, kind in itertools.product((h for h in ("none", "lstsq") if h in compared["recover"]), kinds):
        whole = {
            n: p for n, p in points.items() if all(how in ("none", *q["recovered"]) for q in p if q["asked"].get(kind))
        }
        if not any(n in whole for n in ours):  # this recovery was asked for at some ratios alone
            continue
        end = min(0.8, *(max(q["ratio"][kind] for q in p if kind in q["asked"]) for p in whole.values()))
        areas = {
            n: by_sample(folder, f"{n.replace(':', '-')}.{seed}", p, kind, how, end, samples) for n, p in whole.items()
        }
        there = [n for n in ours if n in areas]
        mine, tested_once = for_kind(there, kind), once(there, kind)
        others = {n: a for n, a in areas.items() if n not in ours}
        told[told_as(how, kind, kinds)] = {
            "kind": kind, "end": end, "of": mine, "over": _apart(areas[mine], others, base),
            **({"once": tested_once, "once_over": _apart(areas[tested_once], others, base), "over_once": _apart(areas[mine], {tested_once: areas[tested_once]}, base)}
               if mine != tested_once else {}),
        }  # fmt: skip
    return told


def _apart(mine: FloatArray, others: dict[str, FloatArray], base: float) -> dict[str, list[float]]:
    """By method, how far ours is above it, and half its 95 % interval."""
    apart = {n: (mine - a) / base for n, a in others.items()}
    return {n: [float(d.mean()), float(1.96 * d.std(ddof=1) / len(d) ** 0.5)] for n, d in apart.items()}


def run() -> None:
    """Add the field."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("result", help="name of the JSON")
    parser.add_argument("folder", type=Path)
    given = parser.parse_args()
    folder = next(f.parent for f in sorted(given.folder.rglob("compare.json")))
    data = json.loads((RESULTS / f"{given.result}.json").read_text())
    write_result(given.result, {**data, "paired": paired(folder, data["seed"])})


if __name__ == "__main__":
    run()
