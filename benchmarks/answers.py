"""Rows of docs/findings.md that no single experiment answers, from the JSON of the tables."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

from results_common import Said, point_at, sign, yes_no
from results_joint import areas, beside_every_other

RESULTS = Path(__file__).resolve().parent / "results"
TABLES = {
    "methods_resnet18": "ResNet-18",
    "methods_resnet50": "ResNet-50",
    "methods_mobilenet_v2": "MobileNetV2",
    "methods_vit": "ViT",
}
"""The full table: file and network."""


def _read(name: str) -> dict[str, Any] | None:
    file = RESULTS / f"{name}.json"
    found: dict[str, Any] | None = json.loads(file.read_text()) if file.exists() else None
    return found


def _over_seeds(baseline: str) -> Said | None:
    """C-SWAP's area over a baseline's, as cut, paired by the draw of calibration samples."""
    from headline import interval

    data = _read("experiment_headline")
    if data is None:
        return None
    found, told, where = {}, [], []
    for network, d in data["networks"].items():
        mean, half = interval([a - b for a, b in zip(d["sauce"]["cswap"], d["sauce"][baseline], strict=True)])
        found[network] = sign(mean, half)
        told.append(f"{mean:+.3f} ± {half:.3f}")
        where.append(f"{network} at {d['per_class']}, {len(data['seeds'])} draws")
    return Said(yes_no(found), f"area {'; '.join(told)}", "; ".join(where))


def magnitude() -> Said | None:
    """C-SWAP beside one-shot magnitude pruning."""
    return _over_seeds("magnitude:layer")


def at_random() -> Said | None:
    """C-SWAP beside random pruning."""
    return _over_seeds("random:layer")


def relevance() -> Said | None:
    """C-SWAP's area as cut beside those of DeepLIFT and LRP."""
    found, told, where = {}, [], []
    for file, network in TABLES.items():
        data = _read(file)
        if data is None or not {"cswap", "deeplift:global", "lrp:global"} <= set(data["methods"]):
            continue
        mine, *others = (data["methods"][n]["sauce"]["none"] for n in ("cswap", "deeplift:global", "lrp:global"))
        signs = {sign(mine - o) for o in others}
        found[network] = signs.pop() if len(signs) == 1 else 0
        told.append(f"{mine:.2f} to {others[0]:.2f} and {others[1]:.2f}")
        blocks = f", blocks of {data['granularity'].split(':')[1]}" if data.get("granularity", "unit") != "unit" else ""
        where.append(f"{network} at {data['per_class']}{blocks}")
    return Said(yes_no(found, "one run each"), f"area {'; '.join(told)}", "; ".join(where)) if found else None


def ranking_variant() -> Said | None:
    """C-SWAP's area as cut beside C-BP's."""
    found, told, where = {}, [], []
    for file, network, kind in (("methods_resnet18", "ResNet-18", "params"), ("text_lstm", "LSTM", "macs")):
        data = _read(file)
        if data is not None and {"cswap", "cbp"} <= set(data["methods"]):
            _, found_areas = areas(data, "accuracy", kind, "none")
            mine, other = found_areas["cswap"], found_areas["cbp"]
            found[network] = sign(mine - other)
            told.append(f"{mine:.2f} to {other:.2f}")
            where.append(f"{network} at {data['per_class']}")
    return Said(yes_no(found, "one run each"), f"area {'; '.join(told)}", "; ".join(where)) if found else None


def masks() -> Said | None:
    """Where C-SWAP stands on segmentation."""
    data = _read("dense_camvid")
    if data is None:
        return None
    said, first = [], False
    for how, word in (("none", "as cut"), ("lstsq", "refitted")):
        _, found = areas(data, "miou", "params", how)
        order = sorted(found, key=lambda n: -found[n])
        first = first or order[0] == "cswap"
        rival = next(n for n in order if n != "cswap")
        said.append(
            f"{word} {order.index('cswap') + 1} of {len(order)}, area {found['cswap']:.2f} to {found[rival]:.2f} of {rival}"
        )
    where = f"U-Net on CamVid at {data['per_class']}, {data['held_out_samples']} images"
    return Said(yes_no({"CamVid": 1 if first else -1}, "one run"), "; ".join(said), where)


