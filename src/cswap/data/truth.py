"""What the samples of a dataset are labelled with: a class number, a mask of class numbers, or boxes.

- a number: classification. In a batch (N,) int64.
- a mask, (H, W) class numbers: segmentation. In a batch (N, H, W) int64. Pixels of VOID, and negative ones, are ignored.
- boxes, a dict of `boxes` (B, 4) as x1, y1, x2, y2 in pixels of the input and `labels` (B,): detection. In a batch a list of dicts.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, Subset

from cswap.errors import DataError, pass_on_out_of_memory
from cswap.types import BoolArray

VOID = 255
"""The number of a mask's pixels that belong to no class."""

Boxes = dict[str, torch.Tensor]
Truth = torch.Tensor | list[Boxes]


def is_dense(target: Any) -> bool:
    """Whether one sample's target is a mask or boxes, so that a sample may hold several classes."""
    return isinstance(target, dict) or (isinstance(target, torch.Tensor | np.ndarray) and target.ndim == 2)


def kind_of(target: Any) -> str:
    """What a sample is labelled with: "class numbers", "masks" or "boxes", as tasks name it."""
    return "boxes" if isinstance(target, dict) else "masks" if is_dense(target) else "class numbers"


def collated(targets: Sequence[Any]) -> Truth:
    """Targets of samples as one batch. Raises DataError for masks of different sizes."""
    if not is_dense(targets[0]):
        return torch.as_tensor([int(t) for t in targets])
    if isinstance(targets[0], dict):
        return [_boxes(t) for t in targets]
    masks = [torch.as_tensor(t).long() for t in targets]
    if len({m.shape for m in masks}) > 1:
        raise DataError(
            f"masks: expected one size, got {sorted({tuple(m.shape) for m in masks})[:3]}; give --image-size"
        )
    return torch.stack(masks)


def _boxes(target: dict[str, Any]) -> Boxes:
    if not {"boxes", "labels"} <= set(target):
        raise DataError(f"boxes: expected a dict of boxes and labels, got {sorted(target)}")
    boxes = torch.as_tensor(target["boxes"], dtype=torch.float32).reshape(-1, 4)
    labels = torch.as_tensor(target["labels"], dtype=torch.int64).reshape(-1)
    if len(boxes) != len(labels):
        raise DataError(f"boxes: expected a label a box, got {len(boxes)} boxes and {len(labels)} labels")
    return {"boxes": boxes, "labels": labels}


def moved(truth: Truth, device: torch.device | str) -> Truth:
    """The same on a device."""
    if isinstance(truth, torch.Tensor):
        return truth.to(device)
    return [{k: v.to(device) for k, v in t.items()} for t in truth]


def part(truth: Truth, numbers: Any) -> Truth:
    """Samples of these numbers, or of a slice."""
    if isinstance(truth, torch.Tensor):
        return truth[numbers if isinstance(numbers, slice) else torch.as_tensor(numbers)]
    return truth[numbers] if isinstance(numbers, slice) else [truth[int(i)] for i in numbers]


def bytes_of(target: Any) -> bytes:
    """One sample's target, or a batch of masks, as bytes that another one does not have."""
    if isinstance(target, dict):
        return b"".join(k.encode() + bytes_of(target[k]) for k in ("boxes", "labels"))
    held = np.ascontiguousarray(target.numpy() if isinstance(target, torch.Tensor) else target)
    return repr(held.shape).encode() + held.tobytes()


def raw_bytes(tensor: torch.Tensor) -> bytes:
    """Its elements as they lie in memory, of any type: NumPy has no bfloat16."""
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def joined(parts: Sequence[Truth]) -> Truth:
    """One batch after the other."""
    if isinstance(parts[0], torch.Tensor):
        return torch.cat([p for p in parts if isinstance(p, torch.Tensor)])
    return [t for p in parts for t in p]


