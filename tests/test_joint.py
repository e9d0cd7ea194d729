"""`joint`: sets that are tested together, within a margin for every class; against computations by hand and planted truth."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import torch
from torch import nn
from torch.utils.data import TensorDataset

import cswap
from cswap.causal.compensation import CompensatedReplayEngine, compensation_of
from cswap.causal.cut import PlainEngine
from cswap.causal.first_order import first_order_all
from cswap.causal.judge import Judge
from cswap.causal.margins import Probe, Profile, lower_hull, margins_of, worst_loss
from cswap.causal.stats import Moments
from cswap.errors import DataError, InputError, TargetError
from cswap.methods import joint as joint_method
from cswap.methods.joint import Measured, by_margin, by_price
from cswap.methods.obs import obs_scores
from cswap.methods.options import Options
from cswap.methods.surrogate import GRADED, by_fisher, by_square, first_of_each
from cswap.structure.discover import discover
from cswap.structure.ledger import Ledger
from cswap.types import Target
from tests.reference.joint import differences_by_hand, joint_cut, margin_by_hand, squares_by_hand


def _by_size(k: int, margin: float) -> Probe:
    return Probe(k, margin, margin / 2, np.asarray([margin]), change=margin**2)


@pytest.mark.parametrize("size", [64, 512, 4096, 8192])
def test_interventions_grow_with_the_logarithm_of_the_width(size):
    """The same curve at every width, ten margins: a few interventions a margin, and the sets are those of a full search."""
    calls: list[int] = []

    def measure(k: int) -> Probe:
        calls.append(k)
        return _by_size(k, (k / size) ** 3)

    profile, found = Profile(size, measure), [0]
    margins = np.linspace(0.05, 0.95, 10)
    for margin in margins:
        found.append(profile.largest(margin, found[-1]))
    assert len(calls) == len(set(calls)) <= min(32, 3 * np.log2(size) + 4)
    for margin, k in zip(margins, found[1:], strict=True):
        best = max(n for n in range(size) if (n / size) ** 3 <= margin)
        assert 0 <= best - k <= max(1, size // 32)
    one = Profile(size, measure)
    calls.clear()
    one.largest(0.3)
    assert len(calls) <= np.log2(size)


def test_sets_are_nested_even_where_the_loss_is_not_monotone():
    margins = {k: 0.3 if k % 2 else 0.01 * k for k in range(20)}
    profile, found = Profile(20, lambda k: _by_size(k, margins[k])), [0]
    for margin in (0.02, 0.05, 0.1, 0.5):
        found.append(profile.largest(margin, found[-1]))
    assert found == sorted(found)
    assert found[-1] == 19


def test_a_bound_by_hand():
    d = np.asarray([[-0.1, -0.2, 0.0, -0.3], [-0.5, -0.5, -0.5, -0.5], [0.1, np.nan, np.nan, np.nan], [np.nan] * 4])
    bounds = worst_loss(Moments.of(d), 0.05)
    own = -d[0]
    t95 = 2.3533634348018264  # three degrees of freedom
    assert bounds[0] == pytest.approx(own.mean() + t95 * own.std(ddof=1) / 2)
    assert bounds[1] == pytest.approx(0.5)
    assert (bounds[2], bounds[3]) == (np.inf, -np.inf)


def test_margins_are_read_or_refused():
    assert margins_of("0.01, 0.2") == (0.01, 0.2)
    for bad in ("", "0.2,0.1", "0.1,0.1", "0,0.1", "0.5,1", "a"):
        with pytest.raises(InputError, match="margins"):
            margins_of(bad)


def test_the_hull_lies_below_and_is_convex():
    points = [(0.0, 0.0), (1.0, 0.5), (2.0, 0.6), (3.0, 0.5), (4.0, 2.0)]
    assert lower_hull(points) == [(0.0, 0.0), (3.0, 0.5), (4.0, 2.0)]


def test_a_joint_cut_is_the_dense_refit(digits_case):
    """Engine and margin against float64 solves by hand, for half a group and for nearly all of it."""
    model, calibration, structure = digits_case
    structure = structure.select(("layer2.conv1",))
    group = structure["layer2.conv1"]
    inputs = calibration.inputs(0, len(calibration))
    engine = CompensatedReplayEngine(model, structure, calibration, cswap.Classification())
    engine.enter(group)
    judge, base = Judge(calibration, Options().rule), engine.scores(group)
    for units in ([0, 3, 5, 8], list(range(group.size - 1))):
        probe = Probe.of(len(units), judge.stats(engine.cut(group, [units])[0], base), 0.05)
        by_hand = joint_cut(model, group, units, inputs)
        assert probe.margin == pytest.approx(
            margin_by_hand(model, by_hand, inputs, calibration.targets, 0.05), abs=2e-4
        )
        changes = squares_by_hand(model, by_hand, inputs, calibration.targets)
        assert probe.change == pytest.approx(np.mean(changes), abs=2e-4)
    assert probe.margin > 0.05
    assert probe.change > 0.01


def test_with_folds_every_sample_is_cut_by_what_the_others_compensate(digits_case):
    """The margin and the change of a set, against refits by hand from the samples of the other folds."""
    model, calibration, structure = digits_case
    group, inputs = structure["layer2.conv1"], calibration.inputs(0, len(calibration))
    engine = CompensatedReplayEngine(model, structure, calibration, cswap.Classification())
    folds = joint_method._folds(engine, 3)
    assert sorted(np.concatenate(folds).tolist()) == list(range(len(calibration)))
    for own in folds:  # alike of every class
        assert np.ptp(np.bincount(calibration.targets[own])) <= 1
    compensation_of(engine).split(folds)
    probe = joint_method._measured(
        engine, engine.scores(), group, np.arange(group.size), np.ones(group.size), Options(folds=3, margins="0.3")
    ).probes[-1]
    losses, squares = {}, []
    for own in folds:
        rest = np.setdiff1d(np.arange(len(calibration)), own)
        by_hand = joint_cut(model, group, list(range(probe.units)), inputs[rest])
        targets = calibration.targets[own]
        for k, lost in differences_by_hand(model, by_hand, inputs[own], targets).items():
            losses.setdefault(k, []).extend(lost)
        squares += squares_by_hand(model, by_hand, inputs[own], targets)
    bounds = [
        np.mean(d) + scipy.stats.t.ppf(0.95, len(d) - 1) * np.std(d, ddof=1) / len(d) ** 0.5 for d in losses.values()
    ]
    assert probe.margin == pytest.approx(max(bounds), abs=5e-4)
    assert probe.change == pytest.approx(np.mean(squares), abs=5e-4)
    within = joint_cut(model, group, list(range(probe.units)), inputs)
    assert (
        probe.change > np.mean(squares_by_hand(model, within, inputs, calibration.targets)) + 5e-4
    )  # what fits, flatters


def test_a_reader_that_fits_the_memory_for_some_folds_alone_is_cut_plainly_in_all(digits_case):
    model, calibration, structure = digits_case
    group = structure["layer2.conv1"]
    (reader,) = (s.module for s in group.consumers)
    columns = model.get_submodule(reader).weight[0].numel()
    for room, compensated in (
        (4.5, False),
        (6.0, True),
    ):  # in squares of its columns: one fold takes three, the other waits
        engine = CompensatedReplayEngine(
            model, structure, calibration, cswap.Classification(), memory=int(8 * columns**2 * room)
        )
        compensation_of(engine).split(joint_method._folds(engine, 3))
        engine.enter(group)
        assert [(group.name, reader) in held for held in compensation_of(engine)._by_fold] == [compensated] * 3
        assert any("cut without compensation" in n for n in engine.notes) != compensated


def test_folds_are_refused_where_a_class_has_fewer_samples(digits_case):
    model, calibration, structure = digits_case
    few = calibration.part(np.flatnonzero(calibration.ranks < 3))
    with pytest.raises(DataError, match="folds: expected at least 4 samples of class '0', got 3"):
        cswap.prune_path(model, few, structure=structure, method="joint", folds=4)
    with pytest.raises(InputError, match="folds: expected a number from 1 to 10, got 0"):
        Options(folds=0)


def test_groups_whose_losses_and_changes_disagree_are_priced_by_what_was_asked():
    """A cut that gains where others lose changes much and loses nothing on the mean."""
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    structure = discover(net, torch.rand(2, 3))
    late, early = structure
    found = [
        Measured(g, np.arange(4), np.ones(4), [Probe(3, 0.1, loss, np.asarray([loss]), change=change)], [(0.1, 3)])
        for g, loss, change in ((late, 0.0, 0.3), (early, 0.06, 0.01))
    ]
    assert by_price(found, Ledger(structure), "params", "loss")[0].group == late.name
    assert by_price(found, Ledger(structure), "params", "change")[0].group == early.name


def test_moments_that_the_surrogate_measured_give_the_same_joint_cut(digits_case):
    model, calibration, structure = digits_case
    known: dict = {}
    obs_scores(model, structure, calibration, cswap.Classification(), inverses=known)
    group = structure["layer2.conv1"]
    cuts = []
    for given in ({}, known):
        engine = CompensatedReplayEngine(model, structure, calibration, cswap.Classification())
        engine.compensation.known = given
        engine.enter(group)
        cuts.append(engine.cut(group, [[0, 3, 5, 8]])[0].sigma)
    base = engine.scores(group).sigma
    assert np.abs(cuts[0] - base).max() > 1e-3
    assert np.abs(cuts[0] - cuts[1]).max() < 1e-5


def test_what_is_far_beyond_the_margin_is_looked_at_on_a_quarter(digits_case, monkeypatch):
    """And the sets are those of looking at every sample."""
    model, calibration, structure = digits_case
    sets, seen = [], []
    for fewest in (6, 10**6):
        monkeypatch.setattr(joint_method, "FEWEST", fewest)
        path = cswap.prune_path(  # per MAC: the price of nearly the whole group is asked for, which no network survives
            model, calibration, structure=structure, method="joint", margins="0.05", per="macs"
        )
        groups = path.sensitivity["groups"]
        sets.append({n: g["sets"] for n, g in groups.items()})
        seen.append([p["samples"] for g in groups.values() for p in g["probes"]])
    assert sets[0] == sets[1]
    assert set(seen[1]) == {len(calibration)}
    assert set(seen[0]) == {len(calibration), sum(n // 4 for n in np.bincount(calibration.targets))}


def test_joint_is_a_complete_path_the_same_every_time(digits_case):
    model, calibration, structure = digits_case
    first, again = (cswap.prune_path(model, calibration, structure=structure, method="joint") for _ in range(2))
    assert [(d.group, d.unit, d.score) for d in first] == [(d.group, d.unit, d.score) for d in again]
    assert sum(d.removed for d in first) == structure.units - len(structure)
    scores = [d.score for d in first]
    assert scores == sorted(scores)
    for name, group in first.sensitivity["groups"].items():
        sets = [k for _, k in group["sets"]]
        assert sets == sorted(sets)
        gone = [d.unit for d in first if d.group == name]
        assert gone == group["order"][: len(gone)]
        within = [p for p in group["probes"] if p["units"] in sets]
        assert all(p["margin"] <= max(m for m, k in group["sets"] if k == p["units"]) for p in within)
    small = first.apply(model, "params=0.5")
    assert cswap.recover(small, model, calibration)(calibration.inputs(0, 2)).shape == (2, 10)


@pytest.mark.parametrize("kind", ["params", "macs"])
def test_by_price_every_step_is_the_cheapest(digits_case, kind):
    model, calibration, structure = digits_case
    path = cswap.prune_path(model, calibration, structure=structure, method="joint", per=kind)
    assert sum(d.removed for d in path) == structure.units - len(structure)
    for name in {d.group for d in path}:
        losses = [d.score for d in path if d.group == name]
        assert losses == sorted(losses)
        assert losses[-1] <= 1.0


def test_a_target_beyond_the_last_margin_is_told(digits_case):
    """And one that every group's set reaches is not; nor a complete path, which is no target."""
    model, calibration, structure = digits_case
    notes, paths = {}, {}
    for target, margin in (("params=0.02", "0.3"), ("params=0.9", "0.01"), (Target("complete"), "0.01")):
        path = cswap.prune_path(
            model, calibration, structure=structure, method="joint", per="params", margins=margin, target=target
        )
        notes[str(target)], paths[str(target)] = [n for n in path.notes if "last margin" in n], path
    assert notes["params=0.02"] == notes["complete"] == []
    (note,) = notes["params=0.9"]
    path = paths["params=0.9"]
    gone = {g.name: sum(d.removed for d in path if d.group == g.name) for g in structure}
    sets = {n: g["sets"][-1][1] for n, g in path.sensitivity["groups"].items()}
    assert note.startswith(f"{sum(gone[n] > sets[n] for n in gone)} of {len(gone)} groups give more units")
    name = max(gone, key=lambda n: gone[n] - sets[n])
    assert f"(most {name}: {gone[name]}, the set {sets[name]})" in note


