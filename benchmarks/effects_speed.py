"""What each part of the engine is worth: brute force, and one part after the other, on four networks, in one run.

    python benchmarks/effects_speed.py [--cifar DIR] [--networks resnet18,resnet20,mobilenet_v2,vit_b_16] [--per-class 128]

A few units of every group are timed and the whole network's time is projected from them: groups' sizes times the mean of
their sample, and the time to enter each group. Brute force copies the network, cuts, and runs it whole. Networks without
trained weights are timed up to `sized`, on at most 32 samples a class: what a verdict needs, and what a walk removes, means
nothing there. Every stage is a
process of its own, so that its peak memory is its own. Writes benchmarks/results/effects_speed.json.
"""

from __future__ import annotations

import argparse
import copy
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from _machine import RESULTS, machine, write_result
from _real import Case, case, unpacked
from cswap.causal.engine import Engine, Scores
from cswap.causal.evaluation import FirstCritical
from cswap.causal.replay import ReplayEngine, Tuning
from cswap.causal.stats import effect_stats
from cswap.causal.verdicts import VoteRule, class_tests, verdict_of
from cswap.structure.discover import discover
from cswap.structure.groups import Structure
from cswap.structure.surgery import zero_cut_
from cswap.tasks import Classification

STAGES: dict[str, tuple[str, Tuning | None]] = {
    "brute": ("brute force: copy, cut, whole forward pass", None),
    "replay": ("1 minimal replay", Tuning(difference=False, shrink=False, fold=False, sized=False)),
    "difference": ("2 first consumers by difference", Tuning(shrink=False, fold=False, sized=False)),
    "shrink": ("3 shrinking as it goes", Tuning(fold=False, sized=False)),
    "sized": ("5 batches, layouts, folding (`--effects full`)", Tuning()),
    "verdict": ("4 `--effects verdict`", Tuning()),
    "amp": ("`--effects full --amp` (bfloat16; verdicts may differ)", Tuning()),
}
TRAINED = ("resnet18", "resnet20")
UNTRAINED_SAMPLES = 32  # a class, at most: cost is linear in them (effects_growth.py)


def peaks() -> dict[str, float]:
    """GMAC/s of this machine: the best of the usual 3×3 convolutions in either layout, and a matrix product."""

    def best(run: Callable[[], Any], macs: float) -> float:
        run()
        times = []
        for _ in range(7):
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
        return macs / min(times) / 1e9

    with torch.inference_mode():
        conv = {}
        for width, side, batch in ((64, 32, 32), (128, 16, 64), (256, 8, 128), (512, 4, 256)):
            macs = batch * width * width * 9 * side * side
            rates = []
            for form in (torch.channels_last, torch.contiguous_format):
                x = torch.randn(batch, width, side, side).contiguous(memory_format=form)
                w = torch.randn(width, width, 3, 3).contiguous(memory_format=form)
                rates.append(best(lambda x=x, w=w: F.conv2d(x, w, None, 1, 1), macs))  # type: ignore[misc]
            conv[f"conv {width}@{side}"] = max(rates)
        a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
        return {**conv, "conv": max(conv.values()), "matmul": best(lambda: a @ b, 2048**3)}


def removed_so_far(structure: Structure, name: str) -> dict[str, dict[str, list[int]]]:
    """What a real walk had removed when it came to each group, from effects_path.json; nothing where there is none."""
    file = RESULTS / "effects_path.json"
    walked = json.loads(file.read_text())["networks"].get(name, {}).get("removed", {}) if file.exists() else {}
    gone: dict[str, list[int]] = {}
    before = {}
    for group in structure:
        before[group.name] = dict(gone)
        if walked.get(group.name):
            gone[group.name] = walked[group.name]
    return before


def brute(c: Case, structure: Structure, units: int, rng: np.random.Generator) -> dict[str, Any]:
    """Seconds of whole copies; every unit costs the same, so a few suffice."""
    task, seconds, total, macs = Classification(), [], len(c.calibration), 0
    for _ in range(units):
        group = structure.groups[int(rng.integers(len(structure)))]
        start = time.perf_counter()
        net = zero_cut_(copy.deepcopy(c.model), structure, {group.name: np.array([int(rng.integers(group.size))])})
        net = net.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        with torch.inference_mode():
            for inputs, targets in c.calibration.batches(128):
                task.score(net(inputs.contiguous(memory_format=torch.channels_last)), targets)
        seconds.append(time.perf_counter() - start)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        c.model(c.calibration.inputs(0, 1))
    macs = counter.get_total_flops() // 2 * total
    a_unit = float(np.median(seconds))
    return {
        "seconds": a_unit * structure.units,
        "macs": macs * structure.units,
        "unit_seconds": a_unit,
        "units_timed": units,
    }


def judged(base: Scores, scores: Scores, c: Case) -> str:
    """The first letter of a verdict."""
    stats = effect_stats(base.sigma, scores.sigma, c.calibration.targets, len(c.calibration.classes))
    return str(verdict_of(class_tests(stats, VoteRule())[1], stats, VoteRule()))[0]


