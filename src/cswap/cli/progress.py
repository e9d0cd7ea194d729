"""Progress of long work: a live line on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from cswap.causal.stats import EffectStats
from cswap.cli.console import Console, shown
from cswap.errors import CswapError
from cswap.pipeline import Watcher
from cswap.structure.groups import Structure
from cswap.types import RATIO_KINDS, TESTS, Cliff, Decision, Target

_EVERY = 15.0  # seconds between plain lines
_PHASES = {
    "load": "loading model and data",
    "structure": "finding and verifying groups",
    "analysis": "analysing",
    "surgery": "pruning, and comparing masked with pruned",
    "evaluation": "evaluating on held-out data",
    "cost": "measuring latency",
}


class Stop:
    """Whether Ctrl-C or SIGTERM came: what it raises can be lost in native code, which goes on or ends with an error."""

    came = False

    def heed(self) -> None:
        """Stop here, if one came."""
        if self.came:
            raise KeyboardInterrupt


STOP = Stop()


class ProgressLine(Watcher):
    """Shows phases, counts of verdicts, ratio reached and the time left, as far as it is known."""

    def __init__(self, quiet: bool) -> None:
        self.console = Console(stderr=True, highlight=False, soft_wrap=True)
        self.quiet, self.live = quiet, self.console.is_terminal and not quiet
        self.bar = Progress(
            TextColumn("{task.description}"), BarColumn(bar_width=24), TimeElapsedColumn(), TextColumn("{task.fields[left]}"),
            console=self.console, transient=True,
        )  # fmt: skip
        self.counts = {"critical": 0, "neutral": 0, "detrimental": 0}
        self.total, self.done, self.begin, self.last = 0, 0, time.monotonic(), time.monotonic()
        self.target: Target | None = None
        self.task = self.bar.add_task("", total=None, left="")

    def __enter__(self) -> ProgressLine:
        if self.live:
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live:
            self.bar.stop()

    def line(self, text: str) -> None:
        """A line on standard error."""
        STOP.heed()
        if not self.quiet:
            self.console.print(text, markup=False)

    def phase(self, name: str) -> None:
        STOP.heed()
        self.begin = self.last = time.monotonic()
        if self.live:
            self.bar.update(self.task, description=_PHASES.get(name, name), total=None, completed=0, left="")
        else:
            self.line(_PHASES.get(name, name))

    def structure(self, structure: Structure, target: Target) -> None:
        STOP.heed()
        self.total, self.target = structure.units, target
        left = f"; {len(structure.left_out)} left out" if structure.left_out else ""
        self.line(f"{len(structure)} groups, {structure.units} units{left}")

    def method(self, name: str, seed: int) -> None:
        """What is counted and timed is of this method."""
        self.done, self.begin, self.counts = 0, time.monotonic(), dict.fromkeys(self.counts, 0)
        self.line(f"{name}, seed {seed}")

    def note(self, text: str) -> None:
        self.line(text)

    def decided(self, decision: Decision, stats: EffectStats | None) -> None:
        STOP.heed()
        self.done += 1
        if decision.phase in TESTS and decision.verdict is not None:
            self.counts[str(decision.verdict)] += 1
        text = self._state(decision)
        if self.live:
            self.bar.update(
                self.task,
                description=text,
                total=1000,
                completed=int(1000 * self._share(decision)),
                left=self._left(decision),
            )
        elif time.monotonic() - self.last >= _EVERY:
            self.last = time.monotonic()
            self.line(f"{text}; {self._left(decision)}")

    def tested(self, group: str, found: Mapping[str, Any], done: int, groups: int) -> None:
        STOP.heed()
        text, gone = f"tested {group}: {done} of {groups} groups", time.monotonic() - self.begin
        if "away" in found:
            text = f"stage {group}: tried {len(found['away'])} ways to share it between groups"
        if self.live:
            self.bar.update(self.task, description=text, total=groups, completed=done, left="")
        elif time.monotonic() - self.last >= _EVERY:
            self.last = time.monotonic()
            self.line(f"{text}; {gone:.0f} s so far")

    def _state(self, d: Decision) -> str:
        seen = ", ".join(f"{n} {name}" for name, n in self.counts.items() if n)
        kind = self.target.kind if self.target is not None and self.target.kind in RATIO_KINDS else "params"
        return f"{d.phase} {d.group}: {self.done} decisions ({seen or 'ranking'}), {kind} {d.ratio.as_dict()[kind]:.4f} removed"

    def _share(self, d: Decision) -> float:
        """How far along: by the ratio reached where there is a target, else by the units judged."""
        walked = min(1.0, self.done / max(1, self.total))
        if self.target is None or not self.target.value or self.target.kind not in RATIO_KINDS:
            return walked
        return min(1.0, d.ratio.as_dict()[self.target.kind] / self.target.value)

    def _left(self, d: Decision) -> str:
        """The time left at the pace so far; until the ratio moves, at most the rest of the walk is known."""
        share, gone, bound = self._share(d), time.monotonic() - self.begin, "about"
        if share <= 0.02:
            share, bound = min(1.0, self.done / max(1, self.total)), "at most about"
        if share <= 0.005 or gone < 2:
            return ""
        left = gone * (1 - share) / share
        return f"{bound} {left / 60:.0f} min left" if left >= 90 else f"{bound} {left:.0f} s left"

    def cliff(self, cliff: Cliff) -> None:
        self.line(f"warning: {cliff}")


class Interrupted(CswapError):
    """Ctrl-C or SIGTERM, with what is kept: typer would end without a word."""

    exit_status = 130


def say_error(message: str) -> None:
    """One line on standard error, which may be closed or full."""
    with suppress(OSError, ValueError):
        print("cswap: " + shown(" ".join(message.split())), file=sys.stderr)
