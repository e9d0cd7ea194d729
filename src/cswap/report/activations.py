"""Looking at units: the calibration images that activate them most, as one sheet or inside the report."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from cswap.artifacts.files import write_whole
from cswap.artifacts.folder import Artifact
from cswap.causal.layout import by_samples, sample_dims
from cswap.data.boxes import is_boxes
from cswap.data.calibration import CalibrationSet
from cswap.data.sources import ImageFormat
from cswap.errors import InputError, MethodError
from cswap.pipeline import OtherData, Source, reopened
from cswap.structure.calls import run_hooked
from cswap.structure.groups import Group, Structure
from cswap.structure.layers import channel_dim
from cswap.structure.surgery import prepared_copy
from cswap.types import FloatArray, IntArray

_BATCH = 64
_LARGEST_TILE = 64  # pixels, inside a report
_SHEET_TILE = 96


@dataclass(frozen=True, eq=False)
class MostActive:
    """Of one group: the samples that activate each unit most, first the largest; `samples` and `values` are (size, most)."""

    samples: IntArray
    values: FloatArray


def most_active(
    model: nn.Module, structure: Structure, calibration: CalibrationSet, most: int = 6, groups: Iterable[str] | None = None
) -> dict[str, MostActive]:  # fmt: skip
    """By group, the `most` calibration samples with the largest activation of every unit.

    A unit's activation is the largest value, over places, of what the first layer that reads it gets: after norm and
    activation function, where a cut acts. On the original network; `model` is untouched. Ours. Raises InputError.
    """
    if most < 1:
        raise InputError(f"images: expected at least 1, got {most}")
    chosen = [g for g in structure if groups is None or g.name in set(groups)]
    net = prepared_copy(model, structure).eval()
    try:
        dims = sample_dims(net, {g.consumers[0].module: None for g in chosen}, *calibration.ends())
    except MethodError as error:
        raise InputError(f"images: {error}") from None
    found = {g.name: np.full((len(calibration), g.size), -np.inf) for g in chosen}
    for start in range(0, len(calibration), _BATCH):
        stop = min(start + _BATCH, len(calibration))
        _see(net, chosen, calibration.inputs(start, stop), {n: a[start:stop] for n, a in found.items()}, dims)
    most = min(most, len(calibration))
    result = {}
    for name, values in found.items():
        order = np.argsort(-values, axis=0, kind="stable")[:most]
        result[name] = MostActive(order.T.astype(np.int64), np.take_along_axis(values, order, axis=0).T)
    return result


def _see(
    net: nn.Module, groups: list[Group], inputs: torch.Tensor, found: dict[str, FloatArray], dims: dict[str, int]
) -> None:
    """One batch: raise each group's rows to what its first reader gets. dims: see `sample_dims`."""
    handles = []
    for group in groups:
        slot = group.consumers[0]
        module = net.get_submodule(slot.module)

        def hook(m: nn.Module, args: tuple[Any, ...], group: Group = group) -> None:
            slot, rows = group.consumers[0], len(inputs)
            at = by_samples(args[0].detach().movedim(channel_dim(m), -1), dims[slot.module], rows)
            highest = at.amax(1).double().cpu().numpy()
            np.maximum.at(found[group.name].T, slot.owner, highest[:, slot.positions].T)

        handles.append(module.register_forward_pre_hook(hook))
    run_hooked(net, inputs, handles)


def pixels(inputs: torch.Tensor, form: ImageFormat, normalised: bool = True) -> IntArray:
    """(N, H, W, 3) uint8 pictures of images (N, 1 or 3, H, W), `normalised` or in [0, 1]. Raises InputError for other inputs."""
    if inputs.dim() != 4 or inputs.shape[1] not in (1, 3) or not inputs.is_floating_point():
        raise InputError(f"images: expected image inputs of shape (N, 1 or 3, H, W), got {tuple(inputs.shape)}")
    if not normalised:
        x = inputs
    elif inputs.shape[1] == len(form.mean):
        shape = (1, -1, 1, 1)
        x = inputs * torch.tensor(form.std).view(shape) + torch.tensor(form.mean).view(shape)
    else:  # data from a factory: its own range
        low, high = inputs.amin((1, 2, 3), keepdim=True), inputs.amax((1, 2, 3), keepdim=True)
        x = (inputs - low) / (high - low).clamp(min=1e-12)
    rgb = (x.clamp(0, 1) * 255).round().to(torch.uint8).expand(-1, 3, -1, -1).permute(0, 2, 3, 1)
    return np.ascontiguousarray(rgb.numpy())


