"""Sample efficiency and class correlation, and whether a class is sacrificed.

    python benchmarks/experiments/classes.py [--cifar DIR] [--work DIR] [--seed 0]

ResNet-20, 256 samples a class: verdicts of smaller sizes against those of 256; do classes that the network confuses need the
same units; and the worst class of pruned ResNet-18s (results/methods_resnet18.json).
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch
from _experiment import RESULTS, Given, main, spearman
from _stores import measured, verdicts
from scipy.stats import rankdata

from cswap.causal.verdicts import VoteRule
from results_common import Said, sign, yes_no

NETWORK, PER_CLASS, SIZES = "resnet20", 256, (8, 16, 32, 64, 128, 256)


def run(given: Given) -> dict[str, Any]:
    """Everything from the store, but for the confusion matrix."""
    store, c, structure = measured(NETWORK, given.images, PER_CLASS, given.seed, given.work.parent)
    found = {m: verdicts(store, VoteRule(), m) for m in SIZES}
    last = found[PER_CLASS]
    sizes = {
        str(m): {
            "critical": sum(x == "critical" for x in v.values()),
            "agrees": sum(v[k] == last[k] for k in v) / len(v),
            "missed": sum(v[k] != "critical" and last[k] == "critical" for k in v),
        }
        for m, v in found.items()
    }
    means = np.concatenate(
        [
            np.stack([d[:, store.targets == k].mean(1) for k in range(len(store.classes))], axis=1)
            for d in store.differences.values()
        ]
    )
    needs = np.corrcoef(np.argsort(np.argsort(means, axis=0), axis=0).T)  # Spearman, class by class
    confused = np.zeros((len(store.classes), len(store.classes)))
    with torch.inference_mode():
        for i in range(0, len(c.calibration), 250):
            p = c.model(c.calibration.inputs(i, min(i + 250, len(c.calibration)))).softmax(1).double().numpy()
            for row, t in zip(p, c.calibration.targets[i : i + 250], strict=True):
                confused[t] += row / PER_CLASS
    upper = np.triu_indices(len(store.classes), 1)
    both = (confused + confused.T)[upper]
    worst = {}
    other = RESULTS / "methods_resnet18.json"
    if other.exists():
        data = json.loads(other.read_text())
        base = min(data["unpruned"]["quality"]["by_class"])
        worst["unpruned"] = {"worst": base, "mean": data["unpruned"]["quality"]["accuracy"]}
        for name, x in data["methods"].items():
            for p in x["points"]:
                if p["asked"].get("params") == 0.5:
                    worst[name] = {
                        how: {"worst": p["worst_class"][how], "mean": p["accuracy"][how]} for how in p["accuracy"]
                    }
    top = sorted(zip(needs[upper].tolist(), both.tolist(), [(store.classes[i], store.classes[j]) for i, j in zip(*upper, strict=True)],
                     strict=True), reverse=True)  # fmt: skip
    return {
        "network": NETWORK, "per_class": PER_CLASS, "units": structure.units, "classes": list(store.classes), "sizes": sizes,
        "needs_correlation": needs.tolist(), "confusion": confused.tolist(), "needs_against_confusion": spearman(needs[upper], both),
        "closest": [{"classes": list(names), "needs": n, "confused": x} for n, x, names in top[:3]], "worst_class": worst,
    }  # fmt: skip


def mantel(data: dict[str, Any], permutations: int = 9999) -> float:
    """Two-sided p of `needs_against_confusion`: rows and columns of one matrix permuted together (Mantel, 1967), as pairs share classes."""
    needs, confused = (np.array(data[k]) for k in ("needs_correlation", "confusion"))
    upper, rng = np.triu_indices(len(needs), 1), np.random.default_rng(0)
    both = rankdata((confused + confused.T)[upper])
    ranks = np.zeros_like(needs)
    ranks[upper] = rankdata(needs[upper])
    ranks += ranks.T
    seen = abs(np.corrcoef(ranks[upper], both)[0, 1]) - 1e-12
    orders = (rng.permutation(len(needs)) for _ in range(permutations))
    as_far = sum(abs(np.corrcoef(ranks[np.ix_(o, o)][upper], both)[0, 1]) >= seen for o in orders)
    return float((1 + as_far) / (1 + permutations))


def answer(data: dict[str, Any]) -> Said:
    """Whether classes that the network confuses lose by the same cuts."""
    rho, p = data["needs_against_confusion"], mantel(data)
    return Said(
        yes_no({data["network"]: sign(rho) if p < 0.05 else 0}, "one run"),
        f"rank correlation {rho:+.2f} over pairs of classes, permutation p {p:.2f}; a softmax gives one class what it takes from another, which alone makes it negative",
        f"{data['network']} at {data['per_class']}",
    )


def finding(data: dict[str, Any]) -> str:
    """Two sentences."""
    rho, p = data["needs_against_confusion"], mantel(data)
    shared = (
        f"classes need the same units the {'more' if rho > 0 else 'less'} the network confuses them"
        if p < 0.05
        else "whether confused classes need the same units cannot be told"
    )
    s, first = data["sizes"], data["closest"][0]
    kept = {n: v for n, v in data["worst_class"].items() if n != "unpruned"}
    gap = {(n, how): q["mean"] - q["worst"] for n, v in kept.items() for how, q in v.items() if q["mean"] > 0.8}
    text = (
        f"Verdicts from 32 samples a class agree with those from 256 for {100 * s['32']['agrees']:.0f} % of the units and miss "
        f"{s['32']['missed']} that are critical there (128: {100 * s['128']['agrees']:.0f} %, {s['128']['missed']}); {shared} "
        f"(rank correlation {rho:.2f} over pairs of classes, permutation p {p:.2f}; most alike in what they need: {' and '.join(first['classes'])})."
    )
    if gap:
        (name, how), most = max(gap.items(), key=lambda x: x[1])
        base = data["worst_class"]["unpruned"]
        text += (
            f" In ResNet-18 with half of the parameters gone the worst class is {100 * (base['mean'] - base['worst']):.1f} points below the mean "
            f"unpruned and at most {100 * most:.1f} below it where the mean stays above 80 % ({name}, {how})."
        )
    return text


def section(data: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table."""
    return ["samples a class", "critical", "agree with 256, %", "critical at 256 and missed"], [
        [m, str(r["critical"]), f"{100 * r['agrees']:.1f}", str(r["missed"])] for m, r in data["sizes"].items()
    ]


def figure(data: dict[str, Any], plt: Any) -> Any:
    """Which classes need the same units, beside which are confused."""
    fig, axes = plt.subplots(1, 2, figsize=(8, 3.6))
    needs, confused = (np.array(data[k]) for k in ("needs_correlation", "confusion"))
    np.fill_diagonal(needs, np.nan)
    np.fill_diagonal(confused, np.nan)
    for ax, m, title in zip(
        axes,
        (needs, confused),
        ("need the same units (rank correlation)", "probability given to another class"),
        strict=True,
    ):
        image = ax.imshow(m, cmap="viridis")
        ax.set_xticks(range(len(m)), data["classes"], rotation=90, fontsize=7)
        ax.set_yticks(range(len(m)), data["classes"], fontsize=7)
        ax.set_title(title, fontsize=9)
        ax.grid(False)
        fig.colorbar(image, ax=ax, shrink=0.8)
    return fig


if __name__ == "__main__":
    main("classes", run, __doc__ or "")
