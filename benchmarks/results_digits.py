"""The section of RESULTS.md on the digits: all methods in minutes, and what compensated cuts and swaps change."""

from __future__ import annotations

from statistics import mean
from typing import Any

from results_common import origin, table

_WITH = {"compensated cuts": "plain cuts", "swaps": "no swaps"}


def _cell(value: dict[str, float | None], others: list[float]) -> str:
    text = f"{100 * value['mean']:.1f}" + (f" ±{100 * value['std']:.1f}" if value["std"] is not None else "")
    return f"**{text}**" if value["mean"] >= max(others) else text


def _rows(method: dict[str, Any], kind: str, how: str) -> dict[float, dict[str, Any]]:
    return {
        r["asked"]: r["quality"][how] for r in method["curves"].get(kind, []) if how in r["quality"] and r["asked"] > 0
    }


def digits(data: dict[str, Any]) -> list[str]:
    """Two tables."""
    whole, base = data["all"], data["unpruned"]["quality"]["accuracy"]
    minutes = whole["total_seconds"] / 60
    ratios = sorted({r for m in whole["methods"].values() for r in _rows(m, "params", "none")})
    best = {
        r: [v[r]["mean"] for m in whole["methods"].values() if r in (v := _rows(m, "params", "none"))] for r in ratios
    }
    rows = []
    for name, m in whole["methods"].items():
        at = _rows(m, "params", "none")
        area = m["sauce"].get("none")
        rows.append([name, *(_cell(at[r], best[r]) if r in at else "–" for r in ratios), f"{area['mean']:.3f}" if area else "–", f"{m['seconds']:.1f}"])  # fmt: skip
    lines = [
        "## Every method on the digits, and options of ours", "", origin(data),
        f"`cswap compare` with all methods, complete paths, curves by parameters, MACs and units, and latency: {minutes:.1f} minutes in all, {whole['jobs']} methods at a time. "
        f"{data['held_out_samples']} held-out digits (unpruned {100 * base:.1f} %), {data['per_class']} a class to choose by. Accuracy in %, as pruned, by parameters removed.", "",
        *table(["method", *(f"{r:g}" for r in ratios), "SAUCE", "analysis, s"], rows),
        *(f"{name} is left out: {why}" for name, why in whole["refused"].items()),
        *_same_walk(whole["methods"]),
    ]  # fmt: skip
    if "options" not in data:
        return lines
    options = data["options"]
    asked = sorted({r for ms in options.values() for m in ms.values() for r in _rows(m, "params", "lstsq")})
    lines += [
        f"Compensated cuts, and swaps: refitted, {len(data['seeds'])} calibration seeds with their deviation. A compensated cut leaves the units whose loss the "
        "layers behind cannot make good, so it is looked at refitted. Accuracy in %.", "",
    ]  # fmt: skip
    rows = []
    for name, methods in options.items():
        for method, m in methods.items():
            for kind in ("params", "macs"):
                at = _rows(m, kind, "lstsq")
                rows.append(
                    [
                        method,
                        name,
                        kind,
                        *(_cell(at[r], [2.0]) if r in at else "–" for r in asked),
                        f"{m['seconds']:.1f}",
                    ]
                )
    lines += table(["method", "with", "by", *(f"{r:g}" for r in asked), "analysis, s"], rows)
    return [*lines, *(_said(options, name) for name in _WITH if name in options), ""]


def _same_walk(methods: dict[str, Any]) -> list[str]:
    """Where this network cannot tell the progressive method from the bulk one."""
    both = [methods.get(n, {}).get("curves") for n in ("cswap", "cbp")]
    if both[0] is None or both[1] is None:
        return []
    points = [[(k, r["asked"], r["quality"]["none"]["mean"]) for k, rows in c.items() for r in rows] for c in both]
    if points[0] != points[1]:
        return []
    return [
        "C-SWAP and C-BP go the same way here: hardly a unit is spared by every class, so both paths are the buffer, by ξ of the same network.",
        "",
    ]


def _said(options: dict[str, Any], name: str) -> str:
    """What the option changes on average."""
    said = []
    for method, m in options[name].items():
        other = options[_WITH[name]][method]
        for kind in ("params", "macs"):
            mine, theirs = _rows(m, kind, "lstsq"), _rows(other, kind, "lstsq")
            shared = [r for r in mine if r in theirs]
            gained = [100 * (mine[r]["mean"] - theirs[r]["mean"]) for r in shared]
            said.append(f"{method} by {kind} {mean(gained):+.1f} points ({min(gained):+.1f} to {max(gained):+.1f})")
    return f"Mean change over the ratios by {name}: {'; '.join(said)}."
