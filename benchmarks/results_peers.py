"""The sections of RESULTS.md on what others do: Torch-Pruning's importances, and published tables."""

from __future__ import annotations

from typing import Any

from results_common import WAYS, origin, point_at, table

PUBLISHED = {
    "L1 and batch norms again, from 94.0": {0.19: 92.6, 0.36: 91.1, 0.51: 86.1, 0.64: 72.7},
    "model folding and batch norms again, from 93.9": {0.36: 91.4, 0.51: 87.1, 0.64: 81.2},
}
"""Reported medians of accuracy on CIFAR-10 by share of ResNet-18's parameters removed, without fine-tuning (folding: arXiv 2502.10216)."""


def published(data: dict[str, Any], base: float) -> list[str]:
    """Points lost beside the published ones, where their ratios were asked for."""
    ratios = [0.19, 0.36, 0.51, 0.64]
    if not all(point_at(x["points"], "params", r) for x in data["methods"].values() for r in ratios):
        return []
    rows = [
        [f"published: {name}", *(f"{float(name.split()[-1]) - by[r]:.1f}" if r in by else "–" for r in ratios)]
        for name, by in PUBLISHED.items()
    ]
    most = max(
        v
        for x in data["methods"].values()
        if (p := point_at(x["points"], "params", 0.64))
        for v in p["accuracy"].values()
    )
    for name, x in data["methods"].items():
        for how in data["recover"]:
            points = [point_at(x["points"], "params", r) for r in ratios]
            found = [p["raw_accuracy"].get(how, p["accuracy"]["none"]) for p in points if p]
            rows.append([f"{name}, {WAYS.get(how, how)}", *(f"{100 * (base - v):.2f}" for v in found)])
    return [
        "### Points lost at the ratios of published tables", "",
        "The published networks have 93.9 and 94.0 % on CIFAR-10 itself, this one what 24 epochs on its JPEG copy give, so points lost are "
        "compared, not accuracies.", "",
        *table(["parameters removed", *(f"{r:g}" for r in ratios)], rows),
        f"Compensation by Gram matrices (GRAIL) is reported with 84.8 % of accuracy at 65 % of sparsity; the best here at 0.64 is {100 * most:.2f} %.", "",
    ]  # fmt: skip


def peers(data: dict[str, Any]) -> list[str]:
    ratios = sorted({p["asked"] for x in data["peers"].values() for p in x.get("points", [])})
    ways = [w for w in ("plain", "bn", "lstsq") if w in data["unpruned"]]
    lines = [
        f"## Torch-Pruning's own importances, pruned by Torch-Pruning: {'half of the parameters' if ratios == [0.5] else 'by parameters removed'}", "",
        origin(data),
        f"{data['held_out_samples']:,} test images in {data.get('precision', 'bfloat16')} (unpruned {100 * data['unpruned']['plain']['accuracy']:.2f} %), "
        f"{data['calibration_samples']} calibration images, from which importances with gradients are taken too (rankings of cswap from as many: the table of methods with {data['per_class']} a class), parameters removed" + ("; refitted: by cswap's `lstsq`, of the network that Torch-Pruning made." if "lstsq" in ways else "."), "",
        *([f"{data['note']}.", ""] if "note" in data else []),
    ]  # fmt: skip
    for way in ways:
        rows = []
        for peer, x in data["peers"].items():
            if "error" in x:
                rows.append([peer, *[x["error"][:90] if i == 0 else "" for i in range(len(ratios))], "", ""])
                continue
            by = {p["asked"]: p for p in x["points"]}
            cells = [f"{100 * by[r][way]['accuracy']:.2f}" if way in by.get(r, {}) else "–" for r in ratios]
            macs = " / ".join(f"{by[r]['ratio']['macs']:.2f}" for r in ratios if r in by)
            rows.append([peer, *cells, macs, f"{x['seconds']['importance'] or 0:.0f}"])
        lines += [
            f"### {WAYS.get(way, way)}",
            "",
            *table(["importance", *(f"{r:g}" for r in ratios), "MACs removed there", "importance, s"], rows),
        ]
    return lines + _control(data)


def _control(data: dict[str, Any]) -> list[str]:
    """The usual control, L1 and batch norms again, beside its published medians, in points lost."""
    (name, published), *_ = PUBLISHED.items()
    mine = [p for p in data["peers"].get("l1_layer", {}).get("points", []) if "bn" in p and p["asked"] in published]
    if len(mine) < len(published):
        return []
    base = data["unpruned"]["plain"]["accuracy"]

    def said(by: dict[float, float]) -> str:
        return f"{' / '.join(f'{v:.1f}' for v in by.values())} at {' / '.join(f'{r:g}' for r in by)}"

    own = {w: {p["asked"]: 100 * (base - p[w]["accuracy"]) for p in mine if w in p} for w in ("bn", "lstsq")}
    whole = float(name.split()[-1])
    refit = f"; with the same channels gone cswap's refit leaves {said(own['lstsq'])} lost" if own["lstsq"] else ""
    return [
        f"The usual control, {name.rpartition(', from')[0]}, loses in published medians {said({r: whole - v for r, v in published.items()})} of the parameters "
        f"(from {whole:g} %, CIFAR-10 itself), and here (`l1_layer`) {said(own['bn'])}{refit}.", "",
    ]  # fmt: skip
