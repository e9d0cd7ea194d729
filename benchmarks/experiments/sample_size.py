"""M_k ∈ {8, 16, 32, 64, 128, 256} on MobileNetV2 and ResNet-20: agreement of verdicts between sizes and between seeds; paths at three sizes.

    python benchmarks/experiments/sample_size.py [--networks mobilenet_v2,resnet20] [--cifar DIR] [--work DIR] [--seed 0]

Differences on two draws of 256 samples a class, and complete paths at three sizes. ResNet-20: every unit, paths at 8, 32 and 128.
MobileNetV2 on a GPU: 25 % of every group's units, drawn by the seed, and the same paths; on two cores, where that takes a day, 5 %, and paths
of blocks of 8 units at 8, 16 and 32.
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
from results_common import Said

SIZES = (8, 16, 32, 64, 128, 256)
SCALE: dict[str, tuple[float, tuple[int, ...], str, int | None]] = {
    "mobilenet_v2": (0.25, (8, 32, 128), "unit", None) if DEVICE == "cuda" else (0.05, (8, 16, 32), "block:8", 2500),
    "resnet20": (1.0, (8, 32, 128), "unit", None),
}
"""By network: how much of every group, the paths' sizes and granularity, and test images: what an hour allows."""
RATIOS = (0.0, 0.1, 0.2, 0.3, 0.5)


def drawn(given: Given, network: str, seed: int) -> DifferenceStore:
    """Differences of some units; kept as soon as they are whole."""
    c, structure = opened(network, given.images, max(SIZES), seed)
    file, source = (
        given.work / f"drawn.{network}.{seed}.{SCALE[network][0]:g}.safetensors",
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
        some = sorted(rng.permutation(group.size)[: max(2, round(SCALE[network][0] * group.size))].tolist())
        found[group.name] = np.stack(
            [(cut.sigma - base.sigma).astype(np.float32) for _, cut, base in engine.one_by_one(group, some)]
        )
        tell(f"{network}, seed {seed}: {group.name}")
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
    """By network: two stores, six sizes, three paths."""
    return {"networks": {network: _one(given, network) for network in given.networks}}


def _one(given: Given, network: str) -> dict[str, Any]:
    share, taken, pieces, held_out = SCALE[network]
    found = [{m: verdicts(drawn(given, network, s), m) for m in SIZES} for s in (given.seed, given.seed + 1)]

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
    for m in taken:
        result = compared(
            given, network, ("cswap",), name=f"{network}-{m}", per_class=m, ratios=RATIOS, granularity=pieces, eval_samples=held_out
        )  # fmt: skip
        mine = result["methods"]["cswap"]["by_seed"][str(given.seed)]
        paths[str(m)] = {
            "verdicts": mine["verdicts"], "seconds": mine["seconds"], "unpruned": result["unpruned"]["quality"]["accuracy"],
            "accuracy": {str(r): at(result, "cswap", "params", r) for r in RATIOS},
        }  # fmt: skip
    return {"share": share, "pieces": pieces, "units": len(found[0][8]), "sizes": sizes, "paths": paths}


def answer(data: dict[str, Any]) -> Said:
    """From how many samples a class on verdicts are those from 256."""
    sizes = sorted({int(m) for d in data["networks"].values() for m in d["sizes"]})
    alike = {n: [d["sizes"][str(m)]["with_256"] for m in sizes] for n, d in data["networks"].items()}
    enough = next(m for i, m in enumerate(sizes) if all(found[i] >= 0.98 for found in alike.values()))
    critical = [100 * d["sizes"]["256"]["critical"] / d["units"] for d in data["networks"].values()]
    return Said(
        f"From **{enough}** a class on 98 % are those from 256",
        f"{'; '.join(' / '.join(f'{100 * share:.0f}' for share in found) + ' %' for found in alike.values())} at {' / '.join(map(str, sizes))}, where "
        f"{' and '.join(f'{c:.0f}' for c in critical)} % end up critical",
        ", ".join(f"{n}, {d['units']} units" for n, d in data["networks"].items()),
    )


def finding(data: dict[str, Any]) -> str:
    """Two sentences a network."""
    return " ".join(_said(network, one) for network, one in data["networks"].items())


def _said(network: str, data: dict[str, Any]) -> str:
    s, p = data["sizes"], data["paths"]
    critical = ", ".join(f"{m}: {v['critical']}" for m, v in s.items())
    kept = ", ".join("–" if v["accuracy"]["0.2"] is None else f"{100 * v['accuracy']['0.2']:.1f}" for v in p.values())
    counts = [v["critical"] for v in s.values()]
    grows = "more samples make more units critical" if counts == sorted(counts) else "units that are critical"
    return (
        f"{network}: {grows} ({critical} of {data['units']:,}); verdicts from 32 a class agree with those from 256 for "
        f"{100 * s['32']['with_256']:.0f} % of the units and from 128 for {100 * s['128']['with_256']:.0f} %, and two draws with each other for "
        f"{100 * s['32']['between_seeds']:.0f} and {100 * s['128']['between_seeds']:.0f} % (at 16: {100 * s['16']['between_seeds']:.0f} %). With 20 % of "
        f"the parameters gone, paths {'' if data['pieces'] == 'unit' else 'of ' + data['pieces'].replace(':', 's of ') + ' units '}from {', '.join(p)} samples a class have {kept} % (unpruned {100 * next(iter(p.values()))['unpruned']:.1f} %)."
    )


def section(data: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table."""
    head = [
        "network",
        "samples a class",
        "critical / neutral / detrimental",
        "agree with 256, %",
        "two seeds agree, %",
        *(f"path at params {r:g}, %" for r in RATIOS[1:]),
        "path, s",
    ]
    rows = []
    for network, m, v, p in (
        (network, m, v, one["paths"].get(m))
        for network, one in data["networks"].items()
        for m, v in one["sizes"].items()
    ):
        cells = [
            f"{100 * p['accuracy'][str(r)]:.1f}" if p and p["accuracy"][str(r)] is not None else "–" for r in RATIOS[1:]
        ]
        three = " / ".join(str(v[x]) for x in ("critical", "neutral", "detrimental"))
        rows.append(
            [
                network,
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
    """Agreement and the share that is critical, a panel a network."""
    fig, axes = plt.subplots(
        1, len(data["networks"]), figsize=(5 * len(data["networks"]), 3.2), sharey=True, squeeze=False
    )
    for ax, (network, one) in zip(axes[0], data["networks"].items(), strict=True):
        x = [int(m) for m in one["sizes"]]
        for key, label in (("with_256", "agree with 256 a class"), ("between_seeds", "two seeds agree")):
            ax.plot(x, [100 * v[key] for v in one["sizes"].values()], "o-", label=label)
        ax.plot(x, [100 * v["critical"] / one["units"] for v in one["sizes"].values()], "s--", label="critical")
        ax.set_xscale("log", base=2)
        ax.set_xlabel("samples a class")
        ax.set_title(network)
    axes[0][0].set_ylabel("% of the units")
    axes[0][0].legend(frameon=False)
    return fig


if __name__ == "__main__":
    main("sample_size", run, __doc__ or "", ("mobilenet_v2", "resnet20"))
