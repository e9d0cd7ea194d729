"""The sections of RESULTS.md on joint, verified pruning: beside rankings, its cost, its order."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cswap.evaluate.curve import sauce
from paired_areas import STAGED, for_kind, kinds_of, once, told_as
from results_common import hours, label, origin, table

HERE = Path(__file__).resolve().parent
BESIDE = (
    ("methods_resnet18_joint", "ResNet-18, CIFAR-10", "accuracy"),
    ("methods_mobilenet_v2", "MobileNetV2, CIFAR-10", "accuracy"),
    ("methods_mobilenet_v2_joint", "MobileNetV2, CIFAR-10", "accuracy"),
    ("methods_vit", "ViT, CIFAR-10", "accuracy"),
    ("text_minilm", "MiniLM, SST-2", "accuracy"),
    ("dense_camvid", "U-Net, CamVid", "miou"),
)
"""File, network and quality: where `joint` was measured beside the others in one run."""


def _curve(method: dict[str, Any], key: str, kind: str, how: str) -> list[tuple[float, float]]:
    """What was removed and the quality that is left, ascending, of the points that were asked for by `kind`."""
    found = []
    for p in method["points"]:
        quality = p["raw_accuracy" if how != "none" else "accuracy"] if "accuracy" in p else p["quality"]
        refused = p["declined"].get(how) if isinstance(p["declined"], dict) else None
        value = refused or quality.get(how, p.get("accuracy", {}).get(how))
        if p["asked"].get(kind) and value is not None:
            found.append((p["ratio"][kind], value if isinstance(value, float) else value[key]))
    return sorted(found)


def areas(data: dict[str, Any], key: str, kind: str, how: str) -> tuple[float, dict[str, float]]:
    """Where the areas end, at 0.8 or where the shortest curve does, and each method's."""
    base = data["unpruned"]["quality"][key]
    curves = {label(n, data): [(0.0, base), *c] for n, x in data["methods"].items() if (c := _curve(x, key, kind, how))}
    end = min([0.8, *(c[-1][0] for c in curves.values())])
    return end, {n: sauce([x for x, _ in c], [y for _, y in c], base, end) for n, c in curves.items()}


def _beside(results: Path) -> Iterator[tuple[str, str, list[str], str, list[str], dict[str, Any]]]:
    """Of each network that is measured, and each kind of ratio: its name, quality, what `joint` is called there, the kind, all kinds, and all of it."""
    seen = set()
    for file, name, key in BESIDE:
        path = results / f"{file}.json"
        data = json.loads(path.read_text()) if path.exists() else {"methods": {}}
        ours = [n for n in data["methods"] if n.startswith("joint")]
        kinds = kinds_of(data["methods"][ours[0]]["points"]) if ours else []
        for kind in (k for k in kinds if (name, k) not in seen):
            seen.add((name, kind))
            said = f"{name}, by MACs" if kind != kinds[0] else name
            yield said, key, ours, kind, kinds, data


def beside_every_other(results: Path) -> dict[str, list[tuple[str, str]]]:
    """The networks where `joint`, in stages where that was measured, refitted, is above, level with and below the best of the others by area, and by how much."""
    told: dict[str, list[tuple[str, str]]] = {
        "above every other on": [],
        "ahead, with no interval, on": [],
        "level with the best other on": [],
        "below another on": [],
    }
    above, ahead, level, below = told.values()
    for name, key, ours, kind, kinds, data in _beside(results):
        _, found = areas(data, key, kind, "lstsq")
        first = for_kind(ours, kind)
        others = {n: v for n, v in found.items() if not n.startswith("joint")}
        best = max(others, key=lambda n: others[n])
        apart, half = (
            data.get("paired", {})
            .get(told_as("lstsq", kind, kinds), {})
            .get("over", {})
            .get(best, (found[first] - others[best], 0.0))
        )
        spread = f"{apart:+.4f} ± {half:.4f}" if half else f"{apart:+.4f}, no interval"
        (below if apart < -half else level if apart <= half else above if half else ahead).append((name, spread))
    return told


def joint_areas(results: Path) -> list[str]:
    """Of each network the area under the refitted and the plain curve, of `joint` and the best of the others."""
    rows, below, gained = [], [], []
    for name, key, ours, kind, kinds, data in _beside(results):
        cells: list[str] = []
        first, before = for_kind(ours, kind), once(ours, kind)
        for how in ("lstsq", "none"):
            end, found = areas(data, key, kind, how)
            mine = found[first]
            others = {n: v for n, v in found.items() if not n.startswith("joint")}
            best = max(others, key=lambda n: others[n])
            staged = f"{mine:.4f}" if first.endswith(STAGED) else "–"
            cells += [staged, f"{found[before]:.4f}", f"{others[best]:.4f} ({best})", f"{others['cswap']:.4f}"]
            below += [f"{name} ({'refitted' if how == 'lstsq' else 'as cut'})"] if mine < others["cswap"] else []
        rows.append([name, f"{kind}, to {end:.2g}", *cells])
        over = data.get("paired", {}).get(told_as("lstsq", kind, kinds), {}).get("over_once", {}).get(before)
        gained += [f"{name} {over[0]:+.4f} ± {over[1]:.4f}"] if over else []
    if not rows:
        return []
    told = {how: ", ".join(f"{n} ({spread})" for n, spread in on) for how, on in beside_every_other(results).items()}
    said = [
        "Refitted, `joint`, in stages where that was measured, is "
        + "; it is ".join(f"{how} {on}" for how, on in told.items() if on)
    ]
    said += [
        " (± 95 %, of the test samples, paired, on CamVid of each image's own mIoU; of one draw of calibration samples)"
    ]
    said += [f". In stages less once: {', '.join(gained)}"] if gained else []
    said += [f". It is below C-SWAP on {', '.join(below)}." if below else ". It is below C-SWAP on none of them."]
    return [
        "## `joint` beside every other: the area under the curve", "",
        "Area under quality against what was removed, over that of the unpruned network (SAUCE, where it ends at 0.8): one run a network, the same calibration samples and recovery "
        "for all methods; each network's section below has the command, the other methods and the curves. A recovered network that cswap would decline counts as recovered here.", "",
        "In stages (`--stages`, here `:staged`): at 0.3, 0.5, 0.65 and 0.8 of what is removed the network is refitted, from the samples that all recoveries take, and what is left is "
        "ordered and tested anew against the original; how groups share the next stage is what ends nearest to the original of three allocations.", "",
        *table(["network", "removed", "joint in stages, refitted", "joint, refitted", "best other, refitted", "C-SWAP, refitted",
                "joint in stages, plain", "joint, plain", "best other, plain", "C-SWAP, plain"], rows),
        "".join(said), "",
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
        [f"{w['width']:,}", *(str(w[n][what]) for what in ("interventions", "seconds") for n in ("one", "ten"))]
        for w in data.get("widths", ())
    ]
    by_width = [
        "A perceptron on the digits by the width of its hidden layer; sets are found to a 32nd of it, and margins that have the same set need no more cuts:",
        "",
    ]
    return [
        "## What joint testing costs: ResNet-18, and by width", "", origin(data),
        f"{data['per_class']} images a class; brute force projected from {data['brute']['units_timed']} units. "
        f"Measured at commit {', '.join(f'`{c[:12]}`' for c in sorted(set(data['commits'].values())))}.", "",
        *table(["analysis", "time", "against brute force", "interventions"], rows),
        *([*by_width, *table(["width", "joint cuts, one margin", "ten margins", "seconds, one", "ten"], widths)] if widths else []),
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
