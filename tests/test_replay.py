"""The fast engine against the plain one: while units go, under a small memory, where a model cannot be traced."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import cswap
from cswap.causal.cut import PlainEngine
from cswap.causal.engine import Job
from cswap.causal.graph import Graph, NotTraceable
from cswap.causal.replay import ReplayEngine, Tuning, engine_for
from cswap.methods.options import Options
from cswap.methods.progressive import cswap as walk
from cswap.methods.progressive import plain_engine
from cswap.structure.check import randomise_
from cswap.tasks import Classification
from cswap.types import Target


def _data(n: int = 24, size: int = 8, classes: int = 4) -> cswap.CalibrationSet:
    g = torch.Generator().manual_seed(5)
    return cswap.calibration_set(
        TensorDataset(torch.randn(n, 3, size, size, generator=g), torch.arange(n) % classes), n // classes
    )


def _agree(fast, plain, group, cuts, tolerance):
    for a, b in zip(fast.cut(group, cuts), plain.cut(group, cuts), strict=True):
        np.testing.assert_allclose(a.sigma, b.sigma, atol=tolerance)
        assert a.quality.shape == b.quality.shape


@pytest.mark.parametrize("shrink", [True, False])
def test_it_stays_the_plain_engine_s_equal_while_units_go(small_net, shrink):
    net, calibration = small_net.double(), _data()
    structure = cswap.discover(net, calibration.inputs(0, 2))
    fast = ReplayEngine(net, structure, calibration, Classification(), tuning=Tuning(shrink=shrink))
    plain = PlainEngine(net, structure, calibration, Classification())
    for group in structure:
        fast.enter(group)
        for n in range(group.size - 1):
            rest = list(range(n, group.size))
            _agree(fast, plain, group, [[m] for m in rest] + [rest[:2], rest[:3]], 1e-12)
            if n % 2 == 0:
                fast.remove(group.name, [n])
                plain.remove(group.name, [n])
                np.testing.assert_allclose(fast.scores(group).sigma, plain.scores().sigma, atol=1e-12)
        np.testing.assert_allclose(fast.scores().sigma, plain.scores().sigma, atol=1e-12)
        np.testing.assert_allclose(
            fast.once(group, [group.size - 1]).sigma, plain.cut(group, [[group.size - 1]])[0].sigma, atol=1e-12
        )
    assert not fast.notes


def test_groups_entered_in_turn_share_one_graph_until_something_goes(small_net, monkeypatch):
    net, calibration = small_net.double(), _data()
    structure = cswap.discover(net, calibration.inputs(0, 2))
    fast, plain = (kind(net, structure, calibration, Classification()) for kind in (ReplayEngine, PlainEngine))
    drawn = []
    monkeypatch.setattr(fast, "_graph", lambda draw=fast._graph: drawn.append(1) or draw())
    rng, left = np.random.default_rng(0), {g.name: set(range(g.size)) for g in structure}
    for turn in range(1, 6):
        for group in structure:
            fast.enter(group)
            _agree(fast, plain, group, [[n] for n in sorted(left[group.name])], 1e-12)
        assert len(drawn) == turn, "the network did not change between groups"
        group = next(g for g in rng.permutation(structure.groups) if len(left[g.name]) > 1)
        unit = int(rng.choice(sorted(left[group.name])))
        for engine in (fast, plain):
            engine.remove(group.name, [unit])
        left[group.name].remove(unit)
    assert not fast.notes


def test_a_group_entered_after_another_starts_from_what_that_one_kept(small_net, monkeypatch):
    net, calibration = small_net.double(), _data()
    structure = cswap.discover(net, calibration.inputs(0, 2))
    ran = []
    monkeypatch.setattr(Graph, "run", lambda *a, run=Graph.run, **k: ran.append(len(list(a[1]))) or run(*a, **k))

    def steps(memory: int, in_turn: bool) -> int:
        """Operations run to enter every group from the input to the output, by one engine or by one each."""
        plain, count = PlainEngine(net, structure, calibration, Classification()), 0
        engines = [ReplayEngine(net, structure, calibration, Classification(), memory=memory) for _ in structure]
        for engine, group in zip(engines, reversed(structure.groups), strict=True):
            chosen = engines[0] if in_turn else engine
            ran.clear()
            chosen.enter(group)
            count += sum(ran)
            _agree(chosen, plain, group, [[n] for n in range(group.size)], 1e-12)
        return count

    assert steps(4 << 30, in_turn=True) < steps(4 << 30, in_turn=False)
    steps(150_000, in_turn=True)  # where two frontiers do not fit, the same numbers


@pytest.mark.parametrize(
    ("name", "size"),
    [("resnet18", 32), ("mobilenet_v2", 32), ("densenet121", 32), ("googlenet", 32), ("vgg11_bn", 32), ("squeezenet1_1", 48),
     ("efficientnet_b0", 32), ("vit_b_16", 32), ("convnext_tiny", 32), ("regnet_y_400mf", 32)],
)  # fmt: skip
@pytest.mark.slow
def test_every_wiring_is_replayed(name, size):
    """First, middle and last group of each architecture, after other groups were thinned; nothing falls back."""
    from torchvision import models

    arguments = {"image_size": size} if name == "vit_b_16" else {"init_weights": False} if name == "googlenet" else {}
    with torch.random.fork_rng():
        net = randomise_(models.get_model(name, num_classes=4, **arguments), 2).eval()
    calibration = _data(8, size)
    structure = cswap.discover(net, calibration.inputs(0, 2))
    fast = ReplayEngine(net, structure, calibration, Classification())
    plain = PlainEngine(net, structure, calibration, Classification())
    groups = [structure.groups[i] for i in sorted({0, len(structure) // 2, len(structure) - 1})]
    for group in groups:
        fast.enter(group)
        assert fast.units_together(group) > 1
        before = fast.scores(group).sigma
        for scores, other in zip(
            fast.cut(group, [[0], [1], [0, 1]]), plain.cut(group, [[0], [1], [0, 1]]), strict=True
        ):
            np.testing.assert_allclose(scores.sigma, other.sigma, atol=2e-5)
        np.testing.assert_array_equal(fast.scores(group).sigma, before)  # nothing kept was overwritten
        for engine in (fast, plain):
            engine.remove(group.name, range(0, group.size, 2))
    assert not fast.notes


def test_only_what_a_cut_can_change_is_run(small_net):
    calibration = _data()
    structure = cswap.discover(small_net, calibration.inputs(0, 2))
    engine = ReplayEngine(small_net, structure, calibration, Classification())
    lengths = []
    for group in structure:
        engine.enter(group)
        plan = engine._planned
        calls = []
        for module in {id(m): m for m in plan.graph.modules.values()}.values():
            module.register_forward_hook(lambda m, i, o, seen=calls: seen.append(m))
        engine.cut(group, [[0]])
        run = {id(m) for m in calls}
        first = {id(c.module) for c in plan.consumers if c.first}
        assert run <= {id(plan.graph.modules[n]) for n in plan.tail if n.op == "call_module"} - first
        lengths.append(len(plan.tail))
    assert lengths == sorted(lengths)
    assert lengths[0] < lengths[-1] < len(engine._planned.graph.nodes)


def test_a_small_memory_keeps_part_of_the_frontier_and_gives_the_same():
    from tests.conftest import ResidualNet

    net, calibration = randomise_(ResidualNet(), 3).eval(), _data()
    structure = cswap.discover(net, calibration.inputs(0, 2))
    wide = ReplayEngine(net, structure, calibration, Classification())
    tight = ReplayEngine(net, structure, calibration, Classification(), memory=60_000)
    kept = []
    for group in structure:
        for engine in (wide, tight):
            engine.enter(group)
        kept.append(tight._planned.cached_rows)
        cuts = [[n] for n in range(group.size)]
        _agree(tight, wide, group, cuts, 1e-6)
        for engine in (wide, tight):
            engine.remove(group.name, [1])
        _agree(tight, wide, group, [[0], [2]], 1e-6)
    assert min(kept) < len(calibration)
    assert wide._planned.cached_rows == len(calibration)


class Undecided(nn.Module):
    """Control flow that depends on values: no graph."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1), nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.relu(self.a(x))
        if h.sum() > -1:
            h = torch.relu(self.b(h))
        return self.fc(h.mean((2, 3)))


