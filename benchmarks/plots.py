"""Plots of the curves in the results, drawn from their JSON.

    python benchmarks/plots.py [NAME …]

Writes benchmarks/results/plots/NAME.svg for methods_resnet18 (and _128, _long, _joint), methods_resnet50, methods_mobilenet_v2 (and _joint), methods_vit, text_minilm, text_lstm, dense_camvid and dense_bccd, where there is a JSON.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from paired_areas import STAGED, kinds_of
from results_common import label

RESULTS = Path(__file__).resolve().parent / "results"
CURVES = {
    "methods_resnet18": ("params", "accuracy"), "methods_resnet18_128": ("params", "accuracy"),
    "methods_resnet18_joint": ("params", "accuracy"), "methods_resnet50": ("params", "accuracy"), "methods_mobilenet_v2": ("params", "accuracy"), "methods_mobilenet_v2_joint": ("params", "accuracy"),
    "methods_resnet18_long": ("params", "accuracy"), "methods_vit": ("params", "accuracy"), "text_minilm": ("macs", "accuracy"), "text_lstm": ("macs", "accuracy"),
    "dense_camvid": ("params", "miou"), "dense_bccd": ("params", "map"),
}  # fmt: skip
"""What is removed, and the measure."""


def pyplot(salt: str) -> Any:
    """matplotlib, such that the same figures give the same bytes."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot as plt

    plt.rcParams.update({"svg.hashsalt": salt, "svg.fonttype": "none", "font.size": 9, "axes.spines.top": False,
                         "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.3})  # fmt: skip
    return plt


def keep(figure: Any, name: str, plt: Any) -> None:
    """Write one figure."""
    (RESULTS / "plots").mkdir(exist_ok=True)
    figure.savefig(RESULTS / "plots" / f"{name}.svg", metadata={"Date": None}, bbox_inches="tight")
    plt.close(figure)


def quality(point: dict[str, Any], how: str, measure: str) -> float | None:
    """Of a point after one recovery, whether or not it was declined; None where it was not asked."""
    if "quality" in point:
        return point["quality"].get(how, {}).get(measure)
    found = point["raw_accuracy"].get(how, point["accuracy"].get(how) if how == "none" else None)
    return None if found is None else float(found)


def draw(name: str) -> None:
    """Quality against what was removed: a panel a recovery, a line a method."""
    data, (first, measure) = json.loads((RESULTS / f"{name}.json").read_text()), CURVES[name]
    plt = pyplot(name)
    ways = [h for h in data["recover"] if h in ("none", "bn", "lstsq")]
    several = [k for k in kinds_of(next(iter(data["methods"].values()))["points"]) if k != first]
    kinds = [first, *several]
    figure, axes = plt.subplots(
        len(kinds), len(ways), figsize=(4.4 * len(ways) + 1.6, 3.4 * len(kinds)), sharex="row", squeeze=False
    )
    base = data["unpruned"]["quality"][measure]
    for row, kind in zip(axes, kinds, strict=True):
        for ax, how in zip(row, ways, strict=True):
            for i, (method, run) in enumerate(data["methods"].items()):
                at = {p["asked"][kind]: quality(p, how, measure) for p in run["points"] if kind in p["asked"]}
                at[0.0] = base  # nothing is gone, and nothing to give back
                x = sorted(r for r, v in at.items() if v is not None)
                if len(x) < 2:
                    continue
                style = {
                    "color": f"C{i % 10}",
                    "ls": "-" if i < 10 else "--",
                    "marker": "osD^v<>pXP"[i % 10],
                    "ms": 3.5,
                }
                wide = 2.2 if method == "cswap" or method.endswith(STAGED) else 1.1
                ax.plot(x, [100 * at[r] for r in x], label=label(method, data), lw=wide, **style)
            ax.axhline(100 * base, color="grey", lw=0.8, ls=":")
            ax.set_title({"none": "as pruned", "bn": "batch norms estimated again", "lstsq": "refitted"}[how])
            ax.set_xlabel({"params": "parameters removed", "macs": "MACs removed"}[kind])
        row[0].set_ylabel({"accuracy": "test accuracy, %", "miou": "mIoU, %", "map": "mAP, %"}[measure])
    figure.subplots_adjust(hspace=0.45)
    axes[0][-1].legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    keep(figure, name, plt)


if __name__ == "__main__":
    for each in sys.argv[1:] or [n for n in CURVES if (RESULTS / f"{n}.json").exists()]:
        draw(each)
