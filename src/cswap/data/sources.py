"""Data specs: image folders, torchvision datasets, a user's own factory. Returns train and evaluation datasets."""

from __future__ import annotations

import json
import math
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, Subset, TensorDataset

from cswap.data.boxes import is_boxes, open_boxes
from cswap.data.calibration import class_names, classes_held, counted, labels_of
from cswap.data.folder import open_images
from cswap.data.hub import open_hub
from cswap.data.masks import is_masks, open_masks
from cswap.data.models import ModelSpec, module_from_file, module_named, one_line
from cswap.data.text import is_text, open_text
from cswap.data.truth import first_target, inputs_of, is_dense, members_of, relabelled, sample_of, stacked, target_at
from cswap.errors import CswapWarning, DataError, ModelError, pass_on_out_of_memory

EXPECTED = (
    "expected a folder with train/ and val/ or test/ (text: train.tsv; masks: images/ and masks/ in each; boxes: Pascal VOC or "
    "COCO), torchvision:NAME@ROOT, hf:NAME_OR_DIR, FILE.py:FACTORY or package.module:FACTORY"
)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class ImageFormat:
    """How images become tensors: shorter side to `resize`, centre crop to `size`, then normalised.

    asked: the size the user gave; images with masks or boxes keep their own size without one. as_they_are: no mean and
    deviation were given: images with boxes are not normalised then, because torchvision's detectors do that themselves.
    """

    size: int = 224
    resize: int = 256
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    asked: int | None = None
    as_they_are: bool = True

    def transform(self) -> Callable[[Any], torch.Tensor]:
        """The torchvision transform."""
        from torchvision import transforms

        composed: Callable[[Any], torch.Tensor] = transforms.Compose(
            [
                transforms.Resize(self.resize),
                transforms.CenterCrop(self.size),
                transforms.ToTensor(),
                transforms.Normalize(self.mean, self.std),
            ]
        )
        return composed


def image_format(spec: ModelSpec | None, size: int | None, mean: str | None, std: str | None) -> ImageFormat:
    """What the user said; else what torchvision's weights or timm's of that name, or the folder's processor, say; else ImageNet's."""
    base = ImageFormat()
    if spec is not None and spec.kind == "torchvision":
        base = _format_of_torchvision(spec.name) or base
    if spec is not None and spec.kind == "timm":
        base = _format_of_timm(spec) or base
    if spec is not None and spec.folder is not None:
        base = _format_of_folder(spec.folder) or base
    if size is not None and not 1 <= size <= 4096:
        raise DataError(f"image-size: expected 1 to 4096, got {size}")
    means, stds = _numbers("mean", mean) or base.mean, _numbers("std", std) or base.std
    if len(means) != len(stds):
        raise DataError(f"mean and std: expected as many numbers each, got {len(means)} and {len(stds)}")
    return ImageFormat(size or base.size, size or base.resize, means, stds, size, mean is None and std is None)


def _format_of_torchvision(name: str) -> ImageFormat | None:
    from torchvision import models

    try:
        t: Any = models.get_model_weights(name).DEFAULT.transforms()
        return ImageFormat(t.crop_size[0], t.resize_size[0], tuple(t.mean), tuple(t.std))
    except (ValueError, AttributeError, TypeError, IndexError):
        return None


def _format_of_timm(spec: ModelSpec) -> ImageFormat | None:
    """What timm's configuration of that name says; it is part of the package, so nothing is downloaded."""
    try:
        from timm.models import get_pretrained_cfg

        said: Any = get_pretrained_cfg(spec.name)
        side = int(spec.arguments.get("img_size") or said.input_size[1])
        return ImageFormat(side, int(side / said.crop_pct), tuple(said.mean), tuple(said.std))
    except (ImportError, RuntimeError, AttributeError, ValueError, TypeError, IndexError):
        return None


