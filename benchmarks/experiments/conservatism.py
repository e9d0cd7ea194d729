"""Does the vote overestimate criticality? Units called critical whose removal, alone and together, costs nothing on held-out
images; each class split into 2 and 4 pseudo-classes; corrections and --min-effect against it.

    python benchmarks/experiments/conservatism.py [--cifar DIR] [--work DIR] [--seed 0]

ResNet-20: 16 and 128 samples a class decide, 100 test images a class measure every unit alone, 10,000 measure what goes together.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from _experiment import Given, main
from _stores import accuracy, counts, held_out_set, measured, split_classes, verdicts, without

from cswap.causal.store import measure_differences
from cswap.causal.verdicts import VoteRule
from cswap.tasks import Classification
from results_common import Said, sign, yes_no

NETWORK, SIZES, HELD_OUT = "resnet20", (16, 128), 100
TEST_IMAGES = 10_000
RULES = {
    "paper": VoteRule(),
    "Holm": VoteRule(correction="holm"),
    "Benjamini–Hochberg": VoteRule(correction="bh"),
    **{f"min effect {e:g}": VoteRule(min_effect=e) for e in (0.0005, 0.001, 0.002, 0.005, 0.01)},
    "pooled": VoteRule(vote="pooled"),
}


def run(given: Given) -> dict[str, Any]:
    """Verdicts by every rule and size, and what the units they let go cost on held-out images."""
    stores = {}
    for m in SIZES:
        stores[m], c, structure = measured(NETWORK, given.images, m, given.seed, given.work.parent)
    held = held_out_set(c, HELD_OUT)
    seen = measure_differences(
        c.model, structure, held, Classification(), file=given.work / f"held_out.{HELD_OUT}.safetensors"
    )
    loss = {}  # mean loss of the worst class's score on held-out images
    for group, d in seen.differences.items():
        by_class = np.stack([-d[:, seen.targets == k].mean(1) for k in range(len(seen.classes))], axis=1)
        loss |= {(group, n): float(by_class[n].max()) for n in range(len(d))}
    everything = held_out_set(c, 1000)
    inputs, targets = everything.inputs(0, len(everything)), everything.targets
    base = accuracy(c.model, inputs, targets)

    def without_all(units: list[tuple[str, int]]) -> float:
        free: dict[str, list[int]] = {}
        for group, n in units:
            if len(free.setdefault(group, [])) < structure[group].size - 1:
                free[group].append(n)
        return accuracy(without(c.model, structure, free), inputs, targets) if units else base

    found = {str(m): judged(store, loss, without_all, given.seed) for m, store in stores.items()}
    null = 1 - (1 - VoteRule().alpha / 2) ** len(seen.classes)
    return {
        "network": NETWORK, "held_out_per_class": HELD_OUT, "units": structure.units, "accuracy": base, "sizes": found,
        "false_critical_of_a_null_unit": null,
    }  # fmt: skip


def judged(store: Any, loss: dict[tuple[str, int], float], without_all: Any, seed: int) -> dict[str, Any]:
    """What the rules say with one store, what is harmless of it, alone and together, and what split classes do."""
    rows, together = {}, {}
    for name, rule in RULES.items():
        found = verdicts(store, rule)
        critical = [k for k, v in found.items() if v == "critical"]
        rows[name] = {
            **counts(found), "critical_that_cost_no_class_a_thousandth": sum(loss[k] <= 1e-3 for k in critical),
            "free_together_accuracy": without_all([k for k, v in found.items() if v != "critical"]),
        }  # fmt: skip
    ranked = sorted((k for k, v in verdicts(store, VoteRule()).items() if v == "critical"), key=loss.__getitem__)
    for most in (0.0005, 0.001, 0.002, 0.005):
        gone = [k for k in ranked if loss[k] <= most]
        together[str(most)] = {"units": len(gone), "accuracy": without_all(gone)}
    pseudo = {str(p): counts(verdicts(split_classes(store, p, seed), VoteRule())) for p in (1, 2, 4)}
    return {"rules": rows, "harmless_together": together, "pseudo_classes": pseudo}


def answer(data: dict[str, Any]) -> Said:
    """Whether units that it calls critical cost no class anything."""
    rules = {m: d["rules"]["paper"] for m, d in data["sizes"].items()}
    free = {m: r["critical_that_cost_no_class_a_thousandth"] for m, r in rules.items()}
    found = {f"{data['network']} at {m}": sign(free[m] / r["critical"] - 0.05) for m, r in rules.items()}
    return Said(
        yes_no(found, "one run each"),
        "; ".join(f"{free[m]} of {r['critical']} critical units cost no class a thousandth" for m, r in rules.items()),
        f"{', '.join(found)}; {data['held_out_per_class']} held-out images a class",
    )


def finding(data: dict[str, Any]) -> str:
    """What the vote calls critical, what of it is harmless, and what more classes do, as far as the figures tell."""
    return " ".join(_told(m, data | found) for m, found in data["sizes"].items())


def _told(size: str, data: dict[str, Any]) -> str:
    paper, most = data["rules"]["paper"], data["rules"]["min effect 0.002"]
    return (
        f"With {size} samples a class the vote calls {paper['critical']} of {data['units']} units critical, and {paper['critical_that_cost_no_class_a_thousandth']} of "
        f"them cost no class more than a thousandth of mean score on held-out images. {_together(data)} {_pseudo(data)} "
        f"--min-effect 0.002 leaves {most['critical']} critical (without its free units: {100 * most['free_together_accuracy']:.2f} %, "
        f"before: {100 * data['accuracy']:.2f} %)."
    )


def _together(data: dict[str, Any]) -> str:
    """Whether what is harmless one by one is harmless together."""
    free = data["harmless_together"]["0.001"]
    if free["units"] < 2:
        return f"So few units ({free['units']}) are harmless one by one that this cannot show whether such units are harmless together."
    loss = data["accuracy"] - free["accuracy"]
    error = np.sqrt(max(data["accuracy"] * (1 - data["accuracy"]), 1e-12) / TEST_IMAGES)
    says = "is not harmless together" if loss > 2 * error else "shows no harm together either"
    return (
        f"{free['units']} such units together take accuracy from {100 * data['accuracy']:.2f} to {100 * free['accuracy']:.2f} %: "
        f"what is harmless one by one {says} (two standard errors of an accuracy: {200 * error:.2f} points)."
    )


def _pseudo(data: dict[str, Any]) -> str:
    """Whether more, smaller classes make the vote call more units critical, or fewer."""
    whole, two, four = (data["pseudo_classes"][p]["critical"] for p in ("1", "2", "4"))
    told = f"With each class split at random into 2 and 4 the vote finds {two} and {four} critical"
    if whole == two == four:
        return f"{told}, as without" + (
            ": all units are critical already, so this cannot show whether more classes bring more false alarms."
            if whole == data["units"]
            else ": power lost to smaller classes and false alarms of more classes are even here."
        )
    if two <= whole and four <= whole:
        return f"{told}, {whole} without: the power that a smaller class loses outweighs the false alarms that more classes bring."
    if two >= whole and four >= whole:
        return f"{told}, {whole} without: the false alarms that more classes bring outweigh the power that a smaller class loses."
    return f"{told}, {whole} without: neither false alarms nor lost power decides both."


def section(data: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table."""
    head = [
        "samples a class",
        "rule",
        "critical",
        "neutral",
        "detrimental",
        "critical that cost no class 0.001",
        "accuracy without all that it lets go, %",
    ]
    rows = []
    for m, found in data["sizes"].items():
        rows += [
            [m, name, str(r["critical"]), str(r["neutral"]), str(r["detrimental"]), str(r["critical_that_cost_no_class_a_thousandth"]),
             f"{100 * r['free_together_accuracy']:.2f}"]
            for name, r in found["rules"].items()
        ]  # fmt: skip
        rows += [[m, f"paper, classes split in {p}", str(r["critical"]), str(r["neutral"]), str(r["detrimental"]), "–", "–"]
                 for p, r in found["pseudo_classes"].items() if p != "1"]  # fmt: skip
    return head, rows


def figure(data: dict[str, Any], plt: Any) -> Any:
    """Accuracy against units let go at once."""
    fig, axes = plt.subplots(1, len(data["sizes"]), figsize=(5 * len(data["sizes"]), 3.2), squeeze=False)
    for ax, (m, found) in zip(axes[0], data["sizes"].items(), strict=True):
        for name, r in found["rules"].items():
            x = r["neutral"] + r["detrimental"]
            ax.plot(x, 100 * r["free_together_accuracy"], "o", label=name, alpha=0.7)
        t = list(found["harmless_together"].values())
        ax.plot(
            [v["units"] for v in t],
            [100 * v["accuracy"] for v in t],
            "k--x",
            label="critical units that cost no class …",
        )
        ax.axhline(100 * data["accuracy"], color="grey", lw=0.8)
        ax.set_title(f"{m} samples a class")
        ax.set_xlabel(f"units removed at once, of {data['units']}")
        ax.set_ylabel("test accuracy, %")
    axes[0][-1].legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1.02, 0.5))
    fig.tight_layout()
    return fig


if __name__ == "__main__":
    main("conservatism", run, __doc__ or "")
