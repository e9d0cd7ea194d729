"""Small networks that segment and detect, with what each channel is for planted."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

CLASSES = 4
PLANTED = {1: (0, 1), 2: (0, 2), 3: (3,)}
"""Classes of an image by its kind."""


class PlantedSegmenter(nn.Module):
    """(N, 4, H, W) one-hot colours → logits (N, 4, H, W). Channel k alone tells class k; what no channel claims is class 3.

    Channel 4 repeats what nothing reads with weight; class 3 needs no channel.
    """

    def __init__(self) -> None:
        super().__init__()
        self.tell, self.say = nn.Conv2d(4, 5, 1), nn.Conv2d(5, 4, 1)
        with torch.no_grad():
            for p in self.parameters():
                p.zero_()
            for k in range(3):
                self.tell.weight[k, k] = 1.0
                self.say.weight[k, k] = 40.0
            self.tell.weight[3, 3] = self.tell.weight[4, 0] = 1.0
            self.say.weight[3, 3] = 1.0
            self.say.bias[3] = 20.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.say(F.relu(self.tell(x)))


def planted_masks(samples: int, size: int = 8, seed: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(one-hot colours (4, H, W), mask (H, W)); every image holds the classes of one kind, some pixels are void."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for i in range(samples):
        kinds = torch.tensor(PLANTED[1 + i % 3])
        mask = kinds[torch.randint(len(kinds), (size, size), generator=generator)]
        mask[0, : len(kinds)] = kinds
        noise = 0.1 * torch.randn(4, size, size, generator=generator)
        image = F.one_hot(mask, 4).permute(2, 0, 1).float() + noise
        mask[-1, -1] = 255
        made.append((image, mask))
    return made


class Dense(nn.Module):
    """(N, 3, H, W) → {"out": (N, classes, H, W)}: a skip that is concatenated, a transposed convolution, batch norms."""

    def __init__(self, classes: int = 3, width: int = 6) -> None:
        super().__init__()
        self.a = nn.Sequential(nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.b = nn.Sequential(nn.Conv2d(width, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.up = nn.ConvTranspose2d(8, 5, 2, 2)
        self.c = nn.Sequential(nn.Conv2d(width + 5, 7, 3, 1, 1, bias=False), nn.BatchNorm2d(7), nn.ReLU())
        self.head = nn.Conv2d(7, classes, 1)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        a = self.a(x)
        return {"out": self.head(self.c(torch.cat([a, self.up(self.b(a))], 1)))}


def small_unet(classes: int = 3) -> nn.Module:
    """A factory for the command line."""
    return Dense(classes)
