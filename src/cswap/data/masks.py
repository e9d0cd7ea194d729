"""Images with masks: `train/images` and `train/masks`, `test/…` or `val/…` beside it; a mask has its image's name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import Dataset

from cswap.data.truth import VOID
from cswap.errors import DataError

if TYPE_CHECKING:
    from cswap.data.sources import ImageFormat

EXPECTED = "expected train/ and test/ or val/, each with images/ and masks/"
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")


def is_masks(root: Path) -> bool:
    """Whether a folder has a split with images/ and masks/."""
    return root.is_dir() and any((p / "images").is_dir() and (p / "masks").is_dir() for p in root.iterdir())


class MaskFolder(Dataset[Any]):
    """Samples (image (3, H, W) float, mask (H, W) int64); VOID where the mask has `ignore`. Images keep their size.

    With `form.asked` the shorter side becomes that long, and the centre square is taken. classes: names, or None: numbers.
    """

    def __init__(self, folder: Path, form: ImageFormat, ignore: int | None, classes: list[str] | None) -> None:
        self.form, self.ignore = form, VOID if ignore is None else ignore
        by_name = {p.stem: p for p in sorted((folder / "masks").iterdir()) if p.suffix.lower() in SUFFIXES}
        images = [p for p in sorted((folder / "images").iterdir()) if p.suffix.lower() in SUFFIXES]
        missing = [p.name for p in images if p.stem not in by_name]
        if missing or not images:
            what = f"{missing[0]} has none" if missing else "there are no images"
            raise DataError(f"data {str(folder)!r}: expected a mask of the same name for each image; {what}")
        self.files = [(p, by_name[p.stem]) for p in images]
        if classes is not None:
            self.classes = classes

    def __len__(self) -> int:
        return len(self.files)

    def target(self, index: int) -> torch.Tensor:
        """The mask (H, W) int64."""
        file = self.files[index][1]
        mask = np.asarray(self._shaped(opened(file), nearest=True))
        if mask.ndim != 2 or mask.dtype.kind not in "bui":
            raise DataError(f"mask {file}: expected one channel of class numbers, got shape {mask.shape}")
        numbers = torch.from_numpy(mask.astype(np.int64))
        return torch.where(numbers == self.ignore, VOID, numbers)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        from torchvision.transforms import functional as F

        file, mask = self.files[index][0], self.target(index)
        image = F.to_tensor(self._shaped(opened(file).convert("RGB"), nearest=False))
        if image.shape[1:] != mask.shape:
            raise DataError(f"mask of {file}: expected its image's {tuple(image.shape[1:])}, got {tuple(mask.shape)}")
        return F.normalize(image, list(self.form.mean), list(self.form.std)), mask

    def _shaped(self, image: Any, nearest: bool) -> Any:
        if self.form.asked is None:
            return image
        from torchvision.transforms import InterpolationMode
        from torchvision.transforms import functional as F

        how = InterpolationMode.NEAREST if nearest else InterpolationMode.BILINEAR
        return F.center_crop(F.resize(image, [self.form.asked], how), [self.form.asked])


def opened(file: Path) -> Any:
    from PIL import Image

    try:
        with Image.open(file) as image:
            image.load()
            return image
    except Exception as error:  # noqa: BLE001 — decoders raise anything at all on a broken file
        raise DataError(f"image {file} cannot be read ({type(error).__name__}: {str(error)[:120]})") from None


def split_names(root: Path, calibration: str | None, evaluation: str | None) -> tuple[str, str]:
    """The two splits' folders. Raises DataError."""
    found = [n for n in ("test", "val") if (root / n).is_dir()]
    names = (calibration or "train", evaluation or (found[0] if found else "test"))
    for name in names:
        if not all((root / name / part).is_dir() for part in ("images", "masks")):
            raise DataError(f"data {str(root)!r}: {EXPECTED}; there is no {name}/images and {name}/masks")
    return names


def open_masks(
    root: Path, form: ImageFormat, calibration: str | None, evaluation: str | None, ignore: int | None
) -> tuple[MaskFolder, MaskFolder]:
    """Train and evaluation data; `classes.txt` in the folder names the classes, one a line. Raises DataError."""
    if ignore is not None and not 0 <= ignore <= 255:
        raise DataError(f"ignore-index: expected 0 to 255, got {ignore}")
    file = root / "classes.txt"
    classes = file.read_text(encoding="utf-8").split("\n") if file.is_file() else None
    named = None if classes is None else [c.strip() for c in classes if c.strip()]
    first, second = split_names(root, calibration, evaluation)
    return MaskFolder(root / first, form, ignore, named), MaskFolder(root / second, form, ignore, named)
