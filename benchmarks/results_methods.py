"""The sections of RESULTS.md on methods: curves, goals, what was tried where one is missed, peers."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

from results_common import RULE, bold_best, hours, label, origin, point_at, standard_error, table

HERE = Path(__file__).resolve().parent

WAYS = {"none": "plain", "bn": "BN again", "lstsq": "refitted"}


def methods(data: dict[str, Any], what: str = "") -> list[str]:
    """The table; what: of a part of the methods, which say nothing of the goals."""
    base, m = data["unpruned"]["quality"]["accuracy"], data["measured_in"]
    both = "; " + ", ".join(f"{100 * v:.2f} % in {k}" for k, v in m["unpruned"].items()) if "unpruned" in m else ""
    lines = [
        f"## {what or 'Every method and recovery'}: {data['network']} on CIFAR-10 (JPEG), one shot, no fine-tuning, {data['per_class']} images a class to choose by", "",
        origin(data),
        f"{data['held_out_samples']:,} test images in {m['precision']} (unpruned {100 * base:.2f} %{both}). Effects and scores from {data['per_class']} images a class, recoveries from {data['recover_per_class']}, the same for all. "
        "`:global`: each group's scores by their mean (LAMP's as they are); `:params`, `:macs` (ours): scores as they are, a parameter or MAC. Accuracy in %, the best of a column bold; ° declined, so that the network stays as it was; analysis seconds of the complete "
        f"path {'' if 'note' in data else 'on one core, '}while other work ran on the machine.{_samples(data)}", "",
        *([f"{data['note']}.", ""] if "note" in data else []),
    ]  # fmt: skip
    for kind in data["kinds"]:
        asked = {p["asked"][kind] for x in data["methods"].values() for p in x["points"] if kind in p["asked"]}
        ratios = sorted(asked - {0.0})
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
                extra = [f"{area:.3f}" if area is not None else "–"] if kind == "params" and how == "none" else []
                rows.append([label(name, data), *cells, *extra, f"{x['seconds']:.0f}"])
            lines += [f"### By {kind} removed, {WAYS.get(how, how)}", ""]
            head = [
                "method",
                *(f"{r:g}" for r in ratios),
                *(["SAUCE"] if kind == "params" and how == "none" else []),
                "analysis, s",
            ]
            lines += table(head, rows)
    return lines + ([] if what else _goals(data, base)) + _published(data, base) + _why(data) + losses(data)


def _samples(data: dict[str, Any]) -> str:
    """Why there are fewer samples a class than the paper takes."""
    mine = data["methods"].get("cswap")
    if mine is None or data["per_class"] >= 128:
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


_GOALS = (("params", 0.5, 0.2), ("params", 0.7, 0.5), ("macs", 0.5, 0.5), ("macs", 0.7, 3.0))


def _goals(data: dict[str, Any], base: float) -> list[str]:
    """How far the best combination is from the unpruned network at the points that were set as goals."""
    rows = []
    asked = {(k, r) for x in data["methods"].values() for p in x["points"] for k, r in p["asked"].items()}
    for kind, goal, most in _GOALS:
        # a hundredth more, where a published table is met at its own ratios
        ratio = min((r for k, r in asked if k == kind and goal <= r <= goal + 0.011), default=goal)
        found = [
            (v, name, how)
            for name, x in data["methods"].items()
            if (p := point_at(x["points"], kind, ratio))
            for how, v in p["accuracy"].items()
        ]
        if found:
            best, name, how = max(found)
            lost = 100 * (base - best)
            rows.append(
                [
                    f"{kind} = {ratio:g}",
                    f"{name}, {WAYS.get(how, how)}",
                    f"{100 * best:.2f}",
                    f"{lost:+.2f}",
                    f"{most:g}",
                    "yes" if lost <= most else "no",
                ]
            )
    return [
        "### Points lost by the best combination",
        "",
        f"The best of all methods and recoveries above, chosen by these test images, which tell an accuracy to ±{standard_error(base, data['held_out_samples']):.2f} points (standard error).",
        "",
        *table(["target", "method, recovery", "accuracy, %", "points lost", "goal: at most", "reached"], rows),
    ]


_PUBLISHED = {
    "L1 and batch norms again, from 94.0": {0.19: 92.6, 0.36: 91.1, 0.51: 86.1, 0.64: 72.7},
    "model folding and batch norms again, from 93.9": {0.36: 91.4, 0.51: 87.1, 0.64: 81.2},
}
"""Reported medians of accuracy on CIFAR-10 by share of ResNet-18's parameters removed, without fine-tuning (folding: arXiv 2502.10216)."""


