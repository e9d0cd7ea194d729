"""Watching calibration quality while a path is built: cliffs, and the limit of --max-drop."""

from __future__ import annotations

import numpy as np

from cswap.causal.engine import Scores
from cswap.methods.path import Sink, Watched, quality_by_class
from cswap.types import Cliff, FloatArray, IntArray

_FALL = 0.10  # of the unpruned quality, within the window
_WINDOW = 0.02  # of all units


class QualityWatch:
    """Keeps quality by step; a fall of 10 % of the unpruned quality within 2 % of the units is a cliff, told once."""

    def __init__(self, first: Scores, targets: IntArray, classes: tuple[str, ...], units: int, sink: Sink) -> None:
        self.base = float(first.quality.mean())
        self.targets, self.classes, self.sink = targets, classes, sink
        self.window = max(1, round(_WINDOW * units))
        self.cliffs: list[Cliff] = []
        self._seen: list[tuple[int, float, FloatArray]] = [(0, self.base, self._classes(first))]

    def _classes(self, scores: Scores) -> FloatArray:
        if scores.by_class is not None:
            there = ~np.isnan(scores.by_class)
            sums = np.where(there, scores.by_class, 0.0).sum(0)
            return np.where(there.any(0), sums / np.maximum(there.sum(0), 1), np.nan)
        return np.asarray(quality_by_class(scores.quality, self.targets, len(self.classes)))

    def restart(self, gone: int, scores: Scores) -> None:
        """Go on from the network as pruned so far: what fell before is no news."""
        self._seen = [(gone, float(scores.quality.mean()), self._classes(scores))]

    def state(self) -> Watched:
        """For the journal."""
        return Watched(tuple(self._seen), tuple(self.cliffs))

    def restore(self, watched: Watched) -> None:
        """Go on as the run that was interrupted would have."""
        self._seen, self.cliffs = list(watched.seen), list(watched.cliffs)

    def saw(self, gone: int, step: int, group: str, scores: Scores) -> float:
        """Note the quality after `gone` removals; returns how far it fell below the unpruned network's."""
        quality, by_class = float(scores.quality.mean()), self._classes(scores)
        self._seen.append((gone, quality, by_class))
        while len(self._seen) > 2 and self._seen[1][0] <= gone - self.window:
            self._seen.pop(0)
        _, before, classes_before = self._seen[0]
        if not self.cliffs and before - quality >= _FALL * self.base:
            fell = classes_before - by_class
            worst = [k for k in np.argsort(-fell) if fell[k] > before - quality][:3]
            found = Cliff(step, group, before, quality, tuple(self.classes[k] for k in worst))
            self.cliffs.append(found)
            self.sink.cliff(found)
        return self.base - quality
