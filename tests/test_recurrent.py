"""LSTM, GRU and RNN: the equivalent module, its hidden units, cuts in the recurrence, surgery, saving and loading."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import cswap
from cswap.causal.cut import PlainEngine
from cswap.causal.first_order import first_order
from cswap.causal.replay import ReplayEngine, engine_for
from cswap.errors import ArtifactError
from cswap.recovery.base import choosing
from cswap.structure.check import agreement, random_half, randomise_
from cswap.structure.discover import count_params, discover, macs_of
from cswap.structure.groups import Group
from cswap.structure.ledger import Ledger
from cswap.structure.recurrent import Recurrent, replace_recurrent_, step_by_step
from cswap.structure.surgery import masked_copy, prepared_copy, pruned_copy
from cswap.tasks import Classification
from tests.conftest import off_by_one, saved_and_loaded_elsewhere
from tests.recurrent_factory import Reader

KINDS = [
    ("LSTM", {}),
    ("LSTM", {"num_layers": 2, "bidirectional": True}),
    ("LSTM", {"batch_first": False, "num_layers": 2}),
    ("LSTM", {"bias": False, "bidirectional": True, "batch_first": False}),
    ("GRU", {}),
    ("GRU", {"num_layers": 3, "bidirectional": True}),
    ("RNN", {"nonlinearity": "relu"}),
    ("RNN", {"num_layers": 2}),
]


def _tokens(n: int = 6, length: int = 7) -> torch.Tensor:
    return torch.randint(1, 30, (n, length), generator=torch.Generator().manual_seed(1))


def _reader(kind: str, arguments: dict, last: bool = False) -> nn.Module:
    return randomise_(Reader(kind, last=last, **arguments), 3).eval()


@pytest.mark.parametrize(("kind", "arguments"), KINDS)
@pytest.mark.parametrize("last", [False, True])
def test_the_equivalent_is_equal_fused_and_step_by_step(kind, arguments, last):
    net, x = _reader(kind, arguments, last), _tokens()
    again = replace_recurrent_(_reader(kind, arguments, last), ["rnn"])
    assert isinstance(again.rnn, Recurrent)
    assert count_params(again) == count_params(net)
    with torch.no_grad():
        torch.testing.assert_close(again(x), net(x), rtol=1e-5, atol=1e-5)
        with step_by_step():
            torch.testing.assert_close(again(x), net(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("kind", "arguments"), KINDS)
@pytest.mark.parametrize("last", [False, True])
def test_masked_equals_pruned_and_counts_are_real(kind, arguments, last):
    net, x = _reader(kind, arguments, last), _tokens()
    structure = discover(net, x)
    directions = arguments.get("num_layers", 1) * (1 + arguments.get("bidirectional", False))
    assert len(structure) == directions + 1  # and the embedding
    assert structure.replaced == {"rnn": structure.replaced["rnn"]}
    removed = random_half(structure, 4)
    # halves of different size a layer: no module of torch's own could hold them
    for i, name in enumerate(removed):
        removed[name] = removed[name][: max(1, len(removed[name]) - i)]
    result = agreement(net, structure, removed, x)
    assert result.ok, str(result)
    assert result.visible
    ledger = Ledger(structure)
    for group, units in removed.items():
        for n in units:
            ledger.remove(structure[group], int(n))
    small = pruned_copy(net, structure, removed)
    assert ledger.params == count_params(small)
    assert round(ledger.macs) == macs_of(small, x)[0]
    assert structure.total_macs == macs_of(prepared_copy(net, structure), x)[0]
    assert isinstance(net.rnn, nn.RNNBase)  # the user's own is untouched
    with torch.no_grad():
        masked = masked_copy(net, structure, removed)(x)
        crossed = pruned_copy(net, off_by_one(structure), removed)(x)
    assert (masked - crossed).abs().max() > result.allowed


def test_a_cut_that_forgets_the_recurrence_is_caught():
    net, x = _reader("LSTM", {}), _tokens()
    structure = discover(net, x)
    group = structure["rnn.l0.ih"]
    slots = tuple(s for s in group.slots if not (s.module == "rnn.l0.hh" and s.role == "consumer"))
    assert len(slots) == len(group.slots) - 1
    blind = dataclasses.replace(structure, groups=(Group(group.name, group.size, slots),))
    removed = random_half(structure, 0, [group.name])
    assert agreement(net, structure, removed, x).ok
    with torch.no_grad():
        off = (masked_copy(net, blind, removed)(x) - pruned_copy(net, structure, removed)(x)).abs().max()
    assert off > 1e-2


def _case(kind: str, arguments: dict):
    net = _reader(kind, arguments).double()
    x = torch.randint(1, 30, (24, 7), generator=torch.Generator().manual_seed(1))
    calibration = cswap.calibration_set(TensorDataset(x, torch.arange(24) % 4), 6)
    return net, calibration, discover(net, calibration.inputs(0, 2))


@pytest.mark.parametrize(("kind", "first"), [("LSTM", True), ("GRU", False)])
def test_engines_agree_and_say_where_they_fall_back(kind, first):
    net, calibration, structure = _case(kind, {"num_layers": 2, "bidirectional": True, "batch_first": first})
    fast = engine_for(net, structure, calibration, Classification())
    plain = PlainEngine(net, structure, calibration, Classification())
    assert isinstance(fast, ReplayEngine)
    for group in structure:
        fast.enter(group)
        for a, b in zip(fast.cut(group, [[0], [1], [0, 2]]), plain.cut(group, [[0], [1], [0, 2]]), strict=True):
            np.testing.assert_allclose(a.sigma, b.sigma, atol=1e-12)
        alone = [plain.cut(group, [[n]])[0].sigma for n in (0, 1)]  # cut sets side by side are as alone
        for n, scores in enumerate(plain.cut(group, [[0], [1]])):
            np.testing.assert_allclose(scores.sigma, alone[n], atol=1e-12)
        assert np.abs(alone[0] - plain.scores().sigma).max() > 1e-6
        for engine in (fast, plain):
            engine.remove(group.name, [1, 3])
        np.testing.assert_allclose(fast.scores().sigma, plain.scores().sigma, atol=1e-12)
    assert any("called inside another layer" in note for note in fast.notes)


class _StepsFirst(nn.Module):
    """Steps before samples at a consumer: as many steps as two cut sets of samples have rows."""

    def __init__(self) -> None:
        super().__init__()
        self.emb, self.a, self.b = nn.Embedding(30, 5), nn.Linear(5, 6), nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(torch.relu(self.a(self.emb(x).transpose(0, 1)))).mean(0)


def test_cut_sets_do_not_share_a_batch_where_samples_do_not_come_first():
    net = randomise_(_StepsFirst(), 3).eval().double()
    x = torch.randint(1, 30, (8, 16), generator=torch.Generator().manual_seed(1))
    calibration = cswap.calibration_set(TensorDataset(x, torch.arange(8) % 2), 4)
    structure = discover(net, x[:2])
    plain, group = PlainEngine(net, structure, calibration, Classification()), structure["a"]
    together = plain.cut(group, [[0], [1]])
    assert plain.units_together(group) == 1
    for n, scores in enumerate(together):
        np.testing.assert_allclose(scores.sigma, plain.cut(group, [[n]])[0].sigma, atol=1e-12)
    assert np.abs(together[0].sigma - together[1].sigma).max() > 1e-3


def test_first_order_follows_small_cuts():
    """On a network whose hidden units hardly matter the first-order estimate is the effect itself."""
    net, calibration, structure = _case("LSTM", {})
    with torch.no_grad():
        net.rnn.weight_hh_l0.mul_(1e-4)
        net.fc.weight.mul_(1e-4)
    engine = PlainEngine(net, structure, calibration, Classification())
    group = structure["rnn.l0.ih"]
    guess = first_order(engine, group, np.arange(24))
    for n in (0, 3):
        effect = engine.cut(group, [[n]])[0].sigma - engine.scores().sigma
        np.testing.assert_allclose(guess[:, n], effect, rtol=0.02, atol=1e-8)


@pytest.mark.parametrize("kind", ["GRU", "LSTM"])
def test_saved_and_loaded_in_a_new_process(tmp_path, kind):
    arguments = {"num_layers": 2, "bidirectional": True}
    net, x = _reader(kind, arguments), _tokens()
    structure = discover(net, x)
    small = saved_and_loaded_elsewhere(
        net,
        structure,
        random_half(structure, 1),
        x,
        tmp_path,
        "tests/recurrent_factory.py:reader",
        {"kind": kind, **arguments},
    )
    sizes = {d.hh.out_features for d in (small.rnn.l0, small.rnn.l1, small.rnn.l0_reverse, small.rnn.l1_reverse)}
    assert sizes == {4}


class _Started(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.emb, self.rnn, self.fc = nn.Embedding(30, 5), nn.GRU(5, 6, batch_first=True), nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.rnn(self.emb(x), torch.ones(1, len(x), 6))[0].mean(1))


class _Projected(_Started):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(5, 8, proj_size=6, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.rnn(self.emb(x))[0].mean(1))


class _Packed(_Started):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        lengths = torch.full((len(x),), x.shape[1])
        packed = nn.utils.rnn.pack_padded_sequence(self.emb(x), lengths, batch_first=True)
        return self.fc(self.rnn(packed)[1][-1])


class _LookedInto(_Started):
    """Of several layers, whose sizes may differ, the last states are a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(5, 6, 2, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.rnn(self.emb(x))[1][0].mean(0))


