"""The sections of RESULTS.md on paths themselves: the order of what a class needs, and whether a path is the same again."""

from __future__ import annotations

from typing import Any

from results_common import origin, table


def buffer_orders(data: dict[str, Any]) -> list[str]:
    """C-SWAP's path with its critical units in other orders."""
    rows = [
        [
            r["order"].replace("|", "\\|"), f"{r['asked']:g}", f"{r['critical_gone']:,}", f"{r['with_gain']:,}", f"{100 * r['ratio']['macs']:.0f}",
            f"{100 * r['plain']:.2f}", f"{100 * r['bn']:.2f}",
        ]
        for r in data["rows"]
    ]  # fmt: skip
    return [
        "## Does C-SWAP lose by the order of its buffer? ResNet-18 on CIFAR-10 (JPEG)", "", origin(data),
        f"One walk ({data['per_class']} images a class): {data['non_critical_gone']:,} units that no class needs go first, then the {data['critical']:,} critical ones, of which "
        f"{data['with_gain']:,} have a positive ξ. Only their order differs. {data['held_out_samples']:,} test images, unpruned {100 * data['unpruned']:.2f} %.", "",
        *table(["order of the critical units", "params removed", "critical units gone", "of these with ξ > 0", "MACs removed, %", "plain", "BN again"], rows),
        order_finding(data), "",
    ]  # fmt: skip


def order_finding(data: dict[str, Any]) -> str:
    """What the order of critical units changes, by ratio."""
    said, usual = [], data["rows"][0]["order"]
    for ratio in sorted({r["asked"] for r in data["rows"]}):
        own = next(r for r in data["rows"] if (r["asked"], r["order"]) == (ratio, usual))
        best = max((r for r in data["rows"] if r["asked"] == ratio and r["order"] != usual), key=lambda r: r["plain"])
        said.append(
            f"with {100 * ratio:.0f} % of the parameters gone {usual} keeps {100 * own['plain']:.1f} % and {best['order']} {100 * best['plain']:.1f} % "
            f"(batch norms again: {100 * own['bn']:.1f} and {100 * best['bn']:.1f})"
        )
    return (
        f"resnet18, {data['per_class']} samples a class, one walk, unpruned {100 * data['unpruned']:.1f} %: {'; '.join(said)}. Of {data['critical']:,} units that a class needs "
        f"{data['with_gain']:,} have a positive ξ, so by largest signed ξ they go first."
    )


def same_again(data: dict[str, Any]) -> list[str]:
    """Complete paths of one network, made twice."""
    rows = [
        [
            method, f"{x['first']['steps']:,}", f"{x['first']['gone']:,} of {x['first']['may_go']:,}",
            "yes" if x["first"]["digest"] == x["again"]["digest"] else "**no**",
            "–" if "other seed" not in x else "yes" if x["first"]["digest"] == x["other seed"]["digest"] else "no",
            f"{x['first']['seconds']:.0f}, {x['again']['seconds']:.0f}",
        ]
        for method, x in data["methods"].items()
    ]  # fmt: skip
    return [
        "## Complete paths of ResNet-18, made twice", "", origin(data),
        f"Calibrated with {data['per_class']} images a class. Every group keeps one unit; the rest goes in every path. Two paths are the same if every decision is, ξ to the last "
        "bit; another seed draws other calibration images. Seconds are of one core, beside other work.", "",
        *table(["method", "decisions", "units gone at its end", "the same again by its seed", "the same by another seed", "seconds"], rows),
    ]  # fmt: skip
