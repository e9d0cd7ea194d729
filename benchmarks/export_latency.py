"""Exports of original and pruned networks: equal to the module on CIFAR-10 test images, and how fast each runtime is.

    python benchmarks/export_latency.py [--networks resnet18,mobilenet_v2,vit] [--target macs=0.5] [--work DIR] [--cifar DIR]

For each network: units of the smallest norm go (the shape is what counts here), ONNX and .pt2 of original and pruned checked on test
images, then median latency at batch 1 and 64 in torch, torch.compile and onnxruntime, in turns: original, pruned, pruned to
widths that are multiples of 8 (`--round-to 8`), and the end of the path (one unit a group), whose time is what does not go with
MACs. PyTorch's and onnxruntime's own profilers say which part of the time is spent in convolutions, linear layers and attention, which have the MACs, and which in all else. A network that is in DIR already is not done again. Needs the shared networks and data (CSWAP_SHARED). Writes results/export_latency.json.
"""

from __future__ import annotations

import argparse
import json
import re
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
COMPILED = ("original", "pruned")  # what is exported in every format


HAS_MACS = re.compile("conv|addmm|::mm|bmm|linear|scaled_dot_product|flash_attention|gemm|matmul", re.IGNORECASE)
"""Operations that have the MACs, as PyTorch and onnxruntime call them."""
RUNS = {1: 30, 64: 5}
"""Runs that are profiled, by batch."""


class _Onnx(nn.Module):
    """A session that is called like a module. `profile`: where it writes what each node took."""

    def __init__(self, file: Path, threads: int, profile: Path | None = None) -> None:
        super().__init__()
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        if profile is not None:
            options.enable_profiling, options.profile_file_prefix = True, str(profile)
        self.session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(self.session.run(None, {"input": x.numpy()})[0])


def with_macs(model: nn.Module, inputs: torch.Tensor, runs: int) -> float:
    """The share of a run's time that PyTorch spends in operations that have MACs (by itself, on the thread that calls them)."""
    with torch.inference_mode():
        for _ in range(3):
            model(inputs)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
            for _ in range(runs):
                with torch.profiler.record_function("a run"):
                    model(inputs)
    told = {e.key: e for e in profiler.key_averages()}
    own = sum(e.self_cpu_time_total for e in told.values() if HAS_MACS.search(e.key))
    return float(own / told["a run"].cpu_time_total / runs * told["a run"].count)


def with_macs_onnx(file: Path, threads: int, inputs: torch.Tensor, runs: int, scratch: Path) -> float:
    """The share of a run's time that onnxruntime spends in nodes that have MACs."""
    session = _Onnx(file, threads, scratch / "profile")
    for _ in range(runs + 3):
        session(inputs)
    events = json.loads(Path(session.session.end_profiling()).read_text())
    whole = sorted(e["dur"] for e in events if e["name"] == "model_run")[: runs + 3]
    nodes = [e for e in events if e["cat"] == "Node" and e["name"].endswith("_kernel_time")]
    own = sum(e["dur"] for e in nodes if HAS_MACS.search(e["args"]["op_name"]))
    return float(own / sum(whole))


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
        "torch.compile": {w: torch.compile(nets[w]) for w in (*COMPILED, "end")},
        "onnxruntime": {w: _Onnx(scratch / f"{w}.onnx", threads) for w in nets},
    }
    found["with_macs"] = {}
    for runtime, models in runtimes.items():
        found["latency_ms"][runtime] = {str(b): latency_ms(models, inputs[:1], b, budget_s=budget) for b in BATCHES}
        found["with_macs"][runtime] = {
            str(b): {
                w: with_macs_onnx(scratch / f"{w}.onnx", threads, inputs[:b], RUNS[b], scratch)
                if runtime == "onnxruntime"
                else with_macs(model, inputs[:b], RUNS[b])
                for w, model in models.items()
            }
            for b in BATCHES
            if runtime != "torch.compile"  # which writes kernels of its own, that its profiler does not tell apart
        }
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