def test_what_joint_cannot_do():
    data = TensorDataset(torch.rand(40, 3), torch.arange(40) % 2)
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    with pytest.raises(TargetError, match="noncritical"):
        cswap.prune_path(net, cswap.calibration_set(data, 20), method="joint", target="noncritical")


class Planted(nn.Module):
    """Feature k lights class k. Hidden units 0 and 1 are a duplicated pair that class 0 needs one of; 2 and 3 each carry half of
    what class 1 needs: either alone is spare, both together are not; 4 feeds nothing; 5 is class 2's alone.
    """

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.out = nn.Linear(5, 6, bias=False), nn.Linear(6, 3, bias=False)
        with torch.no_grad():
            self.hidden.weight.zero_()
            self.out.weight.zero_()
            self.hidden.weight[0:2, 0] = 1.0
            self.hidden.weight[2, 1] = self.hidden.weight[3, 3] = 1.0
            self.hidden.weight[4, 4] = 1.0
            self.hidden.weight[5, 2] = 1.0
            self.out.weight[0, 0:2] = 20.0
            self.out.weight[1, 2:4] = 20.0
            self.out.weight[2, 5] = 20.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(torch.relu(self.hidden(x)))


def _planted() -> tuple[nn.Module, cswap.CalibrationSet]:
    g = torch.Generator().manual_seed(0)
    labels = torch.arange(3).repeat(60)
    x = torch.zeros(len(labels), 5)
    x[torch.arange(len(labels)), labels] = 1.0 + 0.5 * torch.rand(len(labels), generator=g)
    ones = labels == 1  # features 1 and 3 light independently, so neither can be guessed from the other
    x[ones, 3] = 1.0 + 0.5 * torch.rand(int(ones.sum()), generator=g)
    x[:, 4] = torch.rand(len(labels), generator=g)
    return Planted(), cswap.calibration_set(TensorDataset(x, labels), 60)


