"""Torch-Pruning's own importances and pruner on ResNet-18 / CIFAR-10 (JPEG): one shot, no fine-tuning.

    python benchmarks/peers.py [--network resnet18] [--count params] [--targets 0.2,0.4,0.5,0.6,0.8] [--per-class 128] [--peers l1_layer,taylor_global]
                               [--eval-samples N] [--cifar DIR] [--seed 0] [--work DIR] [--part]

On a GPU where there is one.
A peer is an importance, with Torch-Pruning's defaults, and a scope: `layer` prunes every group at one ratio, `global` ranks
all groups together. Importances that need gradients take them from the calibration images cswap takes, in eval mode, with
cross-entropy, the way Torch-Pruning's examples do: `taylor` the gradient of the mean loss, `hessian` one image at a time,
`obdc` per image with labels drawn from the network's own softmax. Two do not work as released and are also there mended:

- `hessian` forgets all images but the last (its sums are keyed by tensors and looked up by name); `hessian_mended` sums all.
- `obdc` raises on every network without attention; `obdc_mended` leaves that one look-up out.

Every point is measured on held-out images, in bfloat16 where a CPU has it, as pruned (`plain`), with all batch norms estimated again on the
calibration images (`bn`), and refitted layer by layer by cswap on the same images (`lstsq`). Points are appended to DIR/peers.jsonl as they come; run again after an interruption, it goes on from there. Peers may be
measured in several processes, each with its own --peers and `--part`, and be put together by one without.
Needs the shared networks and data (CSWAP_SHARED, by default ../shared). Writes benchmarks/results/peers.json.
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
import time
import traceback
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch_pruning as tp
from torch import nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from _machine import ROOT, machine, write_result
from _real import AMP, DEVICE, NETWORKS, SHARED
from cswap import CalibrationSet, Classification, calibration_set
from cswap.causal.engine import exact
from cswap.data.models import ModelSpec, load_weights, one_line, sha256_of
from cswap.data.sources import ImageFormat, in_memory, limited, open_data
from cswap.evaluate.quality import measure_quality
from cswap.recovery import recovered, reestimated
from cswap.structure.discover import discover, macs_of
from cswap.structure.groups import Structure
from cswap.structure.surgery import count_params

FORMAT = ImageFormat(32, 32, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
BATCH = 128
GRID = 128  # channel ratios are walked in steps of 1/GRID, then bisected
FINEST = 1 / 4096  # less than one channel of this network ranked globally


class HessianMended(tp.importance.GroupHessianImportance):
    """GroupHessianImportance that sums squared gradients over all images, as its documentation says it does."""

    def accumulate_grad(self, model: nn.Module) -> None:
        """Add the squared gradients of one image."""
        for p in model.parameters():
            if p.grad is not None:
                squared = p.grad.data.pow(2)
                self._accu_grad[p] = self._accu_grad[p] + squared if p in self._accu_grad else squared
                self._counter[p] = self._counter.get(p, 0) + 1


class ObdcMended(tp.importance.OBDCImportance):
    """OBDCImportance that takes groups as they are where there is no attention."""

    def _prepare_model(self, model: nn.Module, pruner: Any) -> None:
        found = pruner._downstream_node_as_root_if_attention
        pruner._downstream_node_as_root_if_attention = lambda group: found(group) or group
        try:
            super()._prepare_model(model, pruner)
        finally:
            del pruner._downstream_node_as_root_if_attention


IMPORTANCES: dict[str, Callable[[int], Any]] = {
    "l1": lambda _: tp.importance.MagnitudeImportance(p=1),
    "lamp": lambda _: tp.importance.LAMPImportance(),
    "fpgm": lambda _: tp.importance.FPGMImportance(),
    "bn_scale": lambda _: tp.importance.BNScaleImportance(),
    "taylor": lambda _: tp.importance.GroupTaylorImportance(),
    "hessian": lambda _: tp.importance.GroupHessianImportance(),
    "hessian_mended": lambda _: HessianMended(),
    "obdc": lambda classes: tp.importance.OBDCImportance(num_classes=classes),
    "obdc_mended": lambda classes: ObdcMended(num_classes=classes),
}
PEERS = tuple(f"{name}_{scope}" for name in IMPORTANCES for scope in ("layer", "global"))


class UnreachedError(Exception):
    """No channel ratio removes as many parameters as asked."""


class OwnError(Exception):
    """Torch-Pruning itself failed; the message is its error and the place."""


def own_error(error: Exception) -> OwnError | None:
    """What to keep of an error, or None when the innermost frame is this benchmark's: then it is our mistake."""
    here = own_error.__code__.co_filename
    frames = [
        f for f in traceback.extract_tb(error.__traceback__) if f.filename == here or "torch_pruning" in f.filename
    ]
    if not frames or frames[-1].filename == here:
        return None
    place = Path(frames[-1].filename)
    inside = Path(*place.parts[len(place.parts) - place.parts[::-1].index("torch_pruning") - 1 :])
    return OwnError(f"{type(error).__name__}: {one_line(error)} (in {frames[-1].name}, {inside.as_posix()})")