def boxes() -> Said | None:
    """What is left on detection with half of the parameters gone."""
    data = _read("dense_bccd")
    points = {n: p for n, x in data["methods"].items() if (p := point_at(x["points"], "params", 0.5))} if data else {}
    if not data or "cswap" not in points:
        return None
    base = data["unpruned"]["quality"]["map"]
    best, by, how = max((q["map"], n, how) for n, p in points.items() for how, q in p["quality"].items())
    plain = points["cswap"]["quality"]["none"]["map"]
    return Said(
        yes_no({"BCCD": sign(best - 0.95 * base)}, "one run"),
        f"mAP {100 * plain:.0f} of {100 * base:.0f} by C-SWAP as cut; {100 * best:.0f}, the best of the table, by {by}, {how}",
        f"SSD on BCCD at {data['per_class']}, half of the parameters gone",
    )


def width() -> Said | None:
    """How seconds and joint cuts grow with the width of a layer."""
    cost, growth = _read("joint_cost"), _read("effects_growth")
    if not cost or not growth or not cost.get("widths"):
        return None
    first, last = cost["widths"][0], cost["widths"][-1]
    sweep = growth["sweeps"]["width"]
    worst = max(b["group_seconds"] / a["group_seconds"] for a, b in itertools.pairwise(sweep))
    return Said(
        f"Up to **{worst:.0f}×** for twice the units; `joint` needs no more cuts",
        f"{sweep[0]['group_seconds']:.2f} to {sweep[-1]['group_seconds']:.0f} s for {sweep[0]['width']} to {sweep[-1]['width']:,} units; `joint`, ten margins: {first['ten']['interventions']} "
        f"cuts in {first['ten']['seconds']:.1f} s to {last['ten']['interventions']} in {last['ten']['seconds']:.0f} s for {first['width']} to {last['width']:,}",
        "perceptrons",
    )


def together() -> Said | None:
    """Whether more units go for nothing by a ranking than the vote calls free."""
    data = _read("methods_resnet18")
    mine = data["methods"].get("cswap") if data else None
    if not data or mine is None:
        return None
    base, samples = data["unpruned"]["quality"]["accuracy"], data["held_out_samples"]
    error = 2 * (base * (1 - base) / samples) ** 0.5
    free = [
        (p["ratio"]["units"], n) for n, x in data["methods"].items() for p in x["points"]
        if "params" in p["asked"] and not n.startswith(("cswap", "cbp")) and p["accuracy"]["none"] >= base - error
    ]  # fmt: skip
    most, by = max(free)
    judged = sum(mine["verdicts"].values())
    let_go = (judged - mine["verdicts"]["critical"]) / judged
    return Said(
        yes_no({"ResNet-18": sign(most - let_go)}, "one run"),
        f"the vote lets {100 * let_go:.0f} % of {judged:,} units go; {100 * most:.0f} % go by {by} within two standard errors of the unpruned accuracy",
        f"ResNet-18 at {data['per_class']}, {samples:,} images",
    )


def worst_class() -> Said | None:
    """What C-SWAP leaves of the class that suffers most, where one fifth and half of the parameters are gone."""
    data = _read("methods_resnet18")
    points = {r: point_at(data["methods"]["cswap"]["points"], "params", r) for r in (0.2, 0.5)} if data else {}
    if not data or not all(points.values()):
        return None
    told = [
        f"{100 * p['worst_class'][how]:.0f} (mean {100 * p['accuracy'][how]:.0f}) at {r:g}, {'as cut' if how == 'none' else 'refitted'}"
        for r, p in points.items() if p for how in ("none", "lstsq") if how in p["worst_class"]
    ]  # fmt: skip
    base = data["unpruned"]["quality"]
    kept = points[0.2]
    lost = kept is not None and kept["worst_class"]["none"] < 0.5 * min(base["by_class"])
    return Said(
        yes_no({"ResNet-18": 1 if lost else -1}, "one run"),
        f"worst class, %: {100 * min(base['by_class']):.0f} (mean {100 * base['accuracy']:.0f}) unpruned; {'; '.join(told)}",
        f"C-SWAP on ResNet-18 at {data['per_class']}",
    )


