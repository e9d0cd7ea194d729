"""A trained-like network and an image folder on disk, as a user would have them."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import cswap
from cswap.cli.app import main
from cswap.data.models import ModelSpec, load_weights
from cswap.data.sources import ImageFormat, open_data

FACTORY = '''
import torch
from torch import nn


class Colours(nn.Module):
    """Says which colour an image is; hidden channels 3 to 11 are weak copies and noise."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.a, self.bn = nn.Conv2d(3, 12, 3, 1, 1), nn.BatchNorm2d(12)
        self.b, self.fc = nn.Conv2d(12, 6, 1), nn.Linear(6, classes)

    def forward(self, x):
        return self.fc(torch.relu(self.b(torch.relu(self.bn(self.a(x))))).mean((2, 3)))


def colours(classes: int = 3) -> nn.Module:
    return Colours(classes)


def broken() -> nn.Module:
    raise RuntimeError("this factory fails\\nwith two lines")


def not_a_module():
    return 3
'''


@dataclass
class Place:
    """Everything a command needs, and the start of one."""

    root: Path
    factory: Path
    weights: Path
    data: Path

    def prune(self, out: str, *more: str, target: str = "params=0.3", data: str | None = None) -> list[str]:
        form = [] if data and ".py:" in data else ["--image-size", "8", "--mean", "0.5,0.5,0.5", "--std", "0.5,0.5,0.5"]
        return [
            "prune", "--model", f"{self.factory}:colours", "--weights", str(self.weights), "--data", data or str(self.data),
            *form, "--per-class", "6", "--target", target,
            "--out", str(self.root / out), "--quiet", *more,
        ]  # fmt: skip

    def original(self) -> torch.nn.Module:
        """The unpruned network."""
        model = ModelSpec.parse(f"{self.factory}:colours").build()
        load_weights(model, self.weights)
        return model.eval()

    def calibration(self, per_class: int = 6) -> cswap.CalibrationSet:
        """The samples that `prune` draws."""
        train = open_data(str(self.data), ImageFormat(8, 8, (0.5,) * 3, (0.5,) * 3)).train
        return cswap.calibration_set(train, per_class, 0)

    def saved(self) -> str:
        """A network pruned and saved from Python, in `saved`; returns its factory."""
        spec = f"{self.factory}:colours"
        model = self.original()
        path = cswap.prune_path(model, self.calibration(), target="params=0.3")
        cswap.save(path.apply(model, target="params=0.3"), self.root / "saved", path=path, factory=spec)
        return spec


def _weights() -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    a, b, fc = torch.zeros(12, 3, 3, 3), torch.zeros(6, 12, 1, 1), torch.zeros(3, 6)
    a += 0.02 * torch.randn(a.shape, generator=g)
    b += 0.02 * torch.randn(b.shape, generator=g)
    fc += 0.02 * torch.randn(fc.shape, generator=g)
    for k in range(3):
        a[k, k, 1, 1] = b[k, k, 0, 0] = 1.0
        fc[k, k] = 4.0
    ones, zeros = torch.ones(12), torch.zeros(12)
    return {
        "a.weight": a, "a.bias": 0.1 * torch.randn(12, generator=g), "bn.weight": ones.clone(), "bn.bias": zeros.clone(),
        "bn.running_mean": zeros.clone(), "bn.running_var": ones.clone(), "bn.num_batches_tracked": torch.tensor(1),
        "b.weight": b, "b.bias": torch.zeros(6), "fc.weight": fc, "fc.bias": torch.zeros(3),
    }  # fmt: skip


def write_images(folder: Path, per_class: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    for k, name in enumerate(("blue", "green", "red")):
        (folder / name).mkdir(parents=True)
        for i in range(per_class):
            pixels = rng.integers(0, 90, (8, 8, 3))
            pixels[..., k] += 100
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{i:03}.png")


def place_at(root: Path) -> Place:
    """What lies in a folder that `laid_out` filled, or in a copy of it."""
    return Place(root, root / "net.py", root / "net.safetensors", root / "data")


def laid_out(root: Path) -> Place:
    """A factory, weights and images in `root`."""
    place = place_at(root)
    place.factory.write_text(FACTORY)
    save_file(_weights(), place.weights)
    write_images(place.data / "train", 10, 0)
    write_images(place.data / "test", 5, 1)
    return place


def with_artifact(root: Path, name: str) -> Path:
    """A network, its data, and an artifact made of them."""
    assert main(laid_out(root).prune(name)) == 0
    return root


def copy_of(template: Path, folder: Path) -> Place:
    """What a test may change of what `with_artifact` made."""
    shutil.copytree(template, folder / "place")
    return place_at(folder / "place")


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return laid_out(tmp_path)


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("no chromium on this machine")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield opened
        opened.close()
