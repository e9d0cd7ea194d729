"""Voting by class against pooled inference ("general inference"), on ResNet-20, ResNet-18 and ResNet-50.

    python benchmarks/experiments/voting.py [--networks resnet20,resnet18,resnet50] [--per-class M] [--jobs N] [--cifar DIR] [--work DIR] [--seed 0]

ResNet-20 and ResNet-18: all units and whole paths, 16 samples a class (ResNet-20 with 128 too). ResNet-50: all units on a GPU, 4 % of every group's, drawn by the seed, on two cores, 16 samples a
class, on the original network; and what their removal together costs (scaled down: a path of its 11,456 units takes hours of two cores).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from _experiment import Given, main
from _runs import compared, point
from _stores import accuracy, held_out_set, opened, tell, without

from _real import DEVICE
from cswap.causal.judge import Judge
from cswap.causal.replay import engine_for
from cswap.causal.verdicts import VoteRule
from cswap.tasks import Classification
from results_common import Said, short, sign, yes_no

PER_CLASS, SHARE, RATIOS = (
    {"resnet20": (16, 128), "resnet18": (16,), "resnet50": (16,)},
    0.04,
    (0.0, 0.05, 0.1, 0.2, 0.3, 0.5),
)


def drawn_units(given: Given, network: str, share: float) -> dict[str, Any]:
    """Both verdicts of a share of the units, and what the units each lets go cost together."""
    (per_class,) = given.sizes(PER_CLASS[network])
    c, structure = opened(network, given.images, per_class, given.seed)
    engine = engine_for(c.model, structure, c.calibration, Classification(), device=DEVICE, memory=4 << 30)
    rules = {v: Judge(c.calibration, VoteRule(vote=v)) for v in ("class", "pooled")}
    rng, found = np.random.default_rng(given.seed), {v: {} for v in rules}
    for group in structure:
        some = sorted(rng.permutation(group.size)[: max(2, round(share * group.size))].tolist())
        for n, scores, base in engine.one_by_one(group, some):
            for v, judge in rules.items():
                found[v][group.name, n] = str(judge.judge(scores, base).verdict)
        tell(f"{network}: {group.name}")
    held = held_out_set(c, 200)
    inputs = held.inputs(0, len(held))
    base_accuracy, sums = accuracy(c.model, inputs, held.targets), {}
    for v, of in found.items():
        free: dict[str, list[int]] = {}
        for g, n in (k for k, x in of.items() if x != "critical"):
            free.setdefault(g, []).append(n)
        values = list(of.values())
        sums[v] = {
            **{x: values.count(x) for x in ("critical", "neutral", "detrimental")},
            "free_together_accuracy": accuracy(without(c.model, structure, free), inputs, held.targets)
            if free
            else base_accuracy,
        }
    both = [found["class"][k] == found["pooled"][k] for k in found["class"]]
    return {
        "units": len(both),
        "of": structure.units,
        "unpruned": base_accuracy,
        "held_out": len(held),
        "agree": float(np.mean(both)),
        **sums,
    }


def paths(given: Given, network: str, per_class: int) -> dict[str, Any]:
    """Complete C-SWAP paths under both votes."""
    found = {}
    for vote in ("class", "pooled"):
        result = compared(
            given,
            network,
            ("cswap",),
            name=f"{network}-{per_class}-{vote}",
            per_class=per_class,
            ratios=RATIOS,
            vote=vote,
        )
        mine = result["methods"]["cswap"]["by_seed"][str(given.seed)]
        points = {r: point(mine, "params", r) for r in RATIOS}
        found[vote] = {
            "verdicts": mine["verdicts"], "seconds": mine["seconds"], "unpruned": result["unpruned"]["quality"]["accuracy"],
            "accuracy": {str(r): None if p is None else p["quality"]["accuracy"] for r, p in points.items()},
            "worst_class": {str(r): None if p is None else min(p["quality"]["by_class"]) for r, p in points.items()},
        }  # fmt: skip
    return found


def run(given: Given) -> dict[str, Any]:
    """Whole paths, and drawn units where paths take too long."""
    whole = [n for n in given.networks if n != "resnet50"]
    votes = {
        f"{n}, {m} samples a class": {"votes": paths(given, n, m)} for n in whole for m in given.sizes(PER_CLASS[n])
    }
    share = 1.0 if DEVICE == "cuda" else SHARE
    drawn = {n: {"drawn": drawn_units(given, n, share)} for n in given.networks if n not in whole}
    return {"networks": {**votes, **drawn}}


def _paths(data: dict[str, Any]) -> dict[str, Any]:
    return {n: d["votes"] for n, d in data["networks"].items() if "votes" in d}


def _drawn(data: dict[str, Any]) -> dict[str, Any]:
    return {n: d["drawn"] for n, d in data["networks"].items() if "drawn" in d}


def half_kept(data: dict[str, Any]) -> str:
    """Which vote reaches the paper's headline, by parameters and with nothing given back."""
    reached = [
        f"{v} on {n}: {100 * at_half:.1f} %, {100 * at_half / p[v]['unpruned']:.0f} % of the unpruned"
        for n, p in _paths(data).items()
        for v in ("class", "pooled")
        if (at_half := p[v]["accuracy"]["0.5"]) is not None and at_half >= 0.95 * p[v]["unpruned"]
    ]
    return (
        "With half of the parameters gone and nothing given back, more than 95 % of the unpruned accuracy is kept by "
        f"{'; '.join(reached) or 'neither vote on any of these networks'}."
    )


