"""What was set as a goal: how far the best combination is, and what was tried where it is missed."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

from results_common import WAYS, origin, point_at, standard_error, table

HERE = Path(__file__).resolve().parent


GOALS = (("params", 0.5, 0.2), ("params", 0.7, 0.5), ("macs", 0.5, 0.5), ("macs", 0.7, 3.0))


def goals(data: dict[str, Any], base: float) -> list[str]:
    """How far the best combination is from the unpruned network at the points that were set as goals."""
    rows = []
    asked = {(k, r) for x in data["methods"].values() for p in x["points"] for k, r in p["asked"].items()}
    for kind, goal, most in GOALS:
        # a hundredth more, where a published table is met at its own ratios
        ratio = min((r for k, r in asked if k == kind and goal <= r <= goal + 0.011), default=goal)
        found = [
            (v, name, how)
            for name, x in data["methods"].items()
            if (p := point_at(x["points"], kind, ratio))
            for how, v in p["accuracy"].items()
        ]
        if found:
            best, name, how = max(found)
            lost = 100 * (base - best)
            rows.append(
                [
                    f"{kind} = {ratio:g}",
                    f"{name}, {WAYS.get(how, how)}",
                    f"{100 * best:.2f}",
                    f"{lost:+.2f}",
                    f"{most:g}",
                    "yes" if lost <= most else "no",
                ]
            )
    return [
        "### Points lost by the best combination",
        "",
        f"The best of all methods and recoveries above, chosen by these test images, which tell an accuracy to ±{standard_error(base, data['held_out_samples']):.2f} points (standard error).",
        "",
        *table(["target", "method, recovery", "accuracy, %", "points lost", "goal: at most", "reached"], rows),
        *(_missed() if data["command"] == _load("methods_resnet18").get("command") else []),
    ]


def more_samples(data: dict[str, Any]) -> list[str]:
    """What more calibration images change where a goal was missed."""
    base, ways = data["unpruned"]["quality"]["accuracy"], data["recover"]
    rows = [
        [name, f"{kind} = {r:g}", *(f"{100 * p['raw_accuracy'][h]:.2f}" if h in p["raw_accuracy"] else f"{100 * p['accuracy'][h]:.2f}" for h in ways),
         f"{100 * (base - max(p['accuracy'].values())):+.2f}"]
        for name, x in data["methods"].items()
        for kind, r, _ in GOALS
        if (p := point_at(x["points"], kind, r))
    ]  # fmt: skip
    which = "choose by" if data["per_class"] >= data["recover_per_class"] else "refit on"
    return [
        f"## More images to {which}: ResNet-18 on CIFAR-10 (JPEG)", "", origin(data),
        f"As in the table of methods, but with {data['per_class']} images a class for the choice and {data['recover_per_class']} for the refit. Accuracy in %.", "",
        *table(["method", "removed", *(WAYS.get(w, w) for w in ways), "points lost"], rows),
        *(_missed() if which == "refit on" else []),
    ]  # fmt: skip


_TRIED = {
    "methods_resnet18": "every ranking", "recoveries_resnet18": "every recovery", "joint_resnet18": "joint cuts in the place of a ranking",
    "recoveries_all_resnet18": "every recovery on every method", "obs128_resnet18": "four times the images to choose by", "refit512_resnet18": "four times the images to refit on",
}  # fmt: skip


def _load(name: str) -> dict[str, Any]:
    """A result, or nothing."""
    path = HERE / "results" / f"{name}.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"methods": {}}
    return found


def _missed() -> list[str]:
    """For each goal that the common calibration set misses: how far, what was tried, and what that says of the cause."""
    found: dict[str, dict[tuple[str, float], tuple[float, str, str]]] = {}
    for file in _TRIED:
        data = _load(file)
        for (kind, ratio, _), (name, x) in itertools.product(GOALS, data["methods"].items()):
            if p := point_at(x["points"], kind, ratio):
                base = data["unpruned"]["quality"]["accuracy"]
                best = min((100 * (base - v), name, how) for how, v in p["accuracy"].items())
                held = found.setdefault(file, {}).get((kind, ratio))
                found[file][kind, ratio] = min(best, held) if held else best
    lines = []
    for kind, ratio, most in GOALS:
        by = {f: v[kind, ratio] for f, v in found.items() if (kind, ratio) in v}
        lost, name, how = by["methods_resnet18"]
        if lost <= most:
            continue
        tried = "; ".join(
            f"{_TRIED[f]} {v[0]:+.2f} ({v[1]}, {WAYS.get(v[2], v[2])})"
            for f, v in by.items()
            if f != "methods_resnet18"
        )
        whole = _load("methods_resnet18")
        error = standard_error(whole["unpruned"]["quality"]["accuracy"], whole["held_out_samples"])
        sure = (
            f"These images tell an accuracy to ±{error:.2f} points, so whether it is reached is not told by them. "
            if lost - most < error
            else ""
        )
        others = [v[0] for f, v in by.items() if f not in ("methods_resnet18", "refit512_resnet18")]
        if "refit512_resnet18" in by:
            cause = (
                "what the refit cannot tell from few images"
                if by["refit512_resnet18"][0] <= most
                else "not the number of images: that part of the loss stays"
            )
        else:
            cause = (
                f"not which units go, nor how many images choose them (with others {min(others):+.2f} at best)"
                if others and min(others) > most
                else "open"
            )
        lines.append(
            f"The goal at {kind} = {ratio:g} ({most:g} points) is missed by {lost - most:.2f} ({lost:+.2f}: {name}, {WAYS.get(how, how)}). {sure}Tried besides: {tried}. "
            f"The cause, by these figures: {cause}."
        )
    return [*lines, ""] if lines else []
