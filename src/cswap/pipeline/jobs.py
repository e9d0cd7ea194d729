"""What a job is: where model and data come from, where it runs, what is asked for."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cswap.data.calibration import CalibrationSet, calibration_set
from cswap.data.models import ModelSpec, load_weights, sha256_of
from cswap.data.sources import DataPair, ImageFormat, image_format, names_code, open_data, output_names
from cswap.data.truth import raw_bytes
from cswap.errors import InputError
from cswap.evaluate.bounds import check_claim
from cswap.methods import registry
from cswap.methods.options import Options
from cswap.pipeline.unlabelled import labelled_by
from cswap.recovery.base import steps_of
from cswap.types import Target


@dataclass(frozen=True)
class Source:
    """Where a model comes from: its spec and a weights file."""

    spec: ModelSpec
    weights: Path | None = None

    def build(self) -> nn.Module:
        """The original network."""
        model = self.spec.build()
        if self.weights is not None:
            load_weights(model, self.weights)
        return model

    def as_dict(self) -> dict[str, Any]:
        """For the manifest: what `apply` and `eval` need to build the original again."""
        return {
            "spec": self.spec.absolute,
            "arguments": self.spec.arguments,
            "weights": None if self.weights is None else str(self.weights.resolve()),
            "weights_sha256": None if self.weights is None else sha256_of(self.weights),
        }


_OF_IMAGES = ("image_size", "mean", "std", "calibration_split", "eval_split", "ignore_index")


@dataclass(frozen=True)
class DataChoice:
    """What the user said about data."""

    text: str
    image_size: int | None = None
    mean: str | None = None
    std: str | None = None
    per_class: int = 128
    allow_imbalance: bool = False
    labels: Path | None = None
    calibration_split: str | None = None
    eval_split: str | None = None
    eval_samples: int | None = None
    tokenizer: Path | None = None
    max_length: int | None = None
    ignore_index: int | None = None
    unlabelled: bool = False

    def form(self, spec: ModelSpec | None) -> ImageFormat:
        """How its images become tensors."""
        return image_format(spec, self.image_size, self.mean, self.std)

    def calibration(
        self, pair: DataPair, seed: int, per_class: int | None = None, *, allow_imbalance: bool = False
    ) -> CalibrationSet:
        """The calibration samples of a seed, `per_class` a class or as many as are chosen here; a larger draw holds a smaller one. Raises DataError."""
        return calibration_set(
            pair.train, per_class or self.per_class, seed, classes=pair.classes, allow_imbalance=allow_imbalance or self.allow_imbalance,
        )  # fmt: skip

    def open(
        self, spec: ModelSpec | None, model: nn.Module | None = None, *, known: Sequence[str] | None = None
    ) -> DataPair:
        """Train and evaluation datasets; those that are unlabelled with what `model`, where one is given, predicts for their labels,
        in the classes that are `known` by name, or else in those that it predicts often enough.

        Raises DataError, InputError where an option does not go with the data.
        """
        given = [n for n in _OF_IMAGES if getattr(self, n) is not None]
        if names_code(self.text) and given:
            raise InputError(
                f"{given[0].replace('_', '-')}: goes with data that is read from files; {self.text!r} makes its own tensors"
            )
        pair = open_data(
            self.text, self.form(spec), calibration_split=self.calibration_split, eval_split=self.eval_split,
            labels=None if self.unlabelled else self.labels, tokenizer=self.tokenizer, max_length=self.max_length,
            ignore_index=self.ignore_index, model_folder=spec.folder if spec else None, unlabelled=self.unlabelled,
        )  # fmt: skip
        if not self.unlabelled or model is None:
            return pair
        least = 2 if self.allow_imbalance else self.per_class
        names = {} if self.labels is None else output_names(self.labels)
        return labelled_by(model, pair, least=least, eval_samples=self.eval_samples, names=names, known=known)


@dataclass(frozen=True)
class OtherData:
    """What takes the place of the data that an artifact records, and of how its images become tensors; None: as recorded."""

    text: str | None = None
    image_size: int | None = None
    mean: str | None = None
    std: str | None = None

    @property
    def given(self) -> dict[str, Any]:
        """What is said of it, by the names that `DataChoice` has."""
        return {n: v for n, v in vars(self).items() if v is not None}

    def over(self, recorded: DataChoice) -> DataChoice:
        """The recorded choice with this in its place. How files become tensors is no matter for a factory's own tensors."""
        of_files = (
            dict.fromkeys((*_OF_IMAGES, "tokenizer", "max_length"))
            if self.text is not None and names_code(self.text)
            else {}
        )
        return DataChoice(**{**vars(recorded), **of_files, **self.given})


