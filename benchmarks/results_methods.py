"""The section of RESULTS.md on methods: curves by what was removed, and where C-SWAP loses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from results_common import RULE, WAYS, bold_best, label, origin, point_at, table, theirs
from results_goals import goals
from results_peers import published

HERE = Path(__file__).resolve().parent


def methods(data: dict[str, Any], what: str = "") -> list[str]:
    """The table; what: of a part of the methods, which say nothing of the goals."""
    base, m = data["unpruned"]["quality"]["accuracy"], data["measured_in"]
    both = "; " + ", ".join(f"{100 * v:.2f} % in {k}" for k, v in m["unpruned"].items()) if "unpruned" in m else ""
    lines = [
        f"## {what or 'Every method and recovery'}: {data['network']} on CIFAR-10 (JPEG), one shot, no fine-tuning, {data['per_class']} images a class to choose by", "",
        origin(data),
        f"{data['held_out_samples']:,} test images in {m['precision']} (unpruned {100 * base:.2f} %{both}). Effects and scores from {data['per_class']} images a class, recoveries from {data['recover_per_class']}, the same for all. "
        "`:global`: each group's scores by their mean (LAMP's as they are); `:params`, `:macs` (ours): scores as they are, a parameter or MAC. Accuracy in %, the best of a column bold; ° declined, so that the network stays as it was; analysis seconds of the complete "
        f"path {'' if 'note' in data else 'on one core, '}while other work ran on the machine.{_samples(data)}{theirs(data)}", "",
        *([f"{data['note']}.", ""] if "note" in data else []),
    ]  # fmt: skip
    for kind in data["kinds"]:
        asked = {p["asked"][kind] for x in data["methods"].values() for p in x["points"] if kind in p["asked"]}
        ratios = sorted(asked - {0.0})
        told = {h for x in data["methods"].values() for h, v in x["sauce"].items() if v is not None and h != "bn"}
        with_area = ({"none"} | told) if kind == "params" else set()
        for how in data["recover"] if ratios else ():
            rows, shown = [], {}
            for name, x in data["methods"].items():
                at = {r: p for r in ratios if (p := point_at(x["points"], kind, r)) and how in p["accuracy"]}
                # batch norms again are the control, so they are shown also where cswap declines them
                shown[name] = {r: p["raw_accuracy"][how] if how == "bn" else p["accuracy"][how] for r, p in at.items()}
                marks = {r: "°" if how != "bn" and how in p["declined"] else "" for r, p in at.items()}
                shown[name] = {r: (v, marks[r]) for r, v in shown[name].items()}
            best = {r: max((v[r][0] for v in shown.values() if r in v), default=1.0) for r in ratios}
            best = {r: v if v > 1.5 / len(data["classes"]) else 1.0 for r, v in best.items()}  # none is best at chance
            for name, x in data["methods"].items():
                cells = [
                    bold_best(shown[name][r][0], best[r]) + shown[name][r][1] if r in shown[name] else "–"
                    for r in ratios
                ]
                area = x["sauce"].get(how) if how != "bn" else None
                extra = [f"{area:.3f}" if area is not None else "–"] if how in with_area else []
                rows.append([label(name, data), *cells, *extra, f"{x['seconds']:.0f}"])
            lines += [f"### By {kind} removed, {WAYS.get(how, how)}", ""]
            head = [
                "method",
                *(f"{r:g}" for r in ratios),
                *(["SAUCE"] if how in with_area else []),
                "analysis, s",
            ]
            lines += table(head, rows)
    return (
        lines
        + latencies(data)
        + ([] if what else goals(data, base))
        + published(data, base)
        + _why(data)
        + losses(data)
    )


def latencies(data: dict[str, Any]) -> list[str]:
    """Milliseconds a batch of every point of the first kind, and of the unpruned network, where they were timed."""
    kind, by_method = data["kinds"][0], {}
    for name, x in data["methods"].items():
        at = {p["asked"].get(kind, 0.0 if not p["asked"] else None): p for p in x["points"] if "latency_ms" in p}
        by_method[name] = {r: p["latency_ms"] for r, p in at.items() if r is not None}
    ratios = sorted({r for found in by_method.values() for r in found})
    if not ratios:
        return []
    rows = [
        [label(name, data), *("{:.1f} / {:.0f}".format(found[r]["1"], found[r]["64"]) if r in found else "–" for r in ratios)]
        for name, found in by_method.items() if found
    ]  # fmt: skip
    said = f"Median of a batch of 1 / of 64 by PyTorch, float32, {data['machine']['threads']} thread(s), timed in turns within a method on a machine that did nothing else; 0 is the unpruned network."
    return [f"### Milliseconds by {kind} removed", "", said, "", *table(["method", *(f"{r:g}" for r in ratios)], rows)]


def _samples(data: dict[str, Any]) -> str:
    """Why there are fewer samples a class than the paper takes."""
    mine = data["methods"].get("cswap")
    if mine is None or data["per_class"] >= 128 or data.get("granularity", "unit") != "unit":
        return ""
    hours = mine["seconds"] * 128 / data["per_class"] / 3600
    return f" The paper takes 128 a class: by these seconds C-SWAP's path alone would take {hours:.1f} hours of a core."


def _why(data: dict[str, Any]) -> list[str]:
    """Where C-SWAP loses to cheaper methods, and what the figures say of the cause."""
    mine = data["methods"].get("cswap")
    asked = {
        k: {r for x in data["methods"].values() for p in x["points"] if (r := p["asked"].get(k))} for k in data["kinds"]
    }
    kind = next((k for k in data["kinds"] if asked[k]), data["kinds"][0])
    ratios = sorted(asked[kind])
    own = {r: p for r in ratios if mine and (p := point_at(mine["points"], kind, r))}
    # C-BP cuts as many units once, on a network that does not shrink: it costs no more by the number of cuts
    cheaper = {n: x for n, x in data["methods"].items() if mine and (x["seconds"] < mine["seconds"] or n == "cbp")}
    ahead = {
        r: [n for n, x in cheaper.items() if (q := point_at(x["points"], kind, r)) and q["accuracy"]["none"] > p["accuracy"]["none"]]
        for r, p in own.items()
    }  # fmt: skip
    if not mine or not any(ahead.values()):
        return []
    base, v = data["unpruned"]["quality"]["accuracy"], mine["verdicts"]
    said = ", ".join(f"{len(n)} of {len(cheaper)} at {r:g}" for r, n in ahead.items() if n)
    falls = next((r for r, p in own.items() if p["accuracy"]["none"] < 0.95 * base), None)
    lines = f"C-SWAP ({mine['seconds']:.0f} s) loses to methods that evaluate no more cuts, as pruned and by {kind}: {said}."
    if falls is None:
        return [lines, ""]
    p = own[falls]
    rivals = {n: point_at(cheaper[n]["points"], kind, falls) for n in ahead[falls]}
    best = max(rivals, key=lambda n: rivals[n]["accuracy"]["none"], default=None)  # type: ignore[index]
    lines += (
        f" {v['critical']:,} of {sum(v.values()):,} units are critical by their class vote, so nearly the whole path is the buffer, ordered "
        f"by ξ, the change of σ relative to σ itself: {mine['critical_with_gain']:,} units that a class needs have a positive ξ and go first, and "
        "what a unit costs, or what many small losses add up to, is not asked."
    )
    if best is not None:
        q: Any = rivals[best]
        lines += (
            f" At {falls:g} it has {100 * p['accuracy']['none']:.1f} % and has taken {100 * p['ratio']['macs']:.0f} % of the MACs and {100 * p['ratio']['params']:.0f} % of the parameters; {best} has "
            f"{100 * q['accuracy']['none']:.1f} % and {100 * q['ratio']['macs']:.0f} and {100 * q['ratio']['params']:.0f} %."
        )
    bulk = data["methods"].get("cbp")
    holds = [
        r for r in ratios if bulk and (q := point_at(bulk["points"], kind, r)) and q["accuracy"]["none"] >= 0.95 * base
    ]
    if bulk and holds and falls <= max(holds):
        w = bulk["verdicts"]
        lines += (
            f" C-BP goes by the same order, but tests on the original network, where {sum(w.values()) - w['critical']:,} units are needed by no class "
            f"alone (C-SWAP: {sum(v.values()) - v['critical']:,}): it holds to {max(holds):g}, and then falls too."
        )
    return [lines + _beside_random(data, own) + _by_samples(data, own), ""]


def _beside_random(data: dict[str, Any], own: dict[float, Any]) -> str:
    """Where, with something given back, C-SWAP's choice is worse than a random one."""
    name = next((n for n in ("random:layer", "random") if n in data["methods"]), None)
    if name is None:
        return ""
    said = []
    for how in (h for h in data["recover"] if h != "none"):
        for r, p in own.items():
            q = point_at(data["methods"][name]["points"], data["kinds"][0], r)
            if q and how in p["accuracy"] and how in q["accuracy"] and p["accuracy"][how] < q["accuracy"][how]:
                said.append(
                    f"{WAYS.get(how, how)} at {r:g} {100 * p['accuracy'][how]:.1f} against {100 * q['accuracy'][how]:.1f}"
                )
    return f" Given back the same, it is behind `{name}`: {', '.join(said)}." if said else ""


