"""Tables for the terminal; everything printed comes from the same data that --json prints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from cswap.cli.console import Console
from cswap.evaluate.certificate import shown
from cswap.report.figures import notes_of


def _console() -> Console:
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=120)


def _table(title: str, *columns: str, right: tuple[int, ...] = ()) -> Table:
    table = Table(title=escape(title), title_justify="left", title_style="bold", box=None, pad_edge=False)
    for i, name in enumerate(columns):
        table.add_column(
            name, justify="right" if i in right else "left", overflow="fold", no_wrap=i == 0 and bool(right)
        )
    return table


def _figure(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.4f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def side_by_side(data: dict[str, Any]) -> None:
    """Quality and cost of original and pruned."""
    console = _console()
    b, p = data["baseline"], data["pruned"]
    table = _table(
        f"target {data['target']}, {data.get('held_out_samples', '')} held-out samples",
        "",
        "before",
        "after",
        "change",
        right=(1, 2, 3),
    )
    for name, before in b["quality"].items():
        if name != "by_class" and before is not None:
            table.add_row(name, _figure(before), _figure(p["quality"][name]), f"{p['quality'][name] - before:+.4f}")
    for name in ("params", "macs"):
        table.add_row(name, _figure(b[name]), _figure(p[name]), f"{p[name] / b[name] - 1:+.1%}")
    for batch, before in b["latency_ms"].items():
        after = p["latency_ms"][batch]
        table.add_row(f"ms at batch {batch}", f"{before:.2f}", f"{after:.2f}", f"{after / before - 1:+.1%}")
    console.print(table)
    for note in data.get("notes", ()):
        console.print(escape(note))
    classes = _table("quality by class", "class", "before", "after", "change", right=(1, 2, 3))
    rows = zip(data["classes"], b["quality"]["by_class"], p["quality"]["by_class"], strict=True)
    for name, before, after in rows:
        if before is not None:
            classes.add_row(escape(name), _figure(before), _figure(after), f"{after - before:+.4f}")
    if len(data["classes"]) <= 40:
        console.print(classes)


def summary(data: dict[str, Any], out: Path) -> None:
    """What `prune` and `apply` end with."""
    side_by_side(data)
    r, v = data["ratio"], data["verdicts"]
    console = _console()
    console.print(
        f"removed: params {r['params']:.4f}, macs {r['macs']:.4f}, units {r['units']:.4f} ({escape(data['ended'])})"
    )
    if not r["units"]:
        console.print("nothing was removed: the network is as it was")
    if any(v.values()):
        console.print(f"verdicts: {v['critical']} critical, {v['neutral']} neutral, {v['detrimental']} detrimental")
    for cliff in data.get("cliffs", []):
        console.print(
            f"cliff: calibration quality fell from {cliff['before']:.3f} to {cliff['after']:.3f} by step {cliff['step']}, "
            f"group {escape(cliff['group'])}, most in {escape(', '.join(cliff['classes']) or 'no single class')}"
        )
    if data.get("recovery"):
        w = data["recovery"]
        told = (
            w["declined"]
            or f"mean score of {w['judged']} calibration samples from {w['score_before']:.4f} to {w['score_after']:.4f}"
        )
        console.print(f"recovery {escape(w['how'])}: {escape(told)}, {w['seconds']:.1f} s")
        for note in w["notes"]:
            console.print(f"  {escape(note)}")
    if data.get("aim"):
        last = data["aim"]["measured"][-1]  # of what was chosen, timed once more
        console.print(
            f"latency at batch {data['aim']['batch']}: {last['latency']:.4f} removed, measured on this machine"
        )
    if data.get("certificate"):
        for tried in data["certificate"].get("targets", []):
            console.print(
                f"  {escape(tried['target'])}: {'certified' if tried['certificate']['holds'] else 'not certified'}, the smallest that can be said is "
                f"{shown(tried['certificate']['smallest'])}"
            )
        console.print(f"certificate of {escape(data['target'])}: {escape(data['certificate']['claim'])}")
    console.print(f"masked and pruned networks differ by at most {data['max_abs_difference']:.3g}")
    console.print("seconds: " + ", ".join(f"{k} {s:.1f}" for k, s in data["seconds"].items()))
    console.print(f"artifact: {escape(str(out))}")


def explanation(data: dict[str, Any], most: int) -> None:
    """What `explain` shows: the groups, the units, or one unit by class."""
    console, units, r = _console(), data["units"], data["ratio"]
    console.print(
        f"{escape(data['method'])}, target {escape(data['target'])}: {r['params']:.1%} of the parameters, {r['macs']:.1%} of the MACs and "
        f"{r['units']:.1%} of the units are gone"
    )
    if data["unit"] is not None:
        _one_unit(console, units, data)
        return
    if data["class"] is None:
        table = _table(
            "groups, output to input",
            "group",
            "units",
            "tested",
            "critical",
            "neutral",
            "detrimental",
            "removed",
            right=(1, 2, 3, 4, 5, 6),
        )
        for g in data["groups"]:
            table.add_row(
                escape(g["group"]),
                *(str(g[k]) for k in ("units", "tested", "critical", "neutral", "detrimental", "removed")),
            )
        console.print(table)
    title = "units" if data["class"] is None else f"units that move class {data['class']}, most needed first"
    table = _table(
        title, "step", "group", "unit", "verdict", "xi", "gone", "needed by", "hurts", "why", right=(0, 2, 4)
    )
    for s in units[:most]:
        xi = "" if s["xi"] is None else f"{s['xi']:+.4f}"
        table.add_row(
            str(s["step"]), escape(s["group"]), str(s["unit"]), s["verdict"] or "", xi, "yes" if s["removed"] else "no",
            escape(_few(s["needed_by"])), escape(_few(s["hurts"])), escape(s["reason"]),
        )  # fmt: skip
    console.print(table)
    if len(units) > most:
        console.print(f"… and {len(units) - most} more: --most N, --group G, --unit N, --class K, --json")


def _one_unit(console: Console, units: list[dict[str, Any]], data: dict[str, Any]) -> None:
    if not units:
        console.print(f"unit {data['unit']} of {escape(data['group'])} was not reached: the path ended before it")
        return
    s = units[0]
    xi = "" if s["xi"] is None else f", xi {s['xi']:+.5f}"
    console.print(
        f"unit {s['unit']} of {escape(s['group'])}: {s['verdict'] or data['method']}{xi}; {escape(_fate(s, data))}"
    )
    table = _table(
        "effect of cutting it" + (", by class" if data["class"] is None else ""),
        "class",
        "samples",
        "mean difference",
        "p",
        "verdict of the class",
        right=(1, 2, 3),
    )
    for e in (e for e in s["effects"] if data["class"] in (None, e["class"])):
        table.add_row(
            escape(e["class"]),
            str(e["samples"]),
            "" if e["mean"] is None else f"{e['mean']:+.6f}",
            "" if e["p"] is None else f"{e['p']:.3g}",
            e["says"],
        )
    if s["effects"]:
        console.print(table)
    if s["probe"] is not None:
        _probe(console, s["probe"])
    if "images" in data:
        seen = ", ".join(f"{i['class']} {i['activation']:.3g}" for i in data["images"]["samples"])
        console.print(f"images that activate it most, in {escape(data['images']['file'])}: {escape(seen)}")


def _fate(s: dict[str, Any], data: dict[str, Any]) -> str:
    """What became of a unit, and where the path and this network part, why."""
    fate, later = "removed" if s["removed"] else "kept", s["removed_later"]
    if later is None:
        return f"{fate} at step {s['step']} ({s['reason']})"
    here = "this network does not" if later > data["steps"] else "it stays here for the width of its layer"
    then = f"the path removes it at step {later}, and {here}"
    return f"kept; {then}" if later == s["step"] else f"kept at step {s['step']} ({s['reason']}); {then}"


def _probe(console: Console, probe: dict[str, Any]) -> None:
    console.print(
        f"number {probe['place']} of its group's {probe['of']} units, cheapest first; the joint cut of the first {probe['units']}, with the layers "
        f"behind them compensated, is within a margin of {probe['margin']:.4f} on {probe['samples']} samples"
    )
    table = _table("what that cut loses", "class", "mean loss of score", right=(1,))
    for name, loss in probe["by_class"].items():
        table.add_row(escape(name), "not asked" if loss is None else f"{loss:+.6f}")
    console.print(table)


def exported(data: dict[str, Any]) -> None:
    """What `export` ends with."""
    _console().print(
        f"{escape(data['file'])}: {data['bytes'] / 1e6:.2f} MB, any batch size; on {data['samples']} held-out samples its outputs differ from "
        f"the PyTorch module's by at most {data['max_abs_difference']:.2g} (allowed {data['allowed']:.2g})"
    )


def support(data: dict[str, Any]) -> None:
    """What `support` shows."""
    console = _console()
    console.print(
        f"{escape(data['model'])}: {data['params']:,} parameters, {data['macs'] / 1e9:.3f} GMAC at {tuple(data['input'])}, "
        f"{len(data['groups'])} groups, {data['units']:,} units"
    )
    if data["nothing"]:
        console.print(f"NOTHING can be pruned in this model: {escape(data['nothing'])}", style="bold")
    table = _table("can be pruned, output to input", "group", "units", "written by", "read by", right=(1,))
    for g in data["groups"]:
        table.add_row(escape(g["group"]), str(g["units"]), escape(_few(g["producers"])), escape(_few(g["consumers"])))
    console.print(table)
    left = _table("left out", "dimension", "size", "with it", "why", right=(1,))
    for x in data["left_out"]:
        left.add_row(escape(x["name"]), str(x["size"]), escape(_few(x["layers"])), escape(x["reason"]))
    console.print(left)
    if data["never_called"]:
        console.print(f"never called in a forward pass, left as they are: {escape(_few(data['never_called']))}")
    h = data["highest"]
    console.print(f"at most: params {h['params']:.3f}, macs {h['macs']:.3f} (one unit left in each group)")


def _few(names: list[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def demo(data: dict[str, Any]) -> None:
    """The demo's table: accuracy at each ratio, and the area under the curve."""
    console, shown = _console(), (0.0, 0.2, 0.4, 0.6, 0.8)
    table = _table(
        "accuracy on 599 held-out digits, by fraction of parameters removed",
        "method",
        *(f"{r:g}" for r in shown),
        "SAUCE",
        "seconds",
        right=tuple(range(1, 8)),
    )
    for name, points in data["curves"].items():
        by = {p["asked"]: p["quality"]["accuracy"] for p in points}
        table.add_row(
            name,
            *(f"{by[r]:.3f}" if r in by else "–" for r in shown),
            f"{data['sauce'][name]:.3f}",
            f"{data['seconds'][name]:.1f}",
        )
    console.print(table)
    console.print(
        f"curve: {escape(data['out'])}/curve.html   report: {escape(data['out'])}/artifact/report.html   ({data['seconds']['total']:.0f} s in all)"
    )


