"""The command `cswap`: options in, pipeline, tables or JSON out, one line for every error."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer

from cswap._version import __version__
from cswap.cli import render
from cswap.cli.progress import ProgressLine, say_error
from cswap.data.models import ModelSpec, parse_arguments
from cswap.errors import CswapError, CswapWarning, InputError
from cswap.methods.options import Options
from cswap.pipeline import DataChoice, Machine, PruneJob, Source
from cswap.types import Target

app = typer.Typer(
    add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False,
    help="Make a trained PyTorch network smaller in one shot, without fine-tuning, and say why each part could go.",
)  # fmt: skip

ModelOption = Annotated[
    str,
    typer.Option(
        "--model", help="torchvision:NAME, timm:NAME, hf:NAME_OR_DIR, FILE.py:FACTORY, package.module:FACTORY"
    ),
]
MaybeModel = Annotated[
    str | None, typer.Option("--model", help="the original's factory, where the artifact's is not to be used")
]
ModelArgs = Annotated[list[str] | None, typer.Option("--model-arg", help="k=v for the factory; repeat it")]
Weights = Annotated[
    Path | None, typer.Option("--weights", help=".safetensors, or .pt/.pth/.th (read with weights_only=True)")
]
DataOption = Annotated[
    str,
    typer.Option(
        "--data",
        help="folder with train/ and val/ or test/, torchvision:NAME@ROOT, FILE.py:FACTORY, package.module:FACTORY",
    ),
]
MaybeData = Annotated[str | None, typer.Option("--data", help="other data than the artifact was made with")]
Out = Annotated[Path, typer.Option("--out", help="the artifact folder to write")]
ArtifactDir = Annotated[Path, typer.Argument(help="an artifact folder")]
TargetOption = Annotated[
    str, typer.Option("--target", help="fraction REMOVED: params=F, macs=F, units=F; or noncritical")
]
JsonFlag = Annotated[bool, typer.Option("--json", help="stdout is JSON and nothing else")]
Quiet = Annotated[bool, typer.Option("--quiet", help="no progress")]
Trust = Annotated[
    bool, typer.Option("--trust", help="run the factory an artifact names, if it is no torchvision or timm model")
]
Force = Annotated[bool, typer.Option("--force", help="replace what the folder holds")]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:N")]
Memory = Annotated[str, typer.Option("--memory", help="budget for activations, e.g. 4GiB")]
Tokenizer = Annotated[
    Path | None, typer.Option("--tokenizer", help="text: a tokenizer.json, or its folder (the hf: model's own)")
]
MaxLength = Annotated[int | None, typer.Option("--max-length", help="text: most tokens of a sentence (128)")]
Only = Annotated[list[str] | None, typer.Option("--only", help="groups to prune (shell pattern); repeat it")]
Exclude = Annotated[
    list[str] | None, typer.Option("--exclude", help="groups to leave alone (shell pattern); repeat it")
]

_HOW = "none, bias, bn, lstsq, merge, fold, or several joined by '+'"
Recover = Annotated[str, typer.Option("--recover", help=f"what is given back without fine-tuning: {_HOW}")]
Cut = Annotated[
    str,
    typer.Option(
        "--cut", help="causal methods: plain, or compensated (effects after the layers that read make up for it)"
    ),
]
Scope = Annotated[str, typer.Option("--scope", help="rankings: layer or global")]
Per = Annotated[
    str,
    typer.Option(
        "--per",
        help="cswap, cbp, and rankings with --scope global: score a unit, or a parameter or MAC that goes with it",
    ),
]


def bytes_of(text: str) -> int:
    """`4GiB`, `512MiB`, `2e9`; raises InputError."""
    match = re.fullmatch(r"\s*([0-9.]+(?:e[0-9]+)?)\s*([kmgt]?)(i?)b?\s*", text.lower())
    try:
        if match:
            base = 1024 if match[3] or match[2] else 1
            size = int(float(match[1]) * base ** (" kmgt".index(match[2]) if match[2] else 0))
            if size > 0:
                return size
    except (ValueError, OverflowError):
        pass
    raise InputError(f"memory: expected a size such as 4GiB, got {text!r}")


def _source(model: str | None, arguments: list[str] | None, weights: Path | None) -> Source | None:
    if model is None:
        if weights is not None:
            raise InputError("weights: --weights needs --model, which says what they belong to")
        return None
    return Source(ModelSpec.parse(model, parse_arguments(arguments or [])), weights)


def _print(as_json: bool, data: Any, show: Any) -> None:
    if as_json:
        print(json.dumps(data, indent=1, allow_nan=False))
    else:
        show(data)


def _version(asked: bool) -> None:
    if asked:
        print(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version")
    ] = False,
) -> None:
    """Common options."""


@app.command()
def prune(
    model: ModelOption,
    data: DataOption,
    target: TargetOption,
    out: Out,
    weights: Weights = None,
    model_arg: ModelArgs = None,
    method: Annotated[
        str, typer.Option("--method", help="cswap, magnitude, taylor, taylor2, deeplift, lrp, random")
    ] = "cswap",
    task: Annotated[str, typer.Option("--task", help="classification or text")] = "classification",
    per_class: Annotated[int, typer.Option("--per-class", help="calibration samples a class")] = 128,
    alpha: Annotated[float, typer.Option("--alpha", help="significance level of the paired t-tests")] = 0.05,
    vote: Annotated[str, typer.Option("--vote", help="class or pooled (general inference)")] = "class",
    vote_score: Annotated[str, typer.Option("--vote-score", help="class or sample")] = "class",
    correction: Annotated[str, typer.Option("--correction", help="over classes: none, holm, bh")] = "none",
    min_effect: Annotated[
        float, typer.Option("--min-effect", help="smaller significant differences do not count")
    ] = 0.0,
    xi_floor: Annotated[float, typer.Option("--xi-floor", help="least denominator of xi")] = 1e-3,
    effects: Annotated[
        str,
        typer.Option(
            "--effects", help="full: all classes tested and stored; verdict: until one class needs the unit (faster)"
        ),
    ] = "full",
    amp: Annotated[
        bool, typer.Option("--amp", help="replay in bfloat16 where it is automatic: faster, and verdicts may differ")
    ] = False,
    reference: Annotated[
        str, typer.Option("--reference", help="current or original (refuse removals that add up to a loss)")
    ] = "current",
    granularity: Annotated[str, typer.Option("--granularity", help="unit")] = "unit",
    order: Annotated[str, typer.Option("--order", help="units within a group: index, reverse, random")] = "index",
    buffer_order: Annotated[str, typer.Option("--buffer-order", help="signed or abs")] = "signed",
    cut: Cut = "plain",
    scope: Scope = "layer",
    per: Per = "unit",
    norm: Annotated[str, typer.Option("--norm", help="magnitude: l1 or l2")] = "l1",
    max_drop: Annotated[
        float | None, typer.Option("--max-drop", help="stop when calibration quality fell by more")
    ] = None,
    recover: Recover = "none",
    only: Only = None,
    exclude: Exclude = None,
    image_size: Annotated[int | None, typer.Option("--image-size", help="side of the square input")] = None,
    mean: Annotated[str | None, typer.Option("--mean", help="by channel, separated by commas")] = None,
    std: Annotated[str | None, typer.Option("--std", help="by channel, separated by commas")] = None,
    labels: Annotated[
        Path | None, typer.Option("--labels", help="JSON {class: output}, or class names in output order")
    ] = None,
    calibration_split: Annotated[
        str | None, typer.Option("--calibration-split", help="folder to calibrate from (train)")
    ] = None,
    eval_split: Annotated[
        str | None, typer.Option("--eval-split", help="folder to measure quality on (test, else val)")
    ] = None,
    eval_samples: Annotated[
        int | None, typer.Option("--eval-samples", help="measure quality on at most this many")
    ] = None,
    tokenizer: Tokenizer = None,
    max_length: MaxLength = None,
    allow_imbalance: Annotated[bool, typer.Option("--allow-imbalance", help="take what a small class has")] = False,
    seed: Annotated[int, typer.Option("--seed", help="draws the calibration set")] = 0,
    device: DeviceOption = "auto",
    memory: Memory = "4GiB",
    resume: Annotated[bool, typer.Option("--resume", help="go on with the journal in --out")] = False,
    force: Force = False,
    as_json: JsonFlag = False,
    quiet: Quiet = False,
) -> None:
    """Path, surgery, check, evaluation, artifact: the main job."""
    if granularity != "unit":
        raise InputError(f"granularity: this version has 'unit' only, got {granularity!r}")
    if resume and force:
        raise InputError("--resume goes on with what is there and --force replaces it: expected one of them, got both")
    source = Source(ModelSpec.parse(model, parse_arguments(model_arg or [])), weights)
    options = Options(
        alpha=alpha, vote=vote, vote_score=vote_score, correction=correction, min_effect=min_effect, xi_floor=xi_floor,
        reference=reference, order=order, buffer_order=buffer_order, max_drop=max_drop, effects=effects, amp=amp, cut=cut, scope=scope, per=per,
        norm=norm, seed=seed,
    )  # fmt: skip
    job = PruneJob(
        source=source,
        data=DataChoice(
            _resolved(data), image_size, mean, std, per_class, allow_imbalance,
            labels.resolve() if labels else None, calibration_split, eval_split, eval_samples,
            tokenizer.resolve() if tokenizer else None, max_length,
        ),
        out=out, target=Target.parse(target), method=method, task=task, options=options, only=tuple(only or ()),
        exclude=tuple(exclude or ()), machine=Machine(device, bytes_of(memory)), resume=resume, force=force, recover=recover,
    )  # fmt: skip
    from cswap import pipeline

    speaks = os.environ.get("RANK", "0") == "0"  # under torchrun the first process speaks for all
    with ProgressLine(quiet or not speaks) as watcher:
        try:
            summary = pipeline.prune(job, watcher)
        except KeyboardInterrupt:
            _interrupted(out)
    if speaks:
        _print(as_json, summary, lambda s: render.summary(s, out))


def _resolved(data: str) -> str:
    """A folder or FILE.py of a data spec as an absolute path, so that the artifact can be used from anywhere."""
    file, colon, name = data.rpartition(":")
    if colon and file.endswith(".py"):
        return f"{Path(file).resolve()}:{name}"
    return str(Path(data).resolve()) if Path(data).is_dir() else data


def _interrupted(out: Path) -> NoReturn:
    kept = (out / "run.json").exists() and (out / "path.jsonl").exists()
    how = f"; the journal is kept in {out}: the same command with --resume goes on" if kept else "; nothing was written"
    say_error("interrupted" + how)
    raise typer.Exit(130)


@app.command()
def apply(
    folder: ArtifactDir,
    target: TargetOption,
    out: Out,
    data: MaybeData = None,
    model: MaybeModel = None,
    model_arg: ModelArgs = None,
    weights: Weights = None,
    recover: Recover = "none",
    trust: Trust = False,
    force: Force = False,
    device: DeviceOption = "auto",
    memory: Memory = "4GiB",
    as_json: JsonFlag = False,
    quiet: Quiet = False,
) -> None:
    """Another target from the stored path: no new analysis."""
    from cswap import pipeline

    with ProgressLine(quiet) as watcher:
        summary = pipeline.apply(
            folder, Target.parse(target), out, source=_source(model, model_arg, weights), data=data, trust=trust,
            force=force, machine=Machine(device, bytes_of(memory)), watcher=watcher, recover=recover,
        )  # fmt: skip
    _print(as_json, summary, lambda s: render.summary(s, out))


@app.command()
def compare(
    model: ModelOption,
    data: DataOption,
    out: Annotated[Path, typer.Option("--out", help="folder for curves, figures and paths")],
    methods: Annotated[
        str,
        typer.Option("--methods", help="names separated by commas; NAME:global or NAME:layer for a ranking's scope"),
    ] = "cswap,cbp,magnitude,taylor,random",
    weights: Weights = None,
    model_arg: ModelArgs = None,
    ratios: Annotated[str, typer.Option("--ratios", help="fractions removed")] = "0,0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8",
    ratio_in: Annotated[
        str, typer.Option("--ratio-in", help="what they count: params, macs, units")
    ] = "params,macs,units",
    seeds: Annotated[str, typer.Option("--seeds", help="calibration sets to draw, e.g. 0,1,2")] = "0",
    per_class: Annotated[int, typer.Option("--per-class", help="calibration samples a class")] = 128,
    alpha: Annotated[float, typer.Option("--alpha", help="significance level of the paired t-tests")] = 0.05,
    vote: Annotated[str, typer.Option("--vote", help="class or pooled (general inference)")] = "class",
    correction: Annotated[str, typer.Option("--correction", help="over classes: none, holm, bh")] = "none",
    min_effect: Annotated[
        float, typer.Option("--min-effect", help="smaller significant differences do not count")
    ] = 0.0,
    effects: Annotated[str, typer.Option("--effects", help="cswap: full or verdict")] = "full",
    cut: Cut = "plain",
    scope: Scope = "layer",
    per: Per = "unit",
    recover: Annotated[
        str, typer.Option("--recover", help=f"beside the plain network, separated by commas: {_HOW}")
    ] = "none",
    recover_per_class: Annotated[
        int | None,
        typer.Option("--recover-per-class", help="calibration samples a class to recover with (--per-class)"),
    ] = None,
    eval_amp: Annotated[bool, typer.Option("--eval-amp", help="measure quality in bfloat16: faster")] = False,
    latency: Annotated[bool, typer.Option("--latency/--no-latency", help="time every point")] = True,
    only: Only = None,
    exclude: Exclude = None,
    image_size: Annotated[int | None, typer.Option("--image-size", help="side of the square input")] = None,
    mean: Annotated[str | None, typer.Option("--mean", help="by channel, separated by commas")] = None,
    std: Annotated[str | None, typer.Option("--std", help="by channel, separated by commas")] = None,
    labels: Annotated[
        Path | None, typer.Option("--labels", help="JSON {class: output}, or class names in output order")
    ] = None,
    calibration_split: Annotated[
        str | None, typer.Option("--calibration-split", help="folder to calibrate from (train)")
    ] = None,
    eval_split: Annotated[str | None, typer.Option("--eval-split", help="folder to measure quality on")] = None,
    eval_samples: Annotated[
        int | None, typer.Option("--eval-samples", help="measure quality on at most this many")
    ] = None,
    allow_imbalance: Annotated[bool, typer.Option("--allow-imbalance", help="take what a small class has")] = False,
    device: DeviceOption = "auto",
    memory: Memory = "4GiB",
    resume: Annotated[bool, typer.Option("--resume", help="go on with what --out holds")] = False,
    force: Force = False,
    as_json: JsonFlag = False,
    quiet: Quiet = False,
) -> None:
    """Curves, areas and cost of several methods in one run: a table, JSON and plots."""
    from cswap.compare import CompareJob
    from cswap.compare import compare as run_compare
    from cswap.report.figures import compare_page

    if resume and force:
        raise InputError("--resume goes on with what is there and --force replaces it: expected one of them, got both")
    source = Source(ModelSpec.parse(model, parse_arguments(model_arg or [])), weights)
    drawn = tuple(int(v) for v in _numbers("seeds", seeds))
    job = CompareJob(
        source=source,
        data=DataChoice(
            _resolved(data), image_size, mean, std, per_class, allow_imbalance,
            labels.resolve() if labels else None, calibration_split, eval_split, eval_samples,
        ),
        out=out, methods=tuple(m.strip() for m in methods.split(",") if m.strip()), ratios=tuple(sorted(set(_numbers("ratios", ratios)))),
        kinds=tuple(k.strip() for k in ratio_in.split(",") if k.strip()), seeds=drawn,
        options=Options(
            alpha=alpha, vote=vote, correction=correction, min_effect=min_effect, effects=effects, cut=cut, scope=scope, per=per, seed=drawn[0],
        ),
        recover=tuple(h.strip() for h in recover.split(",") if h.strip()), recover_per_class=recover_per_class,
        eval_amp=eval_amp, latency=latency, only=tuple(only or ()), exclude=tuple(exclude or ()),
        machine=Machine(device, bytes_of(memory)), resume=resume, force=force,
    )  # fmt: skip
    with ProgressLine(quiet) as watcher:
        try:
            result = run_compare(job, watcher)
        except KeyboardInterrupt:
            say_error(f"interrupted; what was done is kept in {out}: the same command with --resume goes on")
            raise typer.Exit(130) from None
    compare_page(result, out / "compare.html", title=f"{model}: {result['headline']}, one shot, no fine-tuning")
    _print(as_json, result, lambda d: render.comparison(d, out))


def _numbers(name: str, text: str) -> list[float]:
    """Numbers separated by commas; raises InputError."""
    try:
        found = [float(v) for v in text.split(",") if v.strip()]
    except ValueError:
        found = []
    if not found:
        raise InputError(f"{name}: expected numbers separated by commas, got {text!r}")
    return found


@app.command(name="eval")
def evaluate(
    folder: ArtifactDir,
    data: MaybeData = None,
    model: MaybeModel = None,
    model_arg: ModelArgs = None,
    weights: Weights = None,
    trust: Trust = False,
    device: DeviceOption = "auto",
    as_json: JsonFlag = False,
    quiet: Quiet = False,
) -> None:
    """Quality and cost, original and pruned, side by side."""
    from cswap import pipeline

    with ProgressLine(quiet) as watcher:
        figures = pipeline.evaluate(
            folder, source=_source(model, model_arg, weights), data=data, trust=trust, machine=Machine(device),
            watcher=watcher,
        )  # fmt: skip
    _print(as_json, figures, render.side_by_side)


@app.command()
def explain(
    folder: ArtifactDir,
    group: Annotated[str | None, typer.Option("--group", help="one group")] = None,
    unit: Annotated[int | None, typer.Option("--unit", help="one unit of the group")] = None,
    class_: Annotated[str | None, typer.Option("--class", help="what one class needs, and what hurts it")] = None,
    most: Annotated[int, typer.Option("--most", help="rows to show")] = 30,
    as_json: JsonFlag = False,
) -> None:
    """Why a unit was kept or removed: effects and p-values by class."""
    from cswap.artifacts.folder import open_artifact
    from cswap.report.explain import explanation

    data = explanation(open_artifact(folder).path, group, unit, class_)
    _print(as_json, data, lambda d: render.explanation(d, most))


@app.command()
def support(
    model: ModelOption,
    model_arg: ModelArgs = None,
    weights: Weights = None,
    image_size: Annotated[int | None, typer.Option("--image-size", help="side of the square input")] = None,
    channels: Annotated[int, typer.Option("--channels", help="channels of the input")] = 3,
    tokens: Annotated[int | None, typer.Option("--tokens", help="length of the input, for a model of tokens")] = None,
    as_json: JsonFlag = False,
) -> None:
    """What can be pruned in this model, what cannot, and why."""
    from cswap.report.support import support_report

    source = Source(ModelSpec.parse(model, parse_arguments(model_arg or [])), weights)
    _print(as_json, support_report(source, image_size, channels, tokens), render.support)


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", help="where curve, artifact and figures go")] = Path("cswap-demo"),
    seed: Annotated[int, typer.Option("--seed", help="training, split and calibration")] = 0,
    as_json: JsonFlag = False,
    quiet: Quiet = False,
    force: Force = False,
) -> None:
    """Train a small ResNet on scikit-learn's digits and prune it by C-SWAP, magnitude and random."""
    from cswap.demo import run_demo

    with ProgressLine(quiet) as watcher:
        result = run_demo(out, seed=seed, force=force, tell=watcher.line)
    data = {"curves": result.curves, "sauce": result.sauce, "seconds": result.seconds, "out": str(out)}
    _print(as_json, data, render.demo)