def test_one_of_a_pair_goes_and_what_is_needed_together_stays():
    """Each of units 2 and 3 alone moves no score, so one-by-one tests on the original network call both spare."""
    model, calibration = _planted()
    alone = cswap.prune_path(model, calibration, method="cbp", target="noncritical", min_effect=0.01)
    assert {d.unit for d in alone if d.removed} >= {0, 1, 2, 3}
    path = cswap.prune_path(model, calibration, method="joint", margins="0.02,0.5")
    (group,) = path.sensitivity["groups"].values()
    within = set(group["order"][: group["sets"][0][1]])
    assert 4 in within
    assert 5 not in within
    assert len(within & {0, 1}) == 1
    assert len(within & {2, 3}) == 1


def test_fisher_adds_what_units_do_together():
    """At every step no unit left would add less to the mean square of the summed changes: each set's by hand."""
    change = np.random.default_rng(0).normal(size=(40, 7)) @ np.random.default_rng(1).normal(size=(7, 7))
    order, adds = by_fisher(change)
    assert sorted(order.tolist()) == list(range(7))
    cost, before = 0.0, np.zeros(40)
    for place, unit in enumerate(order.tolist()):
        left = [n for n in range(7) if n not in order[:place].tolist()]
        after = {n: float(np.mean([(b + c) ** 2 for b, c in zip(before, change[:, n], strict=True)])) for n in left}
        assert after[unit] == pytest.approx(min(after.values()))
        assert adds[place] == pytest.approx(after[unit] - cost)
        cost, before = after[unit], before + change[:, unit]


