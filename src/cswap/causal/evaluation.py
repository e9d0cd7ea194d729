"""How much of a unit's effect is evaluated: on all samples, or class by class until one says that it is needed."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate, pairwise
from typing import Protocol

import numpy as np

from cswap import distributed
from cswap.causal.cut import PlainEngine
from cswap.causal.engine import Engine, Job, Scores
from cswap.causal.first_order import classes_in_order
from cswap.causal.replay import ReplayEngine
from cswap.causal.stats import floored
from cswap.causal.verdicts import VoteRule, class_needs
from cswap.errors import InputError
from cswap.structure.groups import Group
from cswap.types import IntArray


class Evaluation(Protocol):
    """How a walk gets the scores of the units it judges. `nests`: whether `batch` can cut units together."""

    nests: bool

    def enter(self, group: Group) -> None:
        """The engine has entered the group."""

    def together(self, group: Group) -> int:
        """How many pieces are worth evaluating ahead."""

    def batch(
        self, group: Group, pieces: list[list[int]], removing: bool, base: Callable[[], Scores]
    ) -> list[Callable[[], Scores]]:
        """One call a piece (units cut together, mostly one) that gives its scores (M,); nothing runs before the first call.

        `removing`: each piece is cut with those before it, which are guessed to go. `base`: gives the scores without a cut.
        """


def class_spans(engine: Engine, what: str) -> list[tuple[int, int]]:
    """(start, stop) of each class's samples. Raises InputError, naming `what`, where they are not in class order."""
    targets, k = engine.calibration.targets, len(engine.calibration.classes)
    if engine.by_class or engine.calibration.members is not None or (np.diff(targets) < 0).any():
        raise InputError(f"{what}: expected a task with one class a sample, and samples in class order")
    return list(pairwise(int(np.searchsorted(targets, c)) for c in range(k + 1)))


class Full:
    """Every unit on all samples (`--effects full`)."""

    nests = True

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def enter(self, group: Group) -> None:
        """Nothing to prepare."""

    def together(self, group: Group) -> int:
        return self.engine.units_together(group)

    def batch(
        self, group: Group, pieces: list[list[int]], removing: bool, base: Callable[[], Scores]
    ) -> list[Callable[[], Scores]]:
        cuts = list(accumulate(pieces)) if removing else pieces
        found: list[Scores] = []

        def give(i: int) -> Scores:
            if not found:
                found.extend(self.engine.cut(group, cuts))
            return found[i]

        return [lambda i=i: give(i) for i in range(len(pieces))]  # type: ignore[misc]


class FirstCritical:
    """A unit class by class, the likeliest to need it first, until one does (`--effects verdict`).

    The verdict is that of `Full`: a unit is critical as soon as one class says so, and any other verdict takes all
    classes. Samples of classes that were not asked stay NaN. Ours.
    """

    nests = False

    def __init__(self, engine: Engine, rule: VoteRule) -> None:
        self.spans = class_spans(engine, "effects verdict")
        self.engine, self.rule = engine, rule
        self.order: IntArray = np.empty((0, len(self.spans)), dtype=np.int64)

    def enter(self, group: Group) -> None:
        plain = self.engine.plain if isinstance(self.engine, ReplayEngine) else self.engine
        assert isinstance(plain, PlainEngine)
        order = classes_in_order(plain, group)
        # the first process's, so that a rounding difference between machines changes no one's questions
        self.order = np.frombuffer(distributed.from_first(order.tobytes()), dtype=np.int64).reshape(order.shape)

    def together(self, group: Group) -> int:
        return self.engine.units_together(group, max(b - a for a, b in self.spans))

    def batch(
        self, group: Group, pieces: list[list[int]], removing: bool, base: Callable[[], Scores]
    ) -> list[Callable[[], Scores]]:
        first: list[Scores] = []
        at_once = max(1, self.together(group))

        def job(piece: list[int], k: int) -> Job:
            return Job(tuple(piece), *self.spans[k])

        def give(i: int) -> Scores:
            now = base()
            if not first:
                first.extend(self.engine.run(group, [job(p, int(self.order[p[0], 0])) for p in pieces]))
            order = [int(k) for k in self.order[pieces[i][0]]]
            scores = Scores.unknown(len(now.sigma), None)
            scores.put(first[i], slice(*self.spans[order[0]]))
            asked = order[:1]
            while not any(self._needed(k, scores, now) for k in asked):
                rest = [k for k in order if np.isnan(scores.sigma[slice(*self.spans[k])]).any()]
                if not rest:
                    break
                asked = rest[:at_once]
                found = self.engine.run(group, [job(pieces[i], k) for k in asked])
                for k, part in zip(asked, found, strict=True):
                    scores.put(part, slice(*self.spans[k]))
            return scores

        return [lambda i=i: give(i) for i in range(len(pieces))]  # type: ignore[misc]

    def _needed(self, k: int, scores: Scores, base: Scores) -> bool:
        """Whether class k's own test says that it needs the unit."""
        own = slice(*self.spans[k])
        return class_needs(floored(scores.sigma[own] - base.sigma[own]), self.rule)