def outputs_of(model: nn.Module) -> list[nn.Module]:
    """The classifier: the last linear layer, whose outputs are the classes."""
    return [m for m in model.modules() if isinstance(m, nn.Linear)][-1:]


def new_pruner(model: nn.Module, example: torch.Tensor, importance: Any, ratio: float, scope: str) -> Any:
    """Torch-Pruning's own pruner, one step."""
    return tp.pruner.BasePruner(
        model, example, importance=importance, pruning_ratio=ratio, global_pruning=scope == "global",
        ignored_layers=outputs_of(model),
    )  # fmt: skip


def prepare(importance: Any, model: nn.Module, pruner: Any, calibration: CalibrationSet, seed: int) -> None:
    """Give the importance the gradients it needs."""
    model.zero_grad()
    if isinstance(importance, tp.importance.OBDCImportance):
        generator = torch.Generator().manual_seed(seed)
        importance._prepare_model(model, pruner)
        try:
            for inputs, _ in calibration.batches(16):  # it holds one weight-sized gradient an image
                with (
                    warnings.catch_warnings()
                ):  # its old kind of hook lacks gradients of inputs, which it does not read
                    warnings.simplefilter("ignore", FutureWarning)
                    outputs = model(inputs.to(DEVICE))
                drawn = (
                    torch.multinomial(outputs.detach().softmax(1).cpu(), 1, generator=generator).flatten().to(DEVICE)
                )
                F.cross_entropy(outputs, drawn).backward()
                importance.step()
        finally:
            importance._rm_hooks(model)
    elif isinstance(importance, tp.importance.GroupHessianImportance):
        importance.zero_grad()
        for inputs, targets in calibration.batches(1):
            model.zero_grad()
            F.cross_entropy(model(inputs.to(DEVICE)), targets.to(DEVICE)).backward()
            importance.accumulate_grad(model)
    elif isinstance(importance, tp.importance.GroupTaylorImportance):
        for inputs, targets in calibration.batches(BATCH):
            (
                F.cross_entropy(model(inputs.to(DEVICE)), targets.to(DEVICE), reduction="sum") / len(calibration)
            ).backward()


def scores_of(
    name: str, model: nn.Module, calibration: CalibrationSet, seed: int = 0
) -> dict[str, torch.Tensor | None]:
    """What the importance says of every group, by the name of the group's first layer. `model` is untouched."""
    work = copy.deepcopy(model).eval().to(DEVICE)
    names = {m: n for n, m in work.named_modules()}
    importance = IMPORTANCES[name](len(calibration.classes))
    pruner = new_pruner(work, calibration.inputs(0, 1).to(DEVICE), importance, 0.5, "layer")
    prepare(importance, work, pruner, calibration, seed)
    groups = pruner.DG.get_all_groups(ignored_layers=pruner.ignored_layers, root_module_types=pruner.root_module_types)
    found = {names[group[0].dep.target.module]: importance(group) for group in groups}
    return {name: None if s is None else s.detach().cpu() for name, s in found.items()}


