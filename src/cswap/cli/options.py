"""What the commands share: their options, in groups that a command takes whole, and how texts become values."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from cswap.cli.console import STDOUT
from cswap.data.models import ModelSpec, parse_arguments
from cswap.errors import InputError
from cswap.methods.options import Options
from cswap.pipeline import DataChoice, Machine, OtherData, Source, Wish
from cswap.tasks import TASKS
from cswap.types import Target

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
        help="folder with train/ and val/ or test/, torchvision:NAME@ROOT, hf:NAME_OR_DIR, FILE.py:FACTORY, package.module:FACTORY",
    ),
]
MaybeData = Annotated[str | None, typer.Option("--data", help="other data than the artifact was made with")]
ImageSize = Annotated[int | None, typer.Option("--image-size", help="side of the square input")]
Mean = Annotated[str | None, typer.Option("--mean", help="by channel, separated by commas")]
Std = Annotated[str | None, typer.Option("--std", help="by channel, separated by commas")]
Out = Annotated[Path, typer.Option("--out", help="the artifact folder to write")]
ArtifactDir = Annotated[Path, typer.Argument(help="an artifact folder")]
TargetOption = Annotated[
    str,
    typer.Option(
        "--target",
        help="fraction REMOVED: params=F, macs=F, units=F, latency=F; or noncritical; with --certify also several, params=F,F,…",
    ),
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

HOW = "none, bias, bn, lstsq, merge, fold, or several joined by '+'"
Recover = Annotated[str, typer.Option("--recover", help=f"what is given back without fine-tuning: {HOW}")]
RecoverPerClass = Annotated[
    int | None,
    typer.Option("--recover-per-class", help="calibration samples a class to recover with (--per-class)"),
]
Cut = Annotated[
    str,
    typer.Option(
        "--cut", help="causal methods: plain, or compensated (effects after the layers that read make up for it)"
    ),
]
Scope = Annotated[
    str,
    typer.Option(
        "--scope", help="rankings: layer, global (each group's scores by their mean), or raw (all scores as they are)"
    ),
]
Per = Annotated[
    str,
    typer.Option(
        "--per",
        help="joint, cswap, cbp, and rankings with --scope global: score a unit, or that a parameter, MAC or millisecond (unit, params, macs, latency) that goes with it",
    ),
]


def _flag(text: str, *names: str) -> Any:
    return typer.Option(*names, help=text)


@dataclass(frozen=True)
class ModelFlags:
    """Which network."""

    model: ModelOption
    weights: Weights = None
    model_arg: ModelArgs = None

    @property
    def source(self) -> Source:
        """Where it comes from. Raises InputError."""
        return Source(ModelSpec.parse(self.model, parse_arguments(self.model_arg or [])), self.weights)


@dataclass(frozen=True)
class OriginalFlags:
    """An artifact's original network and its data, where the artifact's own word is not to be used."""

    data: MaybeData = None
    image_size: ImageSize = None
    mean: Mean = None
    std: Std = None
    model: MaybeModel = None
    model_arg: ModelArgs = None
    weights: Weights = None
    trust: Trust = False

    @property
    def given(self) -> dict[str, Any]:
        """The same for the pipeline. Raises InputError."""
        return {
            "source": source_of(self.model, self.model_arg, self.weights), "weights": self.weights,
            "data": other_data(self.data, self.image_size, self.mean, self.std), "trust": self.trust,
        }  # fmt: skip


@dataclass(frozen=True)
class DataFlags:
    """Which data, and how samples become tensors."""

    data: DataOption
    per_class: Annotated[int, _flag("calibration samples a class", "--per-class")] = 128
    image_size: ImageSize = None
    mean: Mean = None
    std: Std = None
    labels: Annotated[Path | None, _flag("JSON {class: output}, or class names in output order", "--labels")] = None
    calibration_split: Annotated[str | None, _flag("folder to calibrate from (train)", "--calibration-split")] = None
    eval_split: Annotated[str | None, _flag("folder to measure quality on (test, else val)", "--eval-split")] = None
    eval_samples: Annotated[int | None, _flag("measure quality on at most this many", "--eval-samples")] = None
    tokenizer: Tokenizer = None
    max_length: MaxLength = None
    ignore_index: Annotated[
        int | None, _flag("masks: the number of pixels that belong to no class (255)", "--ignore-index")
    ] = None
    allow_imbalance: Annotated[bool, _flag("take what a small class has", "--allow-imbalance")] = False
    unlabelled: Annotated[
        bool, _flag("the network's own predictions stand for labels; images need no class folders", "--unlabelled")
    ] = False

    @property
    def choice(self) -> DataChoice:
        """The same for the pipeline."""
        return DataChoice(
            resolved(self.data), self.image_size, self.mean, self.std, self.per_class, self.allow_imbalance,
            self.labels.resolve() if self.labels else None, self.calibration_split, self.eval_split, self.eval_samples,
            self.tokenizer.resolve() if self.tokenizer else None, self.max_length, self.ignore_index,
            self.unlabelled,
        )  # fmt: skip


@dataclass(frozen=True)
class AnalysisFlags:
    """What decides over units; the fields that `Options` has bear its names."""

    task: Annotated[str, _flag(", ".join(TASKS), "--task")] = "classification"
    alpha: Annotated[float, _flag("significance level of the paired t-tests", "--alpha")] = 0.05
    vote: Annotated[str, _flag("class or pooled (general inference)", "--vote")] = "class"
    vote_score: Annotated[str, _flag("class or sample", "--vote-score")] = "class"
    correction: Annotated[str, _flag("over classes: none, holm, bh", "--correction")] = "none"
    min_effect: Annotated[float, _flag("smaller significant differences do not count", "--min-effect")] = 0.0
    xi_floor: Annotated[float, _flag("least denominator of xi", "--xi-floor")] = 1e-3
    effects: Annotated[
        str,
        _flag(
            "full: all classes tested and stored; verdict: until one class needs the unit (faster); sequential: in stages of samples",
            "--effects",
        ),
    ] = "full"
    amp: Annotated[
        bool, _flag("replay in bfloat16 where it is automatic: faster, and verdicts may differ", "--amp")
    ] = False
    reference: Annotated[str, _flag("current or original (refuse removals that add up to a loss)", "--reference")] = (
        "current"
    )
    granularity: Annotated[
        str, _flag("cswap: unit, or block:N (N units are tested, and go, together)", "--granularity")
    ] = "unit"
    order: Annotated[str, _flag("units within a group: index, reverse, random", "--order")] = "index"
    buffer_order: Annotated[str, _flag("signed or abs", "--buffer-order")] = "signed"
    cut: Cut = "plain"
    scope: Scope = "layer"
    per: Per = "unit"
    norm: Annotated[str, _flag("magnitude: l1 or l2", "--norm")] = "l1"
    price: Annotated[
        str,
        _flag(
            "joint with --per: what a group's sets cost, change (the mean square of what they do to the score), outputs (the same of the outputs) or loss (the mean score lost)",
            "--price",
        ),
    ] = "change"
    margins: Annotated[
        str, _flag("joint: losses of mean score at which sets are looked for, ascending", "--margins")
    ] = "0.01,0.02,0.05,0.1,0.2,0.4"
    surrogate: Annotated[
        str,
        _flag(
            "joint, what orders a group's units: obs (the error after a refit), taylor (first order), fisher (with what units do together)",
            "--surrogate",
        ),
    ] = "obs"
    folds: Annotated[
        int,
        _flag(
            "joint: parts of every class's samples that sets are tested on, compensated from the others (1: from themselves)",
            "--folds",
        ),
    ] = 1
    stages: Annotated[
        str,
        _flag(
            "joint: fractions removed, as 0.3,0.5,0.65,0.8, at which the network is refitted and all that is left tested anew",
            "--stages",
        ),
    ] = ""
    swaps: Annotated[bool, _flag("obs and joint: local swaps after each eighth of a group", "--swaps")] = False
    max_drop: Annotated[float | None, _flag("stop when calibration quality fell by more", "--max-drop")] = None
    only: Only = None
    exclude: Exclude = None

    def options(self, seed: int) -> Options:
        """The method's options. Raises InputError."""
        names = {f.name for f in dataclasses.fields(Options)} & {f.name for f in dataclasses.fields(self)}
        return Options(seed=seed, **{name: getattr(self, name) for name in names})

    @property
    def groups(self) -> dict[str, tuple[str, ...]]:
        """Which groups a job may touch."""
        return {"only": tuple(self.only or ()), "exclude": tuple(self.exclude or ())}


