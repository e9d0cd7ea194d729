"""The sections of RESULTS.md on recoveries of ResNet-18: every one on every method, on a few, and what they take."""

from __future__ import annotations

from statistics import mean
from typing import Any

from results_common import WAYS, label, origin, point_at, standard_error, table
from results_methods import losses


def recoveries(data: dict[str, Any], what: str = "Every recovery on a few methods") -> list[str]:
    """Every recovery on a few methods, and whether one that is delivered loses."""
    base = data["unpruned"]["quality"]["accuracy"]
    lines = [
        f"## {what}: ResNet-18 on CIFAR-10 (JPEG)", "", origin(data),
        f"{data['held_out_samples']:,} test images in {data['measured_in']['precision']} (unpruned {100 * base:.2f} %), recovered with "
        f"{data['recover_per_class']} images a class. Accuracy in % of the recovered network, ° where cswap declines the recovery; in "
        "brackets its seconds on one core, while other work ran.", "",
    ]  # fmt: skip
    ways = data["recover"]
    rows = []
    for name, x in data["methods"].items():
        for p in x["points"]:
            for kind, asked in p["asked"].items():
                if not any(how in p["raw_accuracy"] for how in ways):
                    continue
                cells = [f"{100 * p['accuracy']['none']:.2f}"]
                for how in ways[1:]:
                    found = p["raw_accuracy"].get(how)
                    mark = "°" if how in p["declined"] else ""
                    cells.append("–" if found is None else f"{100 * found:.2f}{mark} ({p['recover_seconds'][how]:.0f})")
                rows.append([name, f"{kind} = {asked:g}", *cells])
    return [*lines, *table(["method", "removed", "plain", *ways[1:]], rows), *losses(data)]


def every_recovery(data: dict[str, Any]) -> list[str]:
    """Every recovery on every method, a table for each ratio, and what each recovery gives back."""
    base, ways = data["unpruned"]["quality"]["accuracy"], data["recover"]
    others = [w for w in ways if w != "none"]
    lines = [
        "## Every method with every recovery: ResNet-18 on CIFAR-10 (JPEG)", "", origin(data),
        f"{data['held_out_samples']:,} test images in {data['measured_in']['precision']} (unpruned {100 * base:.2f} %), whose standard error is {standard_error(base, data['held_out_samples']):.1f} "
        f"points; {data['per_class']} images a class to choose by, {data['recover_per_class']} to recover with, the same for all. "
        "Accuracy in % of the recovered network, the best recovery of a method bold; ° where cswap declines it, because calibration images do "
        "not show that it gains.", "",
        *([f"{data['note']}.", ""] if "note" in data else []),
    ]  # fmt: skip
    gained: dict[str, list[float]] = {w: [] for w in others}
    for ratio in [r for r in data["ratios"] if r > 0]:
        points = {n: p for n, x in data["methods"].items() if (p := point_at(x["points"], "params", ratio))}
        rows = []
        for name, p in points.items():
            found = {"none": p["accuracy"]["none"], **p["raw_accuracy"]}
            for w in p["raw_accuracy"]:
                gained[w].append(100 * (found[w] - found["none"]))
            best = max(found.values())
            texts = {w: f"{100 * v:.2f}" + ("°" if w in p["declined"] else "") for w, v in found.items()}
            texts = {w: f"**{t}**" if found[w] >= best else t for w, t in texts.items()}
            rows.append([label(name, data), *(texts.get(w, "–") for w in ways)])
        lines += [f"### {ratio:g} of the parameters removed", ""]
        lines += table(["method", *(WAYS.get(w, w) for w in ways)], rows)
    seconds = {
        w: [s for x in data["methods"].values() for p in x["points"] if (s := p["recover_seconds"].get(w)) is not None]
        for w in others
    }
    declined = {w: sum(w in p["declined"] for x in data["methods"].values() for p in x["points"]) for w in others}
    return [
        *lines, "### What each recovery gives back", "",
        *table(
            ["recovery", "networks", "points given back, mean", "fewest", "most", "declined", "seconds, mean"],
            [[WAYS.get(w, w), len(v), f"{mean(v):+.2f}", f"{min(v):+.2f}", f"{max(v):+.2f}", declined[w], f"{mean(seconds[w]):.0f}"]
             for w, v in gained.items()],
        ),
        "Points are those of the recovered network itself, also where it is declined; seconds on one core, while another method was measured.", "",
        *losses(data),
    ]  # fmt: skip


def finding(data: dict[str, Any]) -> str:
    """What gives back most, in sentences."""
    base, ways = data["unpruned"]["quality"]["accuracy"], [w for w in data["recover"] if w != "none"]
    ratios = [r for r in data["ratios"] if r > 0]
    said = []
    for ratio in ratios:
        points = {n: p for n, x in data["methods"].items() if (p := point_at(x["points"], "params", ratio))}
        plain = mean(p["accuracy"]["none"] for p in points.values())
        after = {
            w: mean(p["raw_accuracy"][w] for p in points.values())
            for w in ways
            if all(w in p["raw_accuracy"] for p in points.values())
        }
        top = max(after, key=lambda w: after[w])
        value, name, how = max((v, n, w) for n, p in points.items() for w, v in p["accuracy"].items())
        said.append(
            f"at {ratio:g} from {100 * plain:.1f} to {100 * after[top]:.1f} % by `{top}`"
            + (f" ({100 * after['bn']:.1f} % by `bn`)" if "bn" in after and top != "bn" else "")
            + f", the best of all {100 * value:.1f} % ({name}, {'plain' if how == 'none' else how})"
        )
    last = [p for x in data["methods"].values() if (p := point_at(x["points"], "params", ratios[-1]))]

    def apart(how: str) -> float:
        found = [p["raw_accuracy"].get(how, p["accuracy"]["none"]) for p in last]
        return 100 * (max(found) - min(found))

    spread = (
        f" At {ratios[-1]:g} the methods lie {apart('none'):.1f} points apart as pruned, and {apart('lstsq'):.1f} refitted."
        if "lstsq" in ways
        else ""
    )
    return f"{data['network']}, mean of {len(data['methods'])} methods by parameters removed (unpruned {100 * base:.1f} %): {'; '.join(said)}.{spread}"


def recovery_seconds(data: dict[str, Any]) -> list[str]:
    """What every recovery takes."""
    rows = [[f"`{how}`", f"{s:g}"] for how, s in data["seconds"].items()]
    return [
        f"## What recovery takes: ResNet-18 at {data['target']}", "", origin(data),
        f"{data['samples']:,} calibration images, {data['machine']['threads']} threads; whether it helps is looked at within these seconds.", "",
        *table(["recovery", "seconds"], rows),
    ]  # fmt: skip
