"""Block granularity (block:4, 16, 64) against per-unit testing: agreement, quality, seconds; and a layer of 4,096 units.

    python benchmarks/experiments/blocks.py [--cifar DIR] [--work DIR] [--seed 0]

ResNet-18, 8 samples a class, whole walks by `cswap`; and a perceptron 64-4096-10 trained on scikit-learn's digits.
"""

from __future__ import annotations

import json
import time
from typing import Any

import torch
from _experiment import Given, main
from _stores import accuracy, held_out_set, opened, tell, without
from torch import nn
from torch.utils.data import TensorDataset

import cswap
from cswap.data.calibration import calibration_set
from cswap.demo import digits
from cswap.methods.path import PruningPath
from results_common import Said, sign, yes_no

NETWORK, PER_CLASS = "resnet18", 8
PIECES = ("unit", "block:4", "block:16", "block:64")
WIDE = (*PIECES, "block:256")


def walked(path: PruningPath) -> dict[tuple[str, int], str]:
    """Verdict by unit."""
    return {(d.group, d.unit): str(d.verdict) for d in path if d.phase == "walk"}


def gone(path: PruningPath) -> dict[str, list[int]]:
    """Units the walk removed."""
    found: dict[str, list[int]] = {}
    for d in path:
        if d.removed:
            found.setdefault(d.group, []).append(d.unit)
    return found


def compared(
    model: nn.Module, calibration: Any, structure: Any, test: Any, pieces: tuple[str, ...], file: Any
) -> dict[str, Any]:
    """One walk a granularity, each kept as it is done."""
    found: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    for piece in pieces:
        if piece in found:
            continue
        begin = time.perf_counter()
        path = cswap.prune_path(model, calibration, structure=structure, granularity=piece, target="noncritical")
        seconds, verdicts = time.perf_counter() - begin, walked(path)
        found[piece] = {
            "seconds": round(seconds, 1), "verdicts": path.verdicts(), "removed": path.ratio.as_dict(),
            "accuracy": accuracy(without(model, structure, gone(path)), *test), "by_unit": [f"{g}/{n}={v}" for (g, n), v in verdicts.items()],
        }  # fmt: skip
        file.write_text(json.dumps(found))
        tell(f"{piece}: {seconds:.0f} s")
    by_unit = {p: dict(t.split("=") for t in v.pop("by_unit")) for p, v in found.items()}
    for v, mine in zip(found.values(), by_unit.values(), strict=True):
        v["agree_with_units"] = sum(mine[k] == by_unit["unit"][k] for k in mine) / len(mine)
    return found


def wide(seed: int) -> tuple[nn.Module, Any, Any, tuple[torch.Tensor, Any]]:
    """A trained perceptron with one hidden layer of 4,096, its calibration set, structure and test data."""
    train, test = digits(seed)
    flat = [torch.stack([x.flatten() for x, _ in part]) for part in (train, test)]
    labels = [torch.tensor([int(y) for _, y in part]) for part in (train, test)]
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(flat[0].shape[1], 4096), nn.ReLU(), nn.Linear(4096, 10))
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for epoch in range(30):
        order = torch.randperm(len(flat[0]), generator=torch.Generator().manual_seed(epoch))
        for batch in order.split(64):
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(flat[0][batch]), labels[0][batch]).backward()
            optimiser.step()
    calibration = calibration_set(TensorDataset(flat[0], labels[0]), 64, seed)
    return (
        model.eval(),
        calibration,
        cswap.structure.discover.discover(model, calibration.inputs(0, 2)),
        (flat[1], labels[1].numpy()),
    )


def run(given: Given) -> dict[str, Any]:
    """Both networks."""
    model, calibration, structure, test = wide(given.seed)
    base = {"wide": accuracy(model, *test)}
    found = {"wide": compared(model, calibration, structure, test, WIDE, given.work / "wide.json")}
    c, structure = opened(NETWORK, given.images, PER_CLASS, given.seed)
    held = held_out_set(c, 200)
    test = (held.inputs(0, len(held)), held.targets)
    base[NETWORK] = accuracy(c.model, *test)
    found[NETWORK] = compared(c.model, c.calibration, structure, test, PIECES, given.work / f"{NETWORK}.json")
    return {"network": NETWORK, "per_class": PER_CLASS, "held_out": len(held), "unpruned": base, "found": found}


