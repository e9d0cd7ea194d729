"""Makes RESULTS.md from the JSON under results/: nothing in it is typed by hand."""

from __future__ import annotations

import itertools
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from results_dense import dense
from results_text import text

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE / "experiments"), str(HERE)]


def _origin(data: dict[str, Any]) -> str:
    """The command and where it ran."""
    m, v = data["machine"], data["versions"]
    return (
        f"`{data['command']}`: seed {data['seed']}; {m['cores']} cores ({m['arch']}), torch {v['torch']}, commit "
        f"`{data['commit'][:12]}{'+dirty' if data['commit'].endswith('dirty') else ''}`."
    )


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)] + [""]


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


def _prune(data: dict[str, Any]) -> list[str]:
    first = next(iter(data["methods"].values()))
    return [
        f"## ResNet-18 on CIFAR-10 (JPEG), target {first['target']}, one shot, no recovery", "", _origin(data),
        f"{first['held_out_samples']:,} test images, {first['calibration_samples']} calibration images.", "",
        *_table(
            ["method", "params removed", "macs", "units", "accuracy before, %", "after", "change", "worst class", "analysis, s",
             "ms at batch 64"],
            [_prune_row(name, s) for name, s in data["methods"].items()],
        ),
        "`magnitude` and `random` shrink every group at the same pace (`--scope layer`); their analysis seconds are spent "
        "watching calibration quality, not ranking.", "",
    ]  # fmt: skip


def _hours(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 600
        else f"{seconds / 60:.0f} min"
        if seconds < 3 * 3600
        else f"{seconds / 3600:.1f} h"
    )


def _speed_row(stage: str, name: str, found: dict[str, Any], peak: float) -> list[str]:
    s = found[stage]
    spent = s.get("unit_seconds_total", s["seconds"])
    rate = s["macs"] / spent / 1e9 if s.get("macs") else None
    extra = f"; verdicts alike {s['verdicts_alike']}/{s['verdicts_compared']}" if "verdicts_alike" in s else ""
    return [
        name + extra, _hours(s["seconds"]), f"{found['brute']['seconds'] / s['seconds']:.1f}×",
        f"{s['macs'] / 1e12:.0f}" if s.get("macs") else "–", f"{2 * rate:.0f}" if rate else "–",
        f"{100 * rate / peak:.0f} %" if rate else "–", f"{s['peak_memory_mib']:.0f}",
    ]  # fmt: skip