@dataclass(frozen=True)
class Machine:
    """Where it runs."""

    device: str = "auto"
    memory: int = 4 << 30

    @property
    def torch_device(self) -> str:
        """`auto` is CUDA where there is one."""
        if self.device == "auto":
            return "cuda" if torch.cuda.is_available() else "cpu"
        try:
            torch.empty(0, device=self.device)
        except (RuntimeError, AssertionError):
            raise InputError(f"device: {self.device!r} is not there; expected auto, cpu or cuda") from None
        return self.device


HERE = Machine()
"""Where a run is when nothing else is said."""


def state_hash(model: nn.Module) -> str:
    """Hash of all parameters and buffers by name, wherever they came from."""
    digest = hashlib.sha256(repr(model).encode())
    for name, tensor in model.state_dict().items():
        digest.update(name.encode() + raw_bytes(tensor))
    return digest.hexdigest()


@dataclass(frozen=True)
class Wish:
    """What is done with a path: `recover` what is given back, from `recover_per_class` samples a class (those of the analysis); `round_to` widths that are a multiple; `latency_batch` the batch that
    latency is measured at; `certify` data for a certificate of `margin` (τ) by a `bound`; `smaller` fractions of the target's
    kind that are certified before it, ascending: the largest that holds is kept. Raises InputError.
    """

    recover: str = "none"
    round_to: int = 1
    latency_batch: int = 1
    certify: str | None = None
    margin: float = 0.02
    bound: str = "betting"
    smaller: tuple[float, ...] = ()
    recover_per_class: int | None = None

    def __post_init__(self) -> None:
        if not steps_of(self.recover) and self.recover_per_class is not None:
            raise InputError("recover-per-class: goes with a recovery; expected --recover beside it")
        check_widths_and_samples(self.round_to, self.recover_per_class)
        if self.latency_batch < 1:
            raise InputError(f"latency-batch: expected a number of at least 1, got {self.latency_batch}")
        check_claim(self.margin, self.bound)
        asked = [n for n in ("margin", "bound") if getattr(self, n) != getattr(Wish, n)]
        if asked and self.certify is None:
            raise InputError(f"{asked[0]}: goes with a certificate; expected --certify DATA beside it")

    def check_target(self, target: Target, per: str = "unit") -> None:
        """Raises InputError where the wish does not go with the target, or with what the method counts (`per`)."""
        if self.latency_batch != 1 and "latency" not in (target.kind, per):
            raise InputError(f"latency-batch: goes with --target latency=F or --per latency, got --target {target}")
        if not self.smaller:
            return
        if self.certify is None:
            raise InputError(
                "target: several go with a certificate, which says how far to go; expected --certify DATA beside them"
            )
        rising = [*self.smaller, target.value or 0.0]
        if any(a >= b for a, b in itertools.pairwise(rising)):
            raise InputError(f"target: expected fractions from small to large, got {rising}")

    def up_to(self, target: Target) -> list[Target]:
        """The targets that are tested, one after the other, the last of them `target`."""
        return [*(Target(target.kind, v) for v in self.smaller), target]


def check_widths_and_samples(round_to: int, recover_per_class: int | None) -> None:
    """What a finished and a compared network are asked alike. Raises InputError."""
    if round_to < 1:
        raise InputError(f"round-to: expected a number of at least 1, got {round_to}")
    if recover_per_class is not None and recover_per_class < 2:
        raise InputError(f"recover-per-class: expected at least 2 samples a class, got {recover_per_class}")


