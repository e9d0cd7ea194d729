"""α ∈ {0.001, 0.01, 0.05, 0.1, 0.2}: verdicts from the store of differences, paths at three.

    python benchmarks/experiments/alpha.py [--networks resnet20,resnet18] [--per-class M,…] [--jobs N] [--cifar DIR] [--work DIR] [--seed 0]

ResNet-20 with 128 samples a class and with 16, ResNet-18 with 8 (scaled down from 128; --per-class says otherwise); each path is complete and measured on 10,000 test images.
Another --seed is kept beside the first.
"""

from __future__ import annotations

import itertools
from typing import Any

from _experiment import Given, main
from _runs import at, compared
from _stores import counts, measured, verdicts

from cswap.causal.verdicts import VoteRule
from results_common import Said, short, sign, yes_no

ALPHAS, PATHS = (0.001, 0.01, 0.05, 0.1, 0.2), (0.001, 0.05, 0.2)
PER_CLASS = {"resnet20": (16, 128), "resnet18": (8,)}
RATIOS = (0.0, 0.1, 0.2, 0.3, 0.5)


def one(given: Given, network: str, per_class: int) -> dict[str, Any]:
    """Verdicts by α, and three paths."""
    store, _, structure = measured(network, given.images, per_class, given.seed, given.work.parent)
    found = {str(a): counts(verdicts(store, VoteRule(alpha=a))) for a in ALPHAS}
    paths, base = {}, 0.0
    for a in PATHS:
        name = f"{network}-{per_class}-alpha-{a}" + (f"-seed-{given.seed}" if given.seed else "")
        result = compared(given, network, ("cswap",), name=name, per_class=per_class, ratios=RATIOS, alpha=a)
        mine, base = result["methods"]["cswap"]["by_seed"][str(given.seed)], result["unpruned"]["quality"]["accuracy"]
        paths[str(a)] = {
            "verdicts": mine["verdicts"], "seconds": mine["seconds"], "accuracy": {str(r): at(result, "cswap", "params", r) for r in RATIOS},
        }  # fmt: skip
    return {
        "network": network, "per_class": per_class, "seed": given.seed, "units": structure.units, "unpruned": base, "store": found, "paths": paths,
    }  # fmt: skip


def run(given: Given) -> dict[str, Any]:
    """Every network at its sizes."""
    found = [one(given, n, m) for n in given.networks for m in given.sizes(PER_CLASS[n])]
    return {"networks": {named(d): d for d in found}}


def named(run: dict[str, Any]) -> str:
    """Which network, with how many samples."""
    return f"{run['network']}, {run['per_class']} samples a class" + (
        f", seed {run['seed']}" if run.get("seed") else ""
    )


def answer(data: dict[str, Any]) -> Said:
    """Whether a larger α keeps more, of the pairs whose verdicts differ, with 20 % of the parameters gone."""
    found, left = {}, []
    for d in data["networks"].values():
        p = d["paths"]
        kept = [p[str(a)]["accuracy"]["0.2"] or 0.0 for a in PATHS]
        steps = {sign(b - a, 0.01) for a, b in itertools.pairwise(kept)} - {0}
        found[short(named(d))] = steps.pop() if len(steps) == 1 else 0
        left.append(f"{', '.join(f'{100 * k:.0f}' for k in kept)} %")
    where = f"{', '.join(found)}; 20 % of the parameters gone at α {', '.join(map(str, PATHS))}"
    return Said(yes_no(found, "one run each"), "; ".join(left), where)


def answer_small(data: dict[str, Any]) -> Said:
    """Whether the smallest α reaches the headline."""
    runs = {short(named(d)): d for d in data["networks"].values()}
    at_half = {n: d["paths"][str(PATHS[0])]["accuracy"]["0.5"] or 0.0 for n, d in runs.items()}
    found = {n: sign(v - 0.95 * runs[n]["unpruned"]) for n, v in at_half.items()}
    left = [f"{100 * v:.1f} of {100 * runs[n]['unpruned']:.1f} %" for n, v in at_half.items()]
    return Said(yes_no(found, "one run each"), "; ".join(left), ", ".join(runs))


def finding(data: dict[str, Any]) -> str:
    """What each run says, and the answer."""
    parts, cures = [], []
    for d in data["networks"].values():
        s, p = d["store"], d["paths"]
        kept, half = ([p[str(a)]["accuracy"][r] or 0.0 for a in PATHS] for r in ("0.2", "0.5"))
        parts.append(
            f"{named(d)}: of {d['units']:,} units {', '.join(format(s[str(a)]['critical'], ',') for a in PATHS)} are critical on the original network at α "
            f"{', '.join(map(str, PATHS))}, {', '.join(format(p[str(a)]['verdicts']['critical'], ',') for a in PATHS)} in the walk, and with 20 % of the "
            f"parameters gone {', '.join(f'{100 * k:.1f}' for k in kept)} %, with half of them {', '.join(f'{100 * k:.1f}' for k in half)} % are right (unpruned {100 * d['unpruned']:.1f})"
        )
        if any(later > earlier + 0.01 for earlier, later in itertools.pairwise(kept)):
            cures.append(named(d))
    return (
        f"A smaller α makes pruning more aggressive, as a critical unit is one with a significant loss. {'; '.join(parts)}. The advice to raise α after an "
        f"early cliff {'helps in ' + ' and '.join(cures) if cures else 'does not help in any of these'}."
    )


def section(data: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table."""
    head = [
        "network",
        "α",
        "store: critical / neutral / detrimental",
        "walk: the same",
        *(f"accuracy at params {r:g}, %" for r in RATIOS[1:]),
    ]
    rows = []
    for d in data["networks"].values():
        for a, c in d["store"].items():
            p = d["paths"].get(a)
            three = [
                " / ".join(f"{x[k]:,}" for k in ("critical", "neutral", "detrimental"))
                for x in (c, *([p["verdicts"]] if p else []))
            ]
            cells = [
                f"{100 * p['accuracy'][str(r)]:.2f}" if p and p["accuracy"][str(r)] is not None else "–"
                for r in RATIOS[1:]
            ]
            rows.append([named(d), a, three[0], three[1] if p else "–", *cells])
    return head, rows


def figure(data: dict[str, Any], plt: Any) -> Any:
    """Verdicts and curves."""
    fig, axes = plt.subplots(len(data["networks"]), 2, figsize=(8, 2.8 * len(data["networks"])), squeeze=False)
    for (left, right), d in zip(axes, data["networks"].values(), strict=True):
        a = [float(x) for x in d["store"]]
        for verdict in ("critical", "neutral", "detrimental"):
            left.plot(a, [d["store"][str(x)][verdict] for x in a], "o-", label=verdict)
        left.set_xscale("log")
        left.set_title(named(d))
        left.set_xlabel("α")
        left.set_ylabel("units (original network)")
        left.legend(frameon=False)
        for x, p in d["paths"].items():
            points = {float(r): v for r, v in p["accuracy"].items() if v is not None}
            right.plot(list(points), [100 * v for v in points.values()], "o-", label=f"α = {x}")
        right.set_xlabel("parameters removed")
        right.set_ylabel("test accuracy, %")
        right.legend(frameon=False)
    fig.tight_layout()
    return fig


if __name__ == "__main__":
    main("alpha", run, __doc__ or "", tuple(PER_CLASS))
