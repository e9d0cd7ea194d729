"""One line each to the paper's claims that no single experiment answers, from the JSON of the tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from results_common import point_at
from results_joint import areas, beside_every_other

RESULTS = Path(__file__).resolve().parent / "results"
TABLES = {
    "methods_resnet18": "ResNet-18",
    "methods_resnet50": "ResNet-50",
    "methods_mobilenet_v2": "MobileNetV2",
    "methods_vit": "ViT",
}
BASELINES = {"magnitude:layer": "OMP", "deeplift:global": "DeepLIFT", "lrp:global": "LRP"}


def _read(name: str) -> dict[str, Any] | None:
    file = RESULTS / f"{name}.json"
    found: dict[str, Any] | None = json.loads(file.read_text()) if file.exists() else None
    return found


def rivals() -> str | None:
    """On which networks C-SWAP's area as cut is above the paper's three baselines."""
    ahead: dict[str, list[str]] = {b: [] for b in BASELINES}
    of: dict[str, list[str]] = {b: [] for b in BASELINES}
    for file, network in TABLES.items():
        data = _read(file)
        for b in BASELINES if data else ():
            if data and "cswap" in data["methods"] and b in data["methods"]:
                of[b].append(network)
                mine, other = (data["methods"][n]["sauce"]["none"] for n in ("cswap", b))
                ahead[b] += [network] if mine > other else []
    if not any(of.values()):
        return None
    all_of = all(len(ahead[b]) == len(on) for b, on in of.items())
    listed = ", ".join(f"{BASELINES[b]} on {len(ahead[b])} of {len(on)}" for b, on in of.items() if on)
    networks = ", ".join(dict.fromkeys(n for on in of.values() for n in on))
    said = "Yes" if all_of else "In part" if any(ahead.values()) else "No"
    return f"**{said}**: as cut its area is above that of {listed} networks ({networks})."


def ranking_variant() -> str | None:
    """C-SWAP beside C-BP, by area as cut."""
    data = _read("methods_resnet18")
    if data is None or "cbp" not in data["methods"]:
        return None
    mine, other = (data["methods"][n]["sauce"]["none"] for n in ("cswap", "cbp"))
    return f"**{'Yes' if mine > other else 'No'}**: area {mine:.2f} to C-BP's {other:.2f} on ResNet-18, {data['per_class']} a class, as cut."


def _placed(file: str, key: str) -> str | None:
    data = _read(file)
    if data is None:
        return None
    said = []
    for how, word in (("none", "as cut"), ("lstsq", "refitted")):
        _, found = areas(data, key, "params", how)
        order = sorted(found, key=lambda n: -found[n])
        first = next(n for n in order if n != "cswap")
        said.append(
            f"{word} {order.index('cswap') + 1} of {len(order)}: {found['cswap']:.2f} to {found[first]:.2f} of {first}"
        )
    return "; ".join(said)


def masks() -> str | None:
    """Where C-SWAP stands on segmentation."""
    placed = _placed("dense_camvid", "miou")
    return placed and f"**{'Yes' if 'cut 1 of' in placed else 'In part'}**, by area under mIoU on CamVid, {placed}."


def boxes() -> str | None:
    """Where C-SWAP stands on detection."""
    data = _read("dense_bccd")
    points = {n: p for n, x in data["methods"].items() if (p := point_at(x["points"], "params", 0.5))} if data else {}
    if not data or "cswap" not in points:
        return None
    base = 100 * data["unpruned"]["quality"]["map"]
    best = max((100 * q["map"], n, how) for n, p in points.items() for how, q in p["quality"].items())
    plain = 100 * points["cswap"]["quality"]["none"]["map"]
    return f"On BCCD half of the parameters go at mAP {base:.0f} to {plain:.0f} by C-SWAP as cut, {best[0]:.0f} by {best[1]} ({best[2]})."


def width() -> str | None:
    """How the number and the price of cuts grow with the width of a layer."""
    cost, growth = _read("joint_cost"), _read("effects_growth")
    if not cost or not growth:
        return None
    first, last = cost["widths"][0], cost["widths"][-1]
    sweep = growth["sweeps"]["width"]
    return (
        f"A unit of {sweep[-1]['width']:,} costs {sweep[-1]['unit_seconds'] / sweep[0]['unit_seconds']:.0f}× one of {sweep[0]['width']}, and there are "
        f"{sweep[-1]['width'] // sweep[0]['width']}× as many. **`joint` needs {first['ten']['interventions']} cuts at {first['width']} units and "
        f"{last['ten']['interventions']} at {last['width']:,}** for a sweep of ten margins."
    )


def buffer_order() -> str | None:
    """What the order of critical units changes at half of the parameters."""
    data = _read("buffer_orders")
    at = [r for r in data["rows"] if r["asked"] == 0.5] if data else []
    if not data or not at:
        return None
    own = next(r for r in at if r["order"] == data["rows"][0]["order"])
    best = max(at, key=lambda r: r["plain"])
    return (
        f"**{best['order'].capitalize()}**: {100 * best['plain']:.0f} % with half gone, {own['order']} {100 * own['plain']:.0f} "
        f"(unpruned {100 * data['unpruned']:.0f}; ResNet-18); {data['with_gain']:,} of {data['critical']:,} needed units have a positive ξ."
    )


def given_back() -> str | None:
    """What refitting gives the methods of the table back, on average."""
    data = _read("recoveries_all_resnet18")
    if data is None:
        return None
    ratio = 0.5
    points = [p for x in data["methods"].values() if (p := point_at(x["points"], "params", ratio))]
    plain, back = (
        sum(p["raw_accuracy"].get(how, p["accuracy"]["none"]) for p in points) / len(points)
        for how in ("none", "lstsq")
    )
    return (
        f"**Most of it**: with half gone {len(points)} methods have {100 * plain:.0f} % on average as cut, {100 * back:.0f} refitted "
        f"(unpruned {100 * data['unpruned']['quality']['accuracy']:.0f}; ResNet-18)."
    )


def joint() -> str | None:
    """Where `joint` stands by area, refitted."""
    told = beside_every_other(RESULTS)
    parts = [f"{word} {', '.join(n.split(',')[0] for n, _ in on)}" for word, on in told.items() if on]
    return f"Refitted, by area, `joint` is {'; '.join(parts)}." if parts else None


def not_in_tables() -> str | None:
    """Which methods of the full table a network has not been measured with, in any of its runs."""
    measured = {
        network: {m for f in RESULTS.glob(f"{file}*.json") for m in json.loads(f.read_text())["methods"]}
        for file, network in TABLES.items()
    }
    wanted = measured["ResNet-50"]
    said = [
        f"{network} without {', '.join(sorted(wanted - found))}"
        for network, found in measured.items()
        if wanted - found
    ]
    return f"The full table does not have {'; '.join(said)}." if said else None