_VOTING = ("cswap", "cbp", "greedy")
_TESTING = (*_VOTING, "joint")  # joint asks every class for a margin, and takes no vote
_RANKINGS = ("magnitude", "random", "taylor", "taylor2", "deeplift", "lrp", "lamp", "obs")
_OF_SOME_METHODS = {
    "granularity": ("cswap",), "norm": ("magnitude",), "margins": ("joint",), "price": ("joint",), "surrogate": ("joint",), "folds": ("joint",), "stages": ("joint",), "swaps": ("obs", "joint"), "order": ("cswap",),
    "reference": ("cswap",), "effects": ("cswap",), "buffer_order": ("cswap", "cbp"), "vote": _VOTING, "correction": _VOTING,
    "min_effect": _VOTING, "vote_score": _TESTING, "xi_floor": _VOTING, "cut": ("cswap", "cbp", "greedy"), "scope": _RANKINGS,
}  # fmt: skip
"""Options that only some of our methods read: given with another they would be forgotten."""


def reads(method: str, option: str) -> bool:
    """Whether a method reads an option that some of ours read alone; a user's own method knows for itself what it reads."""
    return method in _OF_SOME_METHODS[option] or not registry.find(method).__module__.startswith("cswap.")


def forgotten(method: str, options: Options) -> dict[str, Any]:
    """What was given and the method would not read, each with its usual value."""
    usual = Options()
    return {
        option: getattr(usual, option)
        for option in _OF_SOME_METHODS
        if getattr(options, option) != getattr(usual, option) and not reads(method, option)
    }


def check_options(method: str, options: Options) -> None:
    """Raises InputError for an option that the method would forget, and for scores a parameter or MAC of a ranking by layer."""
    for option in forgotten(method, options):
        shown, of = option.replace("_", "-"), " or ".join(_OF_SOME_METHODS[option])
        raise InputError(f"{shown}: {getattr(options, option)} is for --method {of}, got --method {method}")
    if method == "joint" and options.swaps and options.surrogate != "obs":
        raise InputError(f"swaps: goes with --surrogate obs, got --surrogate {options.surrogate}")
    if method == "joint" and options.price != Options().price and options.per == "unit":
        raise InputError(f"price: {options.price} goes with --per params, macs or latency, got --per unit")
    if method in _RANKINGS and options.per != "unit" and options.scope != "global":
        raise InputError(f"per: {options.per} goes with --scope global, got --scope {options.scope}")


PLAIN = Wish()
"""The network as it was cut."""


@dataclass(frozen=True)
class PruneJob:
    """All that `cswap prune` needs."""

    source: Source
    data: DataChoice
    out: Path
    target: Target
    method: str = "cswap"
    task: str = "classification"
    options: Options = Options()
    only: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    machine: Machine = Machine()
    resume: bool = False
    force: bool = False
    wish: Wish = Wish()

    def __post_init__(self) -> None:
        self.wish.check_target(self.target, self.options.per)
        check_options(self.method, self.options)

    @property
    def analysed_to(self) -> Target:
        """How far the method goes: to the end of the path where a prefix of it has to be looked for."""
        looked_for = self.target.kind == "latency" or self.wish.round_to > 1
        return Target("complete") if looked_for and self.target.kind != "noncritical" else self.target

    def fingerprint(self, calibration: CalibrationSet, model: nn.Module) -> dict[str, Any]:
        """What must be the same for a resumed run; the target may grow, and what is recovered may change."""
        return {
            "model": {"spec": self.source.spec.text, "arguments": self.source.spec.arguments},
            "weights": state_hash(model),
            "data": calibration.fingerprint(),
            "per_class": self.data.per_class,
            "method": self.method,
            "task": self.task,
            "options": self.options.as_dict(),
            **({"latency_batch": self.wish.latency_batch} if self.options.per == "latency" else {}),
            "only": list(self.only),
            "exclude": list(self.exclude),
        }
