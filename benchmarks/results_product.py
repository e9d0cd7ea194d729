"""The sections of RESULTS.md on what ships: supported networks, exports and their latency, certificates."""

from __future__ import annotations

import statistics
from typing import Any

from results_common import origin, table


def support(data: dict[str, Any]) -> list[str]:
    sources = list(dict.fromkeys(m["name"].partition(":")[0] for m in data["models"]))
    statuses = list(dict.fromkeys(m["status"] for m in data["models"]))
    rows = [
        [source, *(str(sum(m["name"].startswith(source + ":") and m["status"] == s for m in data["models"])) for s in statuses)]
        for source in sources
    ]  # fmt: skip
    return [
        "## What can be pruned",
        "",
        origin(data),
        f"By model: `docs/support.md`. Not run yet: {len(data['not_run'])} models.",
        "",
        *table(["models", *statuses], rows),
    ]


def export(data: dict[str, Any]) -> list[str]:
    rows: list[list[str]] = []
    shares: dict[tuple[str, str], list[tuple[float, float | None]]] = {}
    for name, n in data["networks"].items():
        apart = max(e["max_abs_difference"] / e["allowed"] for e in n["exports"].values())
        label = name + ("" if n["trained"] else " (untrained)")
        for runtime, by_batch in n["latency_ms"].items():
            for which, said in (("pruned", "as it comes"), ("by8", "multiples of 8")):
                if any(which not in t for t in by_batch.values()):
                    continue
                left = n[which]["macs"] / n["original"]["macs"]
                cells = []
                for t in by_batch.values():
                    share = t["original"] / t[which] * left  # of the speed-up 1 / left
                    fixed = t["end"] / t["original"] if "end" in t else None
                    text = f"{t['original']:.1f} → {t[which]:.1f} ({100 * share:.0f} %)"
                    cells += [text, "–" if fixed is None else f"{100 * fixed:.0f} %"]
                    shares.setdefault((runtime, said), []).append((share, fixed))
                rows.append([label, runtime, said, f"{left:.2f}", *cells, f"{apart:.2g}"])
    return [
        "## Exports, and latency beside MACs", "", origin(data),
        f"ONNX and .pt2 of original and pruned were compared with the module on {data['samples']} test images; the last column is the "
        "largest difference as a part of what is allowed. Milliseconds, original → pruned, and in brackets the speed-up as a part of what the "
        "MACs promise; `fixed`: the time that is left with one unit a group, as a part of the original's: what does not go with MACs.", "",
        *table(["network", "runtime", "widths", "MACs left", "batch 1", "fixed", "batch 64", "fixed", "difference"], rows),
        *_speed_ups(shares), "",
    ]  # fmt: skip


def _speed_ups(shares: dict[tuple[str, str], list[tuple[float, float | None]]]) -> list[str]:
    """How many speed-ups reach 85 % of what the MACs promise, and what goes with falling short."""
    told = [
        f"{runtime}, {said}: {sum(s >= 0.85 for s, _ in found)} of {len(found)} (median {100 * statistics.median(s for s, _ in found):.0f} %)"
        for (runtime, said), found in shares.items()
    ]
    short = sorted((f, s) for found in shares.values() for s, f in found if f is not None and s < 0.85)
    lines = [f"At least 85 % of what the MACs promise: {'; '.join(told)}."]
    if short:
        much = [s for f, s in short if f > 0.2]
        lines.append(
            f"Two causes show. Widths: the same runtimes come closer to the promise with multiples of 8. Time that does not go with MACs: in "
            f"{len(much)} of the {len(short)} that fall short more than a fifth of the original's time is left with one unit a group (at most {100 * short[-1][0]:.0f} %)."
        )
    return lines


def certificates(data: dict[str, Any]) -> list[str]:
    bounds = list(next(iter(data["populations"].values())))
    rows = [
        [name, *(f"{v[b]['wrong']} ({v[b]['smallest_margin_median']:.3f})" for b in bounds)]
        for name, v in data["populations"].items()
    ]
    most = max(v[b]["wrong"] for v in data["populations"].values() for b in bounds if b != "t")
    return [
        "## How often certificates are wrong", "", origin(data),
        f"True loss exactly τ = {data['tau']} in one of {data['classes']} classes, {data['samples']} samples a class, α = {data['alpha']}; in each of "
        f"{data['repeats']:,} repetitions the best-looking of {data['candidates']} candidates is chosen on {data['selection']} other samples a class. "
        "Certificates issued, all of them wrong (in brackets the median of the smallest τ that could be certified):", "",
        *table(["losses", *bounds], rows),
        f"The exact bounds are wrong at most {most} times in {data['repeats']:,} where {data['alpha'] * data['repeats']:.0f} are allowed; the t bound is "
        "not to be trusted where few samples lose much.", "",
        *(f"* {n}: {t}" for n, t in data["about"].items()), "",
    ]  # fmt: skip
