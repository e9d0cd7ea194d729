"""A pruning path: the one result of every method. Any target inside it is a prefix of it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from cswap.causal.engine import Scores
from cswap.causal.stats import EffectStats
from cswap.errors import MismatchError, TargetError
from cswap.structure.check import Agreement, agreement
from cswap.structure.groups import Removed, Structure
from cswap.structure.ledger import Ledger, RoundedLedger, check_reachable
from cswap.structure.surgery import KeptIndices, count_params, kept_indices, pruned_copy
from cswap.types import TESTS, Cliff, Decision, FloatArray, Ratio, Target, Verdict


class Sink(Protocol):
    """Who hears of decisions as they are made: a journal, a progress line."""

    def decided(self, decision: Decision, stats: EffectStats | None) -> None:
        """One decision, with the statistics behind it where there are any."""

    def tested(self, group: str, found: Mapping[str, Any], done: int, groups: int) -> None:
        """What the tests of a whole group's units gave, plain JSON values, before anything is decided: the `done`-th of `groups`."""

    def keep(self, step: int, scores: Scores, watched: Watched) -> None:
        """Decision `step`, told next, leaves the network with these scores, and the watch on quality in this state."""

    def cliff(self, cliff: Cliff) -> None:
        """Calibration quality fell early and fast."""

    def note(self, text: str) -> None:
        """Which engine is in use, and what it could not do."""


def tested_key(number: int, group: str) -> str:
    """What a sink is told that tests are of: a group of the original (stage 0), what a later stage has left of it, or, without a group, a stage's
    trial."""
    return f"{group} #{number}" if group and number else group or f"#{number}"


NOTHING_LEFT = "nothing is left to remove"
"""How a path that is complete ended."""


@dataclass(frozen=True)
class Watched:
    """What the watch on calibration quality remembers: (units gone, quality, quality by class), and cliffs told."""

    seen: tuple[tuple[int, float, FloatArray], ...] = ()
    cliffs: tuple[Cliff, ...] = ()


@dataclass(frozen=True)
class Kept:
    """State after decision `step` of an interrupted run."""

    step: int
    scores: Scores
    watched: Watched


@dataclass(frozen=True)
class Start:
    """What an earlier run left: its decisions, the state after the last one that changed the scores, if it is finished
    (then it keeps no state) the cliffs it told of, and by group what its tests gave before anything was decided.
    """

    decisions: tuple[Decision, ...] = ()
    kept: Kept | None = None
    cliffs: tuple[Cliff, ...] = ()
    tested: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


class Silence:
    """A sink that nobody listens to."""

    def decided(self, decision: Decision, stats: EffectStats | None) -> None:
        """Ignore it."""

    def tested(self, group: str, found: Mapping[str, Any], done: int, groups: int) -> None:
        """Ignore it."""

    def keep(self, step: int, scores: Scores, watched: Watched) -> None:
        """Ignore it."""

    def cliff(self, cliff: Cliff) -> None:
        """Ignore it."""

    def note(self, text: str) -> None:
        """Ignore it."""


@dataclass(frozen=True)
class Surgery:
    """What was done to a pruned module; `PruningPath.apply` leaves it on the module as `_cswap`."""

    target: Target
    ratio: Ratio
    steps: int
    removed: Removed
    kept: KeptIndices
    structure: Structure
    agreement: Agreement | None = None


