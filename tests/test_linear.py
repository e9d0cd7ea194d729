"""Layers as linear maps, second moments, ridge regression and elimination, each against a dense float64 solve."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from cswap.linear.elimination import DAMPING, Inverse
from cswap.linear.moments import Moments, Ridge
from cswap.linear.patches import Grid, grid_for, groups_of, input_rows, matrix_of, output_rows, refusal, set_matrix
from tests.reference.least_squares import ridge_by_hand, rows_by_hand, targets_by_hand

LAYERS = {
    "linear": lambda: nn.Linear(6, 4),
    "conv": lambda: nn.Conv2d(6, 4, 3, padding=1),
    "strided": lambda: nn.Conv2d(6, 4, 3, stride=2, padding=1, bias=False),
    "dilated": lambda: nn.Conv2d(6, 4, (3, 2), dilation=(2, 1), padding=(2, 0)),
    "circular": lambda: nn.Conv2d(6, 4, 3, padding=1, padding_mode="circular"),
    "grouped": lambda: nn.Conv2d(6, 4, 3, padding=1, groups=2),
    "depthwise": lambda: nn.Conv2d(6, 6, 3, padding=1, groups=6),
    "pointwise": lambda: nn.Conv2d(6, 4, 1),
    "conv1d": lambda: nn.Conv1d(6, 4, 3, stride=2, padding=1),
}


def _case(kind: str, rows: int = 24) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    layer = LAYERS[kind]().requires_grad_(False)
    shape = {"linear": (rows, 3, 6), "conv1d": (rows, 6, 9)}.get(kind, (rows, 6, 7, 8))
    x = torch.randn(shape) + 0.7
    y = layer(x) + 0.3 * torch.randn(layer(x).shape) + 0.5
    return layer, x, y


@pytest.mark.parametrize("kind", LAYERS)
def test_a_layer_is_its_rows_times_its_matrix(kind):
    layer, x, _ = _case(kind)
    rows, matrix = torch.cat(list(input_rows(layer, x))).double(), matrix_of(layer)
    given = torch.einsum("rgd,gdo->rgo", rows, matrix)
    bias = 0 if layer.bias is None else layer.bias.double().reshape(groups_of(layer), -1)
    torch.testing.assert_close(given + bias, output_rows(layer, layer(x)).double(), rtol=1e-4, atol=1e-5)
    for mine, theirs in zip(rows.unbind(1), rows_by_hand(layer, x), strict=True):
        torch.testing.assert_close(mine, theirs)
    before = layer.weight.clone()
    set_matrix(layer, matrix + 1)
    torch.testing.assert_close(layer.weight, before + 1)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("strength", [1e-4, 1.0])
def test_ridge_is_the_dense_solve(kind, intercept, strength):
    layer, x, y = _case(kind)
    layer, x, y = layer.double(), x.double(), y.double()
    moments = Moments.of(layer, y.shape[-1 if kind == "linear" else 1])
    for part in range(0, len(x), 5):  # a stream of uneven parts
        moments.add(layer, x[part : part + 5], y[part : part + 5])
    prior = matrix_of(layer) * 1.3
    problem = Ridge(moments, prior, intercept=intercept)
    problem.at(7.0)  # one strength leaves nothing behind for the next
    matrix, constant = problem.at(strength)
    hand = zip(rows_by_hand(layer, x), targets_by_hand(layer, y), strict=True)
    error = 0.0
    for g, (rows, targets) in enumerate(hand):
        w, c = ridge_by_hand(rows, targets, prior[g], strength, intercept=intercept)
        torch.testing.assert_close(matrix[g], w, rtol=1e-8, atol=1e-9)
        torch.testing.assert_close(constant[g], c, rtol=1e-8, atol=1e-9)
        error += float((targets - rows @ w - c).square().sum())
    assert moments.error(matrix, constant) == pytest.approx(error, rel=1e-9)


def test_a_grid_takes_every_nth_place_and_goes_through_all_of_them():
    layer, x, y = _case("strided")
    all_rows, all_outputs = torch.cat(list(input_rows(layer, x))), output_rows(layer, y)
    seen = []
    for first in range(4):
        grid = Grid(2, first)
        rows, outputs = torch.cat(list(input_rows(layer, x, grid))), output_rows(layer, y, grid)
        assert len(rows) == len(outputs)
        places = [int((all_rows == r).all(2).nonzero()[0, 0]) for r in rows]
        torch.testing.assert_close(all_outputs[places], outputs)
        seen += places
    assert sorted(seen) == list(range(len(all_rows)))
    assert grid_for(layer, 1000, 2000) == 1
    assert grid_for(layer, 1000, 100) == 3
    assert grid_for(nn.Linear(2, 2), 1000, 10) == 1


def test_what_is_no_matrix_is_refused():
    assert refusal(nn.Linear(2, 2)) is None
    assert "transposed" in str(refusal(nn.ConvTranspose2d(2, 2, 3)))
    assert "LayerNorm" in str(refusal(nn.LayerNorm(3)))


def _moments(n: int = 200, d: int = 9, o: int = 4) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    x = torch.randn(n, d, generator=g).double() @ torch.randn(d, d, generator=g).double() + 2
    w = torch.randn(d, o, generator=g).double()
    centred = x - x.mean(0)
    return x, w, centred.T @ centred / n, x.mean(0)


@pytest.mark.parametrize("columns", [[3], [1, 4, 5]])
def test_taking_columns_out_is_the_dense_refit_on_the_rest(columns):
    x, w, second, mean = _moments()
    inverse, weights = Inverse(second, mean), w.clone()
    p = torch.tensor(columns)
    rest = torch.tensor([i for i in range(x.shape[1]) if i not in columns])
    scale = DAMPING * second.diagonal().mean()
    # min over V of E‖(x−m)w − (x−m)_rest V‖² + damping·(‖w_rest − V‖² + ‖w_p‖²): OBS with the damped matrix, by hand
    damped = second + scale * torch.eye(len(mean)).double()
    v = torch.linalg.solve(damped[rest][:, rest], damped[rest] @ w)
    left = w.clone()
    left[p], left[rest] = 0, v
    change = left - w
    cost = torch.diagonal(change.T @ damped @ change)
    importance = torch.tensor([1.0, 0.0, 2.0, 0.5]).double()
    if len(columns) == 1:
        assert inverse.costs(p.unsqueeze(0), weights, importance)[0] == pytest.approx(
            float((cost * importance).sum()), rel=1e-9
        )
    assert inverse.costs(p.view(1, -1), weights, importance)[0] == pytest.approx(
        float((cost * importance).sum()), rel=1e-9
    )
    guess = (x - mean) @ inverse.filters(p).T  # x̂_p − x_p
    by_hand = (x - mean)[:, rest] @ torch.linalg.solve(damped[rest][:, rest], damped[rest][:, p]) - (x - mean)[:, p]
    torch.testing.assert_close(guess, by_hand)
    inverse.take(p, weights)
    torch.testing.assert_close(weights, left)


def test_columns_taken_one_by_one_are_columns_taken_together():
    _, w, second, mean = _moments()
    one, all_at_once, a, b = Inverse(second, mean), Inverse(second, mean), w.clone(), w.clone()
    for c in (2, 7, 0):
        one.take(torch.tensor([c]), a)
    all_at_once.take(torch.tensor([0, 2, 7]), b)
    torch.testing.assert_close(a, b)
    left = torch.tensor([1, 3, 4, 5, 6, 8])
    blocks = left.unsqueeze(1)
    ones = torch.ones(4).double()
    torch.testing.assert_close(one.costs(blocks, a, ones), all_at_once.costs(blocks, b, ones))
    pairs = torch.tensor(list(itertools.combinations(left.tolist(), 2)))
    assert bool((one.costs(pairs, a, ones) > 0).all())


def test_large_means_do_not_drown_the_moments():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(4000, 6, generator=g) + 3000.0
    y = x[:, :2] * 2 - x[:, 2:4] + torch.randn(4000, 2, generator=g) * 0.1
    layer = nn.Linear(6, 2)
    moments = Moments.of(layer, 2)
    for part in range(0, 4000, 500):
        moments.add(layer, x[part : part + 500], y[part : part + 500])
    exact = x.double() - x.double().mean(0)
    torch.testing.assert_close(moments.centred()[0][0], exact.T @ exact, rtol=1e-3, atol=1.0)
    matrix, constant = Ridge(moments, torch.zeros(1, 6, 2).double(), intercept=True).at(1e-9)
    error = (y.double() - x.double() @ matrix[0] - constant[0]).square().sum()
    assert moments.error(matrix, constant) == pytest.approx(float(error), rel=1e-3)
    assert float(error) / 8000 < 0.011
    Inverse(moments.centred()[0][0] / moments.rows, moments.mean()[0])


def test_a_grid_moves_from_sample_to_sample_through_all_places():
    layer = nn.Conv2d(4, 4, 3, padding=1, groups=4)
    assert grid_for(layer, 1 << 20, 9) == 4
    x = torch.arange(8 * 8.0).view(1, 1, 8, 8).expand(16, 4, 8, 8)
    seen = output_rows(layer, x, Grid(4))[:, 0, 0]
    assert sorted(seen.tolist()) == list(range(64))
    first = output_rows(layer, x[:4], Grid(4, 3))[:, 0, 0]
    assert len({int(v) % 8 for v in first}) >= 6  # few samples see most columns
    assert len({int(v) // 8 for v in first}) >= 6  # and most rows


def test_what_rounding_leaves_without_an_inverse_is_damped_more():
    flat = torch.ones(4, 4).double() * 1e6 - torch.eye(4).double() * 1e5
    assert torch.isfinite(Inverse(flat, torch.zeros(4).double()).inverse).all()


def test_columns_put_back_are_columns_never_taken():
    _, w, second, mean = _moments()
    ones = torch.tensor([1.0, 0.0, 2.0, 0.5]).double()
    inverse, weights = Inverse(second, mean), w.clone()
    damped = second + inverse.added * torch.eye(len(mean)).double()
    inverse.take(torch.tensor([2, 5, 7]), weights)
    only, fewer = Inverse(second, mean), w.clone()
    only.take(torch.tensor([2]), fewer)
    block = torch.tensor([[5, 7]])
    saved = inverse.gains(block, damped, weights, w, ones)
    torch.testing.assert_close(saved, only.costs(block, fewer, ones))  # what their removal had added
    inverse.give(block[0], damped, weights, w)
    torch.testing.assert_close(weights, fewer)
    torch.testing.assert_close(inverse.inverse, only.inverse)
    inverse.give(torch.tensor([2]), damped, weights, w)
    torch.testing.assert_close(weights, w)
