"""The calibration set S = S_1 + ... + S_K: balanced, drawn from the training split with a seed."""

from __future__ import annotations

import hashlib
import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, Subset, TensorDataset

from cswap.data.text import trimmed
from cswap.data.truth import (
    Truth,
    bytes_of,
    collated,
    inputs_of,
    kind_of,
    members_of,
    not_finite,
    part,
    raw_bytes,
    sample_of,
    stacked,
    target_at,
)
from cswap.errors import CswapWarning, DataError
from cswap.types import BoolArray, IntArray

CACHE_BYTES = 2 << 30


def labels_of(dataset: Dataset[Any]) -> IntArray:
    """Class number of every sample, without loading inputs where the dataset says so itself."""
    if isinstance(dataset, Subset):
        return labels_of(dataset.dataset)[np.asarray(dataset.indices, dtype=np.int64)]
    if isinstance(dataset, TensorDataset) and len(dataset.tensors) >= 2:
        labels = dataset.tensors[1].cpu().numpy()
        return _whole_numbers(labels) if labels.dtype.kind == "f" else labels.astype(np.int64)
    for attribute in ("targets", "labels", "_labels"):
        values = getattr(dataset, attribute, None)
        if values is not None and len(values) == len(dataset):  # type: ignore[arg-type]
            return _whole_numbers(values)
    return _whole_numbers([sample_of(dataset, i)[1] for i in range(len(dataset))])  # type: ignore[arg-type]


def _whole_numbers(values: Any) -> IntArray:
    try:
        found = np.asarray([float(v) for v in values])
    except (TypeError, ValueError) as error:
        raise DataError(f"labels: expected one class number a sample ({str(error)[:100]})") from None
    if (found != np.floor(found)).any():
        raise DataError(f"labels: expected class numbers, got {found[found != np.floor(found)][0]:g}")
    return found.astype(np.int64)


def classes_held(dataset: Dataset[Any]) -> int:
    """K: as many as the dataset names, else one more than the largest class number."""
    inner: Any = dataset
    while isinstance(inner, Subset):
        inner = inner.dataset
    named = getattr(inner, "classes", None)
    if named is not None:
        return len(named)
    members = members_of(dataset)
    return members.shape[1] if members is not None else int(labels_of(dataset).max(initial=-1)) + 1


def counted(names: Any, most: int = 6) -> str:
    """How many there are, and the first of them."""
    return f"{len(names)} ({', '.join(str(n) for n in names[:most])}{', …' if len(names) > most else ''})"


def class_names(dataset: Dataset[Any], classes: int) -> tuple[str, ...]:
    """The dataset's own class names, or the class numbers."""
    inner: Any = dataset
    while isinstance(inner, Subset):
        inner = inner.dataset
    names = getattr(inner, "classes", None)
    if names is not None and len(names) == classes:
        return tuple(str(n) for n in names)
    return tuple(str(k) for k in range(classes))


