"""Optimal brain surgery by units, rankings per parameter, and the paired test: against computations by hand."""

from __future__ import annotations

import copy
from math import comb

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import cswap
from cswap.errors import InputError
from cswap.evaluate.significance import mcnemar
from cswap.linear.elimination import DAMPING
from cswap.methods.obs import obs_scores, output_importance
from cswap.methods.ranking import removal_order
from cswap.recovery import recovered
from cswap.structure.ledger import Ledger
from cswap.structure.surgery import kept_indices, removed_by
from cswap.tasks import Classification
from tests.recoveries import noisy, without
from tests.reference.least_squares import rows_by_hand


def test_the_first_cost_is_the_weighted_error_of_the_dense_refit(digits_case):
    """The unit that goes first: its score is what a dense solve says, and no other unit's is lower."""
    model, calibration, structure = digits_case
    structure = structure.select(("layer2.conv1",))
    group = structure["layer2.conv1"]
    scores = obs_scores(model, structure, calibration, cswap.Classification())["layer2.conv1"]
    layer, seen = model.layer2.conv2, []
    handle = layer.register_forward_pre_hook(lambda _m, args: seen.append(args[0].detach()))
    inputs = calibration.inputs(0, len(calibration))
    model(inputs)
    handle.remove()
    (rows,) = rows_by_hand(layer, seen[0])
    centred = rows - rows.mean(0)
    second = centred.T @ centred / len(rows)
    damped = second + DAMPING * second.diagonal().mean() * torch.eye(len(second)).double()
    # v by one sample at a time: Σ over places of (∂σ/∂y)², averaged
    v = torch.zeros(layer.out_channels).double()
    net = copy.deepcopy(model)
    for x, t in zip(inputs, calibration.targets, strict=True):
        given = []
        hook = net.layer2.conv2.register_forward_hook(lambda _m, _i, out, given=given: given.append(out))
        out = net(x.unsqueeze(0))
        hook.remove()
        (g,) = torch.autograd.grad(out.softmax(1)[0, int(t)], given)
        v += g[0].double().square().sum((1, 2)) / len(inputs)
    np.testing.assert_allclose(
        output_importance(model, structure, calibration, cswap.Classification())["layer2.conv2"], v, rtol=1e-4
    )
    w = layer.weight.detach().double().flatten(1).T
    costs = []
    for n in range(group.size):
        p = torch.arange(9 * n, 9 * n + 9)
        rest = torch.tensor([i for i in range(len(second)) if i not in set(p.tolist())])
        change = -w.clone()
        change[rest] = torch.linalg.solve(damped[rest][:, rest], damped[rest] @ w) - w[rest]
        costs.append(float(((change.T @ damped @ change).diagonal() * v).sum()))
    first = int(np.argmin(scores))
    assert first == int(np.argmin(costs))
    assert scores[first] == pytest.approx(costs[first], rel=1e-3)


def test_a_duplicate_goes_first_and_alone(digits_case):
    model, calibration, structure = digits_case
    net = copy.deepcopy(model)
    with torch.no_grad():
        for tensor in (net.layer1.conv1.weight, *net.layer1.bn1.state_dict().values()):
            if tensor.dim():
                tensor[4] = tensor[1]
    scores = obs_scores(net, structure, calibration, cswap.Classification())
    order = [n for g, n in removal_order(structure, scores, "layer") if g == "layer1.conv1"]
    assert order[0] in (1, 4)
    other = 5 - order[0]
    assert order.index(other) > 3  # with one of the pair gone the other is needed
    again = obs_scores(net, structure, calibration, cswap.Classification())
    assert all(np.array_equal(scores[g], again[g]) for g in scores)


def test_obs_is_a_complete_path(digits_case):
    model, calibration, structure = digits_case
    path = cswap.prune_path(model, calibration, structure=structure, method="obs", scope="global", per="params")
    assert sum(d.removed for d in path) == structure.units - len(structure)
    with pytest.raises(InputError, match="per: params goes with --scope global"):
        cswap.prune_path(model, calibration, structure=structure, method="obs", per="params")


