"""Images of a folder without labels: any folder of files, with splits or without."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from cswap.errors import DataError

HELD_OUT = 5  # a fifth of the images is for quality, where the folder has no splits


class Images(Dataset[Any]):
    """Images as tensors, all of one class, which says nothing. `files` in the order of their paths; read: of a path."""

    classes = ("unlabelled",)

    def __init__(self, files: list[Path], read: Callable[[str], torch.Tensor]) -> None:
        self.files, self.read, self.targets = files, read, [0] * len(files)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.read(str(self.files[index])), 0


def open_images(
    root: Path, read: Callable[[str], torch.Tensor], calibration: str | None, evaluation: str | None
) -> tuple[Images, Images]:
    """All images below train/ and test/ or val/ (or the splits named), however they are sorted, or where there is a test/ or val/ alone
    twice those; else those below `root`, a fifth of them for quality, by their names. Raises DataError."""
    if not root.is_dir():
        raise DataError(f"data {str(root)!r}: expected a folder of images; no such folder")
    held_out = evaluation or next((n for n in ("test", "val") if (root / n).is_dir()), None)
    drawn = calibration or ("train" if (root / "train").is_dir() else None)
    if held_out is not None:
        quality = Images(_below(root / held_out), read)
        return Images(_below(root / drawn), read) if drawn else quality, quality
    if drawn is not None:
        raise DataError(f"data {str(root)!r}: expected test/ or val/ beside {drawn}/, or a folder without splits")
    files = _below(root)
    parts = [
        zlib.crc32(f.relative_to(root).as_posix().encode("utf-8", "surrogateescape")) % HELD_OUT == 0 for f in files
    ]
    if len(set(parts)) < 2:
        raise DataError(f"data {str(root)!r}: expected more images, of which a fifth are for quality; got {len(files)}")
    chosen = list(zip(files, parts, strict=True))
    return Images([f for f, out in chosen if not out], read), Images([f for f, out in chosen if out], read)


def _below(folder: Path) -> list[Path]:
    """Images in a folder and those below it, through links too, each folder once. Raises DataError."""
    from torchvision.datasets.folder import IMG_EXTENSIONS

    found, seen = [], set()
    for place, inner, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            inner.clear()
            continue
        seen.add(real)
        found += [Path(place) / n for n in names if n.lower().endswith(IMG_EXTENSIONS)]
    if not found:
        raise DataError(f"data {str(folder)!r}: expected images ({', '.join(IMG_EXTENSIONS)}), found none")
    return sorted(found)