def more_samples() -> Said | None:
    """Accuracy with 20 % of the parameters gone, by samples a class."""
    found: dict[int, float] = {}
    head, voting = _read("experiment_headline"), _read("experiment_voting")
    if head and "resnet18" in head["networks"]:
        d = head["networks"]["resnet18"]
        found[d["per_class"]] = d["curves"]["params"]["cswap"]["none"]["0.2"]["accuracy"][0]
    if voting and (d := voting["networks"].get("resnet18, 16 samples a class")):
        found[16] = d["votes"]["class"]["accuracy"]["0.2"]
    for file in ("methods_resnet18", "methods_resnet18_128"):
        if (data := _read(file)) and (p := point_at(data["methods"]["cswap"]["points"], "params", 0.2)):
            found[data["per_class"]] = p["accuracy"]["none"]
    if len(found) < 2:
        return None
    sizes = sorted(found)
    return Said(
        yes_no({"ResNet-18": sign(found[sizes[-1]] - found[sizes[0]])}, "one run a size"),
        f"{' / '.join(f'{100 * found[m]:.0f}' for m in sizes)} % at {' / '.join(map(str, sizes))} a class, with 20 % of the parameters gone",
        "ResNet-18, C-SWAP as cut",
    )


def buffer_order() -> Said | None:
    """What the order of critical units changes at half of the parameters."""
    data = _read("buffer_orders")
    at = [r for r in data["rows"] if r["asked"] == 0.5] if data else []
    if not data or not at:
        return None
    own = next(r for r in at if r["order"] == data["rows"][0]["order"])
    best = max(at, key=lambda r: r["plain"])
    return Said(
        f"**{best['order'].capitalize()}** (one run)",
        f"{100 * best['plain']:.0f} to {100 * own['plain']:.0f} % by {own['order']} with half gone; {data['with_gain']:,} of {data['critical']:,} needed units have a positive ξ",
        f"ResNet-18 at {data['per_class']}, the best of the table",
    )


def given_back() -> Said | None:
    """What refitting gives the methods of the table back, on average, with half of the parameters gone."""
    data = _read("recoveries_all_resnet18")
    points = [p for x in data["methods"].values() if (p := point_at(x["points"], "params", 0.5))] if data else []
    if not data or not points:
        return None
    base = data["unpruned"]["quality"]["accuracy"]
    plain, back = (
        sum(p["raw_accuracy"].get(how, p["accuracy"]["none"]) for p in points) / len(points)
        for how in ("none", "lstsq")
    )
    return Said(
        f"**{100 * (back - plain) / (base - plain):.0f} %** of what is lost (one run)",
        f"{len(points)} methods on average: {100 * plain:.0f} % as cut, {100 * back:.0f} refitted, unpruned {100 * base:.0f}",
        f"ResNet-18, half of the parameters gone, {data['held_out_samples']:,} images",
    )


def joint() -> Said | None:
    """Where `joint` stands by area, refitted."""
    told = beside_every_other(RESULTS)
    short = {
        "above every other on": 1,
        "level with the best other on": 0,
        "below another on": -1,
        "ahead, with no interval, on": 0,
    }
    named = {n: n.split(",")[0] + " by MACs" * n.endswith("by MACs") for on in told.values() for n, _ in on}
    found = {named[n]: short[word] for word, on in told.items() for n, _ in on}
    said = [f"{named[n]} {spread}" for on in told.values() for n, spread in on]
    return (
        Said(
            yes_no(found, "one run each"),
            f"area over the best other, refitted: {'; '.join(said)}",
            "pairs of test samples",
        )
        if found
        else None
    )


def not_in_tables() -> list[str]:
    """Which methods and what else of the full table a network has not been measured with."""
    wanted = {"cswap", "joint:global:params", "obs:global:params", "taylor:global:params", "taylor2:global:params", "lamp:global", "deeplift:global", "lrp:global",
              "magnitude:layer", "magnitude:global:params", "random:layer"}  # fmt: skip
    names = {"ResNet-18": ("methods_resnet18", "methods_resnet18_joint")}
    lacking, timed = [], []
    for file, network in TABLES.items():
        data = [d for name in names.get(network, (file,)) if (d := _read(name))]
        measured = {m for d in data for m in d["methods"]}
        lacking += [f"{network}: {', '.join(sorted(wanted - measured))}"] if wanted - measured else []
        timed += (
            [network]
            if any("latency_ms" in p for d in data for x in d["methods"].values() for p in x["points"])
            else []
        )
    untimed = [n for n in TABLES.values() if n not in timed]
    return [
        *([f"The full table lacks {'; '.join(lacking)}."] if lacking else []),
        *(
            [f"Latency at every point of the full table (`--latency`): not timed on {', '.join(untimed)}."]
            if untimed
            else []
        ),
    ]
