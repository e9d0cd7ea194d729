"""The sections of RESULTS.md on segmentation and detection, from dense_camvid.json and dense_bccd.json."""

from __future__ import annotations

from typing import Any

from results_common import label

_NAMES = {"segmentation": ("a U-Net on CamVid", "miou", "mIoU"), "detection": ("an SSD on BCCD", "map", "mAP@[.5:.95]")}


def dense(data: dict[str, Any], origin: str) -> list[str]:
    """Quality at each ratio: a row for every method and recovery."""
    name, key, said = _NAMES[data["task"]]
    ratios = data["ratios"]
    lines = [
        f"## Pruning {name}: {said} by parameters removed", "", origin,
        f"{data['held_out_samples']} test images, {data['per_class']} calibration images a class; unpruned {said} "
        f"{100 * data['unpruned']['quality'][key]:.2f} %. One shot, no fine-tuning.", "",
        f"| method | recovery | {' | '.join(f'{r:g}' for r in ratios)} |", f"| --- | --- |{' --- |' * len(ratios)}",
    ]  # fmt: skip
    for method, found in data["methods"].items():
        at = {p["asked"]["params"]: p for p in found["points"] if "params" in p["asked"]}
        for how in data["recover"]:
            cells = [_cell(at[r], how, key) if how in at.get(r, {}).get("quality", {}) else "–" for r in ratios]
            lines.append(f"| `{label(method, data)}` | {how} | {' | '.join(cells)} |")
    return [
        *lines,
        "",
        "° declined, so that the network stays as it was cut: in its place what the recovery would have given.",
        "",
    ]


def _cell(point: dict[str, Any], how: str, key: str) -> str:
    refused = point.get("declined", {}).get(how)
    return f"{100 * point['quality'][how][key]:.2f}" if refused is None else f"{100 * refused[key]:.2f}°"
