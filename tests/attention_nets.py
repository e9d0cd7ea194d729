"""Small transformers of every library, and what is asked of them pruned."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
import torch
import torchvision
from torch import nn
from torch.utils.data import TensorDataset

import cswap
from cswap.methods.options import Options
from cswap.methods.path import PruningPath, Surgery
from cswap.structure.check import random_half, randomise_
from cswap.structure.groups import Group, Slot, Structure
from cswap.structure.ledger import Ledger
from cswap.structure.surgery import kept_indices, masked_copy, pruned_copy
from cswap.types import Target


def off_by_one(structure: Structure) -> Structure:
    """Every reader of a unit takes its neighbour; in q·k, where every product term has the same factor, k does."""

    def wrong(slot: Slot, group: Group) -> bool:
        return slot.module.endswith(".k") if "#qk" in group.name else slot.role == "consumer"

    groups = [
        Group(g.name, g.size, tuple(
            dataclasses.replace(s, positions=np.roll(s.positions, 1)) if wrong(s, g) else s for s in g.slots
        ))
        for g in structure
    ]  # fmt: skip
    return dataclasses.replace(structure, groups=tuple(groups))


def _vit() -> nn.Module:
    return torchvision.models.VisionTransformer(32, 16, 2, 2, 32, 64, num_classes=5)


def _swin() -> nn.Module:
    return torchvision.models.SwinTransformer([4, 4], 16, [2, 2], [2, 4], [4, 4], num_classes=5)


def _timm(name: str) -> nn.Module:
    timm = pytest.importorskip("timm", reason="timm is not installed")
    return timm.create_model(f"{name}_tiny_patch16_224", img_size=32, depth=2, embed_dim=48, num_classes=5)


def _hf() -> nn.Module:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, image_size=32, patch_size=16,
        num_labels=5,
    )  # fmt: skip
    return transformers.ViTForImageClassification(config)


MODELS = {
    "vit": (_vit, 32, 12), "swin": (_swin, 64, 32), "timm_vit": (lambda: _timm("vit"), 32, 16),
    "timm_deit": (lambda: _timm("deit"), 32, 16), "hf_vit": (_hf, 32, 20),
}  # fmt: skip


def made(name: str) -> tuple[nn.Module, torch.Tensor]:
    build, size, _ = MODELS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = randomise_(build(), seed=1).eval()
    return model, torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(2))


def ledger_of(structure: Structure, removed: dict[str, np.ndarray]) -> Ledger:
    ledger = Ledger(structure)
    for group, units in removed.items():
        for n in units:
            ledger.remove(structure[group], int(n))
    return ledger


def crossed(model, structure, removed, x) -> float:
    """How far the masked network is from one that was pruned with an off-by-one; infinite where that does not even run."""
    with torch.no_grad():
        masked = logits_of(masked_copy(model, structure, removed)(x))
        try:
            wrong = logits_of(pruned_copy(model, off_by_one(structure), removed)(x))
        except RuntimeError:
            return float("inf")
    return float((masked - wrong).abs().max())


def logits_of(out):
    return out if isinstance(out, torch.Tensor) else out.logits


def images_of(size: int, classes: int = 5) -> cswap.CalibrationSet:
    g = torch.Generator().manual_seed(5)
    n = 4 * classes
    return cswap.calibration_set(
        TensorDataset(torch.randn(n, 3, size, size, generator=g), torch.arange(n) % classes), n // classes
    )


_FACTORIES = """
import torchvision

def vit():
    return torchvision.models.VisionTransformer(32, 16, 2, 2, 32, 64, num_classes=5)

def swin():
    return torchvision.models.SwinTransformer([4, 4], 16, [2, 2], [2, 4], [4, 4], num_classes=5)
"""


_LOAD = """
import sys, torch, cswap
small = cswap.load(sys.argv[1], trust=True)
with torch.no_grad():
    out = small(torch.load(sys.argv[2], weights_only=True))
torch.save(getattr(out, "logits", out), sys.argv[3])
"""


def saved(tmp_path, model: nn.Module, structure: Structure, spec: str, arguments=None) -> nn.Module:
    """Half of everything goes, and the artifact is in tmp_path/run."""
    removed = random_half(structure, 3)
    small = pruned_copy(model, structure, removed)
    path = PruningPath(structure, "random", Options().as_dict(), tuple("abcde"))
    ratio = ledger_of(structure, removed).ratio()
    small._cswap = Surgery(Target("units", 0.5), ratio, 0, removed, kept_indices(structure, removed), structure)
    cswap.save(small, tmp_path / "run", path=path, factory=spec, arguments=arguments)
    return small


def loaded_elsewhere(tmp_path, x: torch.Tensor) -> torch.Tensor:
    """Logits of the artifact, loaded in a new process."""
    torch.save(x, tmp_path / "x.pt")
    command = [sys.executable, "-c", _LOAD, str(tmp_path / "run"), str(tmp_path / "x.pt"), str(tmp_path / "y.pt")]
    subprocess.run(command, check=True)
    return torch.load(tmp_path / "y.pt", weights_only=True)
