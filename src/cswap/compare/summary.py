"""What points say of a method: its curves, its areas, their spread over seeds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from cswap.evaluate.curve import sauce
from cswap.types import RATIO_KINDS


def quality_of(point: dict[str, Any], how: str = "none") -> dict[str, Any]:
    """The figures of a point, plain or recovered in some way."""
    found: dict[str, Any] = point["quality"] if how == "none" else point["recovered"][how]["quality"]
    return found


def curve_of(points: list[dict[str, Any]], kind: str, headline: str, how: str = "none") -> list[tuple[float, float]]:
    """(fraction removed, quality) of the points asked for in one kind, ascending."""
    return [(p["ratio"][kind], quality_of(p, how)[headline]) for p in points if kind in p["asked"]]


def area(points: list[dict[str, Any]], headline: str, how: str) -> float | None:
    """SAUCE against parameters; None where the curve does not reach 0.8, or was not measured everywhere."""
    if any("params" in p["asked"] and how != "none" and how not in p["recovered"] for p in points):
        return None
    curve = curve_of(points, "params", headline, how)
    reaches = bool(curve) and curve[0][0] == 0 and curve[-1][0] >= 0.8 - 1e-9
    return sauce([x for x, _ in curve], [y for _, y in curve], points[0]["quality"][headline]) if reaches else None


def spread(by_seed: dict[str, Any], headline: str) -> dict[str, Any]:
    """Mean and standard deviation over seeds, where they were asked the same, beside every seed's own."""
    summary: dict[str, Any] = {}
    runs = list(by_seed.values())
    ways = list(runs[0]["sauce"])
    for kind in RATIO_KINDS:
        rows = []
        for ratio in sorted({p["asked"][kind] for r in runs for p in r["points"] if kind in p["asked"]}):
            at = [p for r in runs for p in r["points"] if p["asked"].get(kind) == ratio]
            row: dict[str, Any] = {"asked": ratio, "seeds": len(at)}
            measured = {how: [p for p in at if how == "none" or how in p["recovered"]] for how in ways}
            row["quality"] = {
                how: _mean_std([quality_of(p, how)[headline] for p in m]) for how, m in measured.items() if m
            }
            declined = {
                how: sum(bool(p["recovered"][how].get("declined")) for p in m)
                for how, m in measured.items()
                if how != "none"
            }
            row["declined"] = {how: n for how, n in declined.items() if n}
            row["by_class"] = {
                how: _classes([quality_of(p, how)["by_class"] for p in m]) for how, m in measured.items() if m
            }
            for label, pick in _COLUMNS.items():
                values = [v for p in at if (v := pick(p)) is not None]
                if values:
                    row[label] = _mean_std(values)
            rows.append(row)
        if rows:
            summary[kind] = rows
    areas = {n: [r["sauce"][n] for r in runs if r["sauce"].get(n) is not None] for n in ways}
    return {
        "by_seed": by_seed, "curves": summary, "sauce": {n: _mean_std(v) for n, v in areas.items() if v},
        "seconds": float(np.mean([r["seconds"] for r in runs])), "seconds_std": _mean_std([r["seconds"] for r in runs])["std"],
    }  # fmt: skip


def _mean_std(values: list[float]) -> dict[str, float | None]:
    return {"mean": float(np.mean(values)), "std": float(np.std(values, ddof=1)) if len(values) > 1 else None}


def _classes(by_seed: list[list[float | None]]) -> list[dict[str, float | None] | None]:
    """Class by class; None for one that no seed measured."""
    by_class = ([v for v in values if v is not None] for values in zip(*by_seed, strict=True))
    return [_mean_std(values) if values else None for values in by_class]


_COLUMNS: dict[str, Callable[[dict[str, Any]], float | None]] = {
    "params": lambda p: p["ratio"]["params"],
    "macs": lambda p: p["ratio"]["macs"],
    "units": lambda p: p["ratio"]["units"],
    "ms_1": lambda p: p.get("latency_ms", {}).get("1"),
    "ms_64": lambda p: p.get("latency_ms", {}).get("64"),
}
