"""The comparison with Torch-Pruning's own importances: its search, its batch norms, every peer on a tiny network."""

from __future__ import annotations

import copy
import importlib
import json
import sys
from pathlib import Path

import pytest
import torch
import torch_pruning as tp
from torch import nn
from torch.utils.data import TensorDataset
from torchvision.models.resnet import BasicBlock, ResNet

import cswap
from cswap.structure.check import randomise_
from cswap.structure.discover import count_params

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
NAMES = ["l1", "lamp", "fpgm", "bn_scale", "taylor", "hessian", "hessian_mended", "obdc_mended"]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def peers():
    """The benchmark as a module; its folder is not a package."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        yield importlib.import_module("peers")
    finally:
        sys.path.remove(str(BENCHMARKS))


class TinyResNet(ResNet):
    """torchvision's own wiring, two classes, a 3x3 stem, widths of 8 to 64."""

    def __init__(self) -> None:
        super().__init__(BasicBlock, [1, 1, 1, 1], num_classes=2)
        self.conv1, self.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()
        narrow(self)


def narrow(model: nn.Module) -> None:
    """An eighth of every width."""
    for name, m in list(model.named_modules()):
        parent = model.get_submodule(name.rpartition(".")[0])
        leaf = name.rpartition(".")[2]
        if isinstance(m, nn.Conv2d):
            wide = m.in_channels if m.in_channels == 3 else m.in_channels // 8
            setattr(parent, leaf, nn.Conv2d(wide, m.out_channels // 8, m.kernel_size, m.stride, m.padding, bias=False))
        elif isinstance(m, nn.BatchNorm2d):
            setattr(parent, leaf, nn.BatchNorm2d(m.num_features // 8))
        elif isinstance(m, nn.Linear):
            setattr(parent, leaf, nn.Linear(m.in_features // 8, m.out_features))


@pytest.fixture(scope="module")
def tiny():
    with torch.random.fork_rng(devices=[]):
        return randomise_(TinyResNet(), seed=5).eval()


@pytest.fixture(scope="module")
def calibration():
    x = torch.randn(24, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    return cswap.calibration_set(TensorDataset(x, torch.arange(24) % 2), 6)


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("name", NAMES)
def test_every_importance_prunes_a_tiny_resnet_to_the_target(peers, tiny, calibration, name, scope):
    before = copy.deepcopy(tiny.state_dict())
    scores = peers.scores_of(name, tiny, calibration)
    example, total = calibration.inputs(0, 1), count_params(tiny)

    def removed(ratio: float) -> float:
        return 1 - count_params(peers.pruned(tiny, scores, ratio, scope, example)) / total

    assert all(torch.isfinite(s).all() and s.std() > 0 for s in scores.values())
    ratio = peers.Search(removed).ratio(0.4)
    assert removed(ratio) >= 0.4
    assert removed(ratio - peers.FINEST) < 0.4
    small = peers.pruned(tiny, scores, ratio, scope, example)
    assert small(example).shape == (1, 2)
    assert all(torch.equal(v, before[k]) for k, v in tiny.state_dict().items())


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("name", ["l1", "lamp", "fpgm", "bn_scale", "taylor"])
def test_recorded_scores_prune_as_the_importance_itself_does(peers, tiny, calibration, name, scope):
    example = calibration.inputs(0, 1)
    ours = peers.pruned(tiny, peers.scores_of(name, tiny, calibration), 0.5, scope, example)
    theirs = copy.deepcopy(tiny)
    importance = peers.IMPORTANCES[name](2)
    pruner = tp.pruner.BasePruner(
        theirs, example, importance=importance, pruning_ratio=0.5, global_pruning=scope == "global",
        ignored_layers=[theirs.fc],
    )  # fmt: skip
    peers.prepare(importance, theirs, pruner, calibration, 0)
    pruner.step()
    left, right = ours.state_dict(), theirs.state_dict()
    assert all(left[k].shape == right[k].shape and torch.equal(left[k], right[k]) for k in right)
    assert count_params(ours) < count_params(tiny)


def test_search_finds_the_first_crossing_of_a_curve_that_falls_again(peers):
    search = peers.Search(lambda r: r if r < 0.55 else r - 0.3)
    for target in (0.01, 0.2, 1 / 32, 0.5, 0.54):
        found = search.ratio(target)
        assert target <= search.at(found) < target + peers.FINEST
    with pytest.raises(peers.UnreachedError, match="most: 0.6922"):
        search.ratio(0.75)


def test_mended_hessian_is_the_mean_of_squared_gradients_and_the_released_one_is_the_last(peers, tiny, calibration):
    seen = []
    for inputs, targets in calibration.batches(1):
        work = copy.deepcopy(tiny)
        nn.functional.cross_entropy(work(inputs), targets).backward()
        seen.append(work.conv1.weight.grad.double() ** 2)
    for name, expected in (("hessian_mended", torch.stack(seen).mean(0)), ("hessian", seen[-1])):
        work, importance = copy.deepcopy(tiny), peers.IMPORTANCES[name](2)
        peers.prepare(importance, work, None, calibration, 0)
        got = importance._accu_grad[work.conv1.weight] / importance._counter[work.conv1.weight]
        torch.testing.assert_close(got.double(), expected, rtol=1e-4, atol=1e-12)


def test_obdc_sums_squared_gradients_of_drawn_labels(peers, tiny, calibration):
    importance, work = peers.IMPORTANCES["obdc_mended"](2), copy.deepcopy(tiny)
    pruner = peers.new_pruner(work, calibration.inputs(0, 1), importance, 0.5, "layer")
    peers.prepare(importance, work, pruner, calibration, 0)
    layers = ("conv1", "layer2.0.conv1", "layer2.0.downsample.0", "layer4.0.conv2")
    expected = {n: torch.zeros_like(work.get_submodule(n).weight, dtype=torch.float64) for n in layers}
    drawn = torch.multinomial(
        tiny(calibration.inputs(0, 12)).detach().softmax(1), 1, generator=torch.Generator().manual_seed(0)
    ).flatten()
    for i in range(12):
        copied = copy.deepcopy(tiny)
        nn.functional.cross_entropy(copied(calibration.inputs(i, i + 1)), drawn[i : i + 1]).backward()
        for n in layers:
            expected[n] += copied.get_submodule(n).weight.grad.double() ** 2
    for n in layers:
        got = importance.Fisher[work.get_submodule(n)].double()
        torch.testing.assert_close(got, expected[n].flatten(1), rtol=1e-3, atol=1e-10)
    assert not any(m._forward_pre_hooks or m._backward_hooks for m in work.modules())


def test_a_run_goes_on_where_it_was_cut_and_keeps_the_errors_of_the_library(peers, tiny, calibration, tmp_path):
    held_out = TensorDataset(calibration.inputs(0, 12), torch.from_numpy(calibration.targets))
    path = tmp_path / "work" / "peers.jsonl"

    def bench(seed: int = 0):
        return peers.Bench(tiny, calibration, held_out, peers.Partial(path, {"seed": seed}), 0)

    first = bench()
    whole = first.peer("l1_layer", [0.2, 0.5])
    assert [p["ratio"]["params"] >= p["asked"] for p in whole["points"]] == [True, True]
    assert {"plain", "bn", "ratio", "seconds"} <= set(whole["points"][0])
    lines = path.read_text().splitlines(keepends=True)
    path.write_text(lines[0] + lines[1][:40])
    again = bench()
    assert set(again.partial.points) == {("l1_layer", 0.2)}
    assert again.peer("l1_layer", [0.2, 0.5])["points"][1]["bn"] == whole["points"][1]["bn"]
    assert [json.loads(line)["point"]["asked"] for line in path.read_text().splitlines()] == [0.2, 0.5]
    assert not bench(seed=1).partial.points
    failed = first.peer("obdc_layer", [0.2])
    assert failed["error"].startswith("TypeError: ")
    assert "torch_pruning/pruner/importance.py" in failed["error"]


def test_our_own_mistakes_are_not_taken_for_errors_of_the_library(peers, tiny, calibration, tmp_path, monkeypatch):
    held_out = TensorDataset(calibration.inputs(0, 12), torch.from_numpy(calibration.targets))
    bench = peers.Bench(tiny, calibration, held_out, peers.Partial(tmp_path / "peers.jsonl", {}), 0)
    monkeypatch.setattr(peers, "scores_of", lambda *_: {})  # what the pruner calls then misses a group
    with pytest.raises(KeyError):
        bench.peer("l1_layer", [0.3])
