"""The calibration set S = S_1 + ... + S_K: balanced, drawn from the training split with a seed."""

from __future__ import annotations

import hashlib
import random
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, Subset, TensorDataset

from cswap.data.text import trimmed
from cswap.errors import CswapWarning, DataError
from cswap.types import IntArray

CACHE_BYTES = 2 << 30


def labels_of(dataset: Dataset[Any]) -> IntArray:
    """Class number of every sample, without loading inputs where the dataset says so itself."""
    if isinstance(dataset, Subset):
        return labels_of(dataset.dataset)[np.asarray(dataset.indices, dtype=np.int64)]
    if isinstance(dataset, TensorDataset) and len(dataset.tensors) >= 2:
        return dataset.tensors[1].cpu().numpy().astype(np.int64)
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


def sample_of(dataset: Any, index: int) -> Any:
    """One sample, (inputs, label, …). Raises DataError that names it."""
    try:
        sample = dataset[index]
    except DataError:
        raise
    except Exception as error:
        raise DataError(
            f"sample {index} of the data cannot be read ({type(error).__name__}: {str(error)[:120]})"
        ) from error
    if not isinstance(sample, tuple | list) or len(sample) < 2:
        raise DataError(f"sample {index} of the data: expected (inputs, label), got {type(sample).__name__}")
    return sample


def inputs_of(dataset: Any, index: int) -> torch.Tensor:
    """The inputs of one sample as a tensor. Raises DataError."""
    given = sample_of(dataset, index)[0]
    try:
        return torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError):
        raise DataError(
            f"sample {index} of the data: expected inputs as a tensor, got {type(given).__name__}"
        ) from None


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

    `targets` (M,) int64; `classes`: K names; `indices` (M,): positions in the dataset they came from.
    """

    def __init__(self, dataset: Dataset[Any], indices: IntArray, targets: IntArray, classes: Sequence[str]) -> None:
        self.dataset, self.indices, self.targets = dataset, indices, targets
        self.classes = tuple(classes)
        self._cache: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.indices)

    def part(self, numbers: IntArray) -> CalibrationSet:
        """The samples of these numbers alone, in the same classes."""
        made = CalibrationSet(self.dataset, self.indices[numbers], self.targets[numbers], self.classes)
        if self._cache is not None:  # text keeps the width of the whole set, so that every process computes the same
            made._cache = self._cache[torch.from_numpy(numbers)]
        return made

    @property
    def counts(self) -> IntArray:
        """M_k, (K,)."""
        return np.bincount(self.targets, minlength=len(self.classes)).astype(np.int64)

    def _load(self, start: int, stop: int) -> torch.Tensor:
        """Inputs as they are for this index every time, also where a transform draws at random."""
        state = random.getstate()
        loaded = []
        try:
            with torch.random.fork_rng(devices=[]):
                for i in self.indices[start:stop]:
                    torch.manual_seed(int(i))
                    random.seed(int(i))
                    loaded.append(inputs_of(self.dataset, int(i)))
        finally:
            random.setstate(state)
        other = next((i for i, x in enumerate(loaded) if x.shape != loaded[0].shape), None)
        if other is not None:
            shapes = tuple(loaded[0].shape), tuple(loaded[other].shape)
            raise DataError(f"the data: expected samples of one shape, got {shapes[0]} and {shapes[1]}")
        return torch.stack(loaded)

    def inputs(self, start: int, stop: int) -> torch.Tensor:
        """Inputs of samples start … stop − 1, (N, …); text is padded to the longest sentence of the whole set."""
        if self._cache is None:
            first = self._load(0, 1)
            if first.numel() * first.element_size() * len(self) <= CACHE_BYTES:
                self._cache = trimmed(self._load(0, len(self)))
        return self._cache[start:stop] if self._cache is not None else self._load(start, stop)

    def of(self, numbers: IntArray) -> torch.Tensor:
        """Inputs of these samples, in this order, (n, …)."""
        self.inputs(0, 1)  # fills the cache where it may be filled
        if self._cache is not None:
            return self._cache[torch.from_numpy(numbers)]
        return torch.cat([self._load(int(i), int(i) + 1) for i in numbers])

    def batches(self, size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """(inputs, targets) in sample order."""
        for start in range(0, len(self), size):
            stop = min(start + size, len(self))
            yield self.inputs(start, stop), torch.from_numpy(self.targets[start:stop])

    def fingerprint(self) -> str:
        """Hash of what was drawn: indices, targets, class names and the first and last inputs."""
        digest = hashlib.sha256()
        for array in (self.indices, self.targets):
            digest.update(array.tobytes())
        digest.update("\0".join(self.classes).encode())
        for i in (0, len(self) - 1):
            digest.update(self.inputs(i, i + 1).contiguous().numpy().tobytes())
        return digest.hexdigest()


def calibration_set(
    dataset: Dataset[Any],
    per_class: int = 128,
    seed: int = 0,
    *,
    classes: Sequence[str] | None = None,
    allow_imbalance: bool = False,
) -> CalibrationSet:
    """Draw `per_class` samples of every class without replacement. A smaller draw is a prefix of a larger one.

    Raises DataError when a class has fewer (with `allow_imbalance`: fewer than two, and a warning otherwise).
    """
    if per_class < 2:
        raise DataError(f"per-class: a paired test needs at least 2 samples a class, got {per_class}")
    labels = labels_of(dataset) if len(dataset) else np.empty(0, dtype=np.int64)  # type: ignore[arg-type]
    if not len(labels):
        raise DataError("the calibration data is empty")
    if labels.min() < 0:
        raise DataError(f"labels: expected class numbers from 0, got {labels.min()}")
    if classes is None:
        inner = getattr(dataset, "classes", None)
        classes = class_names(dataset, len(inner) if inner is not None else int(labels.max()) + 1)
    if labels.max() >= len(classes):
        raise DataError(f"labels: expected class numbers below {len(classes)}, got {labels.max()}")
    chosen, short = [], []
    for k, name in enumerate(classes):
        own = np.flatnonzero(labels == k)
        if len(own) < per_class:
            short.append(f"{name} has {len(own)}")
            if len(own) < 2 or not allow_imbalance:
                hint = "" if allow_imbalance else "; --allow-imbalance takes what there is, --per-class asks for fewer"
                need = 2 if allow_imbalance else per_class
                raise DataError(f"class {name!r}: expected at least {need} samples, got {len(own)}{hint}")
        rng = np.random.default_rng([seed, k])
        chosen.append(rng.permutation(own)[:per_class])
    if short:
        warnings.warn(
            f"the calibration set is not balanced: {', '.join(short)} of {per_class}", CswapWarning, stacklevel=2
        )
    indices = np.concatenate(chosen).astype(np.int64)
    return CalibrationSet(dataset, indices, labels[indices], classes)