@contextlib.contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """SIGTERM ends a run as Ctrl-C does: journal flushed, model untouched."""

    def stop(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _own_warnings() -> Iterator[None]:
    """Our warnings are a line on standard error; those of the libraries are not the user's business."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", CswapWarning)
        warnings.showwarning = lambda message, *_rest, **_more: say_error(f"warning: {message}")
        yield


def _unexpected(error: Exception) -> int:
    with tempfile.NamedTemporaryFile("w", prefix="cswap-", suffix=".log", delete=False, encoding="utf-8") as log:
        traceback.print_exception(error, file=log)
    say_error(f"the run failed ({type(error).__name__}: {str(error)[:200]}); the log is {log.name}")
    return 1


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status: 0 done, 1 the run failed, 2 wrong input, 130 interrupted."""
    try:
        with _terminated_like_interrupted(), _own_warnings():
            status = app(args=arguments, standalone_mode=False, prog_name="cswap")
        return status if isinstance(status, int) else 0
    except CswapError as error:
        say_error(str(error))
        return error.exit_status
    except KeyboardInterrupt:
        say_error("interrupted")
        return 130
    except BrokenPipeError:
        return 1
    except Exception as error:  # noqa: BLE001 — the last line of defence: never a traceback
        if hasattr(error, "format_message"):  # a usage error of the option parser
            say_error(f"{error.format_message()} (cswap --help)")
            return 2
        if type(error).__name__ == "Abort":
            say_error("interrupted")
            return 130
        return int(error.exit_code) if hasattr(error, "exit_code") else _unexpected(error)


def run() -> NoReturn:
    """Console entry point."""
    sys.exit(main())
