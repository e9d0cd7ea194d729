"""Images with boxes: Pascal VOC (JPEGImages, Annotations, ImageSets) and COCO (annotations/instances_SPLIT.json) folders."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import torch
from torch.utils.data import Dataset

from cswap.data.masks import opened
from cswap.data.truth import Boxes
from cswap.errors import DataError

if TYPE_CHECKING:
    from cswap.data.sources import ImageFormat


@dataclass(frozen=True, eq=False)
class Annotated:
    """One image file and its boxes, x1, y1, x2, y2 in its pixels, with class names."""

    file: Path
    boxes: tuple[tuple[float, float, float, float], ...]
    names: tuple[str, ...]


class BoxFolder(Dataset[Any]):
    """Samples (image (3, H, W) float in [0, 1], {boxes (B, 4), labels (B,)}). Images keep their size.

    With `form.asked` they become squares of that side, boxes with them.
    """

    def __init__(
        self, samples: list[Annotated], classes: list[str], form: ImageFormat, numbers: tuple[int, ...] | None = None
    ) -> None:
        self.samples, self.classes, self.form, self.numbers = samples, classes, form, numbers

    def __len__(self) -> int:
        return len(self.samples)

    def _scale(self, index: int) -> tuple[float, float]:
        if self.form.asked is None:
            return 1.0, 1.0
        from PIL import Image

        with Image.open(self.samples[index].file) as image:
            return self.form.asked / image.width, self.form.asked / image.height

    def target(self, index: int) -> Boxes:
        """Boxes in pixels of the input, and labels."""
        sample, (x, y) = self.samples[index], self._scale(index)
        labels = torch.tensor([self.classes.index(n) for n in sample.names], dtype=torch.int64)
        return {"boxes": torch.tensor(sample.boxes).reshape(-1, 4) * torch.tensor([x, y, x, y]), "labels": labels}

    def __getitem__(self, index: int) -> tuple[torch.Tensor, Boxes]:
        from torchvision.transforms import functional as F

        image = opened(self.samples[index].file).convert("RGB")
        if self.form.asked is not None:
            image = F.resize(image, [self.form.asked, self.form.asked])
        tensor = F.to_tensor(image)
        if not self.form.as_they_are:
            tensor = F.normalize(tensor, list(self.form.mean), list(self.form.std))
        return tensor, self.target(index)


def is_boxes(root: Path) -> bool:
    """Whether a folder is laid out as Pascal VOC or COCO."""
    return _is_voc(root) or any((root / "annotations").glob("instances_*.json"))


def _is_voc(root: Path) -> bool:
    return (root / "Annotations").is_dir() and (root / "JPEGImages").is_dir()


def open_boxes(
    root: Path, form: ImageFormat, calibration: str | None, evaluation: str | None
) -> tuple[BoxFolder, BoxFolder]:
    """Train and evaluation data. VOC's classes are the names in the train split, in alphabetic order; COCO's its categories.

    Objects marked difficult, crowds, and boxes without area are left out. Where COCO's category ids leave gaps they are the numbers that
    the model gives its classes, as torchvision's detectors do (`numbers`); else classes follow on one another. Raises DataError.
    """
    read, found = (_voc, _voc_splits(root)) if _is_voc(root) else (_coco, _coco_splits(root))
    held_out = next((n for n in ("test", "val") if n in found), "test")
    names = (calibration or "train", evaluation or held_out)
    for name in names:
        if name not in found:
            raise DataError(
                f"data {str(root)!r}: expected a split {name}, there are {', '.join(sorted(found)) or 'none'}"
            )
    (first, named), (second, _) = (read(root, found[name]) for name in names)
    classes = list(named) or sorted({n for s in first for n in s.names})
    ids = list(named.values())
    numbers = None if not ids or ids == list(range(ids[0], ids[0] + len(ids))) else tuple(ids)
    unknown = {n for s in second for n in s.names} - set(classes)
    if unknown:
        raise DataError(f"data {str(root)!r}: class {min(unknown)!r} is in split {names[1]} and not in {names[0]}")
    return BoxFolder(first, classes, form, numbers), BoxFolder(second, classes, form, numbers)


def _voc_splits(root: Path) -> dict[str, Path]:
    return {p.stem: p for p in (root / "ImageSets" / "Main").glob("*.txt")}


def _voc(root: Path, split: Path) -> tuple[list[Annotated], dict[str, int]]:
    samples = []
    for line in split.read_text(encoding="utf-8").splitlines():
        if not line.strip():
            continue
        stem = line.split()[0]
        file, image = root / "Annotations" / f"{stem}.xml", root / "JPEGImages" / f"{stem}.jpg"
        try:
            tree = ElementTree.parse(file).getroot()  # noqa: S314 — expat bounds the expansion of entities
            held = []
            for thing in tree.iter("object"):
                if (thing.findtext("difficult") or "0").strip() != "1":
                    box = [float(thing.findtext(f"bndbox/{side}") or "") for side in ("xmin", "ymin", "xmax", "ymax")]
                    held.append((box, (thing.findtext("name") or "").strip()))
        except (OSError, ElementTree.ParseError, ValueError) as error:
            raise DataError(f"annotation {file}: cannot be read ({type(error).__name__}: {error})") from None
        samples.append(_sample(image, held))
    return samples, {}


def _coco_splits(root: Path) -> dict[str, Path]:
    """By name without the year: instances_train2017.json is `train`, and also `train2017`."""
    found: dict[str, Path] = {}
    for file in sorted((root / "annotations").glob("instances_*.json")):
        name = file.stem.removeprefix("instances_")
        found[name] = found[name.rstrip("0123456789")] = file
    return found


def _coco(root: Path, file: Path) -> tuple[list[Annotated], dict[str, int]]:
    folder = root / file.stem.removeprefix("instances_")
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
        categories = sorted(told["categories"], key=lambda c: c["id"])
        names = {int(c["id"]): str(c["name"]) for c in categories}
        held: dict[int, list[tuple[list[float], str]]] = {i["id"]: [] for i in told["images"]}
        for a in told["annotations"]:
            if not a.get("iscrowd"):
                x, y, w, h = a["bbox"]
                held[a["image_id"]].append(([x, y, x + w, y + h], names[a["category_id"]]))
        images = {i["id"]: folder / i["file_name"] for i in told["images"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"annotations {file}: expected COCO instances ({type(error).__name__}: {error})") from None
    return [_sample(images[i], boxes) for i, boxes in held.items()], {n: i for i, n in names.items()}


def _sample(file: Path, held: list[tuple[list[float], str]]) -> Annotated:
    kept = [(b, n) for b, n in held if b[2] > b[0] and b[3] > b[1]]
    return Annotated(file, tuple((b[0], b[1], b[2], b[3]) for b, _ in kept), tuple(n for _, n in kept))
