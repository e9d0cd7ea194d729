"""What several test files need: small networks of every wiring, data with classes, the shared real network."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset
from torchvision.models import VisionTransformer

from cswap.artifacts.folder import save
from cswap.methods.options import Options
from cswap.methods.path import PruningPath
from cswap.structure.check import randomise_, tensors_of
from cswap.structure.detectors import forward_of
from cswap.structure.groups import Group, Removed, Structure
from cswap.structure.ledger import Ledger
from cswap.types import Decision, Target

SHARED = Path(os.environ.get("CSWAP_SHARED", Path(__file__).resolve().parents[2] / "shared"))


class ResidualNet(nn.Module):
    """A stem, one residual block, one strided block with a projection, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, 1, 1, bias=False)
        self.bn = nn.BatchNorm2d(6)
        self.a = nn.Conv2d(6, 5, 3, 1, 1)
        self.b = nn.Conv2d(5, 6, 3, 1, 1)
        self.c = nn.Conv2d(6, 8, 3, 2, 1)
        self.skip = nn.Conv2d(6, 8, 1, 2)
        self.fc = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn(self.conv(x)))
        x = F.relu(x + self.b(F.relu(self.a(x))))
        x = F.relu(self.c(x) + self.skip(x))
        return self.fc(x.mean((2, 3)))


class DepthwiseNet(nn.Module):
    """An inverted bottleneck with a squeeze-and-excite gate."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Conv2d(3, 8, 1)
        self.dw = nn.Conv2d(8, 8, 3, 1, 1, groups=8)
        self.bn = nn.BatchNorm2d(8)
        self.squeeze, self.excite = nn.Conv2d(8, 3, 1), nn.Conv2d(3, 8, 1)
        self.down = nn.Conv2d(8, 6, 1)
        self.fc = nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu6(self.bn(self.dw(F.relu6(self.up(x)))))
        x = x * torch.sigmoid(self.excite(F.relu(self.squeeze(x.mean((2, 3), keepdim=True)))))
        return self.fc(self.down(x).mean((2, 3)))


class ConcatNet(nn.Module):
    """Dense connections: a norm after a concat, so that zero before it is not a cut; then flatten to linear."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 5, 3, 1, 1)
        self.n1, self.b = nn.BatchNorm2d(5), nn.Conv2d(5, 4, 3, 1, 1)
        self.n2, self.c = nn.BatchNorm2d(9), nn.Conv2d(9, 6, 3, 2, 1)
        self.hidden, self.fc = nn.Linear(6 * 4 * 4, 7), nn.Linear(7, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = self.a(x)
        b = self.b(F.relu(self.n1(a)))
        c = F.relu(self.c(F.relu(self.n2(torch.cat([a, b], 1)))))
        return self.fc(F.relu(self.hidden(c.flatten(1))))


class MixedNet(nn.Module):
    """A stem with a norm, a residual block, a depthwise convolution, two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.one, self.two = nn.Conv2d(8, 10, 3, padding=1), nn.Conv2d(10, 8, 1)
        self.deep = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.hidden, self.fc = nn.Linear(8, 12), nn.Linear(12, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.stem(x)).relu()
        x = (x + self.two(self.one(x).relu())).relu()
        return self.fc(self.hidden(self.deep(x).relu().mean((2, 3))).relu())


PATTERN_NETS = {
    "convnet": MixedNet,
    "transformer": lambda: VisionTransformer(8, 4, 2, 2, 16, 24, num_classes=4),
}


def trained_on_patterns(kind: str, side: int = 8) -> tuple[nn.Module, TensorDataset]:
    """One of `PATTERN_NETS` in float64 after a few steps on four classes that differ by what is bright where; and those samples, 24 a class."""
    torch.manual_seed(0)
    net = PATTERN_NETS[kind]()
    y = torch.arange(4).repeat(24)
    patterns = torch.rand(4, 3, side, side) + 2 * torch.rand(4, 3, 1, 1)
    x = patterns[y] + 0.4 * torch.randn(len(y), 3, side, side)
    optimiser = torch.optim.Adam(net.parameters(), lr=1e-2)
    for _ in range(40):
        optimiser.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimiser.step()
    return net.eval().double(), TensorDataset(x.double(), y)


def off_by_one(structure: Structure) -> Structure:
    """The same structure with every consumer reading its neighbour's column."""
    groups = []
    for g in structure:
        slots = tuple(
            dataclasses.replace(s, positions=np.roll(s.positions, 1)) if s.role == "consumer" else s for s in g.slots
        )
        groups.append(Group(g.name, g.size, slots))
    return dataclasses.replace(structure, groups=tuple(groups))


def path_of(structure: Structure, removed: Removed, example: torch.Tensor) -> PruningPath:
    """A path that removes these units, for surgery, saving and loading without an analysis."""
    ledger, decisions = Ledger(structure), []
    for name, units in removed.items():
        for n in units:
            ledger.remove(structure[name], int(n))
            decisions.append(Decision(len(decisions) + 1, "rank", name, int(n), True, "chosen", ratio=ledger.ratio()))
    return PruningPath(structure, "random", Options().as_dict(), ("0",), decisions, ended="chosen", example=example)


def saved_and_loaded_elsewhere(net, structure, removed, x, folder, factory, arguments=None) -> nn.Module:
    """Prune, save, load in a new process, and assert that the logits there are the same; returns the pruned network."""
    path = path_of(structure, removed, x)
    small = path.apply(net, Target("units", path.ratio.units))
    save(small, folder / "artifact", path=path, factory=factory, arguments=arguments)
    torch.save(x, folder / "x.pt")
    code = (
        "import sys, torch, cswap; torch.set_num_threads(1); torch.set_grad_enabled(False); folder = sys.argv[1]; "
        "from cswap.structure.check import tensors_of; from cswap.structure.detectors import forward_of; "
        "net = cswap.load(folder + '/artifact', trust=True); "
        "x = torch.load(folder + '/x.pt', weights_only=True); torch.save(tensors_of(forward_of(net)(x)), folder + '/y.pt')"
    )
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as there, and without gradients: kernels, and so the order of sums, depend on both
    try:
        with torch.no_grad():
            there, here = torch.load(folder / "y.pt", weights_only=True), tensors_of(forward_of(small)(x))
            assert there
            assert all(torch.equal(a, b) for a, b in zip(there, here, strict=True))
    finally:
        torch.set_num_threads(threads)
    return small


NETS = {"residual": ResidualNet, "depthwise": DepthwiseNet, "concat": ConcatNet}


@pytest.fixture(params=sorted(NETS))
def small_net(request: pytest.FixtureRequest) -> nn.Module:
    """Each wiring once, randomised, in eval mode; takes (N, 3, 8, 8)."""
    return randomise_(NETS[request.param](), seed=3).eval()


@pytest.fixture
def inputs() -> torch.Tensor:
    return torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="session")
def shared() -> Path:
    if not (SHARED / "models" / "resnet18_cifar10.safetensors").exists():
        pytest.skip("the shared real networks and data are not beside this checkout")
    return SHARED


@pytest.fixture(scope="session")
def digits_case():
    """A small ResNet trained on the digits, its calibration set and its structure."""
    pytest.importorskip("sklearn", reason="scikit-learn's digits are not installed")
    import cswap
    from cswap.demo import digits, digits_resnet, train

    data, _ = digits()
    model = train(digits_resnet(16), data, epochs=6)
    calibration = cswap.calibration_set(data, 24)
    return model, calibration, cswap.discover(model, calibration.inputs(0, 2))
