"""Datasets of the `datasets` library: `hf:NAME_OR_DIR`, with `@CONFIG` where it has several configurations.

Of images with one class label, or of text with one. Never code that comes with a dataset: this version of the library runs
none and reads no pickle.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from cswap.data.models import one_line
from cswap.data.text import TextDataset, encoder
from cswap.errors import DataError, MissingPartError, pass_on_out_of_memory

EXPECTED = "expected hf:NAME_OR_DIR, and hf:NAME@CONFIG where a dataset has several configurations"
HELD_OUT = ("test", "validation", "val", "valid", "dev")
TEXTS = ("text", "sentence", "content")


class HubImages(Dataset[Any]):
    """Images of a dataset's column, decoded when asked for; `targets` are the labels, `classes` their names."""

    def __init__(self, rows: Any, image: str, targets: list[int], classes: list[str], transform: Callable[[Any], Any]):
        self.rows, self.image, self.targets, self.classes, self.transform = rows, image, targets, classes, transform

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        try:
            image = self.rows[index][self.image].convert("RGB")
        except Exception as error:  # noqa: BLE001 — decoders raise anything at all on a broken file
            raise DataError(
                f"image {index} of the dataset cannot be read ({type(error).__name__}: {one_line(error)})"
            ) from None
        return self.transform(image), self.targets[index]


def open_hub(
    text: str, transform: Callable[[], Callable[[Any], Any]], *, calibration_split: str | None = None,
    eval_split: str | None = None, tokenizer: Path | None = None, model_folder: Path | None = None, max_length: int | None = None,
) -> tuple[Dataset[Any], Dataset[Any]]:  # fmt: skip
    """Train and evaluation data of `hf:NAME_OR_DIR[@CONFIG]`; classes in the order of the label column's names.

    Evaluation comes from the first of `HELD_OUT` that carries labels (a benchmark's test split often has none) unless
    `eval_split` says otherwise. Raises DataError, MissingPartError.
    """
    splits = _splits(text)
    calibration = calibration_split or "train"
    for name in (calibration, eval_split):
        if name is not None and name not in splits:
            raise DataError(f"data {text!r}: expected a split {name!r}, it has {', '.join(splits)}")
    label = _label_of(text, splits[calibration])
    held = [eval_split] if eval_split else [n for n in HELD_OUT if n in splits and label in splits[n].column_names]
    if not held:
        raise DataError(f"data {text!r}: expected a labelled split {' or '.join(HELD_OUT)}, it has {', '.join(splits)}")
    labels = {n: _labels(splits[n], label) for n in dict.fromkeys([calibration, *held])}
    evaluation = next((n for n in held if any(k is not None and k >= 0 for k in labels[n])), held[0])
    for name in (calibration, evaluation):
        hidden = next((k for k in labels[name] if k is None or k < 0), 0)
        if hidden != 0:
            raise DataError(
                f"data {text!r}: split {name!r} hides its labels (one is {hidden}); expected a labelled split"
            )
    chosen = (calibration, evaluation)
    classes = {n: _classes(splits[n], label, labels[calibration] + labels[evaluation]) for n in chosen}
    image = _column(splits[calibration], "Image")
    if image is not None:
        if tokenizer is not None or max_length is not None:
            raise DataError(f"tokenizer and max-length go with text; data {text!r} holds images")
        made = transform()
        pair = [HubImages(splits[n], image, labels[n], classes[n], made) for n in chosen]
        return pair[0], pair[1]
    sentence = _text_of(text, splits[calibration])
    encode = encoder(tokenizer or model_folder, max_length)
    texts = [TextDataset(encode([str(s) for s in splits[n][sentence]]), labels[n], classes[n]) for n in chosen]
    return texts[0], texts[1]


def _splits(text: str) -> dict[str, Any]:
    """Every split by name."""
    try:
        import datasets
    except ImportError as error:
        raise MissingPartError.of(error, "hf: data needs datasets", "hf", "datasets") from None
    where, _, config = text.removeprefix("hf:").partition("@")
    folder = Path(where)
    if not where:
        raise DataError(f"data {text!r}: {EXPECTED}")
    if not folder.is_dir() and where.startswith(("/", ".", "~")):
        raise DataError(f"data {text!r}: {EXPECTED}; no such folder")
    if folder.is_dir() and not any(folder.iterdir()):
        raise DataError(f"data {text!r}: {EXPECTED}; the folder is empty")
    with _quiet(datasets):
        try:
            if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
                found = datasets.load_from_disk(where)
            else:
                found = datasets.load_dataset(str(folder.resolve()) if folder.is_dir() else where, config or None)
        except Exception as error:  # noqa: BLE001 — the library raises anything at all on what it cannot read
            pass_on_out_of_memory(error)
            raise DataError(f"data {text!r}: {type(error).__name__}: {one_line(error)}") from None
    if not isinstance(found, datasets.DatasetDict):
        raise DataError(f"data {text!r}: expected a dataset with splits (train, test or validation), got one without")
    return dict(found)


@contextlib.contextmanager
def _quiet(datasets: Any) -> Iterator[None]:
    """No bars and tales of retries from the library: what counts is said once, by us."""
    shown = datasets.utils.logging.is_progress_bar_enabled()
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    datasets.disable_progress_bars()
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
        if shown:
            datasets.enable_progress_bars()


def _column(rows: Any, kind: str) -> str | None:
    """The first column of that kind of feature."""
    return next((n for n, f in rows.features.items() if type(f).__name__ == kind), None)


def _label_of(text: str, rows: Any) -> str:
    named = [n for n, f in rows.features.items() if type(f).__name__ == "ClassLabel"]
    numbered = [
        n for n in ("label", "labels") if str(getattr(rows.features.get(n), "dtype", "")).startswith(("int", "uint"))
    ]
    found = named or numbered
    if "label" in found or len(found) == 1:
        return "label" if "label" in found else found[0]
    got = ", ".join(found) if found else f"columns {', '.join(rows.column_names)}"
    raise DataError(
        f"data {text!r}: expected one column of class labels (`label`), got {got}; a FILE.py:FACTORY can choose"
    )


def _labels(rows: Any, label: str) -> list[Any]:
    return list(rows[label]) if label in rows.column_names else [None]


def _classes(rows: Any, label: str, held: Sequence[int]) -> list[str]:
    """Names of the split's classes in the order of their numbers."""
    names = getattr(rows.features[label], "names", None)
    return list(names) if names else [str(k) for k in range(max(held) + 1)]


def _text_of(text: str, rows: Any) -> str:
    strings = [n for n, f in rows.features.items() if getattr(f, "dtype", None) in ("string", "large_string")]
    known = [n for n in TEXTS if n in strings]
    if known or len(strings) == 1:
        return known[0] if known else strings[0]
    got = f"text columns {', '.join(strings)}" if strings else f"columns {', '.join(rows.column_names)}"
    raise DataError(f"data {text!r}: expected images, or one column of text ({', '.join(TEXTS)}), got {got}")
