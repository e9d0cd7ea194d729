"""Seconds that an interrupted run has spent, kept beside what it has done."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cswap.artifacts.files import read_json, write_json
from cswap.causal.stats import EffectStats
from cswap.errors import ArtifactError
from cswap.methods.path import Silence
from cswap.types import Decision

_EVERY = 5.0  # seconds between two looks that are kept: a run that is killed forgets no more


class KeptClock(Silence):
    """Seconds spent under a name over all runs; as a sink it keeps them while decisions come. `seconds`: those so far."""

    def __init__(self, file: Path) -> None:
        self.file, self.before, self.began, self.kept = file, 0.0, time.perf_counter(), 0.0
        with contextlib.suppress(ArtifactError, KeyError, TypeError, ValueError):
            self.before = float(read_json(file)["seconds"]) if file.exists() else 0.0

    @property
    def seconds(self) -> float:
        return self.before + time.perf_counter() - self.began

    def decided(self, decision: Decision, stats: EffectStats | None) -> None:
        """Something was done."""
        self.look()

    def tested(self, group: str, found: Mapping[str, Any], done: int, groups: int) -> None:
        """Something was done."""
        self.look()

    def look(self) -> None:
        """Keep the seconds so far, now and then."""
        if time.perf_counter() - self.kept >= _EVERY:
            self.keep_seconds()

    def keep_seconds(self) -> None:
        """A disk that takes no more is told by what is worth more than seconds."""
        self.kept = time.perf_counter()
        with contextlib.suppress(OSError):
            write_json(self.file, {"seconds": round(self.seconds, 3)})


@contextlib.contextmanager
def timed(file: Path, *, going_on: bool) -> Iterator[KeptClock]:
    """A clock that goes on from what an earlier run kept, or starts anew; kept at the end, whatever ends it, if anything was done."""
    if not going_on:
        with contextlib.suppress(OSError):
            file.unlink(missing_ok=True)
    clock = KeptClock(file)
    try:
        yield clock
    except BaseException:
        if clock.kept:
            clock.keep_seconds()
        raise
    clock.keep_seconds()
