"""The compensated cut against weights refitted by a dense float64 solve and a full pass; fast and plain engine alike."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import cswap
from cswap.causal.compensation import CompensatedPlainEngine, CompensatedReplayEngine, forget
from cswap.causal.replay import ReplayEngine, engine_for
from cswap.linear.elimination import DAMPING
from cswap.methods import registry
from cswap.methods.options import Options
from cswap.methods.path import Silence, Start
from cswap.structure.check import randomise_
from cswap.tasks import Classification
from cswap.types import Target
from tests.conftest import NETS, PATTERN_NETS, trained_on_patterns
from tests.reference.least_squares import rows_by_hand


class PreActivation(nn.Module):
    """Bias-free readers: one with a norm of its own behind it, one whose output the stream takes in place before the norm."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 6, 3, 1, 1)
        self.b, self.n = nn.Conv2d(6, 5, 3, 1, 1, bias=False), nn.BatchNorm2d(5)
        self.c, self.d = nn.Conv2d(5, 7, 1), nn.Conv2d(7, 5, 3, 1, 1, bias=False)
        self.m, self.fc = nn.BatchNorm2d(5), nn.Linear(5, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.n(self.b(torch.relu(self.a(x))))
        out = self.d(torch.relu(self.c(x)))
        out += x
        return self.fc(torch.relu(self.m(out)).mean((2, 3)))


class TimeFirst(nn.Module):
    """Inputs whose first dimension is not samples where the units are read."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = nn.Linear(64, 6), nn.Linear(6, 5), nn.Linear(5, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.flatten(2).transpose(0, 1)
        return self.fc(torch.relu(self.b(torch.relu(self.a(x)))).mean(0))


OWN = {"preactivation": PreActivation, "time_first": TimeFirst}


@pytest.fixture(params=["residual", "concat", "depthwise", *OWN])
def case(request):
    net = randomise_({**NETS, **OWN}[request.param](), seed=3).double().eval().requires_grad_(False)
    g = torch.Generator().manual_seed(0)
    images = torch.randn(40, 3, 8, 8, generator=g).double()
    calibration = cswap.calibration_set(TensorDataset(images, torch.arange(4).repeat(10)), 10)
    return request.param, net, calibration, cswap.discover(net, calibration.inputs(0, 2))


def _by_hand(net: nn.Module, group, units: list[int], inputs: torch.Tensor, norm_behind) -> nn.Module:
    """The network with the units' columns at zero and every reader's other weights refitted on what it reads."""
    mended = copy.deepcopy(net)
    for slot in group.consumers:
        layer, seen = net.get_submodule(slot.module), []
        handle = layer.register_forward_pre_hook(lambda _m, args, seen=seen: seen.append(args[0]))
        net(inputs)
        handle.remove()
        (rows,) = rows_by_hand(layer, seen[0])
        target = mended.get_submodule(slot.module)
        behind = norm_behind(slot.module)
        shifts = layer.bias is not None or behind is not None
        mean = rows.mean(0) if shifts else torch.zeros(rows.shape[1]).double()
        second = (rows - mean).T @ (rows - mean) / len(rows)
        second += DAMPING * second.diagonal().mean() * torch.eye(len(mean)).double()
        places = layer.weight[0, 0].numel()
        gone = [c * places + k for n in units for c in slot.by_unit.get(n, []) for k in range(places)]
        rest = [i for i in range(len(mean)) if i not in gone]
        w = layer.weight.flatten(1).T
        new = torch.zeros_like(w)
        new[rest] = torch.linalg.solve(second[rest][:, rest], second[rest] @ w)
        target.weight.data = new.T.reshape(layer.weight.shape).contiguous()
        shift = (w - new).T @ mean
        if layer.bias is not None:
            target.bias.data = layer.bias + shift
        elif behind is not None:
            mended.get_submodule(behind).running_mean -= shift
    return mended


def test_a_compensated_cut_is_the_refit_network(case):
    kind, net, calibration, structure = case
    engine = CompensatedPlainEngine(net, structure, calibration, cswap.Classification())
    inputs, targets = calibration.inputs(0, 40), torch.from_numpy(calibration.targets)
    behind = {"preactivation": {"b": "n"}}.get(kind, {}).get
    moved = 0.0
    for group in structure:
        engine.enter(group)
        for unit in (0, group.size - 1):
            got = engine.cut(group, [[unit]])[0].sigma
            by_hand = cswap.Classification().score(_by_hand(net, group, [unit], inputs, behind)(inputs), targets)
            np.testing.assert_allclose(got, by_hand, rtol=1e-9, atol=1e-11)
            plain = ReplayEngine(net, structure, calibration, cswap.Classification()).cut(group, [[unit]])[0].sigma
            moved = max(moved, float(np.abs(plain - got).max()))
    assert moved > 1e-3  # a plain cut is something else


def test_fast_and_plain_agree_also_after_removals(case):
    _, net, calibration, structure = case
    fast = CompensatedReplayEngine(net, structure, calibration, cswap.Classification())
    slow = CompensatedPlainEngine(net, structure, calibration, cswap.Classification())
    reduced = []
    whole = fast.compensation.output
    fast.compensation.output = lambda *given: reduced.append(whole(*given)) or reduced[-1]
    for group in structure:
        for engine in (fast, slow):
            engine.enter(group)
        np.testing.assert_allclose(fast.scores(group).sigma, slow.scores(group).sigma, rtol=1e-9, atol=1e-12)
        cuts = [[n] for n in range(group.size)] + [[0, group.size - 1], list(range(group.size - 1))]
        for a, b in zip(fast.cut(group, cuts), slow.cut(group, cuts), strict=True):
            np.testing.assert_allclose(a.sigma, b.sigma, rtol=1e-7, atol=1e-10)
        after = fast.cut(group, [[1]])[0].sigma
        np.testing.assert_allclose(fast.once(group, [1]).sigma, after, rtol=1e-7, atol=1e-10)
        for engine in (fast, slow):
            engine.remove(group.name, [1])
            np.testing.assert_allclose(engine.scores().sigma, after, rtol=1e-7, atol=1e-10)
            engine.enter(group)
        a, b = (e.cut(group, [[0]])[0].sigma for e in (fast, slow))
        np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-10)
    assert not fast._refused
    assert {out is None for out in reduced} == {True, False}, "by what stays, and by the change alone"


def test_what_a_copy_makes_up_for_costs_nothing(digits_case):
    """A unit that copies another: cut plainly it is missed, compensated it is not."""
    model, calibration, structure = digits_case
    net = copy.deepcopy(model)
    with torch.no_grad():
        for tensor in (net.layer1.conv1.weight, *net.layer1.bn1.state_dict().values()):
            if tensor.dim():
                tensor[4] = tensor[1]
        half = net.layer1.conv2.weight[:, 1] / 2
        net.layer1.conv2.weight[:, 1] = net.layer1.conv2.weight[:, 4] = half
    xi = {}
    for cut in ("plain", "compensated"):
        path = cswap.prune_path(
            net, calibration, structure=structure.select(("layer1.conv1",)), target="noncritical", cut=cut
        )
        xi[cut] = {d.unit: d.xi for d in path}
    assert abs(xi["compensated"][1]) < 0.1 * abs(xi["plain"][1])
    assert np.mean(np.abs(list(xi["compensated"].values()))) < np.mean(np.abs(list(xi["plain"].values())))


def test_engine_for_takes_the_compensated_engines(case):
    _, net, calibration, structure = case
    assert isinstance(
        engine_for(net, structure, calibration, cswap.Classification(), cut="compensated"), CompensatedReplayEngine
    )


@pytest.mark.parametrize("method", ["cswap", "cbp"])
def test_a_resumed_run_ends_the_same(digits_case, tmp_path, method):
    """Moments are of the network as it was when its group was entered, also where a journal has decided the group."""
    model, calibration, structure = digits_case
    options = Options(cut="compensated")

    def run(start: Start, target: str) -> cswap.PruningPath:
        return registry.call(
            method, model, structure, calibration, cswap.Classification(), target=Target.parse(target), options=options,
            start=start, sink=Silence(), device="cpu", memory=1 << 30,
        )  # fmt: skip

    whole = run(Start(), "units=0.9")
    tested = [d for d in whole if d.phase in ("walk", "test")]
    again = run(Start(tuple(tested)), "units=0.9")
    assert [(d.group, d.unit, d.quality) for d in again] == [(d.group, d.unit, d.quality) for d in whole]


@pytest.mark.parametrize("kind", sorted(PATTERN_NETS))
def test_greedy_compensates_on_the_network_as_it_stands(kind):
    """Each pick is the one of an engine that has known nothing else."""
    net, data = trained_on_patterns(kind)
    calibration = cswap.calibration_set(data, 12)
    structure = cswap.discover(net, calibration.inputs(0, 2))
    task, options = cswap.Classification(), Options(cut="compensated")

    def run(start: Start) -> cswap.PruningPath:
        return registry.call(
            "greedy",
            net,
            structure,
            calibration,
            task,
            target=Target.parse(f"units={6 / structure.units}"),
            options=options,
            start=start,
        )

    path = run(Start())
    assert len({d.group for d in path}) > 1
    for k in range(1, len(path)):
        engine = engine_for(net, structure, calibration, task, cut="compensated")
        for d in path.decisions[:k]:
            forget(engine)
            engine.remove(d.group, [d.unit])
        forget(engine)
        best = None
        for group in structure:
            gone = {d.unit for d in path.decisions[:k] if d.group == group.name}
            left = [n for n in range(group.size) if n not in gone]
            if len(left) == 1:
                continue
            engine.enter(group)
            base = engine.scores(group).sigma.sum()
            for n, found in zip(left, engine.cut(group, [[n] for n in left]), strict=True):
                gain = float(found.sigma.sum() - base)
                if best is None or gain > best[0]:
                    best = gain, group.name, n
        assert best[1:] == (path[k].group, path[k].unit)
    again = run(Start(tuple(path.decisions[:2])))
    assert [(d.group, d.unit, d.quality) for d in again] == [(d.group, d.unit, d.quality) for d in path]


@pytest.mark.parametrize("engine", [CompensatedPlainEngine, CompensatedReplayEngine])
def test_a_cut_that_is_tried_leaves_no_trace(case, engine):
    """Of a group whose moments were not known before, too."""
    _, net, calibration, structure = case
    tried, other = (engine(net, structure, calibration, cswap.Classification()) for _ in range(2))
    group = structure.groups[0]
    tried.once(group, [1])
    for e in (tried, other):
        e.remove(group.name, [0])
    np.testing.assert_allclose(tried.scores().sigma, other.scores().sigma, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", sorted(PATTERN_NETS))
def test_a_complete_path_takes_all_but_one_unit_of_every_group(kind):
    """Cut sets of a batch may hold all that is left of a group, and a head takes its dimensions before they are asked for."""
    net, data = trained_on_patterns(kind)
    calibration = cswap.calibration_set(data, 12)
    structure = cswap.discover(net, calibration.inputs(0, 2))
    path = registry.call(
        "cswap", net, structure, calibration, cswap.Classification(), target=Target("complete"), options=Options(cut="compensated")
    )  # fmt: skip
    for group in structure:
        asked = {d.unit for d in path.decisions if d.group == group.name}
        gone = {d.unit for d in path.decisions if d.group == group.name and d.removed}
        assert len(asked) - len(gone) <= 1
    assert path.ratio.params > 0.7


class Words(nn.Module):
    """Tokens (N, 2, L) → logits; the mean is over the tokens that count."""

    def __init__(self) -> None:
        super().__init__()
        self.e, self.a, self.b, self.fc = nn.Embedding(20, 8), nn.Linear(8, 10), nn.Linear(10, 8), nn.Linear(8, 4)

    def forward(self, t: torch.Tensor) -> torch.Tensor:
        x = self.e(t[:, 0])
        x = x + self.b(torch.relu(self.a(x)))
        counts = t[:, 1].unsqueeze(-1).to(x)
        return self.fc((x * counts).sum(1) / counts.sum(1))


def test_moments_of_a_compensated_cut_count_no_padding():
    torch.manual_seed(0)
    net = randomise_(Words(), seed=1).eval()
    mask = (torch.arange(12) < torch.randint(2, 8, (40, 1))).long()
    tokens = torch.stack([torch.randint(1, 20, (40, 12)) * mask, mask], 1)
    calibration = cswap.calibration_set(TensorDataset(tokens, torch.arange(4).repeat_interleave(10)), 10)
    structure = cswap.discover(net, calibration.inputs(0, 2))
    engine = CompensatedPlainEngine(net, structure, calibration, Classification())
    engine.enter(structure["a"])
    with torch.no_grad():
        read = torch.relu(net.a(net.e(calibration.inputs(0, 40)[:, 0]))).double()
    seen = calibration.inputs(0, 40)[:, 1].bool()
    mean = engine.compensation.inverses["a", "b"].mean
    torch.testing.assert_close(mean, read[seen].mean(0), rtol=0, atol=1e-5)
    assert not torch.allclose(mean, read.flatten(0, 1).mean(0), atol=1e-3)
