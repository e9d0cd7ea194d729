"""Exports of original and pruned networks: equal to the module on CIFAR-10 test images, and how fast each runtime is.

    python benchmarks/export_latency.py [--networks resnet18,mobilenet_v2,vit] [--target macs=0.5] [--work DIR] [--cifar DIR]

For each network: units of the smallest norm go (the shape is what counts here), ONNX and .pt2 of original and pruned checked on test
images, then median latency at batch 1 and 64 in torch, torch.compile and onnxruntime, in turns: original, pruned, pruned to
widths that are multiples of 8 (`--round-to 8`), and the end of the path (one unit a group), whose time is what does not go with
MACs. A network that is in DIR already is not done again. Needs the shared networks and data (CSWAP_SHARED). Writes results/export_latency.json.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

import cswap
from _machine import machine, write_result
from _real import NETWORKS, case, unpacked
from cswap.artifacts.export import FORMATS, export
from cswap.evaluate.cost import BATCHES, latency_ms, macs_of
from cswap.methods.magnitude import magnitude_scores
from cswap.methods.options import Options
from cswap.methods.path import PruningPath
from cswap.structure.check import randomise_
from cswap.structure.ledger import Ledger
from cswap.structure.surgery import count_params
from cswap.types import Decision, Target

SAMPLES = 64  # test images on which exports must agree
COMPILED = ("original", "pruned")  # the others take torch.compile as long, and say no more


class _Onnx(nn.Module):
    """A session that is called like a module."""

    def __init__(self, file: Path, threads: int) -> None:
        super().__init__()
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(self.session.run(None, {"input": x.numpy()})[0])


def by_norm(model: nn.Module, inputs: torch.Tensor, target: str) -> PruningPath:
    """Smallest weights first, at the same pace in every group; an untrained network has no quality to watch."""
    structure = cswap.discover(model, inputs)
    scores = magnitude_scores(model, structure)
    ranks = {n: s.argsort().argsort() / len(s) for n, s in scores.items()}
    order = sorted((float(r), n, u) for n, rank in ranks.items() for u, r in enumerate(rank))
    ledger, decisions = Ledger(structure), []
    for _, name, unit in order:
        if ledger.kept(structure[name]) > 1:
            ledger.remove(structure[name], unit)
            decisions.append(
                Decision(len(decisions) + 1, "rank", name, unit, True, "smallest norm", ratio=ledger.ratio())
            )
    path = PruningPath(
        structure, "magnitude", Options().as_dict(), ("0",), decisions, ended="no unit left to remove", example=inputs
    )
    if not Target.parse(target).reached(ledger.ratio()):
        raise SystemExit(f"{target} is out of reach: the path ends at {ledger.ratio()}")
    return path


def measured(name: str, target: str, images: Path, scratch: Path, budget: float) -> dict[str, Any]:
    """One network, original and pruned, in every format and runtime."""
    real = case(name, images, per_class=8)
    if NETWORKS[name][1] is None:  # as initialised, its outputs hardly depend on its inputs, and any export would agree
        randomise_(real.model, seed=0)
    path = by_norm(real.model, real.calibration.inputs(0, 2), target)
    end = f"units={path.ratio.units}"
    nets: dict[str, nn.Module] = {
        "original": real.model, "pruned": path.apply(real.model, target), "by8": path.apply(real.model, target, 8),
        "end": path.apply(real.model, end),
    }  # fmt: skip
    inputs = torch.stack([real.held_out[i][0] for i in range(SAMPLES)])
    found: dict[str, Any] = {"target": target, "exports": {}, "latency_ms": {}}
    for which, net in nets.items():
        for form in FORMATS if which in COMPILED else ("onnx",):
            done = export(net, scratch / f"{which}.{form}", inputs, format=form).as_dict()
            found["exports"][f"{which}.{form}"] = {k: v for k, v in done.items() if k != "file"}
        found[which] = {"params": count_params(net), "macs": macs_of(net, inputs[:1])[0]}
    threads = torch.get_num_threads()
    runtimes = {
        "torch": nets,
        "torch.compile": {w: torch.compile(nets[w]) for w in COMPILED},
        "onnxruntime": {w: _Onnx(scratch / f"{w}.onnx", threads) for w in nets},
    }
    for runtime, models in runtimes.items():
        found["latency_ms"][runtime] = {str(b): latency_ms(models, inputs[:1], b, budget_s=budget) for b in BATCHES}
        torch._dynamo.reset()
    return found


def run() -> None:
    """Networks one after the other; each kept in the work folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default="resnet18,mobilenet_v2,vit")
    parser.add_argument("--target", default="macs=0.5")
    parser.add_argument("--budget", type=float, default=8.0, help="seconds of timing a runtime and batch")
    parser.add_argument("--work", type=Path, default=Path("export-latency-work"))
    parser.add_argument("--cifar", type=Path, help="an unpacked cifar10 folder")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {}
    for name in given.networks.split(","):
        kept = given.work / f"{name}.{given.target}.json"
        if not kept.exists():
            with tempfile.TemporaryDirectory() as scratch:
                images = unpacked("cifar10", given.cifar, given.work)
                kept.write_text(json.dumps(measured(name, given.target, images, Path(scratch), given.budget), indent=1))
        results[name] = json.loads(kept.read_text()) | {"trained": NETWORKS[name][1] is not None}
        print(f"{name}: {json.dumps(results[name]['latency_ms'])}", flush=True)
    command = f"python benchmarks/export_latency.py --networks {given.networks} --target {given.target} --budget {given.budget:g}"
    write_result(
        "export_latency", {"command": command, **machine(), "seed": 0, "samples": SAMPLES, "networks": results}
    )


if __name__ == "__main__":
    run()