@pytest.mark.parametrize("method", ["cswap", "cbp"])
def test_critical_units_go_by_their_loss_a_parameter(digits_case, method):
    """The walk, or the tests, are those of the paper's mode; the order of critical units is another."""
    model, calibration, structure = digits_case
    plain, per = (
        cswap.prune_path(model, calibration, structure=structure, method=method, per=p) for p in ("unit", "params")
    )
    before = [d for d in plain if d.phase in ("walk", "test")]
    assert [(d.group, d.unit, d.verdict, d.xi) for d in before] == [
        (d.group, d.unit, d.verdict, d.xi) for d in per if d.phase in ("walk", "test")
    ]
    ledger, waiting = Ledger(structure), {(d.group, d.unit): -d.xi for d in before if str(d.verdict) == "critical"}
    for d in per:
        if not d.removed:
            continue
        if (d.group, d.unit) in waiting:
            open_ = [k for k in waiting if ledger.kept(structure[k[0]]) > 1]
            price = {k: waiting[k] / ledger.cost_of(structure[k[0]]) if waiting[k] > 0 else waiting[k] for k in open_}
            assert price[d.group, d.unit] == pytest.approx(min(price.values()))
            del waiting[d.group, d.unit]
        ledger.remove(structure[d.group], d.unit)
    assert sum(d.removed for d in per) == structure.units - len(structure)


@pytest.mark.parametrize("kind", ["params", "macs"])
def test_a_ranking_per_parameter_takes_the_cheapest_as_the_network_stands(digits_case, kind):
    _, _, structure = digits_case
    rng = np.random.default_rng(0)
    scores = {g.name: rng.random(g.size) for g in structure}
    order = removal_order(structure, scores, "global", kind)
    assert sorted(order) == sorted((g.name, n) for g in structure for n in range(g.size))
    ledger = Ledger(structure)
    for name, unit in order[: structure.units - len(structure)]:
        price = {}
        for g in structure:
            if ledger.kept(g) > 1:
                left = [n for n in range(g.size) if n not in ledger.gone(g.name)]
                best = min(left, key=lambda n, g=g: scores[g.name][n])
                after = copy.deepcopy(ledger)
                after.remove(g, best)
                taken = ledger.params - after.params if kind == "params" else ledger.macs - after.macs
                price[g.name, best] = scores[g.name][best] / taken
        assert price[name, unit] == pytest.approx(min(price.values()))
        ledger.remove(structure[name], unit)


def test_units_that_went_follow_from_what_was_kept(digits_case):
    _, _, structure = digits_case
    removed = {g.name: np.arange(1, g.size, 3) for g in structure}
    found = removed_by(structure, kept_indices(structure, removed))
    assert {g: u.tolist() for g, u in found.items()} == {g: u.tolist() for g, u in removed.items()}


def test_mcnemar_by_hand():
    first = np.array([1, 1, 1, 1, 1, 0, 1, 1, 0, 0], dtype=bool)
    second = np.array([1, 0, 0, 0, 0, 1, 1, 1, 0, 0], dtype=bool)
    # four right in the first alone, one in the second alone
    assert mcnemar(first, second) == pytest.approx(sum(comb(5, k) for k in (4, 5)) / 2**5)
    assert mcnemar(first, first) == 1.0
    assert mcnemar(second, first) > 0.9