def _published(data: dict[str, Any], base: float) -> list[str]:
    """Points lost beside the published ones, where their ratios were asked for."""
    ratios = [0.19, 0.36, 0.51, 0.64]
    if not all(point_at(x["points"], "params", r) for x in data["methods"].values() for r in ratios):
        return []
    rows = [
        [f"published: {name}", *(f"{float(name.split()[-1]) - by[r]:.1f}" if r in by else "–" for r in ratios)]
        for name, by in _PUBLISHED.items()
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


def losses(data: dict[str, Any]) -> list[str]:
    """Where a recovery that is delivered loses against the plain network, and what those that are declined would have done."""
    worse, declined, count, least, doubtful = [], [], 0, 1.0, 0
    for name, x in data["methods"].items():
        for p in x["points"]:
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
    (name, published), *_ = _PUBLISHED.items()
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


def joint(data: dict[str, Any]) -> list[str]:
    """`joint` beside the best ranking, which has the same samples, recovery and test images (methods_resnet18.json)."""
    beside = json.loads((HERE / "results" / "methods_resnet18.json").read_text())["methods"]
    rows = []
    for name, x in [
        *data["methods"].items(),
        *((n, beside[n]) for n in ("obs:global:macs", "obs:global:params") if n in beside),
    ]:
        cells = []
        for kind, asked in (("params", 0.5), ("params", 0.7), ("macs", 0.5), ("macs", 0.7)):
            p = point_at(x["points"], kind, asked)
            cells.append(
                "–" if p is None else f"{100 * p['accuracy']['none']:.2f} → {100 * p['raw_accuracy']['lstsq']:.2f}"
            )
        rows.append([name, *cells, f"{x['seconds']:.0f}"])
    base = data["unpruned"]["quality"]["accuracy"]
    lost = {
        r: 100 * (base - p["raw_accuracy"]["lstsq"])
        for r in (0.5, 0.7)
        for x in data["methods"].values()
        if (p := point_at(x["points"], "macs", r))
    }
    return [
        "## Joint, verified pruning beside the best ranking: ResNet-18 on CIFAR-10 (JPEG)", "", origin(data),
        f"{data['held_out_samples']:,} test images in {data['measured_in']['precision']} (unpruned {100 * base:.2f} %); {data['per_class']} images a class to choose, "
        f"{data['recover_per_class']} to refit. Accuracy in %, plain → refitted; the other rows are those of the table of methods.", "",
        *table(["method", "params = 0.5", "params = 0.7", "macs = 0.5", "macs = 0.7", "analysis, s"], rows),
        "Points lost at " + " and ".join(f"macs = {r:g}: {v:.2f}" for r, v in lost.items()) + ".", "",
    ]  # fmt: skip


def joint_cost(data: dict[str, Any]) -> list[str]:
    """Seconds and joint cuts of `joint`, beside brute force."""
    brute = data["brute"]["seconds"]
    rows = [["brute force, every unit", hours(brute), "1×", f"{data['units']:,}"]]
    for said, key in (("joint, one target", "one"), (f"joint, a sweep of {len(data['targets'])}", "ten")):
        if key not in data:
            continue
        run = data[key]
        rows.append(
            [said, f"{run['seconds']:.0f} s", f"{brute / run['seconds']:.0f}×", f"{sum(run['interventions'].values())}"]
        )
    widths = [
        [f"{w['width']:,}", str(w["one"]["interventions"]), str(w["ten"]["interventions"])]
        for w in data.get("widths", ())
    ]
    by_width = ["A perceptron on the digits by the width of its hidden layer:", ""]
    return [
        "## What joint testing costs: ResNet-18, and by width", "", origin(data),
        f"{data['per_class']} images a class; brute force projected from {data['brute']['units_timed']} units. "
        f"Measured at commit {', '.join(f'`{c[:12]}`' for c in sorted(set(data['commits'].values())))}.", "",
        *table(["analysis", "time", "against brute force", "interventions"], rows),
        *([*by_width, *table(["width", "joint cuts, one margin", "ten margins"], widths)] if widths else []),
    ]  # fmt: skip


def surrogates(data: dict[str, Any]) -> list[str]:
    """What orders a group's units for joint tests, on several networks."""
    rows = []
    for network, x in data["networks"].items():
        for name, run in x["surrogates"].items():
            rows.append([
                network, name, *(f"{100 * share:.1f}" for _, share in run["within"]),
                *(f"{100 * p['quality']['accuracy']:.2f}" for p in run["points"]), str(run["interventions"]), f"{run['seconds']:.0f}",
            ])  # fmt: skip
        rows.append([network, "unpruned", *("" for _ in run["within"]), f"{100 * x['unpruned']['accuracy']:.2f}"])
    any_run = next(iter(next(iter(data["networks"].values()))["surrogates"].values()))
    head = [*(f"τ = {m:g}" for m, _ in any_run["within"]), *(p["target"] for p in any_run["points"])]
    rows = [[*r, *[""] * (len(head) + 4 - len(r))] for r in rows]
    return [
        "## What orders the units of a joint cut", "", origin(data),
        f"`--method joint --per macs --surrogate …`, {data['per_class']} images a class to order, to test and to refit on. By margin: % of all units in the sets within it, "
        "each of them tested; a better order has larger sets. By target: accuracy in %, refitted. Seconds are of one core, beside other work.", "",
        *table(["network", "surrogate", *head, "joint cuts", "seconds"], rows),
    ]  # fmt: skip


def more_samples(data: dict[str, Any]) -> list[str]:
    """What more calibration images change where a goal was missed."""
    base, ways = data["unpruned"]["quality"]["accuracy"], data["recover"]
    rows = [
        [name, f"{kind} = {r:g}", *(f"{100 * p['raw_accuracy'][h]:.2f}" if h in p["raw_accuracy"] else f"{100 * p['accuracy'][h]:.2f}" for h in ways),
         f"{100 * (base - max(p['accuracy'].values())):+.2f}"]
        for name, x in data["methods"].items()
        for kind, r, _ in _GOALS
        if (p := point_at(x["points"], kind, r))
    ]  # fmt: skip
    which = "choose by" if data["per_class"] >= data["recover_per_class"] else "refit on"
    return [
        f"## More images to {which}: ResNet-18 on CIFAR-10 (JPEG)", "", origin(data),
        f"As in the table of methods, but with {data['per_class']} images a class for the choice and {data['recover_per_class']} for the refit. Accuracy in %.", "",
        *table(["method", "removed", *(WAYS.get(w, w) for w in ways), "points lost"], rows),
        *(_missed() if which == "refit on" else []),
    ]  # fmt: skip


_TRIED = {
    "methods_resnet18": "every ranking", "recoveries_resnet18": "every recovery", "joint_resnet18": "joint cuts in the place of a ranking",
    "recoveries_all_resnet18": "every recovery on every method", "obs128_resnet18": "four times the images to choose by", "refit512_resnet18": "four times the images to refit on",
}  # fmt: skip


def _missed() -> list[str]:
    """For each goal that the common calibration set misses: how far, what was tried, and what that says of the cause."""
    found: dict[str, dict[tuple[str, float], tuple[float, str, str]]] = {}
    for file in _TRIED:
        path = HERE / "results" / f"{file}.json"
        data = json.loads(path.read_text()) if path.exists() else {"methods": {}}
        for (kind, ratio, _), (name, x) in itertools.product(_GOALS, data["methods"].items()):
            if p := point_at(x["points"], kind, ratio):
                base = data["unpruned"]["quality"]["accuracy"]
                best = min((100 * (base - v), name, how) for how, v in p["accuracy"].items())
                held = found.setdefault(file, {}).get((kind, ratio))
                found[file][kind, ratio] = min(best, held) if held else best
    lines = []
    for kind, ratio, most in _GOALS:
        by = {f: v[kind, ratio] for f, v in found.items() if (kind, ratio) in v}
        lost, name, how = by["methods_resnet18"]
        if lost <= most:
            continue
        tried = "; ".join(
            f"{_TRIED[f]} {v[0]:+.2f} ({v[1]}, {WAYS.get(v[2], v[2])})"
            for f, v in by.items()
            if f != "methods_resnet18"
        )
        more = by.get("refit512_resnet18", (lost, "", ""))[0]
        cause = (
            "what the refit cannot tell from few images"
            if more <= most
            else "not the number of images: that part of the loss stays"
        )
        lines.append(
            f"The goal at {kind} = {ratio:g} ({most:g} points) is missed by {lost - most:.2f} ({lost:+.2f}: {name}, {WAYS.get(how, how)}). Tried besides: {tried}. "
            f"The cause, by these figures: {cause}."
        )
    return [*lines, ""] if lines else []


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