def _speed(data: dict[str, Any]) -> list[str]:
    p = data["peaks_gmac_s"]
    lines = [
        "## What each part of the engine is worth", "", _origin(data),
        "Whole networks projected from a few units of every group; parts are added in "
        f"turn. Measured peaks: convolution {2 * p['conv']:.0f} GFLOP/s, matrix product {2 * p['matmul']:.0f} GFLOP/s.", "",
    ]  # fmt: skip
    for network, found in data["networks"].items():
        any_stage = next(iter(found.values()))
        trained = "" if "verdict" in found else "; untrained weights, so that only time is measured"
        lines += [f"### {network}: {any_stage['units']:,} units, {any_stage['samples']:,} samples{trained}", ""]
        lines += _table(
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


def _peak(data: dict[str, Any]) -> list[str]:
    lines = [
        "## The replay beside the convolution peak",
        "",
        _origin(data),
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
        lines += _table(
            ["group", "units", "ms a unit", "GFLOP/s", "conv peak then", "of it", "seconds of the group"], rows
        )
    return lines


def _path(data: dict[str, Any]) -> list[str]:
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
        f"## Whole walks (`--target noncritical`), {data['per_class']} samples a class", "", _origin(data),
        "Brute force judges every unit of ResNet-20 and a random 5 % of ResNet-18's again, on the network as it was at that "
        "moment of the walk.", "",
        *_table(
            ["network", "critical / neutral / detrimental", "params removed", "full, s", "verdict, s", "both modes alike",
             "brute force, units: other verdicts full / verdict mode", "ξ against brute force, relative: max / median",
             "ξ against float64: replay / brute force in float32, max (units)"],
            rows,
        ),
        *notes, *curves, "",
    ]  # fmt: skip


def _growth(data: dict[str, Any]) -> list[str]:
    lines = ["## How the cost of one intervention grows", "", _origin(data), ""]
    for kind, points in data["sweeps"].items():
        key = {"samples": "samples_a_class"}.get(kind, kind)
        lines += _table(
            [kind, *(str(p[key]) for p in points)],
            [
                ["ms a unit", *(f"{1e3 * p['unit_seconds']:.3g}" for p in points)],
                ["memory, MiB (budget, model)", *(f"{p['memory_mib']:.0f} ({p['budget_mib']:.0f}, {p['model_mib']:.0f})" for p in points)],
            ],
        )  # fmt: skip
    return lines


_WAYS = {"none": "plain", "bn": "BN again", "lstsq": "refitted"}


def _at(points: list[dict[str, Any]], kind: str, asked: float) -> dict[str, Any] | None:
    return next((p for p in points if p["asked"].get(kind) == asked), None)


def _best(value: float, best: float) -> str:
    text = f"{100 * value:.2f}"
    return f"**{text}**" if value >= best else text


def _methods(data: dict[str, Any]) -> list[str]:
    base, m = data["unpruned"]["quality"]["accuracy"], data["measured_in"]
    lines = [
        f"## Every method and recovery: {data['network']} on CIFAR-10 (JPEG), one shot, no fine-tuning", "", _origin(data),
        f"{data['held_out_samples']:,} test images in {m['precision']} (unpruned {100 * base:.2f} %; "
        + ", ".join(f"{100 * v:.2f} % in {k}" for k, v in m.get("unpruned", {}).items())
        + f"). Effects and scores from {data['per_class']} images a class, recoveries from {data['recover_per_class']}, the same for all. "
        "Accuracy in %, the best of a column bold; ° declined, so that the network stays as it was; analysis seconds of the complete "
        "path on one core, while other work ran on the machine.", "",
    ]  # fmt: skip
    for kind in data["kinds"]:
        asked = {p["asked"][kind] for x in data["methods"].values() for p in x["points"] if kind in p["asked"]}
        ratios = sorted(asked - {0.0})
        for how in data["recover"]:
            rows, shown = [], {}
            for name, x in data["methods"].items():
                at = {r: p for r in ratios if (p := _at(x["points"], kind, r)) and how in p["accuracy"]}
                # batch norms again are the control, so they are shown also where cswap declines them
                shown[name] = {r: p["raw_accuracy"][how] if how == "bn" else p["accuracy"][how] for r, p in at.items()}
                marks = {r: "°" if how != "bn" and how in p["declined"] else "" for r, p in at.items()}
                shown[name] = {r: (v, marks[r]) for r, v in shown[name].items()}
            best = {r: max((v[r][0] for v in shown.values() if r in v), default=1.0) for r in ratios}
            for name, x in data["methods"].items():
                cells = [
                    _best(shown[name][r][0], best[r]) + shown[name][r][1] if r in shown[name] else "–" for r in ratios
                ]
                area = x["sauce"].get(how) if how != "bn" else None
                extra = [f"{area:.3f}" if area is not None else "–"] if kind == "params" and how == "none" else []
                rows.append([name, *cells, *extra, f"{x['seconds']:.0f}"])
            lines += [f"### By {kind} removed, {_WAYS.get(how, how)}", ""]
            head = [
                "method",
                *(f"{r:g}" for r in ratios),
                *(["SAUCE"] if kind == "params" and how == "none" else []),
                "analysis, s",
            ]
            lines += _table(head, rows)
    return lines + _goals(data, base) + _why(data) + _losses(data)


def _recoveries(data: dict[str, Any]) -> list[str]:
    """Every recovery on a few methods."""
    base = data["unpruned"]["quality"]["accuracy"]
    lines = [
        "## Every recovery on a few methods: ResNet-18 on CIFAR-10 (JPEG)", "", _origin(data),
        f"{data['held_out_samples']:,} test images in {data['measured_in']['precision']} (unpruned {100 * base:.2f} %), recovered with "
        f"{data['recover_per_class']} images a class. Accuracy in % of the recovered network, ° where cswap declines the recovery; in "
        "brackets its seconds on one core, while other work ran.", "",
    ]  # fmt: skip
    ways = data["recover"]
    rows = []
    for name, x in data["methods"].items():
        for p in x["points"]:
            for kind, asked in p["asked"].items():
                if not any(how in p["raw_accuracy"] for how in ways):
                    continue
                cells = [f"{100 * p['accuracy']['none']:.2f}"]
                for how in ways[1:]:
                    found = p["raw_accuracy"].get(how)
                    mark = "°" if how in p["declined"] else ""
                    cells.append("–" if found is None else f"{100 * found:.2f}{mark} ({p['recover_seconds'][how]:.0f})")
                rows.append([name, f"{kind} = {asked:g}", *cells])
    return [*lines, *_table(["method", "removed", "plain", *ways[1:]], rows)]


def _why(data: dict[str, Any]) -> list[str]:
    """Where C-SWAP loses to a cheaper method, and why, in two sentences."""
    mine, other = data["methods"].get("cswap"), data["methods"].get("taylor:global:params")
    a, b = (_at(x["points"], "params", 0.5) if x else None for x in (mine, other))
    if not (mine and other and a and b) or a["accuracy"]["none"] >= b["accuracy"]["none"]:
        return []
    v = mine["verdicts"]
    return [
        f"C-SWAP loses: with half of the parameters gone it has {100 * a['accuracy']['none']:.1f} % where Taylor per parameter has "
        f"{100 * b['accuracy']['none']:.1f} %, for {mine['seconds']:.0f} against {other['seconds']:.0f} seconds of analysis. "
        f"{v['critical']:,} of {sum(v.values()):,} units are critical by their class vote, so nearly the whole path is the buffer, ordered by "
        f"ξ, which divides by σ and so is owned by samples the network has wrong ({mine['critical_with_gain']:,} units that a class needs have a "
        "positive ξ), and which knows neither what a unit costs nor what many small effects add up to: it thins out early layers "
        f"(MACs −{100 * a['ratio']['macs']:.0f} %) where Taylor per parameter empties the last stage (MACs −{100 * b['ratio']['macs']:.0f} %).", "",
    ]  # fmt: skip


_GOALS = (("params", 0.5, 0.2), ("params", 0.7, 0.5), ("macs", 0.5, 0.5), ("macs", 0.7, 3.0))


def _goals(data: dict[str, Any], base: float) -> list[str]:
    """How far the best combination is from the unpruned network at the points that were set as goals."""
    rows = []
    for kind, ratio, most in _GOALS:
        found = [
            (v, name, how)
            for name, x in data["methods"].items()
            if (p := _at(x["points"], kind, ratio))
            for how, v in p["accuracy"].items()
        ]
        if found:
            best, name, how = max(found)
            lost = 100 * (base - best)
            rows.append(
                [
                    f"{kind} = {ratio:g}",
                    f"{name}, {_WAYS.get(how, how)}",
                    f"{100 * best:.2f}",
                    f"{lost:+.2f}",
                    f"{most:g}",
                    "yes" if lost <= most else "no",
                ]
            )
    return [
        "### Points lost by the best combination",
        "",
        *_table(["target", "method, recovery", "accuracy, %", "points lost", "goal: at most", "reached"], rows),
    ]


def _losses(data: dict[str, Any]) -> list[str]:
    """Where a recovery loses against the plain network."""
    worse, declined, count = [], [], 0
    for name, x in data["methods"].items():
        for p in x["points"]:
            for how, value in p["p_worse"].items():
                count += value is not None
                if value is not None and value < 0.01:
                    worse.append(f"{name} at params {p['ratio']['params']:.2f} with {how} (p = {value:.1g})")
                if how in p["declined"]:
                    declined.append(f"{name} at params {p['ratio']['params']:.2f} with {how}")
    text = (
        f"Of {count} recovered networks, {len(worse)} are worse than the plain one (paired one-sided McNemar, p < 0.01)"
    )
    lines = [text + (": " + "; ".join(worse[:12]) + ("; …" if len(worse) > 12 else "") if worse else "") + "."]
    lines += [
        f"Declined, so that the network stays as it was: {len(declined)}"
        + (": " + "; ".join(declined[:8]) if declined else "")
        + ".",
        "",
    ]
    return lines


def _peers(data: dict[str, Any]) -> list[str]:
    ratios = sorted({p["asked"] for x in data["peers"].values() for p in x.get("points", [])})
    ways = [w for w in ("plain", "bn", "lstsq") if w in data["unpruned"]]
    lines = [
        "## Torch-Pruning's own importances, pruned by Torch-Pruning", "", _origin(data),
        f"{data['held_out_samples']:,} test images in bfloat16 (unpruned {100 * data['unpruned']['plain']['accuracy']:.2f} %), "
        f"{data['calibration_samples']} calibration images, parameters removed; `lstsq` is cswap's refit of the network that Torch-Pruning made.", "",
    ]  # fmt: skip
    for way in ways:
        rows = []
        for peer, x in data["peers"].items():
            if "error" in x:
                rows.append([peer, *[x["error"][:90] if i == 0 else "" for i in range(len(ratios))], ""])
                continue
            by = {p["asked"]: p for p in x["points"]}
            cells = [f"{100 * by[r][way]['accuracy']:.2f}" if way in by.get(r, {}) else "–" for r in ratios]
            rows.append([peer, *cells, f"{x['seconds']['importance'] or 0:.0f}"])
        lines += [
            f"### {_WAYS.get(way, way)}",
            "",
            *_table(["importance", *(f"{r:g}" for r in ratios), "importance, s"], rows),
        ]
    return lines


def _support(data: dict[str, Any]) -> list[str]:
    sources = list(dict.fromkeys(m["name"].partition(":")[0] for m in data["models"]))
    statuses = list(dict.fromkeys(m["status"] for m in data["models"]))
    rows = [
        [source, *(str(sum(m["name"].startswith(source + ":") and m["status"] == s for m in data["models"])) for s in statuses)]
        for source in sources
    ]  # fmt: skip
    return [
        "## What can be pruned",
        "",
        _origin(data),
        f"By model: `docs/support.md`. Not run yet: {len(data['not_run'])} models.",
        "",
        *_table(["models", *statuses], rows),
    ]


def _export(data: dict[str, Any]) -> list[str]:
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
        "## Exports, and latency beside MACs", "", _origin(data),
        f"ONNX and .pt2 of original and pruned were compared with the module on {data['samples']} test images; the last column is the "
        "largest difference as a part of what is allowed. Milliseconds, original → pruned, and in brackets the speed-up as a part of what the "
        "MACs promise; `fixed`: the time that is left with one unit a group, as a part of the original's: what does not go with MACs.", "",
        *_table(["network", "runtime", "widths", "MACs left", "batch 1", "fixed", "batch 64", "fixed", "difference"], rows),
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


def _certificates(data: dict[str, Any]) -> list[str]:
    bounds = list(next(iter(data["populations"].values())))
    rows = [
        [name, *(f"{v[b]['wrong']} ({v[b]['smallest_margin_median']:.3f})" for b in bounds)]
        for name, v in data["populations"].items()
    ]
    most = max(v[b]["wrong"] for v in data["populations"].values() for b in bounds if b != "t")
    return [
        "## How often certificates are wrong", "", _origin(data),
        f"True loss exactly τ = {data['tau']} in one of {data['classes']} classes, {data['samples']} samples a class, α = {data['alpha']}; in each of "
        f"{data['repeats']:,} repetitions the best-looking of {data['candidates']} candidates is chosen on {data['selection']} other samples a class. "
        "Certificates issued, all of them wrong (in brackets the median of the smallest τ that could be certified):", "",
        *_table(["losses", *bounds], rows),
        f"The exact bounds are wrong at most {most} times in {data['repeats']:,} where {data['alpha'] * data['repeats']:.0f} are allowed; the t bound is "
        "not to be trusted where few samples lose much.", "",
        *(f"* {n}: {t}" for n, t in data["about"].items()), "",
    ]  # fmt: skip


def _joint(data: dict[str, Any]) -> list[str]:
    """`joint` beside the best ranking, which has the same samples, recovery and test images (methods_resnet18.json)."""
    beside = json.loads((HERE / "results" / "methods_resnet18.json").read_text())["methods"]
    rows = []
    for name, x in [
        *data["methods"].items(),
        *((n, beside[n]) for n in ("obs:global:macs", "obs:global:params") if n in beside),
    ]:
        cells = []
        for kind, asked in (("params", 0.5), ("params", 0.7), ("macs", 0.5), ("macs", 0.7)):
            p = _at(x["points"], kind, asked)
            cells.append(
                "–" if p is None else f"{100 * p['accuracy']['none']:.2f} → {100 * p['raw_accuracy']['lstsq']:.2f}"
            )
        rows.append([name, *cells, f"{x['seconds']:.0f}"])
    base = data["unpruned"]["quality"]["accuracy"]
    lost = {
        r: 100 * (base - p["raw_accuracy"]["lstsq"])
        for r in (0.5, 0.7)
        for x in data["methods"].values()
        if (p := _at(x["points"], "macs", r))
    }
    return [
        "## Joint, verified pruning beside the best ranking: ResNet-18 on CIFAR-10 (JPEG)", "", _origin(data),
        f"{data['held_out_samples']:,} test images in {data['measured_in']['precision']} (unpruned {100 * base:.2f} %); {data['per_class']} images a class to choose, "
        f"{data['recover_per_class']} to refit. Accuracy in %, plain → refitted; the other rows are those of the table of methods.", "",
        *_table(["method", "params = 0.5", "params = 0.7", "macs = 0.5", "macs = 0.7", "analysis, s"], rows),
        "Points lost at " + " and ".join(f"macs = {r:g}: {v:.2f}" for r, v in lost.items()) + ".", "",
    ]  # fmt: skip


def _joint_cost(data: dict[str, Any]) -> list[str]:
    """Seconds and joint cuts of `joint`, beside brute force."""
    brute = data["brute"]["seconds"]
    rows = [["brute force, every unit", _hours(brute), "1×", f"{data['units']:,}"]]
    for said, key in (("joint, one target", "one"), (f"joint, a sweep of {len(data['targets'])}", "ten")):
        run = data[key]
        rows.append(
            [said, f"{run['seconds']:.0f} s", f"{brute / run['seconds']:.0f}×", f"{sum(run['interventions'].values())}"]
        )
    widths = [
        [f"{w['width']:,}", str(w["one"]["interventions"]), str(w["ten"]["interventions"])] for w in data["widths"]
    ]
    return [
        "## What joint testing costs: ResNet-18, and by width", "", _origin(data),
        f"{data['per_class']} images a class; brute force projected from {data['brute']['units_timed']} units.", "",
        *_table(["analysis", "time", "against brute force", "interventions"], rows),
        "A perceptron on the digits by the width of its hidden layer:", "",
        *_table(["width", "joint cuts, one margin", "ten margins"], widths),
    ]  # fmt: skip


def _more_samples(data: dict[str, Any]) -> list[str]:
    """What more calibration images change where a goal was missed."""
    base, ways = data["unpruned"]["quality"]["accuracy"], data["recover"]
    rows = [
        [name, f"{kind} = {r:g}", *(f"{100 * p['raw_accuracy'][h]:.2f}" if h in p["raw_accuracy"] else f"{100 * p['accuracy'][h]:.2f}" for h in ways),
         f"{100 * (base - max(p['accuracy'].values())):+.2f}"]
        for name, x in data["methods"].items()
        for kind, r, _ in _GOALS
        if (p := _at(x["points"], kind, r))
    ]  # fmt: skip
    which = "choose by" if data["per_class"] >= data["recover_per_class"] else "refit on"
    return [
        f"## More images to {which}: ResNet-18 on CIFAR-10 (JPEG)", "", _origin(data),
        f"As in the table of methods, but with {data['per_class']} images a class for the choice and {data['recover_per_class']} for the refit. Accuracy in %.", "",
        *_table(["method", "removed", *(_WAYS.get(w, w) for w in ways), "points lost"], rows),
        *(_missed() if which == "refit on" else []),
    ]  # fmt: skip


_TRIED = {
    "methods_resnet18": "every ranking", "recoveries_resnet18": "every recovery", "joint_resnet18": "joint cuts in the place of a ranking",
    "obs128_resnet18": "four times the images to choose by", "refit512_resnet18": "four times the images to refit on",
}  # fmt: skip


def _missed() -> list[str]:
    """For each goal that the common calibration set misses: how far, what was tried, and what that says of the cause."""
    found: dict[str, dict[tuple[str, float], tuple[float, str, str]]] = {}
    for file in _TRIED:
        path = HERE / "results" / f"{file}.json"
        data = json.loads(path.read_text()) if path.exists() else {"methods": {}}
        for (kind, ratio, _), (name, x) in itertools.product(_GOALS, data["methods"].items()):
            if p := _at(x["points"], kind, ratio):
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
            f"{_TRIED[f]} {v[0]:+.2f} ({v[1]}, {_WAYS.get(v[2], v[2])})"
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
            f"The goal at {kind} = {ratio:g} ({most:g} points) is missed by {lost - most:.2f} ({lost:+.2f}: {name}, {_WAYS.get(how, how)}). Tried besides: {tried}. "
            f"The cause, by these figures: {cause}."
        )
    return [*lines, ""] if lines else []