def answer(data: dict[str, Any]) -> Said:
    """Whether voting by class keeps more than pooled votes with 20 and 50 % of the parameters gone."""
    found, left = {}, []
    for name, p in _paths(data).items():
        kept = [[100 * (p[v]["accuracy"][r] or 0.0) for v in ("class", "pooled")] for r in ("0.2", "0.5")]
        signs = {sign(mine - other, 1.0) for mine, other in kept}
        found[short(name)] = signs.pop() if len(signs) == 1 else 0
        left.append(" and ".join(f"{mine:.0f} to {other:.0f}" for mine, other in kept) + " %")
    left += [
        f"cutting what it lets go costs {100 * (d['unpruned'] - d['class']['free_together_accuracy']):.1f} points, pooled "
        f"{100 * (d['unpruned'] - d['pooled']['free_together_accuracy']):.1f} ({name}, {d['units']} units)"
        for name, d in _drawn(data).items()
    ]
    return Said(
        yes_no(found, "one run each"), "; ".join(left), f"{', '.join(found)}; 20 and 50 % of the parameters gone"
    )


def answer_pooled(data: dict[str, Any]) -> Said:
    """Whether pooled votes reach the headline."""
    paths = {short(n): p["pooled"] for n, p in _paths(data).items()}
    found = {n: sign((p["accuracy"]["0.5"] or 0.0) - 0.95 * p["unpruned"]) for n, p in paths.items()}
    left = [f"{100 * (p['accuracy']['0.5'] or 0.0):.1f} of {100 * p['unpruned']:.1f} %" for p in paths.values()]
    return Said(yes_no(found, "one run each"), "; ".join(left), ", ".join(paths))


def finding(data: dict[str, Any]) -> str:
    """What each network says."""
    parts = []
    for name, p in _paths(data).items():
        critical = [f"{p[v]['verdicts']['critical']:,}" for v in ("class", "pooled")]
        kept, worst = (
            [100 * (p[v][what]["0.2"] or 0.0) for v in ("class", "pooled")] for what in ("accuracy", "worst_class")
        )
        parts.append(
            f"{name}: by class {critical[0]} units are critical and pooled {critical[1]}; with 20 % of the parameters gone accuracy is {kept[0]:.1f} against "
            f"{kept[1]:.1f} % (unpruned {100 * p['class']['unpruned']:.1f}) and the worst class has {worst[0]:.1f} against {worst[1]:.1f} %"
        )
    for name, d in _drawn(data).items():
        cost = [100 * (d["unpruned"] - d[v]["free_together_accuracy"]) for v in ("class", "pooled")]
        parts.append(
            f"{name} (unpruned {100 * d['unpruned']:.1f} %), on the original network alone: the two agree for {100 * d['agree']:.0f} % of {d['units']:,} units, and what each "
            f"lets go costs, together, {cost[0]:.1f} points by class ({d['units'] - d['class']['critical']:,} units) and {cost[1]:.1f} pooled "
            f"({d['units'] - d['pooled']['critical']:,})"
        )
    better = [n for n, p in _paths(data).items() if p["class"]["accuracy"]["0.2"] > p["pooled"]["accuracy"]["0.2"]]
    return f"{'; '.join(parts)}. At that ratio voting by class keeps more {'on ' + ' and '.join(better) if better else 'on none of them'}. {half_kept(data)}"


def section(data: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table."""
    head = [
        "network",
        "vote",
        "critical / neutral / detrimental",
        *(f"params {r:g}: accuracy (worst class), %" for r in RATIOS[2:]),
        "free units together, %",
    ]
    rows = []
    for network, votes in _paths(data).items():
        for vote, v in votes.items():
            cells = [
                "–"
                if v["accuracy"][str(r)] is None
                else f"{100 * v['accuracy'][str(r)]:.1f} ({100 * v['worst_class'][str(r)]:.1f})"
                for r in RATIOS[2:]
            ]
            rows.append([network, vote, " / ".join(f"{x:,}" for x in v["verdicts"].values()), *cells, "–"])
    for network, d in _drawn(data).items():
        for vote in ("class", "pooled"):
            three = " / ".join(f"{d[vote][x]:,}" for x in ("critical", "neutral", "detrimental"))
            rows.append(
                [
                    f"{network}, {d['units']:,} of {d['of']:,} units",
                    vote,
                    three,
                    *["–"] * len(RATIOS[2:]),
                    f"{100 * d[vote]['free_together_accuracy']:.1f}",
                ]
            )
    return head, rows


def figure(data: dict[str, Any], plt: Any) -> Any:
    """Mean and worst class of both votes."""
    fig, axes = plt.subplots(1, len(_paths(data)), figsize=(5 * len(_paths(data)), 3.2), squeeze=False)
    for ax, (name, votes) in zip(axes[0], _paths(data).items(), strict=True):
        for vote, v in votes.items():
            x = [r for r in v["accuracy"] if v["accuracy"][r] is not None]
            (line,) = ax.plot([float(r) for r in x], [100 * v["accuracy"][r] for r in x], "o-", label=f"{vote}: all")
            ax.plot(
                [float(r) for r in x],
                [100 * v["worst_class"][r] for r in x],
                "s--",
                color=line.get_color(),
                label=f"{vote}: worst class",
            )
        ax.set_title(name)
        ax.set_xlabel("parameters removed")
        ax.set_ylabel("test accuracy, %")
        ax.set_ylim(-5, 120)
        ax.legend(frameon=False, ncol=2, loc="upper right", fontsize=7)
    fig.tight_layout()
    return fig


if __name__ == "__main__":
    main("voting", run, __doc__ or "", tuple(PER_CLASS))
