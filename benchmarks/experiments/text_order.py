"""Does the feed-forward assumption hold on sentences? C-SWAP's walk from the output to the input beside the opposite and a random order.

    [CSWAP_MINILM=FOLDER] python benchmarks/experiments/text_order.py [--networks lstm,minilm] [--cifar DIR] [--work DIR] [--seed 0]

SST-2; the LSTM reader (32 sentences a class), and MiniLM (16 a class, MLP units and heads, bfloat16) where CSWAP_MINILM names the folder
that train_minilm.py wrote. The paper tests from the output to the input because what is cut later then cannot change what was tested
before. A recurrent unit feeds itself and the layer before it feeds it at the next step; a residual stream is read by every later layer.
After each walk everything that is left is judged again: a verdict that held has not gone stale.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from _experiment import Given, main
from _stores import counts, tell, without

import cswap
from _real import unpacked
from cswap.causal.judge import Judge
from cswap.causal.replay import engine_for
from cswap.data.calibration import calibration_set
from cswap.evaluate.quality import measure_quality
from cswap.methods.options import Options
from cswap.pipeline import task_named
from methods_text import UNITS, case
from results_common import Said, sign, yes_no

PER_CLASS = {"lstm": 32, "minilm": 16}
ORDERS = ("output to input", "input to output", "random")


def ordered(structure: Any, order: str, seed: int) -> Any:
    """The same groups in another order."""
    groups = list(structure.groups)
    if order == "input to output":
        groups.reverse()
    elif order == "random":
        groups = [groups[i] for i in np.random.default_rng(seed).permutation(len(groups))]
    return replace(structure, groups=tuple(groups))


def judged(model: Any, structure: Any, calibration: Any, amp: bool, gone: dict[str, list[int]]) -> dict[str, str]:
    """Verdicts of all units that are left, on the network without `gone`."""
    engine = engine_for(model, structure, calibration, task_named("text"), memory=3 << 30, amp=amp)
    judge = Judge(calibration, Options().rule)
    for group, units in gone.items():
        engine.remove(group, units)
    return {
        f"{g.name}/{n}": str(judge.judge(scores, base).verdict)
        for g in structure
        for n, scores, base in engine.one_by_one(g, [n for n in range(g.size) if n not in gone.get(g.name, [])])
    }


def one(network: str, folder: Path | None, sentences: Path, given: Given) -> dict[str, Any]:
    """The walks of one network, each kept as it is done."""
    file = given.work / f"{network}.json"
    kept: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    source, choice = case(network, folder, sentences, PER_CLASS[network])
    model, pair, amp = source.build().eval(), choice.open(source.spec), network == "minilm"
    calibration = calibration_set(pair.train, PER_CLASS[network], given.seed, classes=pair.classes)
    structure = cswap.discover(model, calibration.inputs(0, 2))
    if network == "minilm":
        structure = structure.select(only=UNITS["coarse"])
    task = task_named("text")

    def done(name: str, make: Any) -> Any:
        if name not in kept:
            tell(f"{network}: {name}")
            kept[name] = make()
            file.write_text(json.dumps(kept))
        return kept[name]

    def quality(net: Any) -> float:
        return float(measure_quality({"it": net}, pair.evaluation, task, len(pair.classes), amp=amp)["it"]["accuracy"])

    def walk(order: str) -> dict[str, Any]:
        path = cswap.prune_path(
            model,
            calibration,
            task=task,
            structure=ordered(structure, order, given.seed),
            target="noncritical",
            amp=amp,
            memory=3 << 30,
        )
        gone: dict[str, list[int]] = {}
        for d in path:
            if d.removed:
                gone.setdefault(d.group, []).append(d.unit)
        accuracy = quality(without(model, structure, gone))
        return {
            "verdicts": {f"{d.group}/{d.unit}": str(d.verdict) for d in path if d.phase == "walk"}, "removed": path.ratio.as_dict(),
            "accuracy": accuracy, "again": judged(model, structure, calibration, amp, gone),
        }  # fmt: skip

    base = done("unpruned", lambda: quality(model))
    first = done("original", lambda: judged(model, structure, calibration, amp, {}))
    told: dict[str, Any] = {"units": structure.units, "per_class": PER_CLASS[network], "unpruned": base, "orders": {}}
    for order in ORDERS:
        w = done(order, lambda order=order: walk(order))
        left = list(w["again"])
        told["orders"][order] = {
            "verdicts": counts(w["verdicts"]), "removed": w["removed"], "accuracy": w["accuracy"],
            "as_on_the_original": float(np.mean([w["verdicts"][u] == first[u] for u in first])),
            "still_true": float(np.mean([w["verdicts"][u] == w["again"][u] for u in left])),
        }  # fmt: skip
    return told


def run(given: Given) -> dict[str, Any]:
    """The LSTM, and MiniLM where it is."""
    sentences = unpacked("sst2", None, given.work).resolve()
    folders = {"lstm": None}
    if minilm := os.environ.get("CSWAP_MINILM"):
        folders["minilm"] = Path(minilm)
    return {"networks": {n: one(n, folders[n], sentences, given) for n in given.networks if n in folders}}


def answer(data: dict[str, Any]) -> Said:
    """Whether verdicts hold longest in the order from output to input."""
    held = {n: [f["orders"][o]["still_true"] for o in ORDERS] for n, f in data["networks"].items()}
    found = {}
    for n, h in held.items():
        left = [f["verdicts"]["critical"] for f in data["networks"][n]["orders"].values()]
        best = max(range(1, len(ORDERS)), key=lambda i: h[i])
        error = 1.96 * float(np.sqrt(sum(h[i] * (1 - h[i]) / left[i] for i in (0, best))))
        found[n] = sign(h[0] - h[best], error)
    return Said(
        yes_no(found, "one run each"),
        f"{'; '.join(' / '.join(f'{100 * v:.1f}' for v in h) + ' %' for h in held.values())} of the verdicts still true after {' / '.join(ORDERS)}",
        ", ".join(f"{n} at {f['per_class']}" for n, f in data["networks"].items()) + "; SST-2",
    )


def finding(data: dict[str, Any]) -> str:
    """Two sentences."""
    parts = []
    for name, f in data["networks"].items():
        o, i = (f["orders"][k] for k in ORDERS[:2])
        parts.append(
            f"{name}: {100 * o['still_true']:.1f} % of the verdicts on what is left are still true after the walk from output to input, "
            f"{100 * i['still_true']:.1f} % after the opposite one, and the walks end at {100 * o['accuracy']:.1f} and {100 * i['accuracy']:.1f} % "
            f"accuracy (unpruned {100 * f['unpruned']:.1f} %) with {100 * o['removed']['units']:.1f} and {100 * i['removed']['units']:.1f} % of the units gone"
        )
    wins = [
        n
        for n, f in data["networks"].items()
        if f["orders"][ORDERS[0]]["still_true"] >= max(f["orders"][k]["still_true"] for k in ORDERS[1:])
    ]
    said = (
        "on both"
        if len(wins) == len(data["networks"]) > 1
        else f"on {wins[0]} alone"
        if wins
        else "on none of these networks"
    )
    return f"{'; '.join(parts)}. The order from output to input keeps its verdicts best {said}."


def section(data: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table."""
    head = ["network", "order", "critical / neutral / detrimental", "as on the original network, %", "still true after the walk, %", "units removed",
            "accuracy, %"]  # fmt: skip
    rows = [
        [name, order, " / ".join(str(v["verdicts"][k]) for k in ("critical", "neutral", "detrimental")), f"{100 * v['as_on_the_original']:.1f}",
         f"{100 * v['still_true']:.1f}", f"{v['removed']['units']:.3f}", f"{100 * v['accuracy']:.2f}"]
        for name, f in data["networks"].items() for order, v in f["orders"].items()
    ]  # fmt: skip
    return head, rows


def figure(data: dict[str, Any], plt: Any) -> Any:
    """How many verdicts hold, by order."""
    fig, ax = plt.subplots(figsize=(6, 3))
    names = list(data["networks"])
    for i, order in enumerate(ORDERS):
        at = np.arange(len(names)) + 0.25 * (i - 1)
        ax.bar(at, [100 * data["networks"][n]["orders"][order]["still_true"] for n in names], 0.22, label=order)
    ax.set_xticks(range(len(names)), names)
    ax.set_ylabel("verdicts still true after the walk, %")
    ax.set_ylim(0, 100)
    ax.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.02, 0.5))
    fig.tight_layout()
    return fig


if __name__ == "__main__":
    main("text_order", run, __doc__ or "", ("lstm", "minilm"))
