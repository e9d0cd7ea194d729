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


class PlantedDetector(nn.Module):
    """(N, 3, 16, 16) → boxes of a 4×4 grid of cells, as torchvision gives them. Channel k alone finds class k; 3 repeats 2."""

    def __init__(self) -> None:
        super().__init__()
        self.tell, self.say = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)
        with torch.no_grad():
            for p in self.parameters():
                p.zero_()
            for k in range(3):
                self.tell.weight[k, k] = 1.0
            self.tell.weight[3, 2] = 1.0
            for k in range(2):
                self.say.weight[k, k] = 12.0
            self.say.bias.fill_(-6.0)

    def forward(self, x: torch.Tensor) -> list[dict[str, torch.Tensor]]:
        scores = F.avg_pool2d(self.say(F.relu(self.tell(x))), 4).sigmoid()
        corner = 4.0 * torch.cartesian_prod(torch.arange(4.0), torch.arange(4.0))  # rows, columns
        cells = torch.cat([corner.flip(1), corner.flip(1) + 4], 1)
        found = []
        for own in scores.flatten(2):
            label, cell = (own > 0.5).nonzero(as_tuple=True)
            found.append({"boxes": cells[cell], "scores": own[label, cell], "labels": label + 1})
        return found


def planted_boxes(samples: int, seed: int = 0) -> list[tuple[torch.Tensor, dict[str, torch.Tensor]]]:
    """(image (3, 16, 16), boxes): coloured cells; every third image holds both classes, others one."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for i in range(samples):
        image = 0.05 * torch.rand(3, 16, 16, generator=generator)
        image[2] += torch.rand(16, 16, generator=generator)
        boxes, labels = [], []
        for label in ((0,), (1,), (0, 1))[i % 3]:
            for _ in range(2):
                row, column = torch.randint(0, 4, (2,), generator=generator).tolist()
                image[:2, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] = 0
                image[label, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] = 1
                box = [4.0 * column, 4.0 * row, 4.0 * column + 4, 4.0 * row + 4]
                kept = [j for j, b in enumerate(boxes) if b != box]
                boxes, labels = [boxes[j] for j in kept] + [box], [labels[j] for j in kept] + [label]
        made.append((image, {"boxes": torch.tensor(boxes), "labels": torch.tensor(labels)}))
    return made


def small_ssd(classes: int = 2, size: int = 64) -> nn.Module:
    """torchvision's SSD on three convolutions: a factory for the command line."""
    from collections import OrderedDict

    from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
    from torchvision.models.detection.ssd import SSD
    from torchvision.models.detection.ssdlite import SSDLiteHead

    class Features(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
            self.b = nn.Sequential(nn.Conv2d(8, 10, 3, 2, 1, bias=False), nn.BatchNorm2d(10), nn.ReLU())
            self.c = nn.Sequential(nn.Conv2d(10, 12, 3, 2, 1, bias=False), nn.BatchNorm2d(12), nn.ReLU())

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            fine = self.b(self.a(x))
            return OrderedDict([("0", fine), ("1", self.c(fine))])

    anchors = DefaultBoxGenerator([[2], [2]], scales=[0.2, 0.4, 0.6])
    head = SSDLiteHead([10, 12], anchors.num_anchors_per_location(), classes + 1, nn.BatchNorm2d)
    return SSD(
        Features(), anchors, (size, size), classes + 1, image_mean=[0.5] * 3, image_std=[0.25] * 3, head=head,
        score_thresh=0.05, detections_per_img=20, topk_candidates=50,
    )  # fmt: skip
