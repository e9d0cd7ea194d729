"""Do the sets of `joint` keep their margin on new samples? Sets tested on the samples that compensate them, and by folds.

    python benchmarks/experiments/joint_margins.py [--networks resnet20,mobilenet_v2] [--per-class 16] [--cifar DIR] [--work DIR] [--seed 0]

Every group's largest set within each margin is cut alone, its readers compensated from all calibration samples, and measured on 100 test images
a class. A set is broken where a class's mean loss there is above its margin with 99.5 % confidence (one-sided t, 0.05 over ten classes).
"""

from __future__ import annotations

import copy
import json
from typing import Any

import numpy as np
import torch
from _experiment import Given, main, wilson
from _stores import GB, held_out_set, opened, tell
from torch import nn

import cswap
from cswap.causal.compensation import CompensatedPlainEngine
from cswap.causal.engine import exact
from cswap.causal.margins import surely_lost
from cswap.causal.stats import Moments
from cswap.data.calibration import CalibrationSet
from cswap.tasks import Classification
from cswap.types import FloatArray
from results_common import Said, short, sign, yes_no

FOLDS = (1, 4)
MARGINS = "0.02,0.05,0.1,0.2"
HELD = 100
"""Test images a class."""


def sigmas(net: nn.Module, held: CalibrationSet) -> FloatArray:
    """σ of every sample, (M,)."""
    with torch.inference_mode(), exact(torch.device("cpu"), False):
        found = [Classification().score(net(x), torch.as_tensor(t)) for x, t in held.batches(64)]
    return torch.cat(found).numpy()


def tested(given: Given, network: str, per_class: int, folds: int) -> list[dict[str, Any]]:
    """Every set within a margin: what was said of it, and what it does to new samples."""
    c, structure = opened(network, given.images, per_class, given.seed)
    held = held_out_set(c, HELD)
    path = cswap.prune_path(c.model, c.calibration, structure=structure, method="joint", margins=MARGINS, folds=folds)
    assert path.sensitivity is not None
    engine = CompensatedPlainEngine(c.model, structure, c.calibration, Classification(), memory=4 * GB)
    base, found = sigmas(engine.net, held), []
    classes = range(len(held.classes))
    for group in structure:
        said = path.sensitivity["groups"][group.name]
        probes = {p["units"]: p for p in said["probes"]}
        engine.enter(group)
        for units in sorted({k for _, k in said["sets"] if k}):
            cut = copy.deepcopy(engine)
            cut.remove(group.name, said["order"][:units])
            change = sigmas(cut.net, held) - base
            by_class = Moments.of(np.stack([change[held.targets == k] for k in classes]))
            found.append({
                "group": group.name, "units": units, "margin": min(m for m, k in said["sets"] if k == units), "said": probes[units]["change"],
                "change": float((change**2).mean()), "surely_lost": float(surely_lost(by_class, 0.05 / len(classes)).max()),
            })  # fmt: skip
        engine.compensation.forget()
        tell(f"{network}, {folds} folds: {group.name}")
    return found


def summary(sets: list[dict[str, Any]]) -> dict[str, Any]:
    """How many sets there are, how many are broken, and the change that new samples show over what was said."""
    broken = sum(s["surely_lost"] > s["margin"] for s in sets)
    return {
        "sets": len(sets), "broken": broken, "interval": wilson(broken, len(sets)),
        "over": sum(s["change"] for s in sets) / sum(s["said"] for s in sets), "units": sum(s["units"] for s in sets),
    }  # fmt: skip


def run(given: Given) -> dict[str, Any]:
    """Both ways to test, on each network."""
    networks: dict[str, Any] = {}
    for network in given.networks:
        for per_class in given.sizes((16,)):
            ways = {}
            for folds in FOLDS:
                file = given.work / f"{network}.{per_class}.{folds}.{given.seed}.json"
                if not file.exists():
                    file.write_text(json.dumps(tested(given, network, per_class, folds)))
                ways[str(folds)] = summary(json.loads(file.read_text()))
            networks[f"{network}, {per_class} samples a class"] = ways
    return {"networks": networks, "margins": MARGINS, "held_out": HELD}


def _ways(data: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """By network, what each number of folds gave."""
    return {short(n): d for n, d in data["networks"].items()}


def answer(data: dict[str, Any]) -> Said:
    """Yes where at most one set in twenty is broken."""
    ways = _ways(data)
    return Said(
        yes_no({n: sign(0.05 * d["1"]["sets"] - d["1"]["broken"] + 1e-9) for n, d in ways.items()}, "one run each"),
        "; ".join(
            f"{d['1']['broken']} of {d['1']['sets']} sets lose a class more, and change scores {d['1']['over']:.1f}× what was priced; with 4 folds "
            f"{d['4']['broken']} of {d['4']['sets']}, {d['4']['over']:.1f}×"
            for d in ways.values()
        ),
        f"{', '.join(ways)}; {HELD} test images a class",
    )


def finding(data: dict[str, Any]) -> str:
    """Two sentences."""
    said = [
        f"on {n} {d['1']['broken']} of {d['1']['sets']} sets cost a class surely more than their margin, with 4 folds {d['4']['broken']} of {d['4']['sets']}"
        for n, d in _ways(data).items()
    ]
    over = [f"{d['1']['over']:.2f} and {d['4']['over']:.2f} times on {n}" for n, d in _ways(data).items()]
    return (
        f"Of the largest sets within a margin, {'; '.join(said)}. What they do to new samples (the mean square that sets are priced by) is, without folds and with "
        f"4, {'; '.join(over)} what was said of them."
    )


def section(data: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table."""
    rows = [
        [n, folds, str(w["sets"]), f"{w['units']:,}", f"{w['broken']} ({100 * w['interval'][0]:.0f} to {100 * w['interval'][1]:.0f} %)", f"{w['over']:.2f}"]
        for n, ways in _ways(data).items() for folds, w in ways.items()
    ]  # fmt: skip
    return [
        "network",
        "folds",
        "sets",
        "units in them",
        "broken on new samples",
        "change on new samples over that said",
    ], rows


def figure(data: dict[str, Any], plt: Any) -> Any:
    """Change on new samples over what was said."""
    ways = _ways(data)
    fig, axes = plt.subplots(1, 2, figsize=(8, 3))
    for i, folds in enumerate(str(f) for f in FOLDS):
        x = np.arange(len(ways)) + 0.4 * i - 0.2
        label = "tested on what compensates" if folds == "1" else f"{folds} folds"
        axes[0].bar(x, [d[folds]["over"] for d in ways.values()], 0.38, label=label)
        share = np.asarray([d[folds]["broken"] / d[folds]["sets"] for d in ways.values()])
        low, high = (np.asarray([d[folds]["interval"][i] for d in ways.values()]) for i in (0, 1))
        axes[1].errorbar(
            x, 100 * share, 100 * np.maximum(0, [share - low, high - share]), fmt="o", capsize=4, label=label
        )
    for ax, said in zip(axes, ("change on new samples over that said", "sets beyond their margin, %"), strict=True):
        ax.set_xticks(range(len(ways)), list(ways), fontsize=8)
        ax.set_ylabel(said, fontsize=8)
    axes[0].axhline(1.0, color="0.4", lw=0.8)
    axes[0].set_ylim(0, 1.35 * max(w["over"] for d in ways.values() for w in d.values()))
    axes[0].legend(fontsize=8, loc="upper left")
    axes[1].set_ylim(-0.5, 20)
    fig.tight_layout()
    return fig


if __name__ == "__main__":
    main("joint_margins", run, __doc__ or "", ("resnet20", "mobilenet_v2", "resnet18"))