class _OneLayer(nn.Module):
    """The last state of one layer, as people write it."""

    def __init__(self, kind: str, how) -> None:
        super().__init__()
        self.emb, self.rnn, self.fc = nn.Embedding(30, 5), getattr(nn, kind)(5, 6, batch_first=True), nn.Linear(6, 3)
        self.kind, self.how = kind, how

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        _, last = self.rnn(self.emb(x))
        return self.fc(self.how(last[0] if self.kind == "LSTM" else last))


HOW = {
    "squeeze": lambda h: h.squeeze(0), "function": lambda h: torch.squeeze(h, 0), "index": lambda h: h[-1], "slices": lambda h: h[-1, :, :],
    "permute": lambda h: h.permute(1, 0, 2).flatten(1), "transpose": lambda h: h.transpose(0, 1).reshape(h.shape[1], -1),
    "mean": lambda h: h.mean(0),
}  # fmt: skip


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
@pytest.mark.parametrize("how", list(HOW))
def test_the_last_state_of_one_layer_is_a_tensor_as_it_was(kind, how):
    net, x = randomise_(_OneLayer(kind, HOW[how]), 1).eval(), _tokens()
    structure = discover(net, x)
    assert {g.name: g.size for g in structure} == {"rnn.l0.ih": 6, "emb": 5}
    removed = {"rnn.l0.ih": np.asarray([0, 4]), "emb": np.asarray([2])}
    found = agreement(net, structure, removed, x)
    assert found.ok and found.visible  # noqa: PT018
    assert pruned_copy(net, structure, removed)(x).shape == (len(x), 3)


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize(
    ("net", "reason"),
    [
        (_Started, "no initial state"),
        (_Projected, "proj_size"),
        (_Packed, "batch of sequences"),
        (_LookedInto, "mean"),
    ],
)
def test_what_has_no_equivalent_is_left_out_with_its_reason(net, reason):
    structure = discover(randomise_(net()).eval(), _tokens())
    assert not structure.replaced
    assert any(o.name == "rnn" and reason in o.reason for o in structure.left_out)
    assert not any(s.module.startswith("rnn") for g in structure for s in g.slots)