def answer(data: dict[str, Any]) -> Said:
    """What blocks of 16 gain and change."""
    f, w = data["found"][data["network"]], data["found"]["wide"]
    u, b = f["unit"], f["block:16"]
    return Said(
        yes_no(
            {
                data["network"]: sign(b["accuracy"] - u["accuracy"] + 0.02),
                "4,096 wide": sign(w["block:16"]["removed"]["units"] - 0.5 * w["unit"]["removed"]["units"]),
            },
            "one run each",
        ),
        f"blocks of 16 {u['seconds'] / b['seconds']:.0f}× as fast, {100 * b['agree_with_units']:.0f} % of the verdicts alike, {100 * b['removed']['params']:.0f} % of the parameters gone at "
        f"{100 * b['accuracy']:.0f} % to {100 * u['removed']['params']:.0f} at {100 * u['accuracy']:.0f}; wide: {100 * w['block:16']['removed']['units']:.0f} to {100 * w['unit']['removed']['units']:.0f} % of the units gone",
        f"{data['network']} at {data['per_class']}; a perceptron of 4,096 on digits",
    )


def finding(data: dict[str, Any]) -> str:
    """Two sentences."""
    f, w = data["found"][data["network"]], data["found"]["wide"]
    u, b = f["unit"], f["block:16"]
    return (
        f"On {data['network']} blocks of 16 take {b['seconds']:.0f} s where units take {u['seconds']:.0f} s and agree with {100 * b['agree_with_units']:.0f} % "
        f"of the verdicts; walks remove {100 * u['removed']['params']:.1f} % of the parameters by "
        f"units, {100 * f['block:4']['removed']['params']:.1f} % by blocks of 4 and {100 * b['removed']['params']:.1f} % by blocks of 16. In the layer of 4,096 "
        f"units blocks of 64 remove {100 * w['block:64']['removed']['units']:.1f} % of the units in {w['block:64']['seconds']:.1f} s and single "
        f"units {100 * w['unit']['removed']['units']:.1f} % in {w['unit']['seconds']:.1f} s, at {100 * w['block:64']['accuracy']:.1f} and "
        f"{100 * w['unit']['accuracy']:.1f} % accuracy (unpruned {100 * data['unpruned']['wide']:.1f} %)."
    )


def section(data: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table."""
    head = [
        "network",
        "granularity",
        "seconds",
        "critical / neutral / detrimental",
        "agree with units, %",
        "params removed",
        "units removed",
        "accuracy, %",
    ]
    rows = [
        [network if network != "wide" else "perceptron 64-4096-10", piece, f"{v['seconds']:.1f}",
         " / ".join(str(v["verdicts"][k]) for k in ("critical", "neutral", "detrimental")), f"{100 * v['agree_with_units']:.1f}",
         f"{v['removed']['params']:.3f}", f"{v['removed']['units']:.3f}", f"{100 * v['accuracy']:.2f}"]
        for network, found in data["found"].items() for piece, v in found.items()
    ]  # fmt: skip
    return head, rows


def figure(data: dict[str, Any], plt: Any) -> Any:
    """Seconds and what the walk removes."""
    fig, axes = plt.subplots(1, 2, figsize=(8, 3))
    for ax, (network, found) in zip(axes, data["found"].items(), strict=True):
        x = [1 if p == "unit" else int(p.split(":")[1]) for p in found]
        ax.plot(x, [v["seconds"] for v in found.values()], "o-", label="seconds")
        ax.set_xscale("log", base=2)
        ax.set_yscale("log")
        ax.set_xlabel("units a block")
        ax.set_ylabel("seconds of the walk")
        ax.set_title(network if network != "wide" else "perceptron 64-4096-10", fontsize=9)
        other = ax.twinx()
        other.plot(x, [100 * v["removed"]["units"] for v in found.values()], "s--", color="tab:red")
        other.set_ylabel("units removed, %", color="tab:red")
        other.grid(False)
    fig.tight_layout()
    return fig


if __name__ == "__main__":
    main("blocks", run, __doc__ or "")