@dataclass(eq=False)
class PruningPath:
    """Decisions in order. `complete`: nothing could be added; `ended`: why it stopped."""

    structure: Structure
    method: str
    options: dict[str, Any]
    classes: tuple[str, ...]
    decisions: list[Decision] = field(default_factory=list)
    cliffs: list[Cliff] = field(default_factory=list)
    ended: str = ""
    engine: str = ""  # how effects were evaluated
    notes: list[str] = field(default_factory=list)  # what the engine could not do its fast way, and why
    sensitivity: dict[str, Any] | None = field(
        default=None, repr=False
    )  # `joint`: quality lost against ratio, by group
    of_run: bool = False  # whether `cswap prune` keeps it, which can go on with it
    example: torch.Tensor | None = field(default=None, repr=False)  # real inputs, on which `apply` checks its work

    def __iter__(self) -> Iterator[Decision]:
        return iter(self.decisions)

    def __len__(self) -> int:
        return len(self.decisions)

    def __getitem__(self, index: int) -> Decision:
        return self.decisions[index]

    @property
    def ratio(self) -> Ratio:
        """What removing everything on the path reaches."""
        return next((d.ratio for d in reversed(self.decisions) if d.removed), Ratio())

    @property
    def stopped_by_quality(self) -> bool:
        """Whether --max-drop ended it, so that no run of these options goes on from there."""
        return self.ended.startswith("max-drop")

    def verdicts(self) -> dict[str, int]:
        """How many units got each verdict."""
        latest = {(d.group, d.unit): d.verdict for d in self.decisions if d.verdict is not None}
        counts = Counter(str(v) for v in latest.values())
        return {name: counts.get(name, 0) for name in ("critical", "neutral", "detrimental")}

    def prefix(self, target: Target | str, round_to: int = 1) -> tuple[Removed, int, Ratio]:
        """Units to remove for `target`, the number of decisions that takes, and the ratio reached.

        `round_to`: units go only when what is left of their group has a width that is a multiple of it (`RoundedLedger`).
        Raises TargetError when the path ends before the target, or the target has to be measured.
        """
        target = Target.parse(target)
        if target.kind == "latency":
            raise TargetError(
                f"target {target}: a latency is measured by `cswap prune` and `cswap apply`; expected params=F, macs=F or units=F"
            )
        ledger = Ledger(self.structure) if round_to == 1 else RoundedLedger(self.structure, round_to)
        if target.value == 0:
            return {}, 0, Ratio()
        if target.kind == "noncritical":
            tested = sum(d.phase in TESTS for d in self.decisions)
            if tested < self.structure.units:
                raise TargetError(
                    f"target noncritical: the path tested {tested} of {self.structure.units} units ({self.ended or 'partial'})"
                    f"; {self._going_on(target)}"
                )
        steps = 0
        for steps, d in enumerate(self.decisions, 1):
            if target.kind == "noncritical" and d.phase not in TESTS and d.verdict is Verdict.CRITICAL:
                return ledger.removed(), steps - 1, ledger.ratio()
            if d.removed:
                ledger.remove(self.structure[d.group], d.unit)
                if target.reached(ledger.ratio()):
                    return ledger.removed(), steps, ledger.ratio()
        ratio = ledger.ratio()
        if target.value is not None:
            raise TargetError(self._beyond(target, round_to, ratio))
        return ledger.removed(), steps, ratio

    def _beyond(self, target: Target, round_to: int, ratio: Ratio) -> str:
        """Why a prefix for this target is not to be had, and what can be done."""
        check_reachable(self.structure, target, round_to)
        far, ended = ratio.as_dict()[target.kind], self.ended or "partial"
        whole = self.ratio.as_dict()[target.kind]
        said = f"target {target} lies beyond the path, which ended at {target.kind}={whole:.4f} ({ended})"
        if round_to > 1:
            said += f", of which widths that are multiples of {round_to} leave {target.kind}={far:.4f}"
        if ended == NOTHING_LEFT or self.stopped_by_quality:
            return f"{said}; expected a smaller one" + " or another --round-to" * (round_to > 1)
        return f"{said}; {self._going_on(target)}"

    def _going_on(self, target: Target) -> str:
        if self.of_run:
            return f"`cswap prune … --resume --target {target}` goes on from there"
        return f'prune_path(…, target="{target}") makes a longer one'

    def apply(self, model: nn.Module, target: Target | str, round_to: int = 1) -> nn.Module:
        """A new, smaller module, compared with the masked one where the path knows real inputs; `model` is untouched.

        `round_to`: see `prefix`.

        Raises TargetError when the path ends before the target, MismatchError when the two disagree.
        """
        target = Target.parse(target)
        removed, steps, ratio = self.prefix(target, round_to)
        agreed = None
        if self.example is not None:
            agreed = agreement(model, self.structure, removed, self.example)
            if not agreed.ok:
                alone = [g for g in removed if not agreement(model, self.structure, {g: removed[g]}, self.example).ok]
                cause = f"; by itself so does {', '.join(alone)}, which --exclude leaves alone" if alone else ""
                raise MismatchError(f"{agreed}{cause}; nothing was written")
        small: Any = pruned_copy(model, self.structure, removed)
        left, counted = count_params(small), round((1 - ratio.params) * self.structure.total_params)
        if left != counted:
            raise MismatchError(
                f"the path says that {counted:,} parameters are left, the pruned network has {left:,}; nothing was written"
            )
        small._cswap = Surgery(
            target, ratio, steps, removed, kept_indices(self.structure, removed), self.structure, agreed
        )
        return small  # type: ignore[no-any-return]

    def to_json(self) -> str:
        """All decisions as one JSON array, a decision a line, every class included."""
        lines = (json.dumps(d.as_dict(telling=len(self.classes)), allow_nan=False) for d in self.decisions)
        return "[" + ",\n".join(lines) + "]"

    def to_frame(self) -> Any:
        """A pandas DataFrame, one row a decision, `p:CLASS` and `mean:CLASS` columns; needs pandas."""
        try:
            import pandas as pd  # type: ignore[import-untyped,import-not-found,unused-ignore]
        except ImportError as error:
            from cswap.errors import MissingPartError

            raise MissingPartError.of(error, "to_frame needs pandas", "frame", "pandas") from None
        rows = []
        for d in self.decisions:
            row = {k: v for k, v in d.as_dict(telling=0).items() if k not in ("ratio", "classes")}
            row |= {f"removed_{k}": v for k, v in d.ratio.as_dict().items()}
            for e in d.effects.values() if d.effects is not None else ():
                row |= {f"mean:{e.name}": e.mean, f"p:{e.name}": e.p}
            rows.append(row)
        return pd.DataFrame(rows)

    def __str__(self) -> str:
        head = f"{'step':>5} {'phase':<7} {'group':<28} {'unit':>5} {'verdict':<11} {'xi':>9} {'gone':<5} reason"
        return "\n".join([head, *(_line(d) for d in _shown(self.decisions)), self._total()])

    def _total(self) -> str:
        r = self.ratio
        return f"{len(self)} decisions by {self.method}; removed params {r.params:.4f}, macs {r.macs:.4f}, units {r.units:.4f}"


def _shown(decisions: Sequence[Decision], most: int = 40) -> Sequence[Decision]:
    return decisions if len(decisions) <= most else [*decisions[: most // 2], *decisions[-most // 2 :]]


def _line(d: Decision) -> str:
    xi = "" if d.xi is None else f"{d.xi:9.4f}"
    gone = "yes" if d.removed else "no"
    return f"{d.step:>5} {d.phase:<7} {d.group:<28} {d.unit:>5} {d.verdict or '':<11} {xi:>9} {gone:<5} {d.reason}"


def quality_by_class(quality: np.ndarray[Any, Any], targets: np.ndarray[Any, Any], classes: int) -> list[float]:
    """Mean quality of each class's samples; NaN for a class without any."""
    return [float(quality[targets == k].mean()) if (targets == k).any() else float("nan") for k in range(classes)]
