"""The settings of a method. The defaults are exactly the paper's mode (method.md)."""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass
from typing import Any

from cswap.causal.margins import margins_of, rising
from cswap.causal.sequential import STAGES
from cswap.causal.verdicts import VoteRule
from cswap.errors import InputError

_BLOCK = re.compile(r"block:([1-9][0-9]{0,5})")
MOST_FOLDS = 10
AS_BEFORE = ("folds", "stages")
"""Options whose default is what was done before there was one: a run from then goes on with it."""
_CHOICES = {
    "vote_score": ("class", "sample"),
    "reference": ("current", "original"),
    "order": ("index", "reverse", "random"),
    "buffer_order": ("signed", "abs"),
    "effects": ("full", "verdict", "sequential"),
    "cut": ("plain", "compensated"),
    "scope": ("layer", "global", "raw"),
    "per": ("unit", "params", "macs", "latency"),
    "price": ("change", "outputs", "loss"),
    "norm": ("l1", "l2"),
    "surrogate": ("obs", "taylor", "fisher"),
}


def stages_of(text: str) -> tuple[float, ...]:
    """Fractions separated by commas, ascending, between 0 and 1; none for an empty text. Raises InputError."""
    found = rising(text)
    if text and not found:
        raise InputError(f"stages: expected ascending fractions between 0 and 1, separated by commas, got {text!r}")
    return found


@dataclass(frozen=True)
class Options:
    """alpha, vote, correction, min_effect: see VoteRule. xi_floor: least denominator of ξ. reference: whose scores
    decide that a removal is allowed. granularity: "block:N" has `cswap` test N units of a group together (ours). order: units within a group. buffer_order: largest signed ξ, or smallest |ξ|,
    first. max_drop: stop when calibration quality fell by more. effects: "sequential" looks at a part of the samples first, "verdict" leaves a critical unit as soon as one
    class needs it. amp: replay in bfloat16 where it is automatic (ours; verdicts may differ). cut: "compensated"
    judges a removal after the layers that read the unit make up for it (ours). scope: for rankings; "raw" compares scores of all groups as they are. per: for
    global rankings the score a unit, for `cswap` and `cbp` the loss of a critical one, or that a parameter, MAC or measured millisecond (ours). norm: for
    `magnitude`. swaps: `obs` exchanges units that went for units that stay where that costs less (ours). margins: of `joint`, ascending, in mean score (ours). price: of `joint` with `per`, the mean square of a set's change of score or of outputs, or the mean score it loses (ours).
    surrogate: of `joint`, what orders a group's units (ours). folds: of `joint`, a set is tested on each of so many parts of every class's samples,
    compensated from the others; 1: on the samples that compensate it (ours). stages: of `joint`, fractions removed, ascending, at which the network is refitted
    and all that is left is tested anew (ours).
    """

    alpha: float = 0.05
    vote: str = "class"
    vote_score: str = "class"
    correction: str = "none"
    min_effect: float = 0.0
    xi_floor: float = 1e-3
    reference: str = "current"
    granularity: str = "unit"
    order: str = "index"
    buffer_order: str = "signed"
    max_drop: float | None = None
    effects: str = "full"
    amp: bool = False
    cut: str = "plain"
    scope: str = "layer"
    per: str = "unit"
    price: str = "change"
    norm: str = "l1"
    swaps: bool = False
    margins: str = "0.01,0.02,0.05,0.1,0.2,0.4"
    surrogate: str = "obs"
    folds: int = 1
    stages: str = ""
    seed: int = 0

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                shown = name.replace("_", "-")
                raise InputError(f"{shown}: expected one of {', '.join(choices)}, got {getattr(self, name)!r}")
        if not 0 <= self.seed < 2**63:
            raise InputError(f"seed: expected a number of at least 0 and below 2⁶³, got {self.seed}")
        if not 0 < self.xi_floor < math.inf:
            raise InputError(f"xi-floor: expected a finite number above 0, got {self.xi_floor}")
        if self.max_drop is not None and not 0 <= self.max_drop < 1:
            raise InputError(f"max-drop: expected a fraction in [0, 1), got {self.max_drop}")
        if not 1 <= self.folds <= MOST_FOLDS:
            raise InputError(f"folds: expected a number from 1 to {MOST_FOLDS}, got {self.folds}")
        _ = self.rule, self.block, margins_of(self.margins), stages_of(self.stages)  # validate the rest
        if self.effects != "full" and (self.vote, self.correction) != ("class", "none"):
            raise InputError(
                f"effects: {self.effects} goes with --vote class and --correction none (the others need every class), "
                f"got --vote {self.vote} and --correction {self.correction}"
            )

    @property
    def block(self) -> int:
        """How many units are judged together. Raises InputError."""
        found = _BLOCK.fullmatch(self.granularity)
        if self.granularity != "unit" and found is None:
            raise InputError(f"granularity: expected unit or block:N, got {self.granularity!r}")
        return int(found[1]) if found else 1

    @property
    def rule(self) -> VoteRule:
        """The vote these options ask for; with sequential effects at the share of α that the last stage has."""
        alpha = self.alpha * (STAGES[-1][1] if self.effects == "sequential" else 1.0)
        return VoteRule(alpha, self.vote, self.correction, self.min_effect)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)