def _tile(picture: IntArray, side: int) -> Any:
    """A picture as a square; small ones keep their pixels sharp."""
    from PIL import Image

    how = Image.Resampling.NEAREST if len(picture) < side else Image.Resampling.LANCZOS
    return Image.fromarray(picture).resize((side, side), how)


@dataclass(frozen=True, eq=False)
class Gallery:
    """Most active samples of some groups, the samples, and their pictures' format and whether they are `normalised`."""

    active: dict[str, MostActive]
    calibration: CalibrationSet
    form: ImageFormat
    normalised: bool = True

    def sprite(self) -> dict[str, Any]:
        """For the report: every picture that is shown once, in one WebP, and by unit [picture, class, activation]."""
        from PIL import Image

        shown = np.unique(np.concatenate([a.samples.ravel() for a in self.active.values()]))
        pictures = pixels(self.calibration.of(shown), self.form, self.normalised)
        tile = min(_LARGEST_TILE, pictures.shape[1])
        columns = int(np.ceil(np.sqrt(len(shown))))
        rows = -(-len(shown) // columns)
        sheet = Image.new("RGB", (columns * tile, rows * tile))
        for i, picture in enumerate(pictures):
            sheet.paste(_tile(picture, tile), ((i % columns) * tile, (i // columns) * tile))
        held = io.BytesIO()
        sheet.save(held, "WEBP", quality=85)
        place = {int(s): i for i, s in enumerate(shown)}
        targets = self.calibration.targets
        units = {
            name: [
                [[place[int(s)], int(targets[s]), f"{v:.3g}"] for s, v in zip(row, values, strict=True)]
                for row, values in zip(a.samples, a.values, strict=True)
            ]
            for name, a in self.active.items()
        }
        url = "data:image/webp;base64," + base64.b64encode(held.getvalue()).decode()
        return {"url": url, "tile": tile, "columns": columns, "rows": rows, "units": units}

    def sheet(self, group: str, unit: int, file: Path) -> list[dict[str, Any]]:
        """Write one unit's pictures side by side as PNG; returns class and activation of each, in order. Raises InputError."""
        from PIL import Image

        active = self.active[group]
        pictures = pixels(self.calibration.of(active.samples[unit]), self.form, self.normalised)
        sheet = Image.new("RGB", (len(pictures) * (_SHEET_TILE + 4) - 4, _SHEET_TILE), "white")
        for i, picture in enumerate(pictures):
            sheet.paste(_tile(picture, _SHEET_TILE), (i * (_SHEET_TILE + 4), 0))
        try:
            held = io.BytesIO()
            sheet.save(held, "PNG")
            write_whole(file, held.getvalue())
        except OSError as error:
            raise InputError(f"images: {file} cannot be written ({error.strerror or error})") from None
        classes, targets = self.calibration.classes, self.calibration.targets
        return [
            {"sample": int(self.calibration.indices[s]), "class": classes[targets[s]], "activation": float(v)}
            for s, v in zip(active.samples[unit], active.values[unit], strict=True)
        ]


def gallery(
    artifact: Artifact, *, most: int = 6, groups: Iterable[str] | None = None, source: Source | None = None,
    weights: Path | None = None, data: str | OtherData | None = None, trust: bool = False,
) -> Gallery:  # fmt: skip
    """The most active calibration samples of an artifact's ORIGINAL network, drawn as the analysis drew them. Raises InputError."""
    again = reopened(artifact, source, data, trust, weights)
    calibration = again.calibration(allow_imbalance="data" not in artifact.manifest)  # saved from Python: what there is
    form = again.choice.form(again.source.spec)
    normalised = not (form.as_they_are and is_boxes(Path(again.choice.text)))  # detectors normalise by themselves
    pixels(calibration.inputs(0, 1), form, normalised)  # refuses what is no image before the work is done
    return Gallery(
        most_active(again.model, artifact.structure, calibration, most, groups), calibration, form, normalised
    )
