"""α ∈ {0.001, 0.01, 0.05, 0.1, 0.2} on ResNet-18: verdicts from the store of differences, paths at three.

    python benchmarks/experiments/alpha.py [--cifar DIR] [--work DIR] [--seed 0]

16 samples a class (scaled down from 128); each path is complete and measured on 10,000 test images.
"""

from __future__ import annotations

from typing import Any

from _experiment import Given, main
from _runs import at, compared
from _stores import counts, measured, verdicts

from cswap.causal.verdicts import VoteRule

NETWORK, PER_CLASS, ALPHAS, PATHS = "resnet18", 16, (0.001, 0.01, 0.05, 0.1, 0.2), (0.001, 0.05, 0.2)
RATIOS = (0.0, 0.1, 0.2, 0.3, 0.5)


def run(given: Given) -> dict[str, Any]:
    """Verdicts at every α, and three paths."""
    store, _, structure = measured(NETWORK, given.images, PER_CLASS, given.seed, given.work.parent)
    found = {str(a): counts(verdicts(store, VoteRule(alpha=a))) for a in ALPHAS}
    paths = {}
    for a in PATHS:
        result = compared(given, NETWORK, ("cswap",), name=f"alpha-{a}", per_class=PER_CLASS, ratios=RATIOS, alpha=a)
        mine = result["methods"]["cswap"]["by_seed"][str(given.seed)]
        paths[str(a)] = {
            "verdicts": mine["verdicts"], "seconds": mine["seconds"], "accuracy": {str(r): at(result, "cswap", "params", r) for r in RATIOS},
        }  # fmt: skip
    return {"network": NETWORK, "per_class": PER_CLASS, "units": structure.units, "store": found, "paths": paths}


def finding(data: dict[str, Any]) -> str:
    """Two sentences."""
    s, p = data["store"], data["paths"]
    return (
        f"A smaller α makes pruning more aggressive: on the original network {s['0.2']['critical']:,}, {s['0.05']['critical']:,} and {s['0.001']['critical']:,} of "
        f"{data['units']:,} units are critical at 0.2, 0.05 and 0.001, and the walk finds {p['0.2']['verdicts']['critical']:,}, {p['0.05']['verdicts']['critical']:,} and "
        f"{p['0.001']['verdicts']['critical']:,}. With 20 % of the parameters gone the accuracy is {100 * p['0.2']['accuracy']['0.2']:.1f}, "
        f"{100 * p['0.05']['accuracy']['0.2']:.1f} and {100 * p['0.001']['accuracy']['0.2']:.1f} %, in the same order: the seed's advice to raise α after an early cliff "
        f"{'holds' if p['0.2']['accuracy']['0.2'] > p['0.05']['accuracy']['0.2'] else 'does not hold'} here."
    )


def section(data: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table."""
    head = [
        "α",
        "store: critical / neutral / detrimental",
        "walk: the same",
        *(f"accuracy at params {r:g}, %" for r in RATIOS[1:]),
    ]
    rows = []
    for a, c in data["store"].items():
        p = data["paths"].get(a)
        three = [
            " / ".join(f"{x[k]:,}" for k in ("critical", "neutral", "detrimental"))
            for x in (c, *([p["verdicts"]] if p else []))
        ]
        cells = [
            f"{100 * p['accuracy'][str(r)]:.2f}" if p and p["accuracy"][str(r)] is not None else "–" for r in RATIOS[1:]
        ]
        rows.append([a, three[0], three[1] if p else "–", *cells])
    return head, rows


def figure(data: dict[str, Any], plt: Any) -> Any:
    """Verdicts and curves."""
    fig, axes = plt.subplots(1, 2, figsize=(8, 3))
    a = [float(x) for x in data["store"]]
    for verdict in ("critical", "neutral", "detrimental"):
        axes[0].plot(a, [data["store"][str(x)][verdict] for x in a], "o-", label=verdict)
    axes[0].set_xscale("log")
    axes[0].set_xlabel("α")
    axes[0].set_ylabel("units (original network)")
    axes[0].legend(frameon=False)
    for x, p in data["paths"].items():
        points = {float(r): v for r, v in p["accuracy"].items() if v is not None}
        axes[1].plot(list(points), [100 * v for v in points.values()], "o-", label=f"α = {x}")
    axes[1].set_xlabel("parameters removed")
    axes[1].set_ylabel("test accuracy, %")
    axes[1].legend(frameon=False)
    return fig


if __name__ == "__main__":
    main("alpha", run, __doc__ or "")
