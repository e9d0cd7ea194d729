"""The sections of RESULTS.md on joint, verified pruning: beside rankings, its cost, its order."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from results_common import hours, origin, point_at, table

HERE = Path(__file__).resolve().parent


def joint(data: dict[str, Any]) -> list[str]:
    """`joint` beside the best ranking, which has the same samples, recovery and test images (methods_resnet18.json)."""
    beside = json.loads((HERE / "results" / "methods_resnet18.json").read_text())["methods"]
    rows = []
    for name, x in [
        *data["methods"].items(),
        *((n, beside[n]) for n in ("obs:global:macs", "obs:global:params") if n in beside),
    ]:
        cells = []
        for kind, asked in (("params", 0.5), ("params", 0.7), ("macs", 0.5), ("macs", 0.7)):
            p = point_at(x["points"], kind, asked)
            cells.append(
                "–" if p is None else f"{100 * p['accuracy']['none']:.2f} → {100 * p['raw_accuracy']['lstsq']:.2f}"
            )
        rows.append([name, *cells, f"{x['seconds']:.0f}"])
    base = data["unpruned"]["quality"]["accuracy"]
    lost = {
        r: 100 * (base - p["raw_accuracy"]["lstsq"])
        for r in (0.5, 0.7)
        for x in data["methods"].values()
        if (p := point_at(x["points"], "macs", r))
    }
    return [
        "## Joint, verified pruning beside the best ranking: ResNet-18 on CIFAR-10 (JPEG)", "", origin(data),
        f"{data['held_out_samples']:,} test images in {data['measured_in']['precision']} (unpruned {100 * base:.2f} %); {data['per_class']} images a class to choose, "
        f"{data['recover_per_class']} to refit. Accuracy in %, plain → refitted; the other rows are those of the table of methods.", "",
        *table(["method", "params = 0.5", "params = 0.7", "macs = 0.5", "macs = 0.7", "analysis, s"], rows),
        "Points lost at " + " and ".join(f"macs = {r:g}: {v:.2f}" for r, v in lost.items()) + ".", "",
    ]  # fmt: skip


def joint_cost(data: dict[str, Any]) -> list[str]:
    """Seconds and joint cuts of `joint`, beside brute force."""
    brute = data["brute"]["seconds"]
    rows = [["brute force, every unit", hours(brute), "1×", f"{data['units']:,}"]]
    for said, key in (("joint, one target", "one"), (f"joint, a sweep of {len(data['targets'])}", "ten")):
        if key not in data:
            continue
        run = data[key]
        rows.append(
            [said, f"{run['seconds']:.0f} s", f"{brute / run['seconds']:.0f}×", f"{sum(run['interventions'].values())}"]
        )
    widths = [
        [f"{w['width']:,}", str(w["one"]["interventions"]), str(w["ten"]["interventions"])]
        for w in data.get("widths", ())
    ]
    by_width = ["A perceptron on the digits by the width of its hidden layer:", ""]
    return [
        "## What joint testing costs: ResNet-18, and by width", "", origin(data),
        f"{data['per_class']} images a class; brute force projected from {data['brute']['units_timed']} units. "
        f"Measured at commit {', '.join(f'`{c[:12]}`' for c in sorted(set(data['commits'].values())))}.", "",
        *table(["analysis", "time", "against brute force", "interventions"], rows),
        *([*by_width, *table(["width", "joint cuts, one margin", "ten margins"], widths)] if widths else []),
    ]  # fmt: skip


def surrogates(data: dict[str, Any]) -> list[str]:
    """What orders a group's units for joint tests, on several networks."""
    rows = []
    for network, x in data["networks"].items():
        for name, run in x["surrogates"].items():
            rows.append([
                network, name, *(f"{100 * share:.1f}" for _, share in run["within"]),
                *(f"{100 * p['quality']['accuracy']:.2f}" for p in run["points"]), str(run["interventions"]), f"{run['seconds']:.0f}",
            ])  # fmt: skip
        rows.append([network, "unpruned", *("" for _ in run["within"]), f"{100 * x['unpruned']['accuracy']:.2f}"])
    any_run = next(iter(next(iter(data["networks"].values()))["surrogates"].values()))
    head = [*(f"τ = {m:g}" for m, _ in any_run["within"]), *(p["target"] for p in any_run["points"])]
    rows = [[*r, *[""] * (len(head) + 4 - len(r))] for r in rows]
    return [
        "## What orders the units of a joint cut", "", origin(data),
        f"`--method joint --per macs --surrogate …`, {data['per_class']} images a class to order, to test and to refit on. By margin: % of all units in the sets within it, "
        "each of them tested; a better order has larger sets. By target: accuracy in %, refitted. Seconds are of one core, beside other work.", "",
        *table(["network", "surrogate", *head, "joint cuts", "seconds"], rows),
    ]  # fmt: skip
