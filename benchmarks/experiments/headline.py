"""C-SWAP against OMP (one-shot magnitude pruning) and random, 0–80 %, on CIFAR-10 (JPEG): five calibration seeds.

    python benchmarks/experiments/headline.py [--networks resnet20,resnet18,resnet18-pooled] [--per-class M] [--jobs N] [--cifar DIR] [--work DIR]

ResNet-20 with the paper's 128 samples a class and 10,000 test images; ResNet-18, scaled down to two cores, with 8 a class (--per-class says otherwise), 32 to refit on, fewer ratios and 2,000 images; by
pooled votes under the name resnet18-pooled; an hour for each. The headline of the paper, more than 95 % accuracy kept at 50 % pruning: absolute and
relative to the unpruned network, for each way to count the ratio. Intervals: Student's t over seeds, paired with the baseline.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from _experiment import RESULTS, Given, main
from _runs import at, compared
from scipy import stats
from voting import half_kept

from results_common import Said, sign, yes_no

METHODS, SEEDS = ("cswap", "magnitude:layer", "random:layer"), (0, 1, 2, 3, 4)
PER_CLASS, TO_REFIT, IMAGES = (
    {"resnet20": 128, "resnet18": 8, "resnet18-pooled": 8},
    {"resnet20": 128, "resnet18": 32},
    {"resnet18": 2000},
)
RATIOS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
FEWER = {"resnet18": (0.0, 0.2, 0.4, 0.5, 0.6, 0.8)}


def interval(values: list[float]) -> list[float]:
    """Mean, and the half width of its 95 % interval over seeds."""
    v = np.asarray(values)
    half = float(stats.t.ppf(0.975, len(v) - 1) * v.std(ddof=1) / np.sqrt(len(v))) if len(v) > 1 else 0.0
    return [float(v.mean()), half]


def one(given: Given, name: str) -> dict[str, Any]:
    """One comparison, every seed; name: the network, and how it votes where not by class."""
    network, _, vote = name.partition("-")
    (per_class,) = given.sizes((PER_CLASS[name],))
    asked = FEWER.get(network, RATIOS)
    result = compared(
        given, network, METHODS, name=f"{name}-{per_class}", vote=vote or "class", per_class=per_class, ratios=asked, kinds=("params", "macs@0.2/0.5", "units@0.2/0.5"), seeds=SEEDS,
        recover=("none", "lstsq@0.5"), recover_per_class=TO_REFIT[network], eval_samples=IMAGES.get(network),
    )  # fmt: skip
    curves: dict[str, Any] = {}
    for kind, ratios in (("params", asked), ("macs", (0.2, 0.5)), ("units", (0.2, 0.5))):
        for method in METHODS:
            for how in ("none", "lstsq"):
                for r in ratios if how == "none" else (0.5,):
                    values = [at(result, method, kind, r, s, how) for s in SEEDS]
                    if all(v is not None for v in values):
                        curves.setdefault(kind, {}).setdefault(method, {}).setdefault(how, {})[str(r)] = {
                            "by_seed": values, "accuracy": interval(values),
                        }  # fmt: skip
    return {
        "per_class": per_class, "held_out": result["held_out_samples"], "unpruned": result["unpruned"]["quality"]["accuracy"],
        "curves": curves, "sauce": {m: [result["methods"][m]["by_seed"][str(s)]["sauce"]["none"] for s in SEEDS] for m in METHODS},
        "seconds": {m: result["methods"][m]["seconds"] for m in METHODS},
        "verdicts": {str(s): result["methods"]["cswap"]["by_seed"][str(s)]["verdicts"] for s in SEEDS},
    }  # fmt: skip


def run(given: Given) -> dict[str, Any]:
    """Every network."""
    return {"seeds": list(SEEDS), "networks": {n: one(given, n) for n in given.networks}}


def titled(name: str) -> str:
    """The network, and how it votes where not by class."""
    network, _, vote = name.partition("-")
    return f"{network}, {vote} votes" if vote else network


def told(network: str, data: dict[str, Any]) -> str:
    """What one network says."""
    base, parts = data["unpruned"], []
    for kind in ("params", "macs", "units"):
        c = data["curves"][kind]["cswap"]
        plain, back = c["none"]["0.5"]["accuracy"][0], c["lstsq"]["0.5"]["accuracy"][0]
        parts.append(
            f"{kind}: {100 * plain:.1f} % ({100 * plain / base:.0f} % of the unpruned), refitted {100 * back:.1f} % ({100 * back / base:.0f} %)"
        )
    told_of = []
    for baseline in METHODS[1:]:
        over = paired(data["curves"]["params"], baseline, "none")
        ahead, behind = ([r for r, (mean, half) in over.items() if sign(mean, half) == s] for s in (1, -1))
        told_of.append(f"of {baseline} at {', '.join(ahead) or 'none'}, and behind it at {', '.join(behind) or 'none'}")
    back_by = [
        f"{kind} {baseline} {100 * mean:+.1f} ± {100 * half:.1f}"
        for kind in ("params", "macs", "units") for baseline in METHODS[1:]
        for mean, half in [paired(data["curves"][kind], baseline, "lstsq")["0.5"]] if sign(mean, half)
    ]  # fmt: skip
    reached = any(data["curves"][k]["cswap"]["none"]["0.5"]["accuracy"][0] >= 0.95 * base for k in data["curves"])
    absolute = ", so that 95 % absolute is out of reach for any method" if base < 0.95 else ""
    return (
        f"{titled(network)}, {data['per_class']} samples a class: the headline is {'' if reached else 'not '}reproduced without recovery; with half removed "
        f"C-SWAP keeps {'; '.join(parts)} (unpruned {100 * base:.1f} %{absolute}). Beyond the spread of five "
        f"calibration seeds, paired, it is by params ahead {'; ahead '.join(told_of)}; refitted with half removed it differs from {', '.join(back_by) or 'neither'}."
    )


def finding(data: dict[str, Any]) -> str:
    """Two sentences a network, and what the other vote says."""
    other = RESULTS / "experiment_voting.json"
    beside = (
        f" Where pooled votes are not named, all this is by class votes. {half_kept(json.loads(other.read_text()))}"
        if other.exists()
        else ""
    )
    return " ".join(told(n, d) for n, d in data["networks"].items()) + beside


def answer(data: dict[str, Any]) -> Said:
    """Whether 95 % of the accuracy stay with half of the parameters gone."""
    found, left, where = {}, [], []
    for name, d in data["networks"].items():
        points = d["curves"]["params"]["cswap"]
        (mean, half), back = points["none"]["0.5"]["accuracy"], points["lstsq"]["0.5"]["accuracy"]
        found[titled(name)] = sign(mean - 0.95 * d["unpruned"], half)
        left.append(f"{100 * mean:.1f} ± {100 * half:.1f} of {100 * d['unpruned']:.1f} %, refitted {100 * back[0]:.1f}")
        where.append(f"{titled(name)}, {d['per_class']} a class, {len(data['seeds'])} draws")
    return Said(yes_no(found), "; ".join(left), "; ".join(where))


def paired(methods: dict[str, Any], baseline: str, how: str) -> dict[str, list[float]]:
    """By ratio: C-SWAP's accuracy less a baseline's, paired by the draw of calibration samples, and the half width of its 95 % interval."""
    mine, other = methods["cswap"].get(how, {}), methods[baseline].get(how, {})
    return {
        r: interval([x - y for x, y in zip(p["by_seed"], other[r]["by_seed"], strict=True)])
        for r, p in mine.items()
        if r in other and float(r) > 0
    }


def section(data: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table."""
    rows = []

    def row(network: str, kind: str, method: str, how: str, points: dict[str, list[float]], sign: str = "") -> None:
        cells = {r: f"{100 * mean:{sign}.1f} ± {100 * half:.1f}" for r, (mean, half) in points.items()}
        way = "plain" if how == "none" else how
        rows.append([titled(network), kind, method, way, *(cells.get(str(r), "–") for r in RATIOS[1:])])

    for network, found in data["networks"].items():
        for kind, methods in found["curves"].items():
            for method, ways in methods.items():
                for how, points in ways.items():
                    row(network, kind, method, how, {r: p["accuracy"] for r, p in points.items()})
            for baseline in METHODS[1:]:
                for how in methods["cswap"]:
                    row(network, kind, f"cswap − {baseline}", how, paired(methods, baseline, how), "+")
    return ["network", "removed", "method", "recovery", *(f"{r:g}" for r in RATIOS[1:])], rows


def figure(data: dict[str, Any], plt: Any) -> Any:
    """Curves with the spread of seeds."""
    fig, axes = plt.subplots(1, len(data["networks"]), figsize=(6 * len(data["networks"]), 3.4), squeeze=False)
    for ax, (network, found) in zip(axes[0], data["networks"].items(), strict=True):
        for method, ways in found["curves"]["params"].items():
            points = {float(r): p["accuracy"] for r, p in ways["none"].items()}
            x = sorted(points)
            ax.errorbar(
                x, [100 * points[r][0] for r in x], yerr=[100 * points[r][1] for r in x], fmt="o-", capsize=2, label=method
            )  # fmt: skip
        ax.axhline(95 * found["unpruned"], color="grey", lw=0.8, ls="--")
        ax.annotate("95 % of the unpruned", (0.8, 95 * found["unpruned"]), ha="right", va="top", fontsize=7)
        ax.set_title(titled(network))
        ax.set_xlabel("parameters removed")
        ax.set_ylabel("test accuracy, %")
        ax.legend(frameon=False)
    return fig


if __name__ == "__main__":
    main("headline", run, __doc__ or "", tuple(PER_CLASS))
