"""The sections of RESULTS.md on what ships: supported networks, exports and their latency, certificates."""

from __future__ import annotations

import statistics
from typing import Any, NamedTuple

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
    points: list[_SpeedUp] = []
    for name, n in data["networks"].items():
        apart = max(e["max_abs_difference"] / e["allowed"] for e in n["exports"].values())
        label = name + ("" if n["trained"] else " (untrained)")
        for runtime, by_batch in n["latency_ms"].items():
            for which, said in (("pruned", "as it comes"), ("by8", "multiples of 8")):
                if any(which not in t for t in by_batch.values()):
                    continue
                left = n[which]["macs"] / n["original"]["macs"]
                cells = []
                for batch, t in by_batch.items():
                    point = _SpeedUp(
                        f"{label}, {runtime}, batch {batch}", said, t["original"] / t[which] * left, left,
                        t["end"] / t["original"] if "end" in t else None, _parts(n, runtime, batch, which),
                    )  # fmt: skip
                    text = f"{t['original']:.1f} → {t[which]:.1f} ({100 * point.share:.0f} %)"
                    cells += [text, "–" if point.fixed is None else f"{100 * point.fixed:.0f} %"]
                    points.append(point)
                rows.append([label, runtime, said, f"{left:.2f}", *cells, f"{apart:.2g}"])
    return [
        "## Exports, and latency beside MACs", "", origin(data),
        f"ONNX and .pt2 of original and pruned were compared with the module on {data['samples']} test images; the last column is the "
        "largest difference as a part of what is allowed. Milliseconds, original → pruned, and in brackets the speed-up as a part of what the "
        "MACs promise; `fixed`: the time that is left with one unit a group, as a part of the original's: what does not go with MACs.", "",
        *table(["network", "runtime", "widths", "MACs left", "batch 1", "fixed", "batch 64", "fixed", "difference"], rows),
        _speed_ups(points), "",
    ]  # fmt: skip


class _Parts(NamedTuple):
    """Milliseconds in operations that have MACs and in all else, of the original and of the pruned network."""

    macs: tuple[float, float]
    rest: tuple[float, float]


def _parts(network: dict[str, Any], runtime: str, batch: str, which: str) -> _Parts | None:
    """What a profiler said of one row, where it was asked."""
    share = network.get("with_macs", {}).get(runtime, {}).get(batch, {})
    if which not in share:
        return None
    whole = network["latency_ms"][runtime][batch]
    macs = {w: whole[w] * share[w] for w in ("original", which)}
    return _Parts((macs["original"], macs[which]), (whole["original"] - macs["original"], whole[which] - macs[which]))


def _cause(point: _SpeedUp, enough: float) -> str:
    """What keeps a speed-up below `enough` of its promise, by which part would have to shrink as the MACs do for it to get there."""
    assert point.parts is not None
    (a, b), (c, d) = point.parts
    whole = a + c
    by_macs = whole / (a * point.left + d) * point.left >= enough
    by_rest = whole / (b + c * point.left) * point.left >= enough
    if by_macs and not by_rest:
        return (
            f"convolutions and products, which do {100 * a * point.left / b:.0f} % of the MACs a second that they did"
        )
    if by_rest and not by_macs:
        return f"operations without MACs, {c:.1f} → {d:.1f} ms"
    either = "either of" if by_macs else "both"
    return f"{either} convolutions and products ({100 * a * point.left / b:.0f} % of the MACs a second) and operations without MACs ({c:.1f} → {d:.1f} ms)"


class _SpeedUp(NamedTuple):
    """What was timed, as which widths, its speed-up as a part of 1 / `left`, MACs left, and the time that does not go with MACs, as a part."""

    what: str
    widths: str
    share: float
    left: float
    fixed: float | None
    parts: _Parts | None = None

    @property
    def possible(self) -> float:
        """The part that could be reached if all but the fixed time went with MACs."""
        return 1.0 if self.fixed is None else self.left / (self.fixed + (1 - self.fixed) * self.left)


def _speed_ups(points: list[_SpeedUp], enough: float = 0.85) -> str:
    """How many speed-ups reach 85 % of what the MACs promise, and of those that do not, what shows a cause and what does not."""
    told = []
    for widths in dict.fromkeys(p.widths for p in points):
        own = [p for p in points if p.widths == widths]
        told.append(
            f"{widths}: {sum(p.share >= enough for p in own)} of {len(own)} (median {100 * statistics.median(p.share for p in own):.0f} %)"
        )
    short = [p for p in points if p.share < enough]
    reached = {p.what for p in points if p.share >= enough and p.widths != points[0].widths}
    fixed = [p for p in short if p.possible < enough]
    rounded = [p for p in short if p not in fixed and p.what in reached and p.widths == points[0].widths]
    rest = [p for p in short if p not in fixed and p not in rounded]
    unexplained = "; ".join(f"{p.what}, {p.widths} ({100 * p.share:.0f} %)" for p in rest if p.parts is None)
    causes = [f"{p.what}, {p.widths} ({100 * p.share:.0f} %): {_cause(p, enough)}" for p in rest if p.parts is not None]
    told_of = f"The others, by the runtime's profiler: {'; '.join(causes)}. " if causes else ""
    return (
        f"At least {100 * enough:.0f} % of what the MACs promise: {'; '.join(told)}. Of the {len(short)} that fall short {len(fixed)} could not reach it with the time that "
        f"does not go with MACs, and {len(rounded)} more reach it with multiples of 8. {told_of}{f'Not explained by either: {unexplained}.' if unexplained else ''}"
    )


def certificates(data: dict[str, Any]) -> list[str]:
    bounds = list(next(iter(data["populations"].values())))
    rows = [
        [
            name,
            *(
                f"{v[b]['wrong']} / {v[b]['from_what_chose']} / {v[b]['chain']} / {v[b]['each']} ({v[b]['smallest_margin_median']:.3f})"
                for b in bounds
            ),
        ]
        for name, v in data["populations"].items()
    ]
    exact = [v[b] for v in data["populations"].values() for b in bounds if b != "t"]
    allowed, repeats = data["alpha"] * data["repeats"], data["repeats"]
    most, chain = max(x["wrong"] for x in exact), max(x["chain"] for x in exact)
    leaks = max(x["from_what_chose"] for x in exact)
    t = max(v["t"]["wrong"] for v in data["populations"].values())
    best = ", ".join(f"{b} {v:.4f}" for b, v in data["at_best"].items())
    return [
        "## How often certificates are wrong", "", origin(data),
        f"True loss exactly τ = {data['tau']} in one of {data['classes']} classes, {data['samples']:,} samples a class, α = {data['alpha']}; in each of "
        f"{repeats:,} repetitions the best-looking of {data['candidates']} candidates is chosen on as many other samples. So many samples can certify at best {best}.",
        "Certificates issued, all of them wrong: on fresh samples / on those that chose (a control) / of targets in fixed order, after one whose claim is true / the same "
        "targets without an order (in brackets the median of the smallest τ that could be certified):", "",
        *table(["losses", *bounds], rows),
        f"The exact bounds are wrong at most {most} times in {repeats:,} where {allowed:.0f} are allowed, {chain} in a chain of targets, and up to {leaks} times from the samples "
        f"that chose; the t bound up to {t} times: it is not to be trusted where few samples lose much.", "",
        *(f"* {n}: {t}" for n, t in data["about"].items()), "",
    ]  # fmt: skip