SECTIONS: dict[str, Callable[[dict[str, Any]], list[str]]] = {
    "prune_resnet18": _prune,
    "effects_speed": _speed,
    "effects_peak": _peak,
    "effects_path": _path,
    "effects_growth": _growth,
    "methods_resnet18": _methods,
    "recoveries_resnet18": _recoveries,
    "joint_resnet18": _joint,
    "joint_cost": _joint_cost,
    "obs128_resnet18": _more_samples,
    "refit512_resnet18": _more_samples,
    "peers": _peers,
    "text_minilm": text,
    "text_lstm": text,
    "dense_camvid": lambda data: dense(data, _origin(data)),
    "dense_bccd": lambda data: dense(data, _origin(data)),
    "support_matrix": _support,
    "export_latency": _export,
    "certificates": _certificates,
}


def results() -> str:
    """The text of RESULTS.md."""
    lines = [
        "# Results",
        "",
        "Generated by `python benchmarks/make_results.py` from the JSON in `benchmarks/results/`.",
        "",
    ]
    for name, section in SECTIONS.items():
        path = HERE / "results" / f"{name}.json"
        if path.exists():
            lines += section(json.loads(path.read_text()))
        if path.exists() and (HERE / "results" / "plots" / f"{name}.svg").exists():
            lines += [f"![the curves above](results/plots/{name}.svg)", ""]
    return "\n".join(lines + _experiments())


def _experiments() -> list[str]:
    """The experiments that have been run, each with its table, its plot and what was found."""
    from _experiment import modules

    lines = ["# Experiments", ""]
    for name, module, data in modules():
        title = " ".join(module.__doc__.split("\n\n")[0].split())
        scale = " ".join(module.__doc__.split("\n\n")[2].split())
        lines += [f"## {title}", "", _origin(data), scale, "", *_table(*module.section(data)), module.finding(data), ""]
        lines += [f"![{title}](results/plots/{name}.svg)", ""]
    return lines if len(lines) > 2 else []


def write_results() -> None:
    """Write RESULTS.md."""
    from make_findings import write_findings

    (HERE / "RESULTS.md").write_text(results())
    write_findings()


if __name__ == "__main__":
    write_results()