def test_a_wide_group_s_pair_of_duplicates_does_not_go_in_one_round():
    """More units than rounds: after one of a pair went, the other is as dear as it has become."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(20, 256), nn.ReLU(), nn.Linear(256, 4)).eval()
    with torch.no_grad():
        net[2].weight[:, 5], net[2].weight[:, 7] = 0.02, 0.02
        net[0].weight[7], net[0].bias[7] = net[0].weight[5], net[0].bias[5]
    x = torch.randn(600, 20)
    calibration = cswap.calibration_set(TensorDataset(x, torch.arange(4).repeat(150)), 150)
    structure = cswap.discover(net, x[:2])
    order = [
        n for _, n in removal_order(structure, obs_scores(net, structure, calibration, cswap.Classification()), "layer")
    ]
    assert abs(order.index(5) - order.index(7)) > 2


def test_what_is_read_by_no_plain_layer_is_left_alone_and_said():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(), nn.ConvTranspose2d(6, 5, 3), nn.ReLU(), nn.Conv2d(5, 7, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(7 * 36, 4),
    ).eval()  # fmt: skip
    x = torch.randn(40, 3, 8, 8)
    calibration = cswap.calibration_set(TensorDataset(x, torch.arange(4).repeat(10)), 10)
    structure = cswap.discover(net, x[:2])
    scores = obs_scores(net, structure, calibration, cswap.Classification())
    assert set(scores) == {g.name for g in structure} - {"0"}


def _joint_error(w: torch.Tensor, damped: torch.Tensor, gone: list[int]) -> float:
    """Σ of the outputs' squared error without the inputs `gone`, the rest refitted: a dense solve."""
    rest = [i for i in range(len(damped)) if i not in gone]
    change = -w.clone()
    change[rest] = torch.linalg.solve(damped[rest][:, rest], damped[rest] @ w) - w[rest]
    return float((change.T @ damped @ change).trace())


def test_local_swaps_undo_what_greedy_did_too_early():
    """Where swaps have just been made (after each fourth unit of sixteen), the joint error is never larger than without."""
    from cswap.linear.elimination import Inverse
    from cswap.methods.obs import _eliminated, _Reader

    better = worse = 0
    for seed in range(80):
        g = torch.Generator().manual_seed(seed)
        mix = torch.randn(16, 16, generator=g).double()
        second, w = mix @ mix.T / 16, torch.randn(16, 2, generator=g).double()
        found = {}
        for swaps in (False, True):
            inverse = Inverse(second, torch.zeros(16).double())
            damped = second + inverse.added * torch.eye(16).double()
            blocks = {n: torch.tensor([n]) for n in range(16)}
            reader = _Reader(blocks, inverse, w.clone(), torch.ones(2).double(), damped if swaps else None, w)
            scores = _eliminated(16, [reader])
            assert sorted(scores)[0] > 0
            found[swaps] = np.argsort(scores, kind="stable").tolist()
        before, after = (_joint_error(w, damped, found[s][:4]) for s in (False, True))
        better, worse = better + (after < before * (1 - 1e-9)), worse + (after > before * (1 + 1e-9))
    assert better >= 3
    assert worse == 0


def test_swaps_are_an_option_and_deterministic(digits_case):
    model, calibration, structure = digits_case
    task = cswap.Classification()
    plain, first, again = (obs_scores(model, structure, calibration, task, swaps=s) for s in (False, True, True))
    assert all(np.array_equal(first[g], again[g]) for g in first)
    assert any(not np.array_equal(first[g], plain[g]) for g in first)
    assert all(sorted(np.argsort(first[g])) == list(range(len(first[g]))) for g in first)


def test_obs_knows_that_a_layer_without_a_constant_cannot_make_up_for_one():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 4, bias=False)).eval()
    with torch.no_grad():
        net[0].weight[3], net[0].bias[3] = 0.0, 3.0  # always 3
        net[2].weight[:, 3] = torch.tensor([0.4, -0.4, 0.0, 0.0])
    calibration = noisy((12,), 20)
    structure = cswap.discover(net, calibration.inputs(0, 2))
    scores = obs_scores(net, structure, calibration, Classification())["0"]
    small, _ = without(net, calibration, {"0": [3]})
    raw, x = recovered(small, net, calibration, "lstsq").raw, calibration.inputs(0, 80)
    labels = torch.from_numpy(calibration.targets).view(-1, 1)
    with torch.no_grad():
        lost = (net(x).softmax(1) - raw(x).softmax(1)).gather(1, labels).square().mean()
    assert float(lost) > 1e-4
    assert scores[3] > 0.1 * float(lost)
    biased = copy.deepcopy(net)
    biased[2].bias = nn.Parameter(torch.zeros(4))
    assert obs_scores(biased, structure, calibration, Classification())["0"][3] < 1e-6
