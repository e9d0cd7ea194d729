"""C-SWAP against C-BP against the ideal greedy: do rankings go stale, and where?

    python benchmarks/experiments/stale.py [--cifar DIR] [--work DIR] [--seed 0]

Staleness: ξ of every unit of ResNet-20 on the original network, and again with 1, 2, 5, 10, 25 and 50 % of the units gone along C-BP's
path (32 samples a class), beside how much of the calibration set is still right. The three methods on one curve: the small ResNet on scikit-learn's digits that `cswap demo` trains,
where the ideal greedy can be computed.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from _experiment import Given, main, spearman
from _stores import measured, tell

import cswap
from cswap.causal.engine import Engine
from cswap.causal.judge import Judge
from cswap.causal.replay import engine_for
from cswap.causal.verdicts import VoteRule
from cswap.data.calibration import calibration_set
from cswap.demo import digits, digits_resnet, train
from cswap.evaluate.curve import quality_curve, sauce
from cswap.structure.discover import discover
from cswap.tasks import Classification
from results_common import Said, sign, yes_no

NETWORK, PER_CLASS, GONE = "resnet20", 32, (0.01, 0.02, 0.05, 0.1, 0.25, 0.5)
WORKS = 0.8
"""Share of the calibration set that a network that still works gets right."""
METHODS, RATIOS = ("cswap", "cbp", "greedy"), (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)


def xi_now(engine: Engine, judge: Judge, gone: dict[str, set[int]]) -> dict[str, dict[int, float]]:
    """ξ of every unit that is left, on the network as it stands."""
    return {
        g.name: {
            n: float(judge.judge(scores, base).xi or 0.0)
            for n, scores, base in engine.one_by_one(g, [n for n in range(g.size) if n not in gone.get(g.name, set())])
        }
        for g in engine.structure
    }


def staleness(given: Given) -> dict[str, Any]:
    """Rank correlation by group between ξ at first and ξ of what is left later."""
    _, c, structure = measured(NETWORK, given.images, PER_CLASS, given.seed, given.work.parent)
    path = cswap.prune_path(c.model, c.calibration, structure=structure, method="cbp")
    judge = Judge(c.calibration, VoteRule())
    removed = [d for d in path if d.removed]
    first: dict[str, dict[int, float]] = {g.name: {} for g in structure}
    for d in path:
        if d.phase == "test":
            first[d.group][d.unit] = float(d.xi or 0.0)
    found = {}
    for part in GONE:
        tell(f"xi with {part:.0%} gone")
        engine = engine_for(c.model, structure, c.calibration, Classification(), memory=4 << 30)
        gone: dict[str, set[int]] = {}
        for d in removed[: math.ceil(part * structure.units)]:
            gone.setdefault(d.group, set()).add(d.unit)
        for group, units in gone.items():
            engine.remove(group, sorted(units))
        now = xi_now(engine, judge, gone)
        quality = float(engine.scores().quality.mean())
        by_group = {g: spearman([first[g][n] for n in v], list(v.values())) for g, v in now.items() if len(v) > 3}
        keys = [(g, n) for g, v in now.items() for n in v]
        found[str(part)] = {
            "calibration_quality": quality, "by_group": {g: None if math.isnan(r) else r for g, r in by_group.items()},
            "all": spearman([first[g][n] for g, n in keys], [now[g][n] for g, n in keys]),
        }  # fmt: skip
    return {"groups": [g.name for g in structure], "at": found}


def on_digits(seed: int) -> dict[str, Any]:
    """Curves by parameters, held out, of the three methods."""
    torch.manual_seed(seed)
    train_set, test_set = digits(seed)
    model = digits_resnet()
    train(model, train_set, seed=seed)
    calibration = calibration_set(train_set, 32, seed)
    structure = discover(model, calibration.inputs(0, 2))
    found = {}
    for method in METHODS:
        tell(f"digits: {method}")
        path = cswap.prune_path(model, calibration, structure=structure, method=method)
        curves = {}
        for kind in ("params", "macs", "units"):
            points = quality_curve(model, path, test_set, Classification(), list(RATIOS), kind=kind)
            curves[kind] = [{"removed": p["ratio"][kind], "accuracy": p["quality"]["accuracy"]} for p in points]
        area = sauce(
            [p["removed"] for p in curves["params"]],
            [p["accuracy"] for p in curves["params"]],
            curves["params"][0]["accuracy"],
        )
        found[method] = {"curves": curves, "sauce": area}
    return found


def run(given: Given) -> dict[str, Any]:
    """Both."""
    return {"network": NETWORK, "per_class": PER_CLASS, "staleness": staleness(given), "digits": on_digits(given.seed)}


def answer(data: dict[str, Any]) -> Said:
    """Whether ranks of ξ hold while the network still works: at the last point where most of its quality is left."""
    at = data["staleness"]["at"]
    part = _looked_at(at)
    found = at[part]
    works = found["calibration_quality"] >= WORKS
    said = yes_no({NETWORK: sign(0.8 - found["all"]) if works else 0}, "one run")
    figures = f"rank correlation {found['all']:+.2f} with {100 * float(part):g} % of the units gone, where {100 * found['calibration_quality']:.0f} % of the samples are right"
    return Said(said, figures, f"{NETWORK} at {PER_CLASS}, along C-BP's path")


def finding(data: dict[str, Any]) -> str:
    """Two sentences."""
    at, groups = data["staleness"]["at"], data["staleness"]["groups"]
    told = ", ".join(
        f"{100 * float(p):g} %: {f['all']:+.2f} ({100 * f['calibration_quality']:.0f} % right)" for p, f in at.items()
    )
    part = _looked_at(at)
    by_group = {g: r for g, r in at[part]["by_group"].items() if r is not None}
    freshest, stalest = max(by_group, key=lambda g: by_group[g]), min(by_group, key=lambda g: by_group[g])
    trend = spearman([groups.index(g) for g in by_group], list(by_group.values()))
    d = data["digits"]
    return (
        f"The rank correlation of ξ with ξ on the original network, by the units gone along C-BP's path, and what is right of the calibration set there: {told}. With "
        f"{100 * float(part):g} % gone it is least in {stalest} ({by_group[stalest]:.2f}) and most in {freshest} ({by_group[freshest]:.2f}); against the distance from the "
        f"output it has a trend of {trend:+.2f} over {len(by_group)} groups. On the digits the area "
        f"under the curve is {d['greedy']['sauce']:.3f} for the ideal greedy, {d['cswap']['sauce']:.3f} for C-SWAP and {d['cbp']['sauce']:.3f} for C-BP"
        + (
            ", whose curves are the same point for point: that network does not tell the two apart."
            if d["cswap"]["curves"] == d["cbp"]["curves"]
            else "."
        )
    )


def _looked_at(at: dict[str, Any]) -> str:
    """The last point where the network still works, or the first."""
    working = [p for p, found in at.items() if found["calibration_quality"] >= WORKS]
    return max(working, key=float) if working else min(at, key=float)


def section(data: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table."""
    at = data["staleness"]["at"]
    head = ["group, from the output", *(f"{100 * float(p):.0f} % gone" for p in at)]
    rows = [
        [g, *("–" if (r := at[p]["by_group"].get(g)) is None else f"{r:.2f}" for p in at)]
        for g in data["staleness"]["groups"]
    ]
    return head, [*rows, ["all units", *(f"{at[p]['all']:.2f}" for p in at)]]


def figure(data: dict[str, Any], plt: Any) -> Any:
    """Correlation by group, and the three curves."""
    fig, axes = plt.subplots(1, 2, figsize=(8.5, 3.2))
    groups = data["staleness"]["groups"]
    for part, found in data["staleness"]["at"].items():
        y = [found["by_group"].get(g) for g in groups]
        axes[0].plot(
            range(len(groups)), [np.nan if v is None else v for v in y], "o-", label=f"{100 * float(part):.0f} % gone"
        )
    axes[0].set_xticks(range(len(groups)), groups, rotation=90, fontsize=6)
    axes[0].set_ylabel("rank correlation with the first ξ")
    axes[0].set_ylim(-1.0, 1.6)
    axes[0].legend(frameon=False, ncols=3, fontsize=7, loc="upper center")
    for method, found in data["digits"].items():
        c = found["curves"]["params"]
        axes[1].plot([p["removed"] for p in c], [100 * p["accuracy"] for p in c], "o-", label=method)
    axes[1].set_xlabel("parameters removed (digits)")
    axes[1].set_ylabel("test accuracy, %")
    axes[1].legend(frameon=False)
    return fig


if __name__ == "__main__":
    main("stale", run, __doc__ or "")