def test_a_model_that_cannot_be_traced_goes_by_full_passes_and_says_why():
    net, calibration = randomise_(Undecided(), 3).eval(), _data()
    structure = cswap.discover(net, calibration.inputs(0, 2))
    engine = engine_for(net, structure, calibration, Classification())
    assert isinstance(engine, PlainEngine)
    assert any("no replay" in note for note in engine.notes)
    with pytest.raises(NotTraceable):
        Graph(net, calibration.inputs(0, 3))


class Sneaky(nn.Module):
    """A weight that is read behind the layer's back: the graph shows no call of the consumer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = nn.Linear(12, 8), nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.relu(self.a(x.flatten(1)))
        return self.fc(torch.relu(self.b(h)) + 0.5 * torch.relu(nn.functional.linear(h, self.b.weight)))


def test_a_group_whose_replay_disagrees_falls_back_on_full_passes():
    net = randomise_(Sneaky(), 3).eval()
    g = torch.Generator().manual_seed(5)
    calibration = cswap.calibration_set(TensorDataset(torch.randn(24, 3, 2, 2, generator=g), torch.arange(24) % 4), 6)
    structure = cswap.discover(net, calibration.inputs(0, 2), verify=False)
    fast = ReplayEngine(net, structure, calibration, Classification())
    fast._verify = lambda plan: (_ for _ in ()).throw(NotTraceable("planted"))
    plain = PlainEngine(net, structure, calibration, Classification())
    for group in structure:
        fast.enter(group)
        _agree(fast, plain, group, [[0], [1]], 0.0)
    assert len(fast.notes) == len(structure)


def test_a_wrong_replay_is_caught_by_the_check():
    """An off-by-one in the positions must not get past `_verify`."""
    from tests.conftest import ResidualNet

    net, calibration = randomise_(ResidualNet(), 3).eval(), _data()
    structure = cswap.discover(net, calibration.inputs(0, 2))
    fast = ReplayEngine(net, structure, calibration, Classification())
    right = fast._positions
    fast._positions = lambda slot, kept, gone: {
        n: (p + 1) % len(slot.positions) for n, p in right(slot, kept, gone).items()
    }
    for group in structure:
        fast.enter(group)
    assert len(fast.notes) == len(structure)
    assert all("differ" in note for note in fast.notes)


def test_jobs_on_parts_of_the_samples_are_parts_of_the_whole(small_net):
    calibration = _data()
    structure = cswap.discover(small_net, calibration.inputs(0, 2))
    for engine in (ReplayEngine, PlainEngine):
        made = engine(small_net, structure, calibration, Classification())
        group = structure.groups[-1]
        whole = made.cut(group, [[1], [2]])
        parts = made.run(group, [Job((1,), 0, 6), Job((2,), 6, 24), Job((1,), 6, 24)])
        np.testing.assert_allclose(np.concatenate([parts[0].sigma, parts[2].sigma]), whole[0].sigma, atol=1e-6)
        np.testing.assert_allclose(parts[1].sigma, whole[1].sigma[6:], atol=1e-6)


def _lines(path):
    return [(d.phase, d.group, d.unit, d.verdict, d.removed) for d in path]


def test_three_engines_and_both_modes_decide_alike(digits_case):
    model, calibration, structure = digits_case
    settings = {"target": Target("noncritical")}
    paths = {
        (mode, name): walk(model, structure, calibration, Classification(), options=Options(effects=mode, alpha=0.001), engine=engine, **settings)
        for mode in ("full", "verdict")
        for name, engine in (("replay", engine_for), ("plain", plain_engine))
    }  # fmt: skip
    lines = [_lines(p) for p in paths.values()]
    assert all(other == lines[0] for other in lines)
    counts = paths["full", "replay"].verdicts()
    assert min(counts["critical"], counts["neutral"] + counts["detrimental"]) >= 5  # both kinds are there
    a, b = ([d.xi for d in paths["full", n]] for n in ("replay", "plain"))
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6)


def test_verdict_mode_skips_classes_and_says_so(digits_case):
    model, calibration, structure = digits_case
    path = walk(
        model, structure, calibration, Classification(), options=Options(effects="verdict"), target=Target("params=0.5")
    )
    walked = [d for d in path if d.phase == "walk"]
    short = [d for d in walked if (d.effects.count == 0).any()]
    assert short
    assert all(d.verdict == "critical" and d.xi is None and not d.removed for d in short)
    assert all(d.xi is not None for d in walked if d.verdict != "critical")
    asked = sum(int((d.effects.count > 0).sum()) for d in walked)
    assert asked < 0.7 * len(walked) * 10  # classes are in a useful order
    skipped = next(e for e in short[0].effects.values() if e.count == 0)
    assert (skipped.mean, skipped.p, skipped.pi) == (None, None, 0)
    scored = [d for d in path if d.phase == "score"]
    assert {(d.group, d.unit) for d in scored} == {(d.group, d.unit) for d in walked if d.verdict == "critical"}
    assert all(d.xi is not None and "on the network as the walk left it" in d.reason for d in scored)
    gone = [d.xi for d in path if d.phase == "buffer" and d.removed]
    assert gone == sorted(gone, reverse=True)
    assert gone
    assert path.ratio.params >= 0.5


@pytest.mark.parametrize("settings", [{"vote": "pooled"}, {"correction": "holm"}])
def test_verdict_mode_refuses_what_needs_every_class(settings):
    with pytest.raises(cswap.CswapError, match="effects: verdict goes with"):
        Options(effects="verdict", **settings)


def test_bfloat16_replay_runs_and_mostly_agrees(digits_case):
    model, calibration, structure = digits_case
    sharp, coarse = (
        walk(model, structure, calibration, Classification(), options=Options(amp=amp), target=Target("noncritical"))
        for amp in (False, True)
    )
    same = np.mean([a.verdict == b.verdict for a, b in zip(sharp, coarse, strict=True)])
    assert 0.5 < same <= 1.0


@pytest.mark.parametrize(("level", "said"), [("AVX2", True), ("AVX512", False), ("DEFAULT", False)])
def test_bfloat16_is_said_to_be_no_gain_where_the_cpu_emulates_it(digits_case, monkeypatch, level, said):
    model, calibration, structure = digits_case
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: level)
    for amp in (False, True):
        notes = engine_for(model, structure, calibration, Classification(), amp=amp).notes
        assert [n for n in notes if "bfloat16" in n] == (
            ["this CPU has no bfloat16 of its own and emulates it: float32, the default, is faster here"]
            * (said and amp)
        )


def test_a_wide_group_shrinks_to_widths_that_convolutions_like():
    net = nn.Sequential(
        nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(80, 4)
    ).eval()
    calibration = _data()
    structure = cswap.discover(randomise_(net, 3), calibration.inputs(0, 2))
    fast = ReplayEngine(net, structure, calibration, Classification())
    plain = PlainEngine(net, structure, calibration, Classification())
    wide = next(g for g in structure if g.size == 64)
    for count, width in ((5, 64), (20, 48), (60, 16)):
        for engine in (fast, plain):
            engine.remove(
                wide.name, [n for n in range(count) if n not in fast.removed.get(wide.name, ()) or engine is plain]
            )
        fast.enter(wide)
        assert fast._planned.graph.net.get_submodule(wide.name).out_channels == width
        _agree(fast, plain, wide, [[61], [62, 63]], 1e-5)
        np.testing.assert_allclose(fast.scores().sigma, plain.scores().sigma, atol=1e-5)
    assert not fast.notes
