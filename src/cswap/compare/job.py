"""All that a comparison needs to know."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cswap.errors import InputError
from cswap.methods import registry
from cswap.methods.options import Options
from cswap.pipeline import DataChoice, Machine, Source
from cswap.pipeline.jobs import check_options, check_widths_and_samples, forgotten, reads
from cswap.recovery.base import steps_of
from cswap.types import RATIO_KINDS

STAGED, STAGES = "staged", "0.3,0.5,0.65,0.8"
"""What follows the name of a joint that tests in stages, and where they end unless --stages says so."""
RATIOS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)


@dataclass(frozen=True)
class CompareJob:
    """All that `cswap compare` needs.

    methods: names, with `:layer`, `:global` or `:raw` for a ranking's scope, and `:params` or `:macs` behind `:global` for the score a
    parameter or MAC. kinds: what ratios count, `KIND@RATIO/RATIO` for ratios of its own. recover: what is given back, each
    beside the plain network, `NAME@RATIO/RATIO` at some ratios alone. recover_per_class: calibration samples a class for that
    (None: those of the analysis). eval_amp: quality in bfloat16. jobs: methods measured at a time, each in a process with
    its share of threads and memory (a script then needs a main guard). latency: time every point.
    round_to: widths of every network that is measured are multiples of it, as `prune --round-to` makes them. Raises InputError.
    """

    source: Source
    data: DataChoice
    out: Path
    methods: tuple[str, ...]
    ratios: tuple[float, ...] = RATIOS
    kinds: tuple[str, ...] = RATIO_KINDS
    seeds: tuple[int, ...] = (0,)
    task: str = "classification"
    options: Options = Options()
    recover: tuple[str, ...] = ("none",)
    recover_per_class: int | None = None
    eval_amp: bool = False
    jobs: int = 1
    latency: bool = True
    round_to: int = 1
    only: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    machine: Machine = Machine()
    resume: bool = False
    force: bool = False

    def __post_init__(self) -> None:
        for name in self.methods:
            self.settings(name, 0)
        if not self.methods or len(set(self.methods)) != len(self.methods):
            raise InputError(f"methods: expected different names, got {','.join(self.methods)!r}")
        if not self.ratios or any(not 0 <= r < 1 for r in self.ratios):
            raise InputError(f"ratios: expected fractions in [0, 1), got {self.ratios}")
        asked = {r for ratios in self.counted.values() for r in ratios}
        if any(not 0 <= r < 1 for r in asked):
            raise InputError(f"ratio-in: expected fractions in [0, 1), got {','.join(self.kinds)!r}")
        missed = {r for ratios in self.ways.values() for r in ratios or ()} - asked
        if missed:
            raise InputError(f"recover: expected ratios that are asked for, got {min(missed):g}")
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise InputError(f"seeds: expected different numbers, got {','.join(str(s) for s in self.seeds)!r}")
        if self.jobs < 1:
            raise InputError(f"jobs: expected at least 1, got {self.jobs}")
        check_widths_and_samples(self.round_to, self.recover_per_class)
        if not self.counted or any(k not in RATIO_KINDS for k in self.counted):
            raise InputError(f"ratio-in: expected some of {', '.join(RATIO_KINDS)}, got {','.join(self.kinds)!r}")
        for how in self.ways:
            steps_of(how)

    @property
    def ways(self) -> dict[str, tuple[float, ...] | None]:
        """The plain network first, then every recovery; the ratios it is measured at (None: all)."""
        return {"none": None} | {h: at for h, at in _at_ratios("recover", self.recover).items() if h != "none"}

    @property
    def counted(self) -> dict[str, tuple[float, ...]]:
        """What ratios count, and the ratios asked for in it."""
        return {kind: at or self.ratios for kind, at in _at_ratios("ratio-in", self.kinds).items()}

    def settings(self, name: str, seed: int) -> tuple[str, Options]:
        """The method and the options a name stands for. Raises InputError."""
        method, *more = name.split(":")
        registry.find(method)
        staged = bool(more) and more[-1] == STAGED and reads(method, "stages")
        scope, per = (*(more[:-1] if staged else more), "", "")[:2]
        if staged:
            more = more[:-1]
        if (
            len(more) > 2
            or (more and not all(more))
            or scope not in ("", "layer", "global", "raw")
            or per not in ("", "params", "macs")
        ):
            raise InputError(
                f"methods: expected NAME, NAME:layer, NAME:global, NAME:raw or NAME:global:params (or :macs), of joint with :{STAGED} behind it, got {name!r}"
            )
        if scope and not per and not reads(method, "scope"):
            raise InputError(
                f"methods: {method} ranks nothing by scope, got {name!r}; expected {method}, or {method}:global:params (or :macs)"
            )
        if self.options.per == "latency":
            raise InputError("per: latency is of a machine, and prune measures it; expected unit, params or macs")
        chosen: dict[str, Any] = {"scope": scope or self.options.scope, "per": per or self.options.per}
        options = replace(self.options, seed=seed, **chosen)
        if staged:
            by_outputs = options.per != "unit" and options.price == "change"
            options = replace(
                options, stages=options.stages or STAGES, price="outputs" if by_outputs else options.price
            )
        options = replace(options, **forgotten(method, options))  # what is for others is not this method's
        check_options(method, options)
        return method, options


def _at_ratios(option: str, texts: tuple[str, ...]) -> dict[str, tuple[float, ...] | None]:
    """`NAME` or `NAME@RATIO/RATIO`: the ratios by name, None for all. Raises InputError."""
    found: dict[str, tuple[float, ...] | None] = {}
    for text in texts:
        name, at, ratios = text.partition("@")
        try:
            found[name] = tuple(float(r) for r in ratios.split("/")) if at else None
        except ValueError:
            raise InputError(f"{option}: expected NAME or NAME@RATIO/RATIO, got {text!r}") from None
    return found