@dataclass(frozen=True)
class RunFlags:
    """Where and how it runs."""

    device: DeviceOption = "auto"
    memory: Memory = "4GiB"
    resume: Annotated[bool, _flag("go on with what --out holds", "--resume")] = False
    force: Force = False

    @property
    def machine(self) -> Machine:
        """The same for the pipeline. Raises InputError."""
        return Machine(self.device, bytes_of(self.memory))


RoundTo = Annotated[int, _flag("widths that are a multiple of this (8 pays on most machines)", "--round-to")]


@dataclass(frozen=True)
class WishFlags:
    """What is done with a path."""

    recover: Recover = "none"
    recover_per_class: RecoverPerClass = None
    round_to: RoundTo = 1
    latency_batch: Annotated[int, _flag("batch at which --target latency=F is measured", "--latency-batch")] = 1
    certify: Annotated[
        str | None,
        _flag("data, never trained on, that bounds what each class lost; its test (or val) split is used", "--certify"),
    ] = None
    margin: Annotated[float, _flag("--certify: the loss of mean score that is asked about", "--margin")] = 0.02
    bound: Annotated[str, _flag("--certify: betting, bernstein, or t (approximate)", "--bound")] = "betting"

    def asked(self, target: str) -> tuple[Target, Wish]:
        """The target, the largest where there are several, and the same for the pipeline. Raises InputError, TargetError."""
        kind, equals, fractions = target.partition("=")
        each = [Target.parse(f"{kind}{equals}{f}") for f in fractions.split(",")]
        values = sorted({t.value for t in each if t.value is not None})
        largest = Target(each[0].kind, values.pop()) if values else each[0]
        certify = None if self.certify is None else resolved(self.certify)
        return largest, Wish(
            self.recover, self.round_to, self.latency_batch, certify, self.margin, self.bound, tuple(values),
            self.recover_per_class,
        )  # fmt: skip