def pruned(
    model: nn.Module, scores: dict[str, torch.Tensor | None], ratio: float, scope: str, example: torch.Tensor
) -> nn.Module:
    """A copy of `model` that Torch-Pruning's pruner made smaller by these scores."""
    small = copy.deepcopy(model)
    names = {m: n for n, m in small.named_modules()}
    new_pruner(small, example, lambda group: scores[names[group[0].dep.target.module]], ratio, scope).step()
    return small


class Search:
    """The smallest channel ratio that removes as many parameters (or MACs) as asked; ratios tried are remembered.

    What is removed does not always rise with the channel ratio: the pruner keeps a group whole when all of it should go.
    So the ratio is walked up from 0 in steps of 1/GRID to the first that reaches the target, then bisected in that step.
    """

    def __init__(self, removed: Callable[[float], float]) -> None:
        self.removed, self.tried = removed, {0.0: 0.0}

    def at(self, ratio: float) -> float:
        """Fraction of parameters removed at this channel ratio."""
        if ratio not in self.tried:
            self.tried[ratio] = self.removed(ratio)
        return self.tried[ratio]

    def ratio(self, target: float) -> float:
        """A ratio that reaches the target where one FINEST below does not. Raises UnreachedError when none does."""
        steps = [i / GRID for i in range(GRID)]
        high = next((r for r in steps if self.at(r) >= target), None)
        if high is None:
            best = max(steps, key=self.at)
            raise UnreachedError(f"no channel ratio removes {target:g} of them; most: {self.at(best):.4f} at {best:g}")
        low = max(high - 1 / GRID, 0.0)
        while high - low > FINEST:
            middle = (low + high) / 2
            low, high = (low, middle) if self.at(middle) >= target else (middle, high)
        return high