def test_a_torn_module_does_not_run():
    net = replace_recurrent_(_reader("LSTM", {}), ["rnn"])
    hh = net.rnn.l0.hh
    hh.weight = nn.Parameter(hh.weight[:, :5])
    type(hh).layer_rule.refit(hh)
    with pytest.raises(ValueError, match="hidden sizes differ: 8, 5, 8"):
        net(_tokens())


def test_loading_into_another_architecture_is_one_line():
    with pytest.raises(ArtifactError, match="recurrent module 'rnn'"):
        replace_recurrent_(nn.Linear(2, 2), ["rnn"])


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_the_next_layer_and_the_classifier_are_refitted(kind, bias):
    """What reads a layer's outputs is refitted, of every gate; the recurrence, called once a step, is left and said so."""
    from cswap.recovery import recovered
    from tests.recoveries import pruned_to

    net, calibration, structure = _case(kind, {"num_layers": 2, "bidirectional": True, "bias": bias})
    removed = {n: u.tolist() for n, u in random_half(structure, 2).items() if n.startswith("rnn.l0")}
    small, _ = pruned_to(net, structure, calibration, removed)
    found = recovered(small, net, calibration, "lstsq", structure=structure)
    fitted = found.facts["lstsq"]
    assert [n for n in fitted if "l0" not in n] == ["rnn.l1.ih", "rnn.l1_reverse.ih", "fc"]
    assert all(fitted[f"rnn.l1{way}.ih"]["strength"] is not None for way in ("", "_reverse"))
    assert any("rnn.l0.hh is called 7 times" in n for n in found.notes)
    inputs, numbers = calibration.inputs(0, 24), np.setdiff1d(np.arange(24), choosing(calibration))

    def gap(model: nn.Module) -> float:
        """How far the gates' inputs of layer 1 are from the original's, on the samples that fit."""
        seen = []
        with torch.no_grad():
            for m in (model, prepared_copy(net, structure)):
                handle = m.get_submodule("rnn.l1.ih").register_forward_hook(lambda _m, _x, y: seen.append(y))
                m(inputs[numbers])
                handle.remove()
        return float((seen[0] - seen[1]).square().mean())

    assert gap(found.raw) < (0.5 if bias else 0.7) * gap(small)


def test_gates_are_left_by_recoveries_that_do_not_know_them():
    from cswap.recovery import recovered
    from tests.recoveries import pruned_to

    net, calibration, structure = _case("LSTM", {"num_layers": 2})
    small, _ = pruned_to(net, structure, calibration, {"rnn.l0.ih": [0, 2], "rnn.l1.ih": [1]})
    found = recovered(small, net, calibration, "bias", structure=structure)
    assert "rnn.l1.ih is part of a recurrent layer: left as it is" in found.notes
    assert torch.equal(found.raw.rnn.l1.ih.bias, small.rnn.l1.ih.bias)
    assert not torch.equal(found.raw.fc.bias, small.fc.bias)