def _format_of_folder(folder: Path) -> ImageFormat | None:
    """What the processor of a Hugging Face folder says."""
    try:
        said = json.loads((folder / "preprocessor_config.json").read_text(encoding="utf-8"))
        size = said["size"]
        side = int(size.get("shortest_edge") or size["height"]) if isinstance(size, dict) else int(size)
        crop = said.get("crop_size", side)
        shown = int(crop["height"]) if isinstance(crop, dict) else int(crop)
        return ImageFormat(shown, side, tuple(said["image_mean"]), tuple(said["image_std"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _numbers(what: str, text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        values = tuple(float(v) for v in text.split(","))
    except ValueError:
        raise DataError(f"{what}: expected numbers separated by commas, got {text!r}") from None
    if not all(math.isfinite(v) for v in values):
        raise DataError(f"{what}: expected finite numbers, got {text!r}")
    if len(values) not in (1, 3) or (what == "std" and min(values) <= 0):
        raise DataError(f"{what}: expected one or three numbers{' above 0' if what == 'std' else ''}, got {text!r}")
    return values


@dataclass(frozen=True, eq=False)
class DataPair:
    """Calibration comes from `train`, quality from `evaluation`; `classes` in the model's output order."""

    train: Dataset[Any]
    evaluation: Dataset[Any]
    classes: tuple[str, ...]
    outputs: tuple[int, ...] | None = None
    """The model's output of each class, where it has others that the data has no class for."""


def _read_image(path: str) -> Any:
    from torchvision.datasets.folder import default_loader

    try:
        return default_loader(path)
    except Exception as error:  # noqa: BLE001 — decoders raise anything at all on a broken file
        raise DataError(f"image {path} cannot be read ({type(error).__name__}: {one_line(error)})") from None


def names_code(text: str) -> bool:
    """Whether a data spec is a factory, code that runs: FILE.py:FACTORY or package.module:FACTORY."""
    return ".py:" in text or (
        not text.startswith(("torchvision:", "hf:"))
        and re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", text) is not None
        and not Path(text).exists()
    )


def open_data(
    text: str, form: ImageFormat, *, calibration_split: str | None = None, eval_split: str | None = None,
    labels: Path | None = None, tokenizer: Path | None = None, max_length: int | None = None, ignore_index: int | None = None,
    model_folder: Path | None = None, unlabelled: bool = False,
) -> DataPair:  # fmt: skip
    """Open a data spec; `form` is for images, `tokenizer` and `max_length` for text, `ignore_index` for masks.

    model_folder: where the tokenizer of a text model lies unless `tokenizer` says. unlabelled: a folder of images needs no classes.
    Raises DataError, MissingPartError.
    """
    of_hub = text.startswith("hf:")
    if (tokenizer is not None or max_length is not None) and not (
        of_hub or (Path(text).is_dir() and is_text(Path(text), calibration_split or "train"))
    ):
        raise DataError(f"tokenizer and max-length go with text data (train.tsv); {text!r} is none")
    if ignore_index is not None and not is_masks(Path(text)):
        raise DataError(f"ignore-index goes with masks (images/ and masks/); {text!r} has none")
    if of_hub:
        train, evaluation = open_hub(
            text, form.transform, calibration_split=calibration_split, eval_split=eval_split, tokenizer=tokenizer,
            model_folder=model_folder, max_length=max_length,
        )  # fmt: skip
    elif text.startswith("torchvision:"):
        train, evaluation = _torchvision(text, form)
    elif names_code(text):
        train, evaluation = _from_factory(text)
    elif is_text(Path(text), calibration_split or "train"):
        train, evaluation = open_text(
            Path(text), tokenizer or model_folder, calibration_split=calibration_split, eval_split=eval_split,
            max_length=max_length,
        )  # fmt: skip
    elif is_masks(Path(text)):
        train, evaluation = open_masks(Path(text), form, calibration_split, eval_split, ignore_index)
    elif is_boxes(Path(text)):
        train, evaluation = open_boxes(Path(text), form, calibration_split, eval_split)
    elif unlabelled:
        transform = form.transform()
        train, evaluation = open_images(
            Path(text), lambda file: transform(_read_image(file)), calibration_split, eval_split
        )
    else:
        train, evaluation = _folders(Path(text), form, calibration_split, eval_split)
    for split, part in (("calibration", train), ("evaluation", evaluation)):
        if not _length(part, f"data {text!r}: the {split} data"):
            raise DataError(f"data {text!r}: the {split} data is empty")
    if train is evaluation or (calibration_split or "train") == eval_split:
        warnings.warn(
            f"data {text!r}: quality is measured on the samples that units are judged by", CswapWarning, stacklevel=2
        )
    known = getattr(train, "classes", None)
    classes = class_names(train, classes_held(train))
    other = class_names(evaluation, len(classes))
    odd = next((c for c in classes if c != c.encode("utf-8", "replace").decode()), None)
    if odd is not None:
        raise DataError(f"data {text!r}: expected class names in UTF-8, got {odd!a}; rename its folder")
    held_out = len(getattr(evaluation, "classes", classes))
    if known is not None and (held_out != len(classes) or other != classes):
        raise DataError(
            f"data {text!r}: the two splits hold different classes, {counted(classes)} and {counted(getattr(evaluation, 'classes', other))}"
        )
    shared = all(members_of(d, len(classes)) is not None for d in (train, evaluation))
    held = np.zeros(1, dtype=np.int64) if shared else labels_of(evaluation)
    if held.max(initial=0) >= len(classes) or held.min(initial=0) < 0:
        beyond = held[(held < 0) | (held >= len(classes))][0]
        raise DataError(
            f"data {text!r}: the evaluation data has labels beyond the {len(classes)} classes of the train data (first {beyond})"
        )
    if labels is not None:
        order = _label_order(labels, classes)
        names = sorted(classes, key=lambda c: order[c])
        outputs = tuple(order[c] for c in names)
        moved = [names.index(c) for c in classes]
        return DataPair(
            _Relabelled(train, moved, names), _Relabelled(evaluation, moved, names), tuple(names),
            None if outputs == tuple(range(len(outputs))) else outputs,
        )  # fmt: skip
    return DataPair(train, evaluation, classes, getattr(train, "numbers", None))


def _length(dataset: Any, what: str) -> int:
    """Number of samples. Raises DataError."""
    try:
        return len(dataset)
    except Exception as error:  # noqa: BLE001 — a dataset's own code
        pass_on_out_of_memory(error)
        raise DataError(f"{what} has no length ({type(error).__name__}: {one_line(error)})") from None


def _folders(root: Path, form: ImageFormat, calibration: str | None, evaluation: str | None) -> tuple[Any, Any]:
    from torchvision.datasets import ImageFolder

    if not root.is_dir():
        raise DataError(f"data {str(root)!r}: {EXPECTED}; no such folder")
    found = [n for n in ("test", "val") if (root / n).is_dir()]
    names = (calibration or "train", evaluation or (found[0] if found else "test"))
    for name in names:
        if not (root / name).is_dir():
            raise DataError(f"data {str(root)!r}: {EXPECTED}; there is no {name}/")
    transform = form.transform()
    made = []
    for name in names:
        try:
            made.append(ImageFolder(str(root / name), transform, loader=_read_image))
        except FileNotFoundError as error:
            raise DataError(f"data {str(root / name)!r}: {one_line(error)}") from None
    return made[0], made[1]


def _torchvision(text: str, form: ImageFormat) -> tuple[Any, Any]:
    from torchvision import datasets

    name, at, root = text.removeprefix("torchvision:").partition("@")
    kind = getattr(datasets, name, None)
    if kind is None or not at:
        raise DataError(f"data {text!r}: expected torchvision:NAME@ROOT with the name of a torchvision dataset")
    transform = form.transform()
    errors = []
    for train, held_out in (({"train": True}, {"train": False}), ({"split": "train"}, {"split": "test"})):
        try:
            return kind(root, transform=transform, **train), kind(root, transform=transform, **held_out)
        except TypeError:
            continue
        except (RuntimeError, ValueError, OSError) as error:
            errors.append(one_line(error))
    raise DataError(f"data {text!r}: {errors[0] if errors else 'this dataset has no train and test split'}")


def _from_factory(text: str) -> tuple[Any, Any]:
    file, _, name = text.rpartition(":")
    try:
        module = module_from_file(Path(file)) if file.endswith(".py") else module_named(file)
        factory = getattr(module, name, None)
    except ModelError as error:
        raise DataError(f"data {text!r}: {error}") from None
    if not callable(factory):
        raise DataError(f"data {text!r}: {file} has no factory {name!r}")
    try:
        pair = factory()
    except (Exception, SystemExit) as error:
        pass_on_out_of_memory(error)
        raise DataError(f"data {text!r}: its factory raised {type(error).__name__}: {one_line(error)}") from error
    if not (
        isinstance(pair, tuple)
        and len(pair) == 2
        and all(hasattr(d, "__getitem__") and hasattr(d, "__len__") for d in pair)
    ):
        raise DataError(f"data {text!r}: expected the factory to return (train, eval) map-style datasets")
    return pair


def output_names(path: Path) -> dict[int, str]:
    """Model output -> class name, of a file of labels. Raises DataError."""
    pairs = _pairs_in(path)
    names = {k: name for name, k in pairs}
    if len(names) < len(pairs):
        raise DataError(f"labels {path}: expected a name for each output once, got {len(pairs)} names of {len(names)}")
    return names


def _pairs_in(path: Path) -> list[tuple[str, int]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError):
        raise DataError(f"labels: expected a text file at {path}") from None
    return _pairs_of(text, path)


def _label_order(path: Path, classes: tuple[str, ...]) -> dict[str, int]:
    """Class name -> model output, from JSON `{name: number}` or `[name, …]`, or one name a line in output order."""
    pairs = _pairs_in(path)
    order = dict(pairs)
    twice = (
        next((n for n, _ in pairs if sum(n == other for other, _ in pairs) > 1), None)
        if len(order) < len(pairs)
        else None
    )
    if twice is not None:
        raise DataError(f"labels {path}: expected each class once, {twice!r} comes twice")
    missing = [c for c in classes if c not in order]
    if missing or len(set(order.values())) != len(order) or min(order.values(), default=0) < 0:
        raise DataError(
            f"labels {path}: expected one number from 0 for each class of the data"
            + (f"; {missing[0]!r} has none" if missing else "")
        )
    return order


def _pairs_of(text: str, path: Path) -> list[tuple[str, int]]:
    """(class name, model output) as they are written. Raises DataError."""
    if text.lstrip()[:1] not in ("{", "["):
        lines = [(line.strip(), k) for k, line in enumerate(text.splitlines())]
        return [(name, k) for name, k in lines if name]
    try:
        told = json.loads(text, object_pairs_hook=list)
    except (ValueError, RecursionError) as error:
        raise DataError(f"labels {path}: no readable JSON ({one_line(error)})") from None
    if told and all(isinstance(n, str) for n in told):
        return [(n, k) for k, n in enumerate(told)]
    if not all(isinstance(x, tuple) and type(x[1]) is int for x in told):
        raise DataError(f"labels {path}: expected whole numbers as the values")
    return [(str(n), k) for n, k in told]


class _Relabelled(Dataset[Any]):
    """A dataset whose class numbers follow the model's outputs."""

    def __init__(self, dataset: Any, moved: list[int], classes: list[str]) -> None:
        self.dataset, self.moved, self.classes = dataset, moved, classes
        if not is_dense(first_target(dataset)):
            self.targets = [moved[int(k)] for k in labels_of(dataset)]

    def __len__(self) -> int:
        return len(self.dataset)

    def target(self, index: int) -> Any:
        """One sample's target."""
        return relabelled(target_at(self.dataset, index), self.moved)

    def __getitem__(self, index: int) -> Any:
        inputs, label, *rest = self.dataset[index]
        return (inputs, relabelled(label, self.moved), *rest)


def limited(dataset: Dataset[Any], most: int | None, seed: int = 0) -> Dataset[Any]:
    """At most `most` samples, drawn with a seed; the whole dataset for None."""
    size = len(dataset)  # type: ignore[arg-type]
    if most is None or most >= size:
        return dataset
    if most < 1:
        raise DataError(f"eval-samples: expected at least 1, got {most}")
    drawn = torch.randperm(size, generator=torch.Generator().manual_seed(seed))[:most]
    return Subset(dataset, sorted(drawn.tolist()))


def in_memory(dataset: Dataset[Any], most: int = 1 << 30) -> Dataset[Any]:
    """The dataset with its inputs as one tensor, decoded once, where that takes at most `most` bytes; else as it is."""
    size = len(dataset)  # type: ignore[arg-type]
    first = inputs_of(dataset, 0)
    if first.numel() * first.element_size() * size > most:
        return dataset
    samples = [sample_of(dataset, i) for i in range(size)]
    inputs = stacked([s[0] for s in samples])
    if is_dense(samples[0][1]):
        return _Held(inputs, [s[1] for s in samples])
    return TensorDataset(inputs, torch.as_tensor([int(s[1]) for s in samples]))


class _Held(Dataset[Any]):
    """Inputs (N, …) and masks or boxes in memory."""

    def __init__(self, inputs: torch.Tensor, targets: list[Any]) -> None:
        self.inputs, self.targets = inputs, targets

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, Any]:
        return self.inputs[index], self.targets[index]