def test_fisher_knows_pairs_that_make_good_for_each_other_and_pairs_that_do_the_same():
    a, b, c = np.random.default_rng(2).normal(size=(3, 500))
    changes = np.stack([a, -a, 0.8 * b, 0.8 * b, 1.2 * c], axis=1)  # opposites, twins, one alone
    order, adds = by_fisher(changes)
    own = (changes**2).mean(0)
    assert order.tolist()[0] in (2, 3)
    assert order.tolist().index(3) > order.tolist().index(
        4
    )  # the second twin costs three times the first, the lone unit less
    first, second = (order.tolist().index(n) for n in sorted((0, 1), key=order.tolist().index))
    assert second == first + 1  # what is left of the pair goes at once: together they change nothing
    assert adds[second] == pytest.approx(-own[0], rel=0.2)
    assert by_square(changes)[0].tolist()[:2] == [2, 3]


@pytest.mark.parametrize("surrogate", ["taylor", "fisher"])
def test_every_surrogate_s_sets_are_tested_alike(digits_case, surrogate):
    model, calibration, structure = digits_case
    task = cswap.Classification()
    one, again = (
        cswap.prune_path(model, calibration, structure=structure, method="joint", surrogate=surrogate, margins="0.02,0.1")
        for _ in range(2)
    )  # fmt: skip
    assert one.to_json() == again.to_json()
    assert sum(d.removed for d in one) == structure.units - len(structure)
    numbers = first_of_each(calibration.targets, GRADED)
    changes = first_order_all(PlainEngine(model, structure, calibration, task), structure.groups, numbers)
    for name, group in one.sensitivity["groups"].items():
        change = changes[name]
        wanted = np.argsort(np.abs(change).mean(0), kind="stable") if surrogate == "taylor" else by_fisher(change)[0]
        assert group["order"] == wanted.tolist()
        for margin, units in group["sets"]:  # a set is the largest looked at that stays within the margin
            bounds = {p["units"]: p["margin"] for p in group["probes"]}
            assert units == 0 or bounds[units] <= margin
    usual = cswap.prune_path(model, calibration, structure=structure, method="joint", margins="0.02,0.1")
    assert any(usual.sensitivity["groups"][n]["order"] != g["order"] for n, g in one.sensitivity["groups"].items())


