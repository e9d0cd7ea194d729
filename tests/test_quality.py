"""Quality on held-out data: batches that fit the caches, and figures that do not depend on them."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import cswap
from cswap.evaluate import quality
from cswap.evaluate.quality import measure_quality


class Told(nn.Module):
    """Four classes by one convolution; remembers how many samples it was given at a time. least: fewer are refused."""

    def __init__(self, width: int, least: int = 1) -> None:
        super().__init__()
        self.conv, self.least, self.seen = nn.Conv2d(3, width, 1), least, []
        self.out = nn.Linear(width, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if len(x) < self.least:
            raise RuntimeError("expected more samples")
        self.seen.append(len(x))
        return self.out(self.conv(x).mean((2, 3)))


def _data(n: int = 300) -> TensorDataset:
    g = torch.Generator().manual_seed(0)
    return TensorDataset(torch.randn(n, 3, 16, 16, generator=g), torch.arange(n) % 4)


@pytest.mark.parametrize(("width", "rows"), [(8, 128), (256, 32), (4096, 16)])
def test_batches_keep_a_layer_s_output_in_the_caches(width, rows):
    """Of `width` channels a sample takes a KiB a channel: 8 MiB hold 1,024, 32 and 2 of them."""
    net = Told(width)
    usual = measure_quality({"it": net}, _data(), cswap.Classification(), 4)["it"]
    assert net.seen[0] == 1  # what a layer gives was looked at
    assert net.seen[1:-1] == [rows] * (len(net.seen) - 2)
    assert sum(net.seen[1:]) == 300
    assert usual == measure_quality({"it": net}, _data(), cswap.Classification(), 4, batch=128)["it"]


def test_the_widest_of_several_networks_counts():
    nets = {"wide": Told(256), "narrow": Told(8)}
    measure_quality(nets, _data(), cswap.Classification(), 4)
    assert [n.seen[1] for n in nets.values()] == [32, 32]


def test_a_network_that_takes_no_single_sample_is_given_whole_batches():
    net = Told(256, least=40)
    measure_quality({"it": net}, _data(256), cswap.Classification(), 4)
    assert net.seen == [128, 128]


def test_out_of_memory_is_no_reason_to_try_more(monkeypatch):
    def out(self, x):
        raise MemoryError

    monkeypatch.setattr(Told, "forward", out)
    with pytest.raises(MemoryError):
        quality.fitting(_data()[0][0], "cpu", [quality.Fed(Told(8))])
