"""M_k ∈ {8, 16, 32, 64, 128, 256} on MobileNetV2: agreement of verdicts between sizes and between seeds; paths at three sizes.

    python benchmarks/experiments/sample_size.py [--cifar DIR] [--work DIR] [--seed 0]

Differences on two disjoint draws of 256 samples a class, and complete paths at three sizes. On a GPU those of 25 % of every group's
units, drawn by the seed, and paths of units at 8, 32 and 128 a class; on two cores, where that takes a day, those of 5 %, and paths of
blocks of 8 units at 8, 16 and 32.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from _experiment import Given, main
from _runs import at, compared
from _stores import opened, tell

from _real import DEVICE
from cswap.causal.replay import engine_for
from cswap.causal.store import DifferenceStore, source_of
from cswap.causal.verdicts import VoteRule
from cswap.tasks import Classification

NETWORK, SIZES = "mobilenet_v2", (8, 16, 32, 64, 128, 256)
SHARE, PATHS, PIECES, HELD_OUT = (
    (0.25, (8, 32, 128), "unit", None) if DEVICE == "cuda" else (0.05, (8, 16, 32), "block:8", 2500)
)
"""How much of every group, the paths' sizes and granularity, and test images: what an hour allows."""
RATIOS = (0.0, 0.1, 0.2, 0.3, 0.5)


def drawn(given: Given, seed: int) -> DifferenceStore:
    """Differences of some units; kept as soon as they are whole."""
    c, structure = opened(NETWORK, given.images, max(SIZES), seed)
    file, source = (
        given.work / f"drawn.{seed}.{SHARE:g}.safetensors",
        source_of(c.model, structure, c.calibration, Classification()),
    )
    if file.exists() and (held := DifferenceStore.load(file)).source == source:
        return held
    engine, rng = (
        engine_for(c.model, structure, c.calibration, Classification(), device=DEVICE, memory=4 << 30),
        np.random.default_rng(given.seed),
    )
    first, found = engine.scores(), {}
    for group in structure:
        some = sorted(rng.permutation(group.size)[: max(2, round(SHARE * group.size))].tolist())
        found[group.name] = np.stack(
            [(cut.sigma - base.sigma).astype(np.float32) for _, cut, base in engine.one_by_one(group, some)]
        )
        tell(f"seed {seed}: {group.name}")
    store = DifferenceStore(found, first.sigma, c.calibration.targets, c.calibration.classes, source)
    store.save(file)
    return store


def verdicts(store: DifferenceStore, size: int) -> list[str]:
    """In the store's order."""
    return [
        str(store.judge(g, n, VoteRule(), per_class=size).verdict)
        for g, d in store.differences.items()
        for n in range(len(d))
    ]


def run(given: Given) -> dict[str, Any]:
    """Two stores, six sizes, three paths."""
    found = [{m: verdicts(drawn(given, s), m) for m in SIZES} for s in (given.seed, given.seed + 1)]
    units = len(found[0][8])

    def agree(a: list[str], b: list[str]) -> float:
        return float(np.mean([x == y for x, y in zip(a, b, strict=True)]))

    sizes = {
        str(m): {
            **{v: found[0][m].count(v) for v in ("critical", "neutral", "detrimental")},
            "with_256": agree(found[0][m], found[0][256]), "between_seeds": agree(found[0][m], found[1][m]),
        }
        for m in SIZES
    }  # fmt: skip
    paths = {}
    for m in PATHS:
        result = compared(
            given,
            NETWORK,
            ("cswap",),
            name=f"paths-{m}",
            per_class=m,
            ratios=RATIOS,
            granularity=PIECES,
            eval_samples=HELD_OUT,
        )
        mine = result["methods"]["cswap"]["by_seed"][str(given.seed)]
        paths[str(m)] = {
            "verdicts": mine["verdicts"], "seconds": mine["seconds"], "unpruned": result["unpruned"]["quality"]["accuracy"],
            "accuracy": {str(r): at(result, "cswap", "params", r) for r in RATIOS},
        }  # fmt: skip
    return {"network": NETWORK, "share": SHARE, "pieces": PIECES, "units": units, "sizes": sizes, "paths": paths}


def finding(data: dict[str, Any]) -> str:
    """Two sentences."""
    s, p = data["sizes"], data["paths"]
    critical = ", ".join(f"{m}: {v['critical']}" for m, v in s.items())
    kept = ", ".join("–" if v["accuracy"]["0.2"] is None else f"{100 * v['accuracy']['0.2']:.1f}" for v in p.values())
    return (
        f"More samples make more units critical ({critical} of {data['units']:,}), so there is no size at which verdicts settle: "
        f"those from 128 a class agree with those from 256 for {100 * s['128']['with_256']:.0f} % of the units, and two draws of 128 "
        f"with each other for {100 * s['128']['between_seeds']:.0f} % (at 16: {100 * s['16']['between_seeds']:.0f} %). With 20 % of the "
        f"parameters gone, paths from {', '.join(p)} samples a class have {kept} % (unpruned "
        f"{100 * next(iter(p.values()))['unpruned']:.1f} %)."
    )


def section(data: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table."""
    head = [
        "samples a class",
        "critical / neutral / detrimental",
        "agree with 256, %",
        "two seeds agree, %",
        *(f"path at params {r:g}, %" for r in RATIOS[1:]),
        "path, s",
    ]
    rows = []
    for m, v in data["sizes"].items():
        p = data["paths"].get(m)
        cells = [
            f"{100 * p['accuracy'][str(r)]:.1f}" if p and p["accuracy"][str(r)] is not None else "–" for r in RATIOS[1:]
        ]
        three = " / ".join(str(v[x]) for x in ("critical", "neutral", "detrimental"))
        rows.append(
            [
                m,
                three,
                f"{100 * v['with_256']:.1f}",
                f"{100 * v['between_seeds']:.1f}",
                *cells,
                f"{p['seconds']:.0f}" if p else "–",
            ]
        )
    return head, rows


def figure(data: dict[str, Any], plt: Any) -> Any:
    """Agreement and the share that is critical."""
    fig, ax = plt.subplots(figsize=(6, 3.2))
    x = [int(m) for m in data["sizes"]]
    for key, label in (("with_256", "agree with 256 a class"), ("between_seeds", "two seeds agree")):
        ax.plot(x, [100 * v[key] for v in data["sizes"].values()], "o-", label=label)
    ax.plot(x, [100 * v["critical"] / data["units"] for v in data["sizes"].values()], "s--", label="critical")
    ax.set_xscale("log", base=2)
    ax.set_xlabel("samples a class")
    ax.set_ylabel("% of the units")
    ax.legend(frameon=False)
    return fig


if __name__ == "__main__":
    main("sample_size", run, __doc__ or "")
