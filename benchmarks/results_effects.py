"""The sections of RESULTS.md on effects: what they cost, and where a walk by them ends."""

from __future__ import annotations

from typing import Any

from results_common import hours, origin, table


def _prune_row(method: str, s: dict[str, Any]) -> list[str]:
    b, p, r = s["baseline"], s["pruned"], s["ratio"]
    before, after = b["quality"]["accuracy"], p["quality"]["accuracy"]
    worst = min(
        (y - x, name)
        for x, y, name in zip(b["quality"]["by_class"], p["quality"]["by_class"], s["classes"], strict=True)
    )
    return [
        method, f"{r['params']:.4f}", f"{r['macs']:.4f}", f"{r['units']:.4f}", f"{100 * before:.2f}", f"{100 * after:.2f}",
        f"{100 * (after - before):+.2f}", f"{100 * worst[0]:+.2f} ({worst[1]})", f"{s['seconds']['analysis']:.0f}",
        f"{b['latency_ms']['64']:.0f} → {p['latency_ms']['64']:.0f}",
    ]  # fmt: skip


def prune(data: dict[str, Any]) -> list[str]:
    first = next(iter(data["methods"].values()))
    return [
        f"## ResNet-18 on CIFAR-10 (JPEG), target {first['target']}, one shot, no recovery", "", origin(data),
        f"{first['held_out_samples']:,} test images, {first['calibration_samples']} calibration images.", "",
        *table(
            ["method", "params removed", "macs", "units", "accuracy before, %", "after", "change", "worst class", "analysis, s",
             "ms at batch 64"],
            [_prune_row(name, s) for name, s in data["methods"].items()],
        ),
        "`magnitude` and `random` shrink every group at the same pace (`--scope layer`); their analysis seconds are spent "
        "watching calibration quality, not ranking.", "",
    ]  # fmt: skip


def _speed_row(stage: str, name: str, found: dict[str, Any], peak: float) -> list[str]:
    s = found[stage]
    spent = s.get("unit_seconds_total", s["seconds"])
    rate = s["macs"] / spent / 1e9 if s.get("macs") else None
    extra = f"; verdicts alike {s['verdicts_alike']}/{s['verdicts_compared']}" if "verdicts_alike" in s else ""
    return [
        name + extra, hours(s["seconds"]), f"{found['brute']['seconds'] / s['seconds']:.1f}×",
        f"{s['macs'] / 1e12:.0f}" if s.get("macs") else "–", f"{2 * rate:.0f}" if rate else "–",
        f"{100 * rate / peak:.0f} %" if rate else "–", f"{s['peak_memory_mib']:.0f}",
    ]  # fmt: skip


def speed(data: dict[str, Any]) -> list[str]:
    p = data["peaks_gmac_s"]
    lines = [
        "## What each part of the engine is worth", "", origin(data),
        "Whole networks projected from a few units of every group; parts are added in "
        f"turn. Measured peaks: convolution {2 * p['conv']:.0f} GFLOP/s, matrix product {2 * p['matmul']:.0f} GFLOP/s.", "",
    ]  # fmt: skip
    for network, found in data["networks"].items():
        any_stage = next(iter(found.values()))
        trained = "" if "verdict" in found else "; untrained weights, so that only time is measured"
        lines += [f"### {network}: {any_stage['units']:,} units, {any_stage['samples']:,} samples{trained}", ""]
        lines += table(
            [
                "engine",
                "whole analysis",
                "against brute force",
                "TMAC",
                "GFLOP/s",
                "of the conv peak",
                "peak memory, MiB",
            ],
            [_speed_row(s, name, found, p["conv"]) for s, name in data["stages"].items() if s in found],
        )
    return lines


