"""A hard score (decisions) beside a soft one (probabilities) for segmentation and detection: the U-Net on CamVid, the SSD on BCCD.

    python benchmarks/experiments/scores.py [--cifar DIR] [--work DIR] [--seed 0]

A few units of every group, cut on the original network, 8 images a class (scaled down from 16). How often is an effect exactly
zero, how well do verdicts agree between two draws of images, and which score foretells better what a cut does to the hard score
of held-out images?
"""

from __future__ import annotations

import json
from itertools import product
from typing import Any

import numpy as np
from _experiment import Given, main, spearman
from _stores import counts, tell

import cswap
from _real import unpacked
from cswap.causal.judge import Judge
from cswap.causal.replay import engine_for
from cswap.data.calibration import calibration_set
from cswap.data.models import ModelSpec
from cswap.methods.options import Options
from cswap.pipeline import DataChoice, Source, task_named
from methods_dense import CASES, NETWORKS
from results_common import Said, sign, yes_no

PER_CLASS, UNITS, HELD = 8, 4, 12
KINDS = ("", "-soft")


def few(size: int) -> list[int]:
    """`UNITS` units of a group, evenly."""
    return sorted({int(n) for n in np.linspace(0, size - 1, UNITS)})


def effects(model: Any, structure: Any, calibration: Any, task: Any) -> dict[str, list[Any]]:
    """By group and unit: verdict, mean d, by class mean d."""
    engine = engine_for(model, structure, calibration, task)
    judge, found = Judge(calibration, Options().rule), {}
    for group in structure:
        engine.enter(group)
        base = engine.scores(group)
        for n in few(group.size):
            result = judge.judge(engine.cut(group, [[n]])[0], base)
            found[f"{group.name}/{n}"] = [
                str(result.verdict), float(result.stats.pooled.mean), [float(v) for v in result.stats.by_class.mean],
                [float(v) for v in result.stats.by_class.m2],
            ]  # fmt: skip
        engine.leave()
    return found


def one(name: str, given: Given) -> dict[str, Any]:
    """Both scores on two draws, and the hard one on held-out images; each is kept as it is done."""
    factory, weights, task, form = CASES[name]
    spec = ModelSpec.parse(f"{NETWORKS}/dense.py:{factory}", {})
    model = Source(spec, NETWORKS / "weights" / f"{weights}.safetensors").build().eval()
    pair = DataChoice(str(unpacked(name, None, given.work)), per_class=PER_CLASS, **form).open(spec)
    draws = {
        f"draw {i}": calibration_set(pair.train, PER_CLASS, given.seed + i, classes=pair.classes, allow_imbalance=True)
        for i in (0, 1)
    }
    held = calibration_set(pair.evaluation, HELD, given.seed, classes=pair.classes, allow_imbalance=True)
    structure = cswap.discover(model, draws["draw 0"].inputs(0, 2))
    runs = {f"{part}{kind}": (draws[part], kind) for part, kind in product(draws, KINDS)} | {"held": (held, "")}
    found: dict[str, Any] = {}
    for label, (images, kind) in runs.items():
        file = given.work / f"{name}.{label}.json"
        if not file.exists():
            tell(f"{name}, {label}: {len(images)} images")
            file.write_text(json.dumps(effects(model, structure, images, task_named(task + kind))))
        found[label] = json.loads(file.read_text())
    units = list(found["held"])
    told: dict[str, Any] = {
        "units": len(units),
        "of": structure.units,
        "images": len(draws["draw 0"]),
        "held_out": len(held),
    }
    for kind in KINDS:
        first, second = found[f"draw 0{kind}"], found[f"draw 1{kind}"]
        zero = [m == 0 and s == 0 for u in units for m, s in zip(first[u][2], first[u][3], strict=True) if m == m]
        told["soft" if kind else "hard"] = {
            "verdicts": counts({u: first[u][0] for u in units}), "zero": float(np.mean(zero)),
            "draws_agree": float(np.mean([first[u][0] == second[u][0] for u in units])),
            "draws_rank": spearman([first[u][1] for u in units], [second[u][1] for u in units]),
            "foretells": spearman([first[u][1] for u in units], [found["held"][u][1] for u in units]),
        }  # fmt: skip
    told["scores_agree"] = float(np.mean([found["draw 0"][u][0] == found["draw 0-soft"][u][0] for u in units]))
    told["pairs"] = [[found["draw 0"][u][1], found["draw 0-soft"][u][1], found["held"][u][1]] for u in units]
    return told