def timed(
    c: Case,
    structure: Structure,
    stage: str,
    a_group: int,
    rng: np.random.Generator,
    before: dict[str, dict[str, list[int]]],
) -> dict[str, Any]:
    """Project one stage of the engine from a few units of every group."""
    tuning = STAGES[stage][1]
    assert tuning is not None
    groups, total, macs, notes = [], 0.0, 0.0, []
    for group in structure:
        engine: Engine = ReplayEngine(
            c.model, structure, c.calibration, Classification(), tuning=tuning, amp=stage == "amp"
        )
        if tuning.shrink:
            for name, units in before[group.name].items():
                engine.remove(name, units)
        start = time.perf_counter()
        engine.enter(group)
        judge = FirstCritical(engine, VoteRule()) if stage == "verdict" else None
        if judge is not None:
            judge.enter(group)
        base = engine.scores(group)
        entered = time.perf_counter() - start
        size = engine.units_together(group) if judge is None else judge.together(group)
        chosen = [int(n) for n in rng.permutation(group.size)[: max(a_group, min(size, 64))]]
        engine.cut(group, [chosen[:1]])  # what the first call costs by itself
        work = FlopCounterMode(display=False)
        if judge is None:
            with work:
                engine.cut(group, [chosen[:1]])
        verdicts: list[str] = []
        start, rows = time.perf_counter(), engine.evaluated
        for first in range(0, len(chosen), size):
            part = chosen[first : first + size]
            if judge is None:
                found = engine.cut(group, [[n] for n in part])
                verdicts += [judged(base, scores, c) for scores in found]
            else:
                for give in judge.batch(group, part, False, lambda base=base: base):  # type: ignore[misc]
                    give()
        unit = (time.perf_counter() - start) / len(chosen)
        asked = (engine.evaluated - rows) / len(chosen) / len(c.calibration)
        unit_macs = work.get_total_flops() // 2
        groups.append({
            "group": group.name, "units": group.size, "timed": len(chosen), "enter_seconds": entered, "unit_seconds": unit,
            "unit_macs": unit_macs, "peak_gmac_s": peaks()["conv"] if stage == "sized" else None, "verdicts": "".join(verdicts), "samples_asked": asked, "together": size, "rows": engine.rows(group),
        })  # fmt: skip
        total += entered + unit * group.size
        macs += unit_macs * group.size
        notes += engine.notes
    spent = sum(g["unit_seconds"] * g["units"] for g in groups)
    return {"seconds": total, "unit_seconds_total": spent, "macs": macs, "groups": groups, "notes": notes}


def one(given: argparse.Namespace) -> None:
    """One stage of one network, in this process; JSON on standard output."""
    torch.manual_seed(0)
    if given.network not in TRAINED:
        given.per_class = min(given.per_class, UNTRAINED_SAMPLES)
    c = case(given.network, given.cifar, given.per_class, given.seed)
    structure = discover(c.model, c.calibration.inputs(0, 2))
    c.calibration.inputs(0, 1)
    rng = np.random.default_rng(given.seed)
    loaded = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if given.stage == "brute":
        found = brute(c, structure, 4, rng)
    else:
        found = timed(c, structure, given.stage, given.units, rng, removed_so_far(structure, given.network))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found |= {
        "peak_memory_mib": peak / 1024,
        "loaded_memory_mib": loaded / 1024,
        "units": structure.units,
        "samples": len(c.calibration),
    }
    print(json.dumps(found))


def main() -> None:
    """All stages of all networks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default="resnet18,resnet20,mobilenet_v2,vit_b_16")
    parser.add_argument("--per-class", type=int, default=128)
    parser.add_argument("--units", type=int, default=2, help="units timed in every group, at least")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cifar", type=Path, help="an unpacked cifar10 folder")
    parser.add_argument("--stages", default=",".join(STAGES))
    parser.add_argument("--result", default="effects_speed", help="name of the JSON")
    parser.add_argument("--network", help=argparse.SUPPRESS)
    parser.add_argument("--stage", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.stage:
        one(given)
        return
    with tempfile.TemporaryDirectory() as scratch:
        images = unpacked("cifar10", given.cifar, Path(scratch))
        data: dict[str, Any] = {"peaks_gmac_s": peaks(), "stages": {k: v[0] for k, v in STAGES.items()}, "networks": {}}
        for name in given.networks.split(","):
            found = data["networks"].setdefault(name, {})
            for stage in given.stages.split(","):
                if name not in TRAINED and stage in ("shrink", "verdict", "amp"):
                    continue
                command = [
                    sys.executable, __file__, "--network", name, "--stage", stage, "--per-class", str(given.per_class),
                    "--units", str(given.units), "--seed", str(given.seed), "--cifar", str(images),
                ]  # fmt: skip
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                if done.returncode:
                    raise SystemExit(f"{name}, {stage}: {done.stderr[-2000:]}")
                found[stage] = json.loads(done.stdout.splitlines()[-1])
                speed = found["brute"]["seconds"] / found[stage]["seconds"] if "brute" in found else float("nan")
                if stage == "amp":
                    pairs = [
                        (a, b)
                        for x, y in zip(found["sized"]["groups"], found["amp"]["groups"], strict=True)
                        for a, b in zip(x["verdicts"], y["verdicts"], strict=False)
                    ]
                    found["amp"]["verdicts_compared"], found["amp"]["verdicts_alike"] = (
                        len(pairs),
                        sum(a == b for a, b in pairs),
                    )
                print(f"{name:14} {stage:11} {found[stage]['seconds']:9.0f} s  {speed:6.1f}x", flush=True)
    again = f"python benchmarks/effects_speed.py --per-class {given.per_class} --units {given.units} --networks {given.networks}"
    if given.stages != ",".join(STAGES):
        again += f" --stages {given.stages} --result {given.result}"
    write_result(
        given.result, {"command": again, **machine(), "seed": given.seed, "per_class": given.per_class, **data}
    )


if __name__ == "__main__":
    main()