def comparison(data: dict[str, Any], out: Path) -> None:
    """What `compare` ends with: a table by kind of ratio, quality at each, and what it cost."""
    console, headline = _console(), data["headline"]
    for kind in data["kinds"]:
        ratios = sorted({r["asked"] for m in data["methods"].values() for r in m["curves"].get(kind, [])})
        table = _table(
            f"{headline} on {data['held_out_samples']:,} held-out samples, by fraction of {kind} removed",
            "method", *(f"{r:g}" for r in ratios), *(["SAUCE"] if kind == "params" else []), "seconds",
            right=tuple(range(1, len(ratios) + 3)),
        )  # fmt: skip
        for name, method in data["methods"].items():
            by = {r["asked"]: r for r in method["curves"].get(kind, [])}
            for how in data["recover"]:
                cells = [
                    _mean(by[r]["quality"][how])
                    + "°" * (how in by[r].get("declined", {}))
                    + "*" * (by[r]["seeds"] < len(method["by_seed"]))
                    if how in by.get(r, {}).get("quality", {})
                    else "–"
                    for r in ratios
                ]
                area = [_mean(method["sauce"][how]) if how in method["sauce"] else "–"] if kind == "params" else []
                label = name if how == "none" else f"{name} + {how}"
                table.add_row(escape(label), *cells, *area, f"{method['seconds']:.1f}")
        console.print(table)
    if (one := _at_one_ratio(data)) is not None:
        console.print(one)
    for name, reason in data["refused"].items():
        console.print(f"{escape(name)} is left out: {escape(reason)}")
    for note, of in notes_of(data).items():
        console.print(f"{escape(', '.join(of))}: {escape(note)}")
    if any(r.get("declined") for m in data["methods"].values() for rows in m["curves"].values() for r in rows):
        console.print(
            "° declined, by calibration samples (with lstsq or merge, those that did not fit): the figure is the plain network's"
        )
    if any(
        r["seeds"] < len(m["by_seed"]) for m in data["methods"].values() for rows in m["curves"].values() for r in rows
    ):
        console.print("* not reached by every seed: the mean is of those that do")
    console.print(f"{data['per_class']} calibration samples a class; seeds {', '.join(str(s) for s in data['seeds'])}")
    console.print(f"curves: {escape(str(out))}/compare.html   figures: {escape(str(out))}/compare.json")