def peak(data: dict[str, Any]) -> list[str]:
    lines = [
        "## The replay beside the convolution peak",
        "",
        origin(data),
        "The speed of a shared machine drifts, so the peak is measured anew after each group.",
        "",
    ]
    for network, found in data["networks"].items():
        groups = found["sized"]["groups"]
        spent = [g["unit_seconds"] * g["units"] for g in groups]
        could = [g["unit_macs"] * g["units"] / g["peak_gmac_s"] / 1e9 for g in groups]
        rows = [
            [g["group"], str(g["units"]), f"{1e3 * g['unit_seconds']:.0f}", f"{2 * g['unit_macs'] / g['unit_seconds'] / 1e9:.0f}",
             f"{2 * g['peak_gmac_s']:.0f}", f"{100 * c / s:.0f} %", f"{s:.0f}"]
            for g, s, c in zip(groups, spent, could, strict=True)
        ]  # fmt: skip
        lines += [f"{network}: {100 * sum(could) / sum(spent):.0f} % of the peak over the whole analysis.", ""]
        lines += table(
            ["group", "units", "ms a unit", "GFLOP/s", "conv peak then", "of it", "seconds of the group"], rows
        )
    return lines


def path(data: dict[str, Any]) -> list[str]:
    rows, curves, notes = [], [], []
    for network, n in data["networks"].items():
        b, s = n["brute_force"], n["summaries"]
        v = s["full"]["verdicts"]
        rows.append([
            network, f"{v['critical']} / {v['neutral']} / {v['detrimental']}", f"{s['full']['ratio']['params']:.4f}",
            f"{s['full']['seconds']['analysis']:.0f}", f"{s['verdict']['seconds']['analysis']:.0f}", "yes" if n["modes_alike"] else "NO",
            f"{b['units']}: {b['other_verdicts_full']} / {b['other_verdicts_verdict']}",
            f"{b['xi_relative_max']:.1e} / {b['xi_relative_median']:.1e}",
            f"{b['in_float64']['replay_relative_max']:.1e} / {b['in_float64']['brute_relative_max']:.1e} ({b['in_float64']['units']})",
        ])  # fmt: skip
        notes.append(
            f"* {network}: ξ is within {b['xi_absolute_max']:.1e} of brute force's everywhere; {b['xi_over_1e-4_relative']} of {b['units']} "
            f"units are further off than 1e-4 of ξ itself, all with |ξ| below {b['xi_absolute_max'] / 1e-4:.1e}, where float32 rounds: "
            f"against float64 brute force is up to {b['in_float64']['brute_relative_max']:.1e} off and the replay "
            f"{b['in_float64']['replay_relative_max']:.1e}."
        )
        points = [f"{p['ratio']['params']:.3f}: {100 * p['quality']['accuracy']:.2f} %" for p in n["curve"]]
        curves.append(f"* {network}, accuracy on 10,000 test images by params removed: {', '.join(points)}.")
    return [
        f"## Whole walks (`--target noncritical`), {data['per_class']} samples a class", "", origin(data),
        "Brute force judges every unit of ResNet-20 and a random 5 % of ResNet-18's again, on the network as it was at that "
        "moment of the walk.", "",
        *table(
            ["network", "critical / neutral / detrimental", "params removed", "full, s", "verdict, s", "both modes alike",
             "brute force, units: other verdicts full / verdict mode", "ξ against brute force, relative: max / median",
             "ξ against float64: replay / brute force in float32, max (units)"],
            rows,
        ),
        *notes, *curves, "",
    ]  # fmt: skip


def growth(data: dict[str, Any]) -> list[str]:
    lines = ["## How the cost of one intervention grows", "", origin(data), ""]
    for kind, points in data["sweeps"].items():
        key = {"samples": "samples_a_class"}.get(kind, kind)
        lines += table(
            [kind, *(str(p[key]) for p in points)],
            [
                ["ms a unit", *(f"{1e3 * p['unit_seconds']:.3g}" for p in points)],
                ["memory, MiB (budget, model)", *(f"{p['memory_mib']:.0f} ({p['budget_mib']:.0f}, {p['model_mib']:.0f})" for p in points)],
            ],
        )  # fmt: skip
    return lines
