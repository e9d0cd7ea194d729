"""Text with a label a line: `sentence TAB label` in train.tsv and test.tsv or dev.tsv, as token tensors (2, L)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from cswap.errors import DataError, MissingPartError

EXPECTED = "expected a folder with train.tsv and test.tsv, dev.tsv or val.tsv, each line `sentence TAB label`"
MAX_LENGTH = 128


class TextDataset(Dataset[Any]):
    """Sentences as tokens. `tokens` (N, 2, L) int64: token numbers and mask, padded to the longest sentence; `targets`."""

    def __init__(self, tokens: torch.Tensor, targets: list[int], classes: list[str]) -> None:
        self.tokens, self.targets, self.classes = tokens, targets, classes

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.tokens[index], self.targets[index]


def is_text(folder: Path, split: str = "train") -> bool:
    """Whether a folder holds TSV data."""
    return (folder / f"{split}.tsv").is_file()


def open_text(
    folder: Path, tokenizer: Path | None, *, calibration_split: str | None = None, eval_split: str | None = None,
    max_length: int | None = None,
) -> tuple[TextDataset, TextDataset]:  # fmt: skip
    """Train and evaluation data; classes are the labels in numeric or else alphabetic order. Raises DataError.

    tokenizer: a tokenizer.json or the folder that holds one.
    """
    found = [n for n in ("test", "dev", "val") if is_text(folder, n)]
    names = (calibration_split or "train", eval_split or (found[0] if found else "test"))
    for name in names:
        if not is_text(folder, name):
            raise DataError(f"data {str(folder)!r}: {EXPECTED}; there is no {name}.tsv")
    encode = encoder(tokenizer, max_length)
    lines = [_lines(folder / f"{name}.tsv") for name in names]
    labels = {label for part in lines for _, label in part}
    classes = sorted(labels, key=lambda v: (0, int(v), v) if v.isdecimal() else (1, 0, v))
    made = [
        TextDataset(encode([s for s, _ in part]), [classes.index(v) for _, v in part], classes) for part in lines
    ]  # fmt: skip
    return made[0], made[1]


def _lines(file: Path) -> list[tuple[str, str]]:
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"data {file}: cannot be read as UTF-8 text ({type(error).__name__})") from None
    pairs = []
    for number, line in enumerate(text.splitlines(), 1):
        sentence, tab, label = line.rpartition("\t")
        if not line.strip():
            continue
        if not tab or not label.strip():
            raise DataError(f"data {file}, line {number}: expected `sentence TAB label`, got {line[:60]!r}")
        pairs.append((sentence, label.strip()))
    if not pairs:
        raise DataError(f"data {file}: expected lines of `sentence TAB label`, got none")
    return pairs


def encoder(where: Path | None, max_length: int | None = None) -> Callable[[list[str]], torch.Tensor]:
    """Sentences → (N, 2, L) int64, by a tokenizer.json or the folder that holds one. Raises DataError."""
    max_length = MAX_LENGTH if max_length is None else max_length
    if where is None:
        raise DataError(
            "data: text needs a tokenizer; expected --tokenizer FILE (a tokenizer.json), or an hf:FOLDER model"
        )
    if not 2 <= max_length <= 4096:
        raise DataError(f"max-length: expected 2 to 4096 tokens, got {max_length}")
    file = where / "tokenizer.json" if where.is_dir() else where
    if not file.is_file():
        raise DataError(f"tokenizer: expected a tokenizer.json at {file}, found none")
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise MissingPartError.of(error, "text needs tokenizers", "hf", "tokenizers") from None
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # noqa: BLE001 — the library raises bare Exceptions
        raise DataError(f"tokenizer {file}: {str(error).splitlines()[0][:120]}") from None
    pad = next((n for n in ("[PAD]", "<pad>", "<|pad|>") if tokenizer.token_to_id(n) is not None), None)
    tokenizer.enable_truncation(max_length)
    tokenizer.enable_padding(pad_id=tokenizer.token_to_id(pad) if pad else 0, pad_token=pad or "")

    def encode(sentences: list[str]) -> torch.Tensor:
        found = tokenizer.encode_batch(sentences)
        return torch.tensor([[e.ids, e.attention_mask] for e in found], dtype=torch.int64)

    return encode


def is_tokens(inputs: torch.Tensor) -> bool:
    """Whether it is a batch of token tensors (N, 2, L): token numbers and mask."""
    if inputs.dim() != 3 or inputs.shape[1] != 2 or inputs.dtype != torch.int64:
        return False
    mask = inputs[:, 1]
    steps = mask.diff(dim=1)  # a mask is ones with zeros behind them, or before: two series of numbers are none
    one_way = (steps <= 0).all(1) | (steps >= 0).all(1)
    return bool(((mask == 0) | (mask == 1)).all() and one_way.all() and mask.any(1).all())


def trimmed(inputs: torch.Tensor) -> torch.Tensor:
    """Token tensors (N, 2, L) without the columns at the end that pad every one of them; anything else as it is."""
    if not is_tokens(inputs):
        return inputs
    used = inputs[:, 1].any(0).nonzero()
    return inputs[..., : int(used.max()) + 1].contiguous() if len(used) else inputs


def unpadded(values: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
    """What a layer has at every token (N, L, D), as rows (tokens, D) without the padding; anything else as it is."""
    if values.dim() != 3 or not is_tokens(inputs) or values.shape[:2] != (inputs.shape[0], inputs.shape[2]):
        return values
    return values[inputs[:, 1].bool()]
