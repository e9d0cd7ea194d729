"""Reference networks for CIFAR-10 at 32×32 that are small enough to train on two cores, as factories for `--model`.

Inputs: float (N, 3, 32, 32), normalised with MEAN and STD. Outputs: logits (N, 10).
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models import VisionTransformer

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


class _Block(nn.Module):
    """Two 3×3 convolutions and a shortcut, a 1×1 convolution where the shape changes."""

    def __init__(self, inn: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inn, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out)
        self.conv2, self.bn2 = nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out)
        same = stride == 1 and inn == out
        self.shortcut = (
            nn.Identity() if same else nn.Sequential(nn.Conv2d(inn, out, 1, stride, bias=False), nn.BatchNorm2d(out))
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(h)) + self.shortcut(x))


class ResNetCifar(nn.Module):
    """The CIFAR ResNet of He et al. (2016, arXiv 1512.03385), depth 6n + 2, shortcuts of option B."""

    def __init__(self, blocks: int = 3, width: int = 16, classes: int = 10) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        widths = (width, width, 2 * width, 4 * width)
        for stage in (1, 2, 3):
            inn, out = widths[stage - 1], widths[stage]
            layers = [_Block(inn if i == 0 else out, out, 2 if i == 0 and stage > 1 else 1) for i in range(blocks)]
            setattr(self, f"layer{stage}", nn.Sequential(*layers))
        self.fc = nn.Linear(4 * width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: torch.Tensor = self.fc(x.mean((2, 3)))
        return logits


def resnet20_cifar() -> nn.Module:
    """272,474 parameters and 41 MMAC at 32×32."""
    return ResNetCifar(3)


def vit_cifar() -> nn.Module:
    """torchvision's vision transformer with patches of 4, six layers of width 128 and four heads: 809,000 parameters."""
    return VisionTransformer(32, 4, 6, 4, 128, 256, num_classes=10)