def qualities(
    small: nn.Module, original: nn.Module, structure: Structure, calibration: CalibrationSet, held_out: Dataset[Any],
    ways: tuple[str, ...] = ("bn", "lstsq"),
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """Accuracy and accuracy by class, as pruned, with batch norms estimated again, and refitted."""
    models = {"plain": small}
    if "bn" in ways:
        with exact(torch.device(DEVICE), False):
            models["bn"] = reestimated(copy.deepcopy(small).to(DEVICE), calibration, batch=BATCH)
    if "lstsq" in ways:
        models["lstsq"] = recovered(
            small, original, calibration, "lstsq", structure=structure, device=DEVICE, memory=6 << 30
        ).raw
    models = {name: m.to(memory_format=torch.channels_last) for name, m in models.items()}
    measured = measure_quality(
        models,
        held_out,
        Classification(),
        len(calibration.classes),
        device=DEVICE,
        amp=AMP,
    )
    return {name: {k: q[k] for k in ("accuracy", "by_class")} for name, q in measured.items()}


class Partial:
    """Points that are there already, one JSON line each; lines of another kind of run are kept and not read."""

    def __init__(self, path: Path, run: dict[str, Any]) -> None:
        self.path, self.run = path, run
        self.points: dict[tuple[str, float], dict[str, Any]] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        text = path.read_text() if path.exists() else ""
        whole = text[: text.rfind("\n") + 1]
        if whole != text:  # a line an interruption cut short
            path.write_text(whole)
        for line in whole.splitlines():
            read = json.loads(line)
            if read["run"] == run:
                self.points[read["peer"], read["point"]["asked"]] = read["point"]

    def add(self, peer: str, point: dict[str, Any]) -> None:
        """Keep a point."""
        self.points[peer, point["asked"]] = point
        with self.path.open("a") as stream:
            stream.write(json.dumps({"run": self.run, "peer": peer, "point": point}) + "\n")


class Bench:
    """One network, its calibration images and its held-out images; scores are computed once for both scopes."""

    def __init__(
        self,
        model: nn.Module,
        calibration: CalibrationSet,
        held_out: Dataset[Any],
        partial: Partial,
        seed: int,
        ways: tuple[str, ...] = ("bn", "lstsq"),
        count: str = "params",
    ) -> None:
        self.model, self.calibration, self.held_out, self.partial, self.seed = (
            model,
            calibration,
            held_out,
            partial,
            seed,
        )
        self.example, self.ways, self.count = calibration.inputs(0, 1), ways, count
        self.structure = discover(model, calibration.inputs(0, 2))
        self.params, self.macs = count_params(model), macs_of(model, self.example)[0]
        self._scores: dict[str, tuple[dict[str, torch.Tensor | None], float]] = {}

    def scores(self, importance: str) -> tuple[dict[str, torch.Tensor | None], float]:
        """Scores and the seconds they took."""
        if importance not in self._scores:
            begin = time.perf_counter()
            scores = scores_of(importance, self.model, self.calibration, self.seed)
            self._scores = {importance: (scores, time.perf_counter() - begin)}
        return self._scores[importance]

    def removed(self, small: nn.Module) -> dict[str, float]:
        """Fractions of parameters and MACs."""
        return {
            "params": 1 - count_params(small) / self.params,
            "macs": 1 - macs_of(small, self.example)[0] / self.macs,
        }

    def unpruned(self) -> dict[str, Any]:
        """The network itself, measured in the same two ways."""
        if ("unpruned", 0.0) not in self.partial.points:
            figures = qualities(
                copy.deepcopy(self.model), self.model, self.structure, self.calibration, self.held_out, self.ways
            )
            self.partial.add("unpruned", {"asked": 0.0, **figures})
        return {k: v for k, v in self.partial.points["unpruned", 0.0].items() if k != "asked"}

    def point(self, peer: str, target: float, search: Search, importance_seconds: float) -> dict[str, Any]:
        """Search, prune, measure."""
        name, _, scope = peer.rpartition("_")
        begin = time.perf_counter()
        try:
            ratio = search.ratio(target)
        except UnreachedError as error:
            return {"asked": target, "error": str(error)}
        searched = time.perf_counter()
        small = pruned(self.model, self.scores(name)[0], ratio, scope, self.example)
        done = time.perf_counter()
        return {
            "asked": target, "channel_ratio": ratio,
            "ratio": self.removed(small),
            **qualities(small, self.model, self.structure, self.calibration, self.held_out, self.ways),
            "seconds": {"importance": importance_seconds, "search": searched - begin, "pruning": done - searched},
        }  # fmt: skip

    def peer(self, peer: str, targets: list[float]) -> dict[str, Any]:
        """All points of one peer, computed where they are not there yet."""
        name, _, scope = peer.rpartition("_")
        missing = [t for t in targets if (peer, t) not in self.partial.points]
        if missing:
            try:
                scores, seconds = self.scores(name)
                search = Search(lambda r: self.removed(pruned(self.model, scores, r, scope, self.example))[self.count])
                for target in missing:
                    self.partial.add(peer, self.point(peer, target, search, seconds))
                    print(f"{peer} {target:g}: {said(self.partial.points[peer, target])}", flush=True)
            except Exception as error:
                own = own_error(error)
                if own is None:
                    raise
                print(f"{peer}: {own}", flush=True)
                return {"peer": peer, "error": str(own)}
        points = [self.partial.points[peer, t] for t in targets]
        spent = [p["seconds"] for p in points if "seconds" in p]
        seconds_by = {
            "importance": max((s["importance"] for s in spent), default=None),
            "search": sum(s["search"] for s in spent), "pruning": sum(s["pruning"] for s in spent),
        }  # fmt: skip
        return {"peer": peer, "points": points, "seconds": seconds_by}


def said(point: dict[str, Any]) -> str:
    """A point in one line."""
    if "error" in point:
        return str(point["error"])
    return (
        f"channels {point['channel_ratio']:.4f}, params {point['ratio']['params']:.4f}, macs {point['ratio']['macs']:.4f}, "
        + ", ".join(f"{way} {point[way]['accuracy']:.4f}" for way in ("plain", "bn", "lstsq") if way in point)
        + "; "
        + ", ".join(f"{k} {v:.1f} s" for k, v in point["seconds"].items())
    )


def run() -> None:
    """Measure every peer at every target and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", default="0.2,0.4,0.5,0.6,0.8", help="fractions to remove")
    parser.add_argument("--count", choices=("params", "macs"), default="params", help="what they are fractions of")
    parser.add_argument("--network", choices=[n for n, (_, w, _) in NETWORKS.items() if w], default="resnet18")
    parser.add_argument("--per-class", type=int, default=128)
    parser.add_argument("--eval-samples", type=int, help="held-out images; all of them when left out")
    parser.add_argument("--recover", default="bn,lstsq", help="some of bn, lstsq, beside the network as pruned")
    parser.add_argument("--peers", default=",".join(PEERS))
    parser.add_argument("--cifar", type=Path, help="an unpacked cifar10 folder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "peers", help="where points are kept as they come")
    parser.add_argument("--result", help="name of the JSON")
    parser.add_argument("--note", help="where points in --work were measured, when not here")
    parser.add_argument("--part", action="store_true", help="measure and keep, write no result")
    given = parser.parse_args()
    ways = tuple(given.recover.split(","))
    targets, peers = sorted({float(t) for t in given.targets.split(",")}), given.peers.split(",")
    unknown = [p for p in peers if p not in PEERS]
    if unknown:
        parser.error(f"--peers: expected some of {', '.join(PEERS)}, got {unknown[0]!r}")
    if not all(0 < t < 1 for t in targets):
        parser.error(f"--targets: expected fractions between 0 and 1, got {given.targets!r}")
    if not (SHARED / "models").is_dir():
        raise SystemExit(f"this benchmark needs the shared networks and data; none at {SHARED}")
    spec, weights, arguments = NETWORKS[given.network]
    model = ModelSpec.parse(spec, arguments).build()
    load_weights(model, weights)
    model = model.to(memory_format=torch.channels_last)
    with tempfile.TemporaryDirectory() as scratch:
        cifar = given.cifar
        if cifar is None:
            zipfile.ZipFile(SHARED / "data" / "cifar10.zip").extractall(scratch)
            cifar = Path(scratch) / "cifar10"
        data = open_data(str(cifar), FORMAT)
        calibration = calibration_set(data.train, given.per_class, given.seed, classes=data.classes)
        calibration.inputs(0, 1)  # keeps all of them in memory, so that no peer pays for the decoding
        held_out = in_memory(limited(data.evaluation, given.eval_samples, given.seed))
    kind = {
        "weights": sha256_of(weights)[:16], "seed": given.seed, "per_class": given.per_class, "eval_samples": len(held_out), "recover": given.recover, **({"count": "macs"} if given.count == "macs" else {}),
    }  # fmt: skip
    bench = Bench(
        model, calibration, held_out, Partial(given.work / "peers.jsonl", kind), given.seed, ways, given.count
    )
    unpruned = bench.unpruned()
    measured = {peer: bench.peer(peer, targets) for peer in peers}
    if given.part:
        return
    command = (
        f"python benchmarks/peers.py --network {given.network} --count {given.count} --targets {','.join(f'{t:g}' for t in targets)} --per-class {given.per_class} "
        f"--eval-samples {len(held_out)} --peers {given.peers} --recover {given.recover} --seed {given.seed}"
        + (f" --result {given.result}" if given.result else "")
    )
    write_result(
        given.result or "peers" + f"_{given.network}" * (given.network != "resnet18") + "_macs" * (given.count == "macs"),
        {
            "command": command, **machine(), "network": given.network, "count": given.count,
            "precision": "bfloat16" if AMP else "float32", **({"note": given.note} if given.note else {}), "seed": given.seed, "per_class": given.per_class,
            "held_out_samples": len(held_out), "calibration_samples": len(calibration), "classes": list(data.classes),
            "unpruned": unpruned, "peers": measured,
        },
    )  # fmt: skip


if __name__ == "__main__":
    run()