def run(given: Given) -> dict[str, Any]:
    """Both networks."""
    return {"per_class": PER_CLASS, "found": {name: one(name, given) for name in CASES}}


def answer(data: dict[str, Any]) -> Said:
    """Whether cuts that the scores call bad are those that cost quality on held-out images."""
    found = {n: sign(max(f["hard"]["foretells"], f["soft"]["foretells"]) - 0.8) or -1 for n, f in data["found"].items()}
    listed = "; ".join(f"{f['hard']['foretells']:.2f} and {f['soft']['foretells']:.2f}" for f in data["found"].values())
    return Said(
        yes_no(found, "one run each"),
        f"rank correlation with what is lost on held-out images, hard and soft: {listed}",
        f"{', '.join(data['found'])} at {data['per_class']}; pixels' IoU, matched boxes",
    )


def finding(data: dict[str, Any]) -> str:
    """Two sentences."""
    parts = []
    for name, f in data["found"].items():
        h, s = f["hard"], f["soft"]
        parts.append(
            f"{name}: {100 * h['zero']:.1f} % of the effects by class are exactly zero with the hard score and {100 * s['zero']:.1f} % with the soft "
            f"one, verdicts of two draws agree for {100 * h['draws_agree']:.0f} and {100 * s['draws_agree']:.0f} % of the units, and the rank "
            f"correlation with what the cut does to the hard score of held-out images is {h['foretells']:.2f} and {s['foretells']:.2f}"
        )
    better = [n for n, f in data["found"].items() if f["soft"]["foretells"] > f["hard"]["foretells"]]
    which = "on both" if len(better) == len(data["found"]) else f"on {better[0]} alone" if better else "on neither"
    return f"{'; '.join(parts)}. The soft score foretells held-out losses better {which}."


def section(data: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table."""
    head = ["network", "score", "units cut", "images", "critical / neutral / detrimental", "effects of zero, %", "verdicts of two draws agree, %",
            "rank correlation of two draws", "with held-out losses"]  # fmt: skip
    rows = [
        [name, kind, f"{f['units']} of {f['of']:,}", str(f["images"]), " / ".join(str(f[kind]["verdicts"][v]) for v in ("critical", "neutral", "detrimental")),
         f"{100 * f[kind]['zero']:.1f}", f"{100 * f[kind]['draws_agree']:.0f}", f"{f[kind]['draws_rank']:.2f}", f"{f[kind]['foretells']:.2f}"]
        for name, f in data["found"].items() for kind in ("hard", "soft")
    ]  # fmt: skip
    return head, rows


def figure(data: dict[str, Any], plt: Any) -> Any:
    """Effect on the held-out hard score against the effect that each score measured."""
    fig, axes = plt.subplots(1, len(data["found"]), figsize=(8, 3.2))
    for ax, (name, f) in zip(axes, data["found"].items(), strict=True):
        pairs = np.asarray(f["pairs"])
        for i, (kind, mark) in enumerate((("hard", "o"), ("soft", "x"))):
            ax.plot(pairs[:, i], pairs[:, 2], mark, ms=4, label=f"{kind} score, ρ = {f[kind]['foretells']:.2f}")
        for scale in (ax.set_xscale, ax.set_yscale):
            scale("symlog", linthresh=1e-4)
        ax.tick_params(axis="x", labelsize=7)
        ax.set_xlabel("mean effect on the calibration images")
        ax.set_ylabel("on held-out images, hard score")
        ax.set_title(name, fontsize=9)
        ax.legend(fontsize=7)
    fig.tight_layout()
    return fig


if __name__ == "__main__":
    main("scores", run, __doc__ or "")
