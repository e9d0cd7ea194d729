"""What bounds a recovery: memory, what is read how often, padding, few images, and which samples judge it."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset, TensorDataset

import cswap
from cswap.data import calibration as calibration_module
from cswap.errors import InputError, MethodError
from cswap.recovery import recovered
from cswap.recovery.base import choosing, last_fifth
from cswap.recovery.walk import Walk
from cswap.structure.check import randomise_
from cswap.structure.surgery import prepared_copy
from tests.conftest import NETS
from tests.recoveries import pruned_at_random, pruned_to, small_calibration

MIB = 1 << 20


class _BothWays(nn.Module):
    """Tokens and mask (N, 2, L) → a linear layer, an LSTM in both directions, the mean over the tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.emb, self.a = nn.Embedding(30, 8), nn.Linear(8, 12)
        self.rnn, self.fc = nn.LSTM(12, 8, batch_first=True, bidirectional=True), nn.Linear(16, 4)

    def forward(self, t: torch.Tensor) -> torch.Tensor:
        out, _ = self.rnn(torch.relu(self.a(self.emb(t[:, 0]))))
        mask = t[:, 1].unsqueeze(-1).to(out)
        return self.fc((out * mask).sum(1) / mask.sum(1))


def test_both_directions_of_a_recurrent_layer_are_fitted_on_tokens_not_on_padding():
    torch.manual_seed(0)
    net, n = randomise_(_BothWays(), seed=1).eval(), 80
    mask = (torch.arange(12) < torch.randint(2, 8, (n, 1))).long()
    mask[0] = 1
    tokens = torch.stack([torch.randint(1, 30, (n, 12)) * mask, mask], 1)
    calibration = cswap.calibration_set(TensorDataset(tokens, torch.arange(4).repeat_interleave(n // 4)), n // 4)
    structure = cswap.discover(net, calibration.inputs(0, 2))
    whole, x, seen = prepared_copy(net, structure), calibration.inputs(0, n), {}
    for name in ("rnn.l0.ih", "rnn.l0_reverse.ih"):
        keep = lambda _m, args, _o, name=name: seen.update({name: args[0].detach()})  # noqa: E731
        whole.get_submodule(name).register_forward_hook(keep)
    whole(x)
    real = x[:, 1].bool()
    for name, read in (("rnn.l0.ih", seen["rnn.l0.ih"]), ("rnn.l0_reverse.ih", seen["rnn.l0_reverse.ih"].flip(1))):
        walk = Walk(prepared_copy(net, structure), list(x.split(32)), 1 << 30)
        torch.testing.assert_close(torch.cat(list(walk.inputs(name))), read[real])


class _Counted(Dataset[Any]):
    """Images that count how often they are read."""

    def __init__(self, images: torch.Tensor, classes: int) -> None:
        self.images, self.targets, self.reads = images, (np.arange(len(images)) % classes).tolist(), 0

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        self.reads += 1
        return self.images[i], self.targets[i]


def _deep(layers: int) -> nn.Module:
    inner = [m for _ in range(layers) for m in (nn.Conv2d(6, 6, 3, padding=1), nn.ReLU())]
    stem = [nn.Conv2d(3, 6, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*stem, *inner, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)).eval()


@pytest.mark.parametrize("how", ["lstsq", "merge"])
def test_samples_beyond_the_cache_are_not_read_again_for_every_layer(how, monkeypatch):
    monkeypatch.setattr(calibration_module, "CACHE_BYTES", 0)
    reads = []
    for layers in (2, 8):
        torch.manual_seed(0)
        net, data = _deep(layers), _Counted(torch.randn(80, 3, 8, 8), 4)
        calibration = cswap.calibration_set(data, 20)
        structure = cswap.discover(net, calibration.inputs(0, 2))
        small, _ = pruned_to(net, structure, calibration, {g.name: [1] for g in structure})
        data.reads = 0
        recovered(small, net, calibration, how)
        reads.append(data.reads)
    assert reads[0] == reads[1] <= 7 * 80  # to tell copies, by two networks on the way, and by three that are compared


def _wide() -> tuple[nn.Module, cswap.CalibrationSet]:
    """A linear layer that reads 1,568 values, 75 MiB of moments."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 14 * 14, 4)).eval()
    images = TensorDataset(torch.randn(40, 3, 14, 14), torch.arange(4).repeat(10))
    return net, cswap.calibration_set(images, 10)


@pytest.mark.parametrize("how", ["lstsq", "merge"])
def test_moments_beyond_the_memory_are_not_taken_and_that_is_said(how):
    net, calibration = _wide()
    structure = cswap.discover(net, calibration.inputs(0, 2))
    small, _ = pruned_to(net, structure, calibration, {"0": [1, 4]})
    tight = recovered(small, net, calibration, how, memory=8 * MIB)
    assert any("columns need 0.0" in n and "are given (--memory)" in n for n in tight.notes)
    assert torch.equal(tight.raw[3].weight, small[3].weight)
    assert not any("memory" in n for n in recovered(small, net, calibration, how, memory=80 * MIB).notes)


def test_obs_says_that_memory_is_what_it_lacks():
    net, calibration = _wide()
    with pytest.raises(MethodError, match=r"moments of 1,568 columns need 0.0733 GiB and 0.00781 are given"):
        cswap.prune_path(net, calibration, method="obs", memory=8 * MIB)


def test_batch_norms_take_as_many_samples_at_once_as_fit(monkeypatch):
    net, calibration = randomise_(NETS["residual"](), seed=3).eval(), small_calibration()
    small, _ = pruned_at_random(net, calibration)
    sizes, forward = [], nn.BatchNorm2d.forward

    def counted(self: nn.BatchNorm2d, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            sizes.append(len(x))
        return forward(self, x)

    monkeypatch.setattr(nn.BatchNorm2d, "forward", counted)
    recovered(small, net, calibration, "bn", memory=100_000)
    assert sum(sizes) == 80
    assert 16 <= max(sizes) <= 30
    sizes.clear()
    recovered(small, net, calibration.part(np.arange(33)), "bn", memory=1)
    assert sizes == [11, 11, 11]
    sizes.clear()
    recovered(small, net, calibration, "bn")
    assert sizes == [80]


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("up", [nn.PixelShuffle(2), nn.ConvTranspose2d(12, 12, 2, 2)], ids=["shuffle", "transposed"])
def test_few_images_are_refitted_as_well_from_a_grid_as_from_all_places(up, seed, monkeypatch):
    """What stands at even and odd places differs behind these layers."""
    torch.manual_seed(0)
    width = 3 if isinstance(up, nn.PixelShuffle) else 12
    front = [nn.Conv2d(3, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 12, 3, padding=1), nn.ReLU(), up]
    net = randomise_(nn.Sequential(*front, nn.Conv2d(width, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 1)), seed=seed)
    g = torch.Generator().manual_seed(seed)
    smooth = nn.functional.interpolate(torch.randn(80, 3, 6, 6, generator=g), size=(32, 32), mode="bilinear")
    images = smooth + 0.3 * torch.randn(80, 3, 32, 32, generator=g)
    calibration = cswap.calibration_set(TensorDataset(images[:40], torch.arange(4).repeat(10)), 10)
    structure = cswap.discover(net.eval(), calibration.inputs(0, 2))
    small, _ = pruned_to(net, structure, calibration, {"0": [1, 4, 6, 9]})
    steps = importlib.import_module("cswap.recovery.lstsq")

    class Plain:
        name, score = "plain", staticmethod(lambda outputs, _t: -outputs.square().mean((1, 2, 3)).double())

    def away(enough: int) -> float:
        monkeypatch.setattr(steps, "ENOUGH", enough)
        with torch.no_grad():
            made = recovered(small, net, calibration, "lstsq", task=Plain()).raw(images[40:])
            return float((made - net(images[40:])).square().mean())

    with torch.no_grad():
        cut = float((small(images[40:]) - net(images[40:])).square().mean())
    assert away(128) < 1.02 * away(1 << 40) < 0.6 * cut


class _Masks(Dataset[Any]):
    """Masks of several classes each, the first in nearly all."""

    classes = tuple("abcde")

    def __init__(self) -> None:
        rng, self.masks = np.random.default_rng(0), []
        for _ in range(600):
            held = np.flatnonzero(rng.random(5) < [0.9, 0.4, 0.3, 0.2, 0.15])
            mask = torch.zeros(8, 8, dtype=torch.long)
            mask[: len(held)] = torch.from_numpy(held).unsqueeze(1)
            self.masks.append(mask)

    def __len__(self) -> int:
        return 600

    def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.zeros(3, 8, 8), self.masks[i]


def test_samples_that_judge_chose_no_unit_also_where_they_hold_several_classes():
    few, many = (cswap.calibration_set(_Masks(), n) for n in (16, 32))
    assert set(few.indices) <= set(many.indices)
    assert set(few.indices) == set(many.indices[many.ranks < 16])
    held = last_fifth(many)
    assert len(held) == len(many) // 5
    assert not set(many.indices[held]) & set(few.indices)


def test_a_copy_of_a_sample_that_fits_does_not_judge():
    net, once = randomise_(NETS["residual"](), seed=3).eval(), small_calibration()
    last = last_fifth(once)
    assert choosing(once).tolist() == last.tolist()
    small, structure = pruned_at_random(net, once)
    assert not [n for n in recovered(small, net, once, "lstsq", structure=structure).notes if "fit alone" in n]
    images, labels = once.dataset.tensors
    images[once.indices[last[3]]] = images[once.indices[0]]  # of another class
    images[once.indices[last[1]]] = images[once.indices[last[0]]]  # both judge
    twice = cswap.calibration_set(TensorDataset(images, labels), 20)
    assert choosing(twice).tolist() == [i for i in last.tolist() if i != last[3]]
    made = recovered(small, net, twice, "lstsq", structure=structure)
    assert made.judged == len(last) - 1
    assert [n for n in made.notes if f"1 of the {len(last)} samples" in n]


def test_a_module_that_was_trained_since_it_was_cut_is_refused():
    net, calibration = randomise_(NETS["residual"](), seed=3).eval(), small_calibration()
    small, structure = pruned_at_random(net, calibration)
    del small._cswap
    recovered(small, net, calibration, "lstsq", structure=structure)
    small.bn.num_batches_tracked += 7  # says nothing of the weights
    recovered(small, net, calibration, "lstsq", structure=structure)
    with torch.no_grad():
        small.fc.weight.mul_(1.01)
    with pytest.raises(InputError, match=r"fc\.weight of the pruned module is not the original's"):
        recovered(small, net, calibration, "lstsq", structure=structure)
    ours, _ = pruned_at_random(net, calibration)
    assert not any("as it was cut" in n for n in recovered(ours, net, calibration, "lstsq").notes)
    with torch.no_grad():
        ours.fc.weight.mul_(1.01)
    assert "fc.weight is not as it was cut" in recovered(ours, net, calibration, "lstsq").notes[0]
