"""What is heard and timed of a run."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from cswap.causal.engine import Scores
from cswap.causal.stats import EffectStats
from cswap.methods.path import Silence, Sink, Watched
from cswap.structure.groups import Structure
from cswap.types import Cliff, Decision, Target


@dataclass
class Clock:
    """Seconds by phase."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time one phase."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = round(self.seconds.get(name, 0.0) + time.perf_counter() - start, 3)


class Watcher(Silence):
    """What a caller may hear of a run: structure, phases, decisions, cliffs. Overridden by the command line."""

    def phase(self, name: str) -> None:
        """A phase begins."""

    def method(self, name: str, seed: int) -> None:
        """One of several methods begins, with its calibration seed."""
        self.note(f"{name}, seed {seed}")

    def structure(self, structure: Structure, target: Target) -> None:
        """What can be pruned is known."""


@dataclass(frozen=True)
class Both:
    """Two sinks as one."""

    first: Sink
    second: Sink

    def decided(self, decision: Decision, stats: EffectStats | None) -> None:
        self.first.decided(decision, stats)
        self.second.decided(decision, stats)

    def tested(self, group: str, found: Mapping[str, Any], done: int, groups: int) -> None:
        self.first.tested(group, found, done, groups)
        self.second.tested(group, found, done, groups)

    def keep(self, step: int, scores: Scores, watched: Watched) -> None:
        self.first.keep(step, scores, watched)
        self.second.keep(step, scores, watched)

    def cliff(self, cliff: Cliff) -> None:
        self.first.cliff(cliff)
        self.second.cliff(cliff)

    def note(self, text: str) -> None:
        self.first.note(text)
        self.second.note(text)