def flattened(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose groups of options (dataclasses) have become options of its own."""
    signature = inspect.signature(command, eval_str=True)
    groups: dict[str, Any] = {
        n: p.annotation for n, p in signature.parameters.items() if dataclasses.is_dataclass(p.annotation)
    }
    taken: list[inspect.Parameter] = []
    for name, parameter in signature.parameters.items():
        if name in groups:
            taken += inspect.signature(groups[name], eval_str=True).parameters.values()
        else:
            taken.append(parameter)

    def run(**values: Any) -> None:
        made = {n: g(**{f.name: values.pop(f.name) for f in dataclasses.fields(g)}) for n, g in groups.items()}
        command(**made, **values)

    run.__name__, run.__doc__ = command.__name__, command.__doc__
    keyword = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in taken]
    run.__signature__ = signature.replace(parameters=keyword)  # type: ignore[attr-defined]
    return run


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


def source_of(model: str | None, arguments: list[str] | None, weights: Path | None) -> Source | None:
    if model is None:
        return None
    return Source(ModelSpec.parse(model, parse_arguments(arguments or [])), weights)


def show_or_print(as_json: bool, data: Any, show: Any) -> None:
    if as_json:
        print(json.dumps(data, indent=1, allow_nan=False), file=STDOUT.stream)
    else:
        show(data)


def resolved(data: str) -> str:
    """A folder or FILE.py of a data spec as an absolute path, so that the artifact can be used from anywhere."""
    file, colon, name = data.rpartition(":")
    if colon and file.endswith(".py"):
        return f"{Path(file).resolve()}:{name}"
    if data.startswith("hf:"):
        where, at, config = data.removeprefix("hf:").partition("@")
        return f"hf:{Path(where).resolve()}{at}{config}" if where and Path(where).is_dir() else data
    return str(Path(data).resolve()) if Path(data).is_dir() else data


def other_data(data: str | None, image_size: int | None, mean: str | None, std: str | None) -> OtherData | None:
    """What a command says of an artifact's data; None where it says nothing."""
    other = OtherData(None if data is None else resolved(data), image_size, mean, std)
    return other if other.given else None


def numbers(name: str, text: str) -> list[float]:
    """Numbers separated by commas; raises InputError."""
    try:
        found = [float(v) for v in text.split(",")]
    except ValueError:
        found = []
    if not found:
        raise InputError(f"{name}: expected numbers separated by commas, got {text!r}")
    return found
