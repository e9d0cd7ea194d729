"""Small convolutional networks, one for each wiring, as a factory that an artifact can name. Inputs (N, 3, 8, 8)."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F
from torchvision.ops import FrozenBatchNorm2d


def _pooled(x: torch.Tensor) -> torch.Tensor:
    return x.mean((2, 3))


class Grouped(nn.Module):
    """A bottleneck of ResNeXt: four groups of 2 → 3 channels, and a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.up, self.norm = nn.Conv2d(3, 6, 3, 1, 1), nn.Conv2d(6, 8, 1, bias=False), nn.BatchNorm2d(8)
        self.mid, self.down = nn.Conv2d(8, 12, 3, 1, 1, groups=4), nn.Conv2d(12, 6, 1)
        self.hidden, self.fc = nn.Linear(6, 5), nn.Linear(5, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.stem(x))
        x = x + self.down(F.relu(self.mid(F.relu(self.norm(self.up(x))))))
        return self.fc(F.relu(self.hidden(_pooled(x))))


class Multiplier(nn.Module):
    """A depthwise convolution with two filters a channel."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.dw, self.down = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 12, 3, 1, 1, groups=6), nn.Conv2d(12, 5, 1)
        self.fc = nn.Linear(5, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(_pooled(F.relu(self.down(F.relu(self.dw(F.relu(self.up(x))))))))


class Squeeze(nn.Module):
    """Squeeze and excitation with linear layers, which broadcast over space."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, 1, 1), nn.Conv2d(8, 6, 3, 1, 1)
        self.down, self.up, self.hidden, self.fc = nn.Linear(8, 4), nn.Linear(4, 8), nn.Linear(6, 5), nn.Linear(5, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.a(x))
        gate = torch.sigmoid(self.up(F.relu(self.down(_pooled(x)))))
        x = F.relu(self.b(x * gate[:, :, None, None]))
        return self.fc(F.relu(self.hidden(_pooled(x))))


class Eca(nn.Module):
    """Efficient channel attention: a convolution ALONG the channels mixes neighbours, so its group cannot be pruned."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.along = nn.Conv2d(3, 8, 3, 1, 1), nn.Conv1d(1, 1, 3, padding=1, bias=False)
        self.b, self.fc = nn.Conv2d(8, 6, 3, 1, 1), nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.a(x))
        gate = torch.sigmoid(self.along(_pooled(x).unsqueeze(1))).transpose(1, 2).unsqueeze(-1)
        x = F.relu(self.b(x * gate))
        return self.fc(_pooled(x))


class Cbam(nn.Module):
    """Channel attention by mean and maximum, then spatial attention over the channels' mean: which must be left out."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.down, self.up = nn.Conv2d(3, 8, 3, 1, 1), nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
        self.b, self.space = nn.Conv2d(8, 6, 3, 1, 1), nn.Conv2d(2, 1, 3, 1, 1)
        self.hidden, self.fc = nn.Linear(6, 5), nn.Linear(5, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.a(x))
        pooled = [x.mean((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)]
        x = x * torch.sigmoid(sum(self.up(F.relu(self.down(p))) for p in pooled))
        x = F.relu(self.b(x))
        x = x * torch.sigmoid(self.space(torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)))
        return self.fc(F.relu(self.hidden(_pooled(x))))


class GroupNormed(nn.Module):
    """GroupNorm mixes the channels of `a`; those of `b` are free."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Conv2d(3, 8, 3, 1, 1), nn.GroupNorm(2, 8), nn.Conv2d(8, 6, 3, 1, 1)
        self.fc = nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(_pooled(F.relu(self.b(F.relu(self.norm(self.a(x)))))))


class Frozen(nn.Module):
    """Batch norms of buffers alone."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.n, self.b, self.m = (
            nn.Conv2d(3, 8, 3),
            FrozenBatchNorm2d(8),
            nn.Conv2d(8, 6, 3),
            FrozenBatchNorm2d(6),
        )
        self.fc = nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(_pooled(F.relu(self.m(self.b(F.relu(self.n(self.a(x))))))))


class Transposed(nn.Module):
    """Down and up again."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.up = nn.Conv2d(3, 8, 3, 2, 1), nn.ConvTranspose2d(8, 6, 2, 2)
        self.fc = nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(_pooled(F.relu(self.up(F.relu(self.a(x))))))


class Twice(nn.Module):
    """One convolution used twice: its inputs and outputs are the same units."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = nn.Conv2d(3, 8, 3, 1, 1), nn.Conv2d(8, 8, 3, 1, 1), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(_pooled(F.relu(self.b(F.relu(self.b(F.relu(self.a(x))))))))


class Shuffle(nn.Module):
    """A block of ShuffleNet V2: half of the channels go past, then halves are interleaved."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.up, self.dw = nn.Conv2d(3, 8, 3, 1, 1), nn.Conv2d(4, 6, 1), nn.Conv2d(6, 6, 3, 1, 1, groups=6)
        self.down, self.fc = nn.Conv2d(6, 4, 1), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        past, x = F.relu(self.stem(x)).chunk(2, 1)
        x = torch.cat([past, F.relu(self.down(self.dw(F.relu(self.up(x)))))], 1)
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.fc(_pooled(x))


class LayerScaled(nn.Module):
    """ConvNeXt's layer scale and pixel norm around an MLP; the residual width is left out."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.up, self.down = (
            nn.Conv2d(3, 8, 2, 2),
            nn.LayerNorm(8),
            nn.Linear(8, 10),
            nn.Linear(10, 8),
        )
        self.scale = nn.Parameter(torch.ones(8, 1, 1))
        self.hidden, self.fc = nn.Linear(8, 6), nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        h = self.down(F.gelu(self.up(self.norm(x.permute(0, 2, 3, 1))))).permute(0, 3, 1, 2)
        return self.fc(F.relu(self.hidden(_pooled(x + self.scale * h))))


class Dense(nn.Module):
    """Dense connections into one linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.n, self.b = nn.Conv2d(3, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.Conv2d(6, 4, 3, 1, 1)
        self.hidden, self.fc = nn.Linear(10, 7), nn.Linear(7, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = self.a(x)
        x = torch.cat([a, self.b(F.relu(self.n(a)))], 1)
        return self.fc(F.relu(self.hidden(_pooled(F.relu(x)))))


class Auxiliary(nn.Module):
    """A second head that eval mode never calls."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 3), nn.Linear(6, 4)
        self.aux = nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.b(F.relu(self.a(x))))
        return self.fc(_pooled(x))


NETS = {
    "grouped": Grouped, "multiplier": Multiplier, "squeeze": Squeeze, "eca": Eca, "cbam": Cbam, "groupnorm": GroupNormed,
    "frozen": Frozen, "transposed": Transposed, "twice": Twice, "shuffle": Shuffle, "layerscale": LayerScaled, "dense": Dense,
    "aux": Auxiliary,
}  # fmt: skip


def build(name: str) -> nn.Module:
    """The network of this wiring."""
    return NETS[name]()