class CalibrationSet:
    """M samples in class order, loaded in ranges; inputs are kept in memory while they fit CACHE_BYTES.

    `targets` (M,) int64: the class each was drawn for; `classes`: K names; `indices` (M,): positions in the dataset they
    came from; `members` (M, K): the classes each holds, where a sample may hold several (masks, boxes), else None; `ranks` (M,): its
    place in the draw, of several classes the first: a draw of n a class holds exactly those below n.
    """

    def __init__(
        self, dataset: Dataset[Any], indices: IntArray, targets: IntArray, classes: Sequence[str], members: BoolArray | None = None,
        ranks: IntArray | None = None,
    ) -> None:  # fmt: skip
        self.dataset, self.indices, self.targets, self.members = dataset, indices, targets, members
        self.ranks = np.zeros(len(indices), dtype=np.int64) if ranks is None else ranks
        self.classes = tuple(classes)
        self._cache: torch.Tensor | None = None
        self._too_large = False
        self._truth: Truth | None = None
        self._fingerprint: str | None = None
        self._digests: list[bytes] | None = None

    def __len__(self) -> int:
        return len(self.indices)

    def part(self, numbers: IntArray) -> CalibrationSet:
        """The samples of these numbers alone, in the same classes."""
        members = None if self.members is None else self.members[numbers]
        made = CalibrationSet(
            self.dataset, self.indices[numbers], self.targets[numbers], self.classes, members, self.ranks[numbers]
        )
        if self._cache is not None:  # text keeps the width of the whole set, so that every process computes the same
            made._cache = self._cache[torch.from_numpy(numbers)]
        return made

    @property
    def counts(self) -> IntArray:
        """M_k, (K,): samples that hold class k."""
        counted = (
            np.bincount(self.targets, minlength=len(self.classes)) if self.members is None else self.members.sum(0)
        )
        return np.asarray(counted, dtype=np.int64)

    def _load(self, start: int, stop: int) -> torch.Tensor:
        loaded = self._samples(start, stop, lambda i: inputs_of(self.dataset, i))
        for i, own in zip(self.indices[start:stop], loaded, strict=True):
            if not_finite(own.unsqueeze(0)):
                raise DataError(f"calibration: sample {i} of the data: expected finite inputs, got NaN or Inf")
        return stacked(loaded)

    def _samples(self, start: int, stop: int, read: Callable[[int], Any]) -> list[Any]:
        """What is read of each sample, the same for its index every time, also where a transform draws at random."""
        state = random.getstate()
        loaded = []
        try:
            with torch.random.fork_rng(devices=[]):
                for i in self.indices[start:stop]:
                    torch.manual_seed(int(i))
                    random.seed(int(i))
                    loaded.append(read(int(i)))
        finally:
            random.setstate(state)
        return loaded

    def inputs(self, start: int, stop: int) -> torch.Tensor:
        """Inputs of samples start … stop − 1, (N, …); text is padded to the longest sentence of the whole set."""
        cache = self._cached()
        return self._load(start, stop) if cache is None else cache[start:stop]

    def _cached(self) -> torch.Tensor | None:
        """All inputs, loaded once, where they fit."""
        if self._cache is None and not self._too_large:
            first = self._load(0, 1)
            self._too_large = first.numel() * first.element_size() * len(self) > CACHE_BYTES
            if not self._too_large:
                self._cache = trimmed(self._load(0, len(self)))
        return self._cache

    def ends(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs of the first and of the last sample, (1, …) each: of two classes, where there are two."""
        last = len(self) - 1
        return self.inputs(0, 1), self.inputs(last, last + 1)

    def some(self, most: int = 32) -> torch.Tensor:
        """Inputs of at most so many samples, of all classes alike, (n, …)."""
        m = len(self)
        return self.of(np.unique(np.linspace(0, m - 1, min(most, m)).round().astype(np.int64)))

    def of(self, numbers: IntArray) -> torch.Tensor:
        """Inputs of these samples, in this order, (n, …)."""
        if (cache := self._cached()) is not None:
            return cache[torch.from_numpy(numbers)]
        return torch.cat([self._load(int(i), int(i) + 1) for i in numbers])

    @property
    def kind(self) -> str:
        """What samples are labelled with: "class numbers", "masks" or "boxes"."""
        return "class numbers" if self.members is None else kind_of(target_at(self.dataset, 0))

    def truth(self, numbers: IntArray | slice) -> Truth:
        """What a task is given of these samples: class numbers (n,), masks (n, H, W), or a list of boxes."""
        if self.members is None:
            return torch.from_numpy(self.targets[numbers])
        if self._truth is None:
            self._truth = collated(self._samples(0, len(self), lambda i: target_at(self.dataset, i)))
        return part(self._truth, numbers)

    def batches(self, size: int) -> Iterator[tuple[torch.Tensor, Truth]]:
        """(inputs, what the task is given) in sample order."""
        for start in range(0, len(self), size):
            stop = min(start + size, len(self))
            yield self.inputs(start, stop), self.truth(slice(start, stop))

    def digests(self) -> list[bytes]:
        """Of every sample what another one's inputs do not have, M in all. Reads them once."""
        if self._digests is None:
            self._digests = [digest_of(self.inputs(i, i + 1)[0]) for i in range(len(self))]
        return self._digests

    def fingerprint(self) -> str:
        """Hash of what was drawn: indices, class names, every input and target. Reads them once."""
        if self._fingerprint is not None:
            return self._fingerprint
        digest = hashlib.sha256()
        for array in (self.indices, self.targets, *([] if self.members is None else [self.members])):
            digest.update(array.tobytes())
        digest.update("\0".join(self.classes).encode())
        for i in range(len(self)):
            digest.update(raw_bytes(self.inputs(i, i + 1)))
        if self.members is not None:
            for target in self.truth(slice(0, len(self))):
                digest.update(bytes_of(target))
        self._fingerprint = digest.hexdigest()
        return self._fingerprint


def digest_of(inputs: torch.Tensor) -> bytes:
    """Hash of one sample's inputs."""
    own = trimmed(inputs.unsqueeze(0))  # a sentence is the same however wide the padding of its split is
    return hashlib.sha256(raw_bytes(own)).digest()


def calibration_set(
    dataset: Dataset[Any],
    per_class: int = 128,
    seed: int = 0,
    *,
    classes: Sequence[str] | None = None,
    allow_imbalance: bool = False,
) -> CalibrationSet:
    """Draw `per_class` samples of every class without replacement. A smaller draw is a prefix of a larger one.

    A sample that holds several classes (a mask, boxes) counts for each: one order is drawn for all samples, and every class
    takes its first `per_class` of it, so that classes share samples (ours). Raises DataError when a class has fewer (with
    `allow_imbalance`: fewer than two, and a warning otherwise).
    """
    if per_class < 2:
        raise DataError(f"per-class: a paired test needs at least 2 samples a class, got {per_class}")
    if not len(dataset):  # type: ignore[arg-type]
        raise DataError("the calibration data is empty")
    if classes is None:
        classes = class_names(dataset, classes_held(dataset))
    members = members_of(dataset, len(classes))
    labels = labels_of(dataset) if members is None else np.zeros(0, dtype=np.int64)
    if len(labels) and labels.min() < 0:
        raise DataError(f"labels: expected class numbers from 0, got {labels.min()}")
    if len(labels) and labels.max() >= len(classes):
        raise DataError(f"labels: expected class numbers below {len(classes)}, got {labels.max()}")
    chosen, short = [], []
    order = np.random.default_rng(seed).permutation(len(dataset))  # type: ignore[arg-type]
    for k, name in enumerate(classes):
        own = np.flatnonzero(labels == k) if members is None else order[members[order, k]]
        if len(own) < per_class:
            short.append(f"{name} has {len(own)}")
            few = len(own) < 2
            if few or not allow_imbalance:
                hint = "--allow-imbalance takes what there is, --per-class asks for fewer"
                if few:
                    hint = "a paired test needs two: give more of the class, or data without it"
                need = 2 if few else per_class
                raise DataError(f"class {name!r}: expected at least {need} samples, got {len(own)}; {hint}")
        drawn = own if members is not None else np.random.default_rng([seed, k]).permutation(own)
        chosen.append(drawn[:per_class])
    if short:
        warnings.warn(
            f"the calibration set is not balanced: {', '.join(short)} of {per_class}", CswapWarning, stacklevel=2
        )
    indices = np.concatenate(chosen).astype(np.int64)
    ranks = np.concatenate([np.arange(len(c), dtype=np.int64) for c in chosen])
    if members is None:
        return CalibrationSet(dataset, indices, labels[indices], classes, None, ranks)
    drawn_for = np.repeat(np.arange(len(classes), dtype=np.int64), [len(c) for c in chosen])
    first = np.sort(np.unique(indices, return_index=True)[1])  # a sample once, for the first class it was drawn for
    lowest = np.full(len(dataset), len(dataset), dtype=np.int64)  # type: ignore[arg-type]
    np.minimum.at(lowest, indices, ranks)
    return CalibrationSet(
        dataset, indices[first], drawn_for[first], classes, members[indices[first]], lowest[indices[first]]
    )
