"""How each reference network is trained: one entry a network."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
WEIGHTS = Path(__file__).with_name("weights")


@dataclass(frozen=True)
class Recipe:
    """sides: the side of the images, one entry an epoch (a fraction of one: `(side, 0.5)`). small: weights fit the repository."""

    model: str
    sides: tuple[int | tuple[int, float], ...]
    rate: float = 0.2
    adam: bool = False
    amp: bool = True
    small: bool = True

    @property
    def stages(self) -> list[tuple[int, float]]:
        """Side and part of an epoch."""
        return [s if isinstance(s, tuple) else (s, 1.0) for s in self.sides]

    def optimiser(self, parameters: Any) -> torch.optim.Optimizer:
        """SGD with Nesterov momentum, or AdamW."""
        if self.adam:
            return torch.optim.AdamW(parameters, lr=self.rate, weight_decay=0.05)
        return torch.optim.SGD(parameters, lr=self.rate, momentum=0.9, nesterov=True, weight_decay=5e-4)


ZOO = f"{ROOT}/benchmarks/networks/zoo.py"
SHARED_ZOO = "{shared}/models/zoo.py"
RECIPES = {
    "resnet20": Recipe(f"{ZOO}:resnet20_cifar", (32,) * 12, amp=False),
    "mobilenet_v2": Recipe(f"{SHARED_ZOO}:mobilenet_v2_cifar", (16,) * 5 + (24,) * 2 + (32,), rate=0.1, amp=False),
    "vit": Recipe(f"{ZOO}:vit_cifar", (32,) * 6, rate=1e-3, adam=True),
    "resnet50": Recipe(
        f"{SHARED_ZOO}:resnet50_cifar", ((16, 0.4),) * 4 + ((24, 0.25), (32, 0.1)), rate=0.1, small=False
    ),  # what two cores can do in an hour
    "resnet18_long": Recipe(f"{SHARED_ZOO}:resnet18_cifar", (32,) * 24, small=False),  # for a GPU: minutes, not a night
}
