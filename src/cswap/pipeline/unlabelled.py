"""Data without labels: what the network itself predicts stands for them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset

from cswap.data.calibration import counted
from cswap.data.sources import DataPair, limited
from cswap.data.truth import inputs_of, is_dense, target_at
from cswap.errors import CswapWarning, DataError
from cswap.evaluate.quality import batches
from cswap.structure.calls import outputs_for
from cswap.structure.images import Fed
from cswap.tasks.classification import logits_of
from cswap.types import IntArray

LOOKED_AT = 10_000
"""Samples that are predicted at most, of each split; more where so many classes are to be filled."""
PREDICTED = "labels are the network's own predictions: scores and quality say how far a pruned network agrees with it"


class _Predicted(Dataset[Any]):
    """Samples of these numbers, each with the class that was predicted."""

    def __init__(self, dataset: Dataset[Any], numbers: IntArray, targets: IntArray, classes: tuple[str, ...]) -> None:
        self.dataset, self.numbers, self.targets, self.classes = dataset, numbers.tolist(), targets.tolist(), classes

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.dataset[self.numbers[index]][0], self.targets[index]


def labelled_by(
    model: nn.Module, pair: DataPair, *, least: int, eval_samples: int | None = None, names: dict[int, str] | None = None,
    known: Sequence[str] | None = None,
) -> DataPair:  # fmt: skip
    """The same data, labelled by the most probable output of `model` in place of the labels that it has (ours).

    least: samples that a class must be predicted for, to be one of the classes; the others' samples are left out, and a
    warning says so. names: of outputs, which are else their numbers. known: names of the classes, where they are known already.
    Raises DataError where fewer than two classes are left.
    """
    if is_dense(target_at(pair.train, 0)):
        raise DataError("unlabelled: goes with classification, got data with masks or boxes")
    width = logits_of(outputs_for(model.eval(), inputs_of(pair.train, 0).unsqueeze(0))).shape[1]
    named = [(names or {}).get(k, str(k)) for k in range(width)]
    beyond = [k for k in names or () if not 0 <= k < width]
    if beyond or len(set(named)) < width:
        came = f"output {beyond[0]}" if beyond else f"{max(named, key=named.count)!r} twice"
        raise DataError(f"labels: expected different names of the network's {width} outputs, got {came}")
    if unknown := [c for c in known or () if c not in named]:
        raise DataError(f"unlabelled: expected the class {unknown[0]!r} among the network's, {counted(named)}")
    train = limited(pair.train, max(LOOKED_AT, 4 * width * least))
    evaluation = limited(pair.evaluation, eval_samples or LOOKED_AT)
    predicted = _predictions(model, train)
    if known is None:
        outputs = _often_enough(predicted, width, least)
    else:
        outputs = np.asarray([named.index(c) for c in known], dtype=np.int64)
    classes = tuple(named[k] for k in outputs)
    return DataPair(
        _of_classes(train, predicted, outputs, classes),
        _of_classes(evaluation, _predictions(model, evaluation), outputs, classes),
        classes,
        None if np.array_equal(outputs, range(width)) else tuple(int(k) for k in outputs),
    )


def _often_enough(predicted: IntArray, width: int, least: int) -> IntArray:
    """The outputs that are predicted for `least` samples or more. Raises DataError."""
    outputs = np.flatnonzero(np.bincount(predicted, minlength=width) >= least)
    if len(outputs) < 2:
        raise DataError(
            f"unlabelled: expected two classes or more that the network predicts for {least} samples each, got {len(outputs)} by "
            f"{len(predicted)} samples; --per-class asks for fewer"
        )
    if len(outputs) < width:
        warnings.warn(
            f"unlabelled: {width - len(outputs)} of the network's {width} classes are predicted for fewer than {least} of {len(predicted)} "
            "samples and are left out: what they alone need may go",
            CswapWarning,
            stacklevel=4,
        )
    return outputs


def _of_classes(dataset: Dataset[Any], predicted: IntArray, outputs: IntArray, classes: tuple[str, ...]) -> _Predicted:
    """The samples that are predicted as one of `outputs`, by their place among these. Raises DataError."""
    numbers = np.flatnonzero(np.isin(predicted, outputs))
    if not len(numbers):
        raise DataError(f"unlabelled: the network predicts none of the {len(outputs)} classes for the evaluation data")
    places = {int(k): i for i, k in enumerate(outputs)}
    return _Predicted(dataset, numbers, np.asarray([places[int(k)] for k in predicted[numbers]]), classes)


def _predictions(model: nn.Module, dataset: Dataset[Any]) -> IntArray:
    """The most probable output of each sample, (N,) int64."""
    given, place = Fed(model.eval()), next((p.device for p in model.parameters()), torch.device("cpu"))
    with torch.no_grad():
        found = [logits_of(given(x.to(place))).argmax(1).cpu().numpy() for x, _ in batches(dataset, 128)]
    return np.concatenate(found).astype(np.int64)
