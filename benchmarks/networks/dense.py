"""Networks that segment and detect, small enough to be trained on two cores: `dense.py:camvid_unet`, `dense.py:bccd_ssd`."""

from __future__ import annotations

from collections import OrderedDict
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.ssd import SSD
from torchvision.models.detection.ssdlite import SSDLiteHead

MEAN, STD = (0.41, 0.43, 0.43), (0.31, 0.31, 0.31)


def _block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())


class _Up(nn.Module):
    """A transposed convolution, the skip beside it, two convolutions."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(inputs, outputs, 2, 2)
        self.mix = nn.Sequential(_block(2 * outputs, outputs), _block(outputs, outputs))

    def forward(self, x: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        x = F.interpolate(self.up(x), size=skip.shape[-2:])
        return self.mix(torch.cat([skip, x], 1))


class UNet(nn.Module):
    """(N, 3, H, W) → (N, classes, H, W): a U-Net at half the resolution, its logits resized."""

    def __init__(self, classes: int = 11, widths: tuple[int, ...] = (16, 32, 64, 96)) -> None:
        super().__init__()
        self.stem = _block(3, widths[0], 2)
        pairs = zip((widths[0], *widths), widths, strict=False)
        self.down = nn.ModuleList(nn.Sequential(_block(a, b), _block(b, b)) for a, b in pairs)
        self.up = nn.ModuleList(_Up(a, b) for a, b in zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.head = nn.Conv2d(widths[0], classes, 1)

    def coarse(self, images: torch.Tensor) -> torch.Tensor:
        """Logits at half the resolution, on which it is trained."""
        x, skips = self.stem(images), []
        for i, down in enumerate(self.down):
            x = down(x if i == 0 else F.max_pool2d(x, 2))
            skips.append(x)
        for up, skip in zip(self.up, skips[-2::-1], strict=True):
            x = up(x, skip)
        logits: torch.Tensor = self.head(x)
        return logits

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return F.interpolate(self.coarse(images), size=images.shape[-2:], mode="bilinear", align_corners=False)


def camvid_unet(classes: int = 11) -> nn.Module:
    """The U-Net of `train_camvid.py`."""
    return UNet(classes)


class _Features(nn.Module):
    """(N, 3, H, W) → maps at strides 16 and 32, under "0" and "1"."""

    def __init__(self, widths: tuple[int, ...] = (16, 32, 48, 96, 128)) -> None:
        super().__init__()
        stages = [_block(3, widths[0], 2)]
        stages += [nn.Sequential(_block(a, b, 2), _block(b, b)) for a, b in pairwise(widths[:4])]
        self.body = nn.Sequential(*stages)
        self.extra = nn.Sequential(_block(widths[3], widths[4], 2), _block(widths[4], widths[4]))
        self.out_channels = [widths[3], widths[4]]

    def forward(self, x: torch.Tensor) -> Any:
        fine = self.body(x)
        return OrderedDict([("0", fine), ("1", self.extra(fine))])


def bccd_ssd(classes: int = 3, size: int = 256) -> nn.Module:
    """torchvision's SSD with lite heads on a small backbone; its class 0 is the background, then Platelets, RBC, WBC."""
    features = _Features()
    anchors = DefaultBoxGenerator([[2], [2]], scales=[0.12, 0.2, 0.45])
    head = SSDLiteHead(features.out_channels, anchors.num_anchors_per_location(), classes + 1, nn.BatchNorm2d)
    return SSD(
        features, anchors, (size, size), classes + 1, image_mean=[0.5] * 3, image_std=[0.25] * 3, head=head,
        score_thresh=0.05, nms_thresh=0.45, detections_per_img=100, topk_candidates=200,
    )  # fmt: skip
