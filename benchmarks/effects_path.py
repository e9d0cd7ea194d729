"""Whole real walks (`noncritical`) in both modes, their curves, and brute force over their verdicts.

    python benchmarks/effects_path.py [--cifar DIR] [--per-class 32] [--networks resnet20,resnet18] [--work DIR]

Each walk is `cswap prune`, resumed where --work holds an unfinished one. Brute force (copy, cut by hand, whole forward
pass, on the network as it was at that moment of the walk) judges every unit of ResNet-20 and a random 5 % of ResNet-18's
again, and must find the same verdicts; on some units it also runs in float64, to tell whose ξ is nearer. Writes benchmarks/results/effects_path.json.
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from _machine import machine, write_result
from _real import FLAGS, NETWORKS, Case, case, unpacked
from cswap.artifacts.folder import open_artifact
from cswap.causal.stats import effect_stats
from cswap.causal.verdicts import VoteRule, class_tests, verdict_of
from cswap.cli.app import main as command
from cswap.evaluate.curve import quality_curve
from cswap.methods.path import PruningPath
from cswap.tasks import Classification
from cswap.types import Decision

MODES = ("verdict", "full")
CHECKED = {"resnet20": 1.0, "resnet18": 0.05}
IN_DOUBLE = 12  # units whose ξ is also computed in float64


def walked(name: str, mode: str, images: Path, given: argparse.Namespace) -> Path:
    """The artifact of one walk, made or finished now."""
    out: Path = given.work / f"{name}-{mode}-{given.per_class}"
    if (out / "manifest.json").exists():
        return out
    spec, weights, _ = NETWORKS[name]
    resume = ["--resume"] if (out / "run.json").exists() else []
    status = command([
        "prune", "--model", spec, "--weights", str(weights), "--data", str(images), *FLAGS, "--per-class", str(given.per_class),
        "--target", "noncritical", "--effects", mode, "--seed", str(given.seed), "--eval-samples", "1000", "--out", str(out),
        *resume,
    ])  # fmt: skip
    if status:
        raise SystemExit(status)
    return out


def cut_by_hand(net: nn.Module, path: PruningPath, d: Decision) -> nn.Module:
    """Zero the input columns that read one unit, in place."""
    for slot in path.structure[d.group].consumers:
        weight: Any = net.get_submodule(slot.module).weight
        for column in slot.positions[slot.owner == d.unit]:
            weight.data[:, int(column)] = 0.0
    return net


def sigma(net: nn.Module, c: Case) -> np.ndarray[Any, Any]:
    """The labelled class's probability, (M,)."""
    double = next(net.parameters()).dtype == torch.float64
    found = []
    with torch.inference_mode():
        for inputs, targets in c.calibration.batches(64):
            logits = net(inputs.double() if double else inputs).double()
            found.append(logits.softmax(1)[torch.arange(len(targets)), targets])
    return torch.cat(found).numpy()


def brute_force(path: PruningPath, c: Case, chosen: set[int], *, double: bool = False) -> dict[int, tuple[str, float]]:
    """Judge the chosen decisions again, in float32 or float64: verdict and ξ by decision number."""
    rule, k = VoteRule(), len(c.calibration.classes)
    net, base = copy.deepcopy(c.model).eval(), None
    if double:
        net = net.double()
    found = {}
    for i, d in enumerate(path):
        if i in chosen:
            base = sigma(net, c) if base is None else base
            stats = effect_stats(base, sigma(cut_by_hand(copy.deepcopy(net), path, d), c), c.calibration.targets, k)
            found[i] = str(verdict_of(class_tests(stats, rule)[1], stats, rule)), float(stats.xi)
        if d.removed:
            cut_by_hand(net, path, d)
            base = None
    return found


