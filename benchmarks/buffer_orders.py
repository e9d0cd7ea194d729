"""Does C-SWAP lose by the order in which critical units go? One analysis, its buffer in other orders: ResNet-18 / CIFAR-10 (JPEG).

    python benchmarks/methods.py --network resnet18 --methods cswap,cbp --per-class 16 … --result methods_resnet18_causal
    python benchmarks/buffer_orders.py --paths runs/methods_resnet18_causal [--per-class 16] [--recover-per-class 128] [--ratios 0.2,0.5]
                                       [--test-images 5000] [--seed 0] [--cifar DIR] [--work FILE]

The walk, its verdicts and every ξ are those of the path that the first command made and keeps; what non-critical units it removed goes first
here too. Only the order of the critical ones differs: by largest signed ξ, the paper's; by smallest |ξ|; and either for the parameters that go. Networks
as cut and with all batch norms estimated again. What is measured is kept in --work; run again, it goes on from there. Writes
benchmarks/results/buffer_orders.json.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import cswap
from _machine import ROOT, begun, machine, write_result
from _real import case, unpacked
from cswap.artifacts.journal import read_journal
from cswap.data.calibration import calibration_set
from cswap.data.sources import in_memory, limited
from cswap.evaluate.quality import measure_quality
from cswap.methods.buffer import ordered
from cswap.methods.options import Options
from cswap.methods.path import PruningPath
from cswap.structure.discover import discover
from cswap.structure.groups import Structure
from cswap.structure.ledger import Ledger
from cswap.types import Decision, Verdict

ORDERS = {
    "largest signed ξ": Options(), "smallest |ξ|": Options(buffer_order="abs"),
    "largest signed ξ, for parameters": Options(per="params"), "smallest |ξ|, for parameters": Options(buffer_order="abs", per="params"),
}  # fmt: skip


def reordered(structure: Structure, walk: list[Decision], classes: tuple[str, ...], options: Options) -> PruningPath:
    """The path with its critical units in the order that `options` ask for."""
    ledger, path = Ledger(structure), PruningPath(structure, "cswap", options.as_dict(), classes)
    for d in walk:
        path.decisions.append(d)
        if d.removed:
            ledger.remove(structure[d.group], d.unit)
    for d in ordered([d for d in walk if d.verdict is Verdict.CRITICAL], ledger, options):
        group = structure[d.group]
        last = ledger.last(group, [d.unit])
        if not last:
            ledger.remove(group, d.unit)
        path.decisions.append(replace(d, step=len(path) + 1, phase="buffer", removed=not last, ratio=ledger.ratio()))
    return path


def run() -> None:
    """Measure what is missing and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--paths", type=Path, required=True, help="the work folder of methods.py that holds C-SWAP's path"
    )
    parser.add_argument("--per-class", type=int, default=16)
    parser.add_argument("--recover-per-class", type=int, default=128)
    parser.add_argument("--ratios", default="0.2,0.5")
    parser.add_argument("--test-images", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cifar", type=Path)
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "buffer_orders.json")
    given = parser.parse_args()
    real = case("resnet18", unpacked("cifar10", given.cifar, ROOT / "runs"), given.per_class, given.seed)
    structure, classes = discover(real.model, real.calibration.some(2)), real.calibration.classes
    folder = given.paths / "resnet18" / "paths" / f"cswap.{given.seed}"
    if not folder.is_dir():
        raise SystemExit(f"expected C-SWAP's path in {folder}; benchmarks/methods.py makes it")
    walk = [d for d in read_journal(folder, structure, classes, Options().rule, 1) if d.phase == "walk"]
    critical = [d for d in walk if d.verdict is Verdict.CRITICAL]
    held_out = in_memory(limited(real.held_out, given.test_images, given.seed))
    pair = real.data.open(real.source.spec)
    refit = calibration_set(pair.train, given.recover_per_class, given.seed, classes=classes)
    runs = begun(given.work)
    held = json.loads(given.work.read_text()) if given.work.exists() else {}

    def accuracy(key: str, make: Any) -> float:
        key = f"{key}, {given.per_class} a class, seed {given.seed}, on {len(held_out)}"
        if key not in held:
            found = measure_quality({"it": make()}, held_out, cswap.Classification(), len(classes))["it"]["accuracy"]
            held[key] = found
            given.work.parent.mkdir(parents=True, exist_ok=True)
            given.work.write_text(json.dumps(held, indent=1, ensure_ascii=False))
            print(time.strftime("%H:%M:%S"), key, found, flush=True)
        return float(held[key])

    rows = []
    for name, options in ORDERS.items():
        path = reordered(structure, walk, classes, options)
        for ratio in (float(r) for r in given.ratios.split(",")):
            _, steps, reached = path.prefix(f"params={ratio:g}")
            small = path.apply(real.model, f"params={ratio:g}")
            first = [d for d in path.decisions[:steps] if d.phase == "buffer" and d.removed]
            rows.append({
                "order": name, "asked": ratio, "ratio": reached.as_dict(), "critical_gone": len(first),
                "with_gain": sum((d.xi or 0.0) > 0 for d in first),
                "plain": accuracy(f"{name}, {ratio:g}, plain", lambda small=small: small),
                "bn": accuracy(f"{name}, {ratio:g}, bn", lambda small=small: cswap.recover(small, real.model, refit, how="bn")),
            })  # fmt: skip
    write_result("buffer_orders", {
        "command": f"python benchmarks/buffer_orders.py --paths PATHS --per-class {given.per_class} --recover-per-class {given.recover_per_class} "
        f"--ratios {given.ratios} --test-images {given.test_images} --seed {given.seed}",
        **machine(), "seed": given.seed, "per_class": given.per_class, "recover_per_class": given.recover_per_class,
        "held_out_samples": len(held_out), "unpruned": accuracy("unpruned", lambda: real.model), "critical": len(critical),
        "with_gain": sum((d.xi or 0.0) > 0 for d in critical), "non_critical_gone": sum(d.removed for d in walk),
        **({"measured_by": runs} if len(runs) > 1 else {}), "rows": rows,
    })  # fmt: skip


if __name__ == "__main__":
    run()
