"""Makes docs/support.md from results/support_matrix.json: nothing in it is typed by hand."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PAGE = HERE.parent / "docs" / "support.md"

_SAYS = {
    "pruned": "pruned, and verified: masked and pruned network agree, counts are real, loading gives the same outputs",
    "refused": "nothing in it can be pruned safely, with the reason",
    "unseen": "pruned, but its removed units move nothing on the inputs tried, so the check says little",
    "wrong": "a comparison failed",
    "error": "an exception that nobody meant",
    "time": "not done within the time limit",
    "memory": "not done within the memory limit",
}
_UNITS = (
    "| network | unit |",
    "| --- | --- |",
    "| convolutions, linear layers | a channel, with everything that adds, concatenates or multiplies ties to it |",
    "| depthwise convolutions, squeeze-excite | the channel they act on |",
    "| grouped convolutions | a whole block: its input channels, filters and output channels; fewer groups of the same shape are left |",
    "| batch norms, frozen batch norms | the channel they act on: scale, shift and statistics go with it, parameters or buffers |",
    "| LSTM, GRU, RNN | a hidden unit of one layer and direction, cut in what follows and in the recurrence; its row of every gate goes |",
    "| embedding tables | a dimension |",
    "| MLPs of transformers | a hidden neuron; the residual width stays |",
    "| gated MLPs (SwiGLU, GEGLU) | a neuron with its gate: a row of each, in two layers or in one that is split |",
    "| attention: heads | a whole head, cut where the output projection reads it |",
    "| attention: q·k | an inner dimension of one head, a row of q and of k; the scale stays that of the original head |",
    "| attention: v | an inner dimension of one head, a row of v and a column of the output projection |",
    "| ConvNeXt and the like | hidden neurons of the MLPs; the residual width passes a LayerNorm, where zero is no removal |",
)
_SOURCES = (
    ("torchvision", "torchvision: every classification and segmentation model"),
    ("timm", "timm: the smallest model of every family"),
    ("hf", "Hugging Face: every vision classifier, from a small configuration"),
)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _row(m: dict[str, Any]) -> str:
    ratio = m.get("ratio", {})
    why = m.get("reason", "")
    left = m.get("left_out", {})
    if not why:
        ours = {r: n for r, n in left.items() if "model's output" not in r}
        why = "; ".join(f"{n} × {r}" if n > 1 else r for r, n in sorted(ours.items(), key=lambda x: -x[1])[:3])
    name = m["name"].partition(":")[2]
    spec = m["spec"].partition(":")[2]
    shown = name if spec in (name, "classifier") else f"{name} ({spec})"
    numbers = [f"{ratio[k]:.2f}" if ratio else "" for k in ("params", "macs")]
    size = "×".join(str(v) for v in m.get("input", []))
    cells = [shown, m["status"], size, str(m.get("groups", "")), f"{m.get('units', 0):,}", *numbers, str(m.get("structure_seconds", "")), why]  # fmt: skip
    return f"| {' | '.join(_cell(c) for c in cells)} |"


def page_of(data: dict[str, Any]) -> str:
    """The page's text."""
    lines = [
        "# What can be pruned", "",
        f"Made from `benchmarks/results/support_matrix.json` by `{data['command']}` (commit {data['commit'][:12]}, "
        f"torch {data['versions']['torch']}). A random {100 * data['fraction']:.0f} % of each group was removed from networks "
        "with random weights that show; see `benchmarks/support_matrix.py`.", "",
        "`cswap support --model M` says the same of your own model: groups, units, what is left out and why.", "",
        *_UNITS, "",
        "A frozen model (`requires_grad=False`) is pruned like any other; what was frozen is frozen in the pruned module too.", "",
        "| outcome | means |", "| --- | --- |", *(f"| {k} | {v} |" for k, v in _SAYS.items()), "",
    ]  # fmt: skip
    for source, title in _SOURCES:
        models = [m for m in data["models"] if m["name"].startswith(source + ":")]
        if not models:
            continue
        counts = Counter(m["status"] for m in models)
        said = ", ".join(f"{n} {k}" for k, n in counts.most_common())
        lines += [
            f"## {title}", "", f"{len(models)} models: {said}.", "",
            "| model | outcome | input | groups | units | params removed | MACs removed | structure, CPU s | left out, besides the output |",
            "| --- | --- | --- | --- | --- | --- | --- | --- | --- |", *(_row(m) for m in models), "",
        ]  # fmt: skip
    if data["not_run"]:
        lines += [f"Not run yet: {', '.join(data['not_run'])}.", ""]
    return "\n".join(lines)


def write_page(data: dict[str, Any]) -> None:
    """Write the page."""
    PAGE.write_text(page_of(data), encoding="utf-8")


if __name__ == "__main__":
    write_page(json.loads((HERE / "results" / "support_matrix.json").read_text(encoding="utf-8")))
