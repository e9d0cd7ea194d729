"""Images of a folder without labels: any folder of files, with splits or without."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from cswap.errors import DataError

HELD_OUT = 5  # every fifth image is for quality, where the folder has no splits


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
    """All images below train/ and test/ or val/ (or the splits named), however they are sorted; else below `root`, every fifth for
    quality. Raises DataError."""
    if not root.is_dir():
        raise DataError(f"data {str(root)!r}: expected a folder of images; no such folder")
    found = [n for n in ("test", "val") if (root / n).is_dir()]
    splits = (root / "train").is_dir() and bool(found)
    if splits or calibration or evaluation:
        names = (calibration or "train", evaluation or (found[0] if found else "test"))
        return Images(_below(root / names[0]), read), Images(_below(root / names[1]), read)
    files = _below(root)
    return (
        Images([f for i, f in enumerate(files) if i % HELD_OUT != HELD_OUT - 1], read),
        Images(files[HELD_OUT - 1 :: HELD_OUT], read),
    )


def _below(folder: Path) -> list[Path]:
    from torchvision.datasets.folder import IMG_EXTENSIONS

    files = sorted(f for f in folder.rglob("*") if f.suffix.lower() in IMG_EXTENSIONS and f.is_file())
    if not files:
        raise DataError(f"data {str(folder)!r}: expected images ({', '.join(IMG_EXTENSIONS)}), found none")
    return files