def test_groups_share_a_margin_and_prices_are_by_cost():
    """Two groups with curves given: units go in the order of the margin that lets them, or of loss for cost."""
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    structure = discover(net, torch.rand(2, 3))
    late, early = structure  # from the output to the input
    order = {g.name: np.arange(g.size) for g in structure}
    even = {g.name: np.ones(g.size) for g in structure}
    a = Measured(late, order[late.name], even[late.name], [_by_size(3, 0.1), _by_size(5, 0.9)], [(0.1, 3), (0.9, 5)])
    b = Measured(early, order[early.name], even[early.name], [_by_size(1, 0.1), _by_size(3, 0.9)], [(0.1, 1), (0.9, 3)])
    ranked = by_margin([a, b])
    assert {(r.group, r.unit) for r in ranked[:4]} == {(late.name, 0), (late.name, 1), (late.name, 2), (early.name, 0)}
    assert ranked[0].score == pytest.approx(0.1 / 3)
    assert "margin of 0.1" in ranked[0].reason
    costs = {late.name: 4 + 1 + 2, early.name: 3 + 1 + 6}  # parameters a unit
    for price, first in (("loss", 0.05), ("change", 0.01)):
        by_params = by_price([a, b], Ledger(structure), "params", price)
        assert [r.unit for r in by_params if r.group == late.name] == [0, 1, 2, 3, 4]
        asked = {late.name: first / 3 / costs[late.name], early.name: first / costs[early.name]}
        assert by_params[0].group == min(asked, key=asked.get)
        assert by_params[0].reason == f"least joint {price} a parameter"