def sample_of(dataset: Any, index: int) -> Any:
    """One sample, (inputs, label, …). Raises DataError that names it."""
    try:
        sample = dataset[index]
    except DataError:
        raise
    except Exception as error:
        pass_on_out_of_memory(error)
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
        return torch.as_tensor(given).detach()
    except (TypeError, ValueError, RuntimeError):
        raise DataError(
            f"sample {index} of the data: expected inputs as a tensor, got {type(given).__name__}"
        ) from None


def not_finite(inputs: torch.Tensor) -> int:
    """How many of the samples (N, …) hold NaN or Inf."""
    if not inputs.is_floating_point():
        return 0
    return int((~torch.isfinite(inputs)).reshape(len(inputs), -1).any(1).sum())


def any_nan(outputs: Any) -> bool:
    """Whether some tensor in the outputs of a network, in whatever dicts and lists they come, holds a NaN."""
    if isinstance(outputs, torch.Tensor):
        return outputs.is_floating_point() and bool(outputs.isnan().any())
    if isinstance(outputs, Mapping):
        return any(map(any_nan, outputs.values()))
    return isinstance(outputs, list | tuple) and any(map(any_nan, outputs))


def first_target(dataset: Dataset[Any]) -> Any:
    """The target of the first sample, without its input where the dataset can."""
    return target_at(dataset, 0)


def target_at(dataset: Any, index: int) -> Any:
    """One sample's target: by the dataset's own `target(index)`, which need not load the input, or from the sample."""
    if isinstance(dataset, Subset):
        return target_at(dataset.dataset, int(dataset.indices[index]))
    own = getattr(dataset, "target", None)
    return own(index) if callable(own) else sample_of(dataset, index)[1]


def members_of(dataset: Dataset[Any], classes: int | None = None) -> BoolArray | None:
    """(N, K): which classes each sample holds; None where a sample has one class. A dataset is read once.

    Raises DataError for a class number beyond `classes`.
    """
    size = len(dataset)  # type: ignore[arg-type]
    if not size or not is_dense(first_target(dataset)):
        return None
    held = getattr(dataset, "_held", None)
    if held is None:
        held = [_classes_in(target_at(dataset, i)) for i in range(size)]
        with contextlib.suppress(AttributeError):  # a list takes no attributes
            dataset._held = held  # type: ignore[attr-defined]
    known = 1 + max((int(h.max()) for h in held if len(h)), default=0)
    if classes is not None and known > classes:
        raise DataError(
            f"labels: expected class numbers below {classes}, got {known - 1}; in masks --ignore-index says what is no class"
        )
    members = np.zeros((size, classes or known), dtype=np.bool_)
    for i, h in enumerate(held):
        members[i, h] = True
    return members


def _classes_in(target: Any) -> Any:
    values = np.unique(np.asarray(target["labels"] if isinstance(target, dict) else target))
    return values[(values >= 0) & (values != VOID)].astype(np.int64)


def relabelled(target: Any, numbers: Sequence[int]) -> Any:
    """The target with class k called `numbers[k]`."""
    if not is_dense(target):
        return numbers[int(target)]
    table = torch.tensor([*numbers, *range(len(numbers), 256)])
    if isinstance(target, dict):
        return {**target, "labels": table[torch.as_tensor(target["labels"]).long()]}
    mask = torch.as_tensor(target).long()
    return torch.where(mask < 0, mask, table[mask.clamp(0, 255)])


def stacked(inputs: Sequence[Any]) -> torch.Tensor:
    """Inputs of samples as one batch (N, …). Raises DataError when their shapes differ."""
    tensors = [torch.as_tensor(x).detach() for x in inputs]
    if len({t.shape for t in tensors}) > 1:
        shapes = sorted({tuple(t.shape) for t in tensors})
        raise DataError(f"data: expected inputs of one shape, got {shapes[0]} and {shapes[1]}; give --image-size")
    return torch.stack(tensors)