def _at_one_ratio(data: dict[str, Any]) -> Table | None:
    """What a curve does not show, at the ratio nearest to a half: the class that lost most, and latency where it was timed."""
    kind, seed = data["kinds"][0], str(data["seeds"][0])
    points = {n: [p for p in m["by_seed"][seed]["points"] if p["asked"].get(kind)] for n, m in data["methods"].items()}
    asked = {p["asked"][kind] for of_method in points.values() for p in of_method}
    if not asked:
        return None
    ratio = min(asked, key=lambda r: (abs(r - 0.5), r))
    table = _table(
        f"at {kind} = {ratio:g}, seed {seed}: the class that lost most, and the time of one batch", "method", data["headline"], "class that lost most",
        "from", "to", "ms, batch 1", "ms, batch 64", right=(1, 3, 4, 5, 6),
    )  # fmt: skip
    whole = data["unpruned"]["quality"]["by_class"]
    for name, of_method in points.items():
        for p in (p for p in of_method if p["asked"][kind] == ratio):
            for how in data["recover"]:
                found = p["quality"] if how == "none" else p["recovered"].get(how, {}).get("quality")
                if found is None:
                    continue
                lost = {k: a - b for k, (a, b) in enumerate(zip(whole, found["by_class"], strict=True)) if a is not None and b is not None}  # fmt: skip
                k = max(lost, key=lambda k: lost[k], default=None)
                classes = ["–", "–", "–"] if k is None else [escape(str(data["classes"][k])), f"{whole[k]:.3f}", f"{found['by_class'][k]:.3f}"]  # fmt: skip
                ms = p.get("latency_ms", {})
                # a recovery changes no shapes, so its time is the plain network's
                times = [f"{ms[b]:.3g}" if b in ms else "–" for b in ("1", "64")]
                label = name if how == "none" else f"{name} + {how}"
                table.add_row(escape(label), f"{found[data['headline']]:.3f}", *classes, *times)
    return table


def _mean(value: dict[str, Any]) -> str:
    spread = f" ±{value['std']:.3f}" if value["std"] is not None else ""
    return f"{value['mean']:.3f}{spread}"
