"""The first section of RESULTS.md: every network at about half removed, on one screen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from results_common import label, point_at, table

# file, network, quality, and where it is looked at
_SHOWN = (
    ("methods_resnet18_joint", "ResNet-18, CIFAR-10", "accuracy", "params", 0.5),
    ("methods_resnet18_joint", "ResNet-18, CIFAR-10", "accuracy", "macs", 0.5),
    ("methods_mobilenet_v2", "MobileNetV2, CIFAR-10", "accuracy", "macs", 0.5),
    ("methods_resnet50", "ResNet-50, CIFAR-10", "accuracy", "params", 0.5),
    ("methods_vit", "ViT, CIFAR-10", "accuracy", "macs", 0.5),
    ("text_minilm", "MiniLM, SST-2", "accuracy", "macs", 0.5),
    ("text_lstm", "LSTM, SST-2", "accuracy", "macs", 0.5),
    ("dense_camvid", "U-Net, CamVid", "miou", "params", 0.6),
    ("dense_bccd", "SSD, BCCD", "map", "params", 0.5),
)
_MEASURES = {"accuracy": "accuracy", "miou": "mIoU", "map": "mAP"}


def _qualities(point: dict[str, Any], key: str) -> dict[str, float]:
    """What a user gets, by recovery; one that is declined leaves the plain network."""
    found = point["accuracy"] if "accuracy" in point else {how: q[key] for how, q in point["quality"].items()}
    return {how: found["none"] if how in point["declined"] else v for how, v in found.items()}


def _row(data: dict[str, Any], name: str, key: str, kind: str, ratio: float) -> list[str] | None:
    base = data["unpruned"]["quality"][key]
    points = {
        label(n, data): _qualities(p, key)
        for n, x in data["methods"].items()
        if (p := point_at(x["points"], kind, ratio)) is not None
    }
    if not points:
        return None
    plain, by = max((q["none"], n) for n, q in points.items())
    best, method, how = max((v, n, w) for n, q in points.items() for w, v in q.items())
    mine: dict[str, float] = next((q for n, q in points.items() if n.startswith("cswap")), {})
    if key == "accuracy" and plain <= 1.5 / len(data["classes"]):
        by = "all at chance"
    return [
        name, f"{_MEASURES[key]}, {kind} = {ratio:g}", f"{100 * base:.2f}",
        f"{100 * mine['none']:.2f}" if mine else "–", f"{100 * mine['lstsq']:.2f}" if "lstsq" in mine else "–",
        f"{100 * plain:.2f} ({by})", f"**{100 * best:.2f}** ({method}, {'plain' if how == 'none' else how})", f"{100 * (base - best):+.2f}",
    ]  # fmt: skip


def overview(results: Path) -> list[str]:
    """Of each network what C-SWAP keeps, what the best ranking keeps as it is cut, and what the best combination keeps."""
    rows = []
    for file, name, key, kind, ratio in _SHOWN:
        path = results / f"{file}.json"
        row = _row(json.loads(path.read_text()), name, key, kind, ratio) if path.exists() else None
        rows += [row] if row else []
    if not rows:
        return []
    return [
        "## At a glance: about half removed, one shot, no fine-tuning", "",
        "Quality in % on held-out data, from the sections below, where commands, seeds, machines and sample sizes stand; the best is chosen by these "
        "test data. A recovery that cswap declines counts as the plain network.", "",
        *table(["network", "looked at", "unpruned", "C-SWAP, plain", "C-SWAP, refitted", "best as cut", "best recovered", "points lost"], rows),
    ]  # fmt: skip