def compared(paths: dict[str, PruningPath], c: Case, share: float, seed: int) -> dict[str, Any]:
    """How far the walks are from brute force; where ξ differs in float32, float64 says whose is nearer."""
    full = paths["full"]
    chosen = np.random.default_rng(seed).permutation(len(full))[: max(1, round(share * len(full)))].tolist()
    found = brute_force(full, c, set(chosen))

    def off(xi: float, i: int) -> float:
        return abs((full[i].xi or 0.0) - xi) / max(abs(xi), 1e-12)

    relative = {i: off(xi, i) for i, (_, xi) in found.items()}
    far = {i for i, o in relative.items() if o > 1e-4}
    exact = brute_force(full, c, far | set(sorted(found)[:: max(1, len(found) // IN_DOUBLE)]), double=True)
    return {
        "units": len(found),
        **{f"other_verdicts_{m}": sum(str(p[i].verdict) != v for i, (v, _) in found.items()) for m, p in paths.items()},
        "xi_relative_max": max(relative.values()),
        "xi_relative_median": float(np.median(list(relative.values()))),
        "xi_absolute_max": max(abs((full[i].xi or 0.0) - xi) for i, (_, xi) in found.items()),
        "xi_over_1e-4_relative": len(far),
        "in_float64": {
            "units": len(exact),
            "other_verdicts": sum(str(full[i].verdict) != v for i, (v, _) in exact.items()),
            "replay_relative_max": max(off(xi, i) for i, (_, xi) in exact.items()),
            "brute_relative_max": max(abs(found[i][1] - xi) / max(abs(xi), 1e-12) for i, (_, xi) in exact.items()),
        },
    }  # fmt: skip


def main() -> None:
    """Walk, compare the modes, check by brute force, draw the curve."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default="resnet20,resnet18")
    parser.add_argument("--per-class", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cifar", type=Path, help="an unpacked cifar10 folder")
    parser.add_argument("--work", type=Path, help="where the walks' artifacts are kept")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        given.work = given.work or Path(scratch)
        images = unpacked("cifar10", given.cifar, Path(scratch))
        networks: dict[str, Any] = {}
        for name in given.networks.split(","):
            c = case(name, images, given.per_class, given.seed)
            folders = {m: walked(name, m, images, given) for m in MODES}
            paths = {m: open_artifact(f).path for m, f in folders.items()}
            same = [[(d.group, d.unit, d.verdict, d.removed) for d in p] for p in paths.values()]
            start = time.perf_counter()
            checked = compared(paths, c, CHECKED[name], given.seed)
            print(
                f"{name}: modes alike {same[0] == same[1]}, brute force {checked}, {time.perf_counter() - start:.0f} s",
                flush=True,
            )
            end = paths["full"].ratio.params
            ratios = [0.0, *np.round(np.linspace(end / 4, end, 4), 6).tolist()]
            ratios[-1] = end - 1e-9
            curve = quality_curve(c.model, paths["full"], c.held_out, Classification(), ratios)
            networks[name] = {
                "modes_alike": same[0] == same[1], "brute_force": checked, "curve": curve,
                "summaries": {m: json.loads((f / "summary.json").read_text()) for m, f in folders.items()},
                "removed": {g.name: [d.unit for d in paths["full"] if d.group == g.name and d.removed] for g in paths["full"].structure},
                "knife_edge": sum(d.knife_edge for d in paths["full"]),
                "path": {
                    g.name: {
                        "verdicts": "".join(str(d.verdict)[0] for d in paths["full"] if d.group == g.name),
                        "xi": [float(f"{d.xi:.6g}") for d in paths["full"] if d.group == g.name],
                    }
                    for g in paths["full"].structure
                },
            }  # fmt: skip
    again = f"python benchmarks/effects_path.py --per-class {given.per_class} --networks {given.networks} --seed {given.seed}"
    write_result(
        "effects_path",
        {"command": again, **machine(), "seed": given.seed, "per_class": given.per_class, "networks": networks},
    )


if __name__ == "__main__":
    main()
