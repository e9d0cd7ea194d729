"""The commands that analyse and make artifacts: prune, apply, compare."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from cswap.cli import render
from cswap.cli.options import (
    HOW,
    AnalysisFlags,
    ArtifactDir,
    DataFlags,
    DeviceOption,
    Force,
    JsonFlag,
    Memory,
    ModelFlags,
    OriginalFlags,
    Out,
    Quiet,
    RecoverPerClass,
    RoundTo,
    RunFlags,
    TargetOption,
    WishFlags,
    bytes_of,
    numbers,
    show_or_print,
)
from cswap.cli.progress import Interrupted, ProgressLine
from cswap.errors import InputError, RunError, out_of_memory
from cswap.pipeline import Machine, PruneJob


def prune(
    net: ModelFlags,
    given: DataFlags,
    target: TargetOption,
    out: Out,
    analysis: AnalysisFlags,
    run: RunFlags,
    after: WishFlags,
    method: Annotated[
        str,
        typer.Option(
            "--method", help="cswap, joint, cbp, greedy, obs, taylor, taylor2, deeplift, lrp, lamp, magnitude, random"
        ),
    ] = "cswap",
    seed: Annotated[int, typer.Option("--seed", help="draws the calibration set")] = 0,
    as_json: JsonFlag = False,
    quiet: Quiet = False,
) -> None:
    """Path, surgery, check, evaluation, artifact: the main job."""
    largest, wish = after.asked(target)
    job = PruneJob(
        source=net.source, data=given.choice, out=out, target=largest, method=method, task=analysis.task,
        options=analysis.options(seed), machine=run.machine, resume=run.resume, force=run.force, wish=wish,
        **analysis.groups,
    )  # fmt: skip
    from cswap import pipeline

    speaks = os.environ.get("RANK", "0") == "0"  # under torchrun the first process speaks for all
    with ProgressLine(quiet or not speaks) as watcher:
        try:
            summary = pipeline.prune(job, watcher)
        except KeyboardInterrupt:
            raise Interrupted(f"interrupted{_kept(out)}") from None
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            why = str(error).strip().splitlines() or ["no memory left"]
            raise RunError(f"out of memory ({why[-1][:120]}){_kept(out)}") from error
    if speaks:
        show_or_print(as_json, summary, lambda s: render.summary(s, out))


def _kept(out: Path) -> str:
    kept = (out / "run.json").exists() and (out / "path.jsonl").exists()
    return (
        f"; the journal is kept in {out}: the same command with --resume goes on" if kept else "; nothing was written"
    )


def apply(
    folder: ArtifactDir,
    target: TargetOption,
    out: Out,
    after: WishFlags,
    original: OriginalFlags,
    force: Force = False,
    device: DeviceOption = "auto",
    memory: Memory = "4GiB",
    as_json: JsonFlag = False,
    quiet: Quiet = False,
) -> None:
    """Another target from the stored path: no new analysis."""
    from cswap import pipeline

    largest, wish = after.asked(target)
    with ProgressLine(quiet) as watcher:
        summary = pipeline.apply(
            folder, largest, out, force=force, machine=Machine(device, bytes_of(memory)), watcher=watcher,
            wish=wish, **original.given,
        )  # fmt: skip
    show_or_print(as_json, summary, lambda s: render.summary(s, out))


def compare(
    net: ModelFlags,
    given: DataFlags,
    out: Annotated[Path, typer.Option("--out", help="folder for curves, figures and paths")],
    analysis: AnalysisFlags,
    run: RunFlags,
    methods: Annotated[
        str,
        typer.Option(
            "--methods",
            help="names separated by commas; NAME:layer, NAME:global, NAME:raw, NAME:global:params (or :macs)",
        ),
    ] = "cswap,cbp,magnitude,taylor,random",
    ratios: Annotated[str, typer.Option("--ratios", help="fractions removed")] = "0,0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8",
    ratio_in: Annotated[
        str, typer.Option("--ratio-in", help="what they count: params, macs, units")
    ] = "params,macs,units",
    seeds: Annotated[str, typer.Option("--seeds", "--seed", help="calibration sets to draw, e.g. 0,1,2")] = "0",
    round_to: RoundTo = 1,
    recover: Annotated[
        str, typer.Option("--recover", help=f"beside the plain network, separated by commas: {HOW}")
    ] = "none",
    recover_per_class: RecoverPerClass = None,
    eval_amp: Annotated[bool, typer.Option("--eval-amp", help="measure quality in bfloat16: faster")] = False,
    latency: Annotated[bool, typer.Option("--latency/--no-latency", help="time every point")] = True,
    jobs: Annotated[int, typer.Option("--jobs", help="methods measured at a time; they share threads and memory")] = 1,
    as_json: JsonFlag = False,
    quiet: Quiet = False,
) -> None:
    """Curves, areas and cost of several methods in one run: a table, JSON and plots."""
    from cswap.compare import CompareJob
    from cswap.compare import compare as run_compare
    from cswap.report.figures import compare_page

    asked = numbers("seeds", seeds)
    if any(not 0 <= v < 2**63 or v != int(v) for v in asked):
        raise InputError(f"seeds: expected whole numbers from 0, got {seeds!r}")
    drawn = tuple(int(v) for v in asked)
    job = CompareJob(
        source=net.source, data=given.choice, out=out, methods=_names(methods), task=analysis.task,
        ratios=tuple(sorted(set(numbers("ratios", ratios)))), kinds=_names(ratio_in), seeds=drawn,
        options=analysis.options(drawn[0]), recover=_names(recover), recover_per_class=recover_per_class,
        eval_amp=eval_amp, latency=latency, jobs=jobs, round_to=round_to, machine=run.machine, resume=run.resume, force=run.force, **analysis.groups,
    )  # fmt: skip
    with ProgressLine(quiet) as watcher:
        try:
            result = run_compare(job, watcher)
        except KeyboardInterrupt:
            raise Interrupted(
                f"interrupted; what was done is kept in {out}: the same command with --resume goes on"
            ) from None
    compare_page(result, out / "compare.html", title=f"{net.model}: {result['headline']}, one shot, no fine-tuning")
    show_or_print(as_json, result, lambda d: render.comparison(d, out))


def _names(text: str) -> tuple[str, ...]:
    return tuple(t.strip() for t in text.split(",") if t.strip())