def _by_samples(data: dict[str, Any], own: dict[float, Any]) -> str:
    """The same method with more samples a class, where another result has it."""
    file = HERE / "results" / f"methods_{data['network']}_128.json"
    if data["per_class"] >= 128 or not file.exists():
        return ""
    more = json.loads(file.read_text())
    theirs = more["methods"].get("cswap", {"points": []})["points"]
    both = {r: q["accuracy"]["none"] for r in own if (q := point_at(theirs, data["kinds"][0], r))}
    if not both:
        return ""
    critical = [d["methods"]["cswap"]["verdicts"]["critical"] for d in (more, data)]
    said = ", ".join(f"{100 * q:.1f} at {r:g} ({100 * own[r]['accuracy']['none']:.1f} here)" for r, q in both.items())
    return f" With {more['per_class']} a class, by another commit and machine, its plain network has {said}; there {critical[0]:,} units are critical, here {critical[1]:,}."


def losses(data: dict[str, Any]) -> list[str]:
    """Where a recovery that is delivered loses against the plain network, and what those that are declined would have done."""
    worse, declined, count, least, doubtful = [], [], 0, 1.0, 0
    for name, x in data["methods"].items():
        for p in x["points"]:
            if not any(p["ratio"].values()):
                continue  # nothing was removed: nothing to give back
            for how, value in p["p_worse"].items():
                where = f"{name} at params {p['ratio']['params']:.2f} with {how}"
                if how in p["declined"]:
                    change = 100 * (p["raw_accuracy"][how] - p["accuracy"]["none"])
                    declined.append((change, f"{where} ({change:+.2f} points)"))
                elif value is not None:
                    count, least, doubtful = count + 1, min(least, value), doubtful + (value < 0.05)
                    worse += [f"{where} (p = {value:.1g})"] if value < 0.01 else []
    text = f"Of {count} recovered networks that are delivered, {len(worse)} are worse than the plain one (paired one-sided McNemar, p < 0.01)"
    lines = [
        text + (": " + "; ".join(worse[:12]) + ("; …" if len(worse) > 12 else "") if worse else "")
        + f"; {doubtful} at p < 0.05, where networks alike would give {0.05 * count:.0f}; the smallest p is {least:.1g}. "
        + ("" if data.get("recover_rule") == RULE else "What is declined was decided by the rule of that commit, which today's has replaced.")
    ]  # fmt: skip
    lost = sum(change < 0 for change, _ in declined)
    if not declined:
        return [*lines, "Nothing was declined.", ""]
    said = f"Declined, so that the network stays as it was: {len(declined)}, of which {lost} would have lost on the test images"
    shown = "; ".join(t for _, t in sorted(declined)[:8]) + ("; …" if len(declined) > 8 else "")
    return [*lines, f"{said}: {shown}.", ""]
