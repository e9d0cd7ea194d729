"""Recovery without fine-tuning, each against a computation by hand."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset
from torchvision.models import VisionTransformer

import cswap
import cswap.errors
from cswap.errors import InputError
from cswap.linear.patches import matrix_of
from cswap.methods.path import PruningPath
from cswap.recovery import recovered, reestimated
from cswap.recovery.attention import query_targets
from cswap.recovery.base import STEPS, Case
from cswap.recovery.walk import Walk
from cswap.structure.check import randomise_
from cswap.structure.surgery import prepared_copy
from tests.conftest import NETS
from tests.recoveries import pruned_at_random, pruned_to, small_calibration
from tests.recurrent_factory import Reader
from tests.reference.least_squares import ridge_by_hand, rows_by_hand, targets_by_hand


@pytest.mark.parametrize("how", ["bias", "bn", "lstsq", "merge", "fold", "merge+lstsq"])
def test_every_recovery_leaves_its_arguments_alone_and_keeps_the_size(small_net, how):
    calibration = small_calibration()
    small, _ = pruned_at_random(small_net, calibration)
    states = [{k: v.clone() for k, v in m.state_dict().items()} for m in (small, small_net)]
    found = recovered(small, small_net, calibration, how)
    for module, state in zip((small, small_net), states, strict=True):
        assert all(torch.equal(v, state[k]) for k, v in module.state_dict().items())
    assert [tuple(v.shape) for v in found.model.state_dict().values()] == [
        tuple(v.shape) for v in small.state_dict().values()
    ]
    again = recovered(small, small_net, calibration, how)
    assert all(torch.equal(v, found.model.state_dict()[k]) for k, v in again.model.state_dict().items())
    changed = any(not torch.equal(v, small.state_dict()[k]) for k, v in found.model.state_dict().items())
    norms = any(isinstance(m, nn.BatchNorm2d) for m in small_net.modules())
    assert found.declined or changed or how == "fold" or (how == "bn" and not norms)


@pytest.mark.parametrize("how", ["bias", "bn", "lstsq", "merge", "fold", "merge+lstsq"])
def test_recovery_of_an_unpruned_network_changes_nothing(small_net, how):
    calibration = small_calibration()
    structure = cswap.discover(small_net, calibration.inputs(0, 2))
    whole = PruningPath(structure, "random", {}, calibration.classes).apply(small_net, "params=0")
    after = recovered(whole, small_net, calibration, how).model
    for (name, a), b in zip(small_net.state_dict().items(), after.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6, msg=name)


@pytest.mark.parametrize("how", ["bias", "bn", "lstsq", "merge", "merge+lstsq"])
def test_where_a_cut_took_nothing_away_the_steps_run_and_give_nothing(small_net, how, monkeypatch):
    """A unit that nothing listened to goes: every step does its work, on a network that gives what the original gives."""
    calibration = small_calibration()
    net = reestimated(small_net, calibration)  # bn finds what is there
    structure = cswap.discover(net, calibration.inputs(0, 2))
    for group in structure:
        for slot in group.consumers:
            axes = dict(structure.layers[slot.module].axes["in"])
            net.get_submodule(slot.module).weight.data.index_fill_(
                axes["weight"], torch.from_numpy(slot.by_unit[1]), 0.0
            )
    net = reestimated(net, calibration)
    small, _ = pruned_to(net, structure, calibration, {g.name: [1] for g in structure})
    ran = []
    for name in how.split("+"):
        own = STEPS[name]
        monkeypatch.setitem(STEPS, name, lambda case, own=own, name=name: (ran.append(name), own(case)))
    found = recovered(small, net, calibration, how).raw
    x = calibration.inputs(0, len(calibration))
    with torch.no_grad():
        torch.testing.assert_close(found(x), net(x), rtol=1e-4, atol=1e-4)
        assert (small(x) - net(x)).abs().max() < 1e-4
    assert ran == how.split("+")


def test_the_first_refitted_layer_is_the_dense_ridge_solve(small_net):
    calibration = small_calibration(10)
    net = small_net.double()
    calibration = cswap.calibration_set(
        TensorDataset(calibration.inputs(0, 40).double(), torch.from_numpy(calibration.targets)), 10
    )
    small, _ = pruned_at_random(net, calibration)
    found = recovered(small, net, calibration, "lstsq")
    name, fact = next(iter(found.facts["lstsq"].items()))
    layer, original = small.get_submodule(name), net.get_submodule(name)
    seen: dict[str, torch.Tensor] = {}
    fitting = [i for i in range(40) if i % 10 < 8]  # the last fifth of a class chooses
    for model, place in ((net, original), (small, layer)):
        handle = place.register_forward_hook(
            lambda _m, x, y, which=("original" if model is net else "small"): seen.update(
                {f"{which} in": x[0], f"{which} out": y}
            )
        )
        model(calibration.inputs(0, 40)[fitting])
        handle.remove()
    kept = small._cswap.kept.get(f"{name}.weight", {}).get(0, np.arange(original.weight.shape[0]))
    channel = -1 if isinstance(layer, nn.Linear) else 1
    targets = targets_by_hand(layer, seen["original out"].detach().index_select(channel, torch.from_numpy(kept)))
    rows = rows_by_hand(layer, seen["small in"].detach())
    shifts = layer.bias is not None or name in ("conv",)
    for g, (x, y, prior) in enumerate(zip(rows, targets, matrix_of(layer), strict=True)):
        w, _ = ridge_by_hand(x, y, prior, fact["strength"], intercept=shifts)
        torch.testing.assert_close(matrix_of(found.raw.get_submodule(name))[g], w, rtol=1e-6, atol=1e-8)


def test_the_mean_of_what_was_cut_is_given_back_with_its_borders():
    net = randomise_(nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 5, 3, 2, padding=1), nn.BatchNorm2d(5), nn.Flatten(), nn.Linear(80, 4)), seed=5).eval()  # fmt: skip
    net[2].bias = None  # so that the norm behind has to take it
    calibration = small_calibration()
    structure = cswap.discover(net, calibration.inputs(0, 2))
    small, _ = pruned_to(net, structure, calibration, {"0": [1, 4]})
    mended = recovered(small, net, calibration, "bias")
    x = calibration.inputs(0, 80)
    before, after = net[:4](x).mean((0, 2, 3)), mended.model[:4](x).mean((0, 2, 3))
    assert not torch.allclose(before, small[:4](x).mean((0, 2, 3)), atol=1e-2)
    if mended.declined is None:
        torch.testing.assert_close(before, after, rtol=1e-4, atol=1e-5)
    else:
        pytest.fail(mended.declined)


@pytest.mark.parametrize("how", ["merge", "fold", "lstsq"])
def test_a_copy_of_a_unit_is_merged_without_loss(how):
    net = randomise_(NETS["residual"](), seed=3).eval()
    with torch.no_grad():  # unit 4 of conv `a` copies unit 1
        net.a.weight[4], net.a.bias[4] = net.a.weight[1], net.a.bias[1]
    calibration = small_calibration()
    structure = cswap.discover(net, calibration.inputs(0, 2))
    small, _ = pruned_to(net, structure, calibration, {"a": [4]})
    x = calibration.inputs(0, 80)
    found = recovered(small, net, calibration, how)
    assert found.declined is None
    with torch.no_grad():
        whole, cut, mended = net(x), small(x), found.model(x)
    assert float((cut - whole).abs().max()) > 0.05
    tolerance = {"lstsq": 1e-2}.get(how, 1e-4)
    assert float((mended - whole).abs().max()) < tolerance * float(whole.abs().max())


@pytest.mark.parametrize("of", ["emb", "rnn.ih"])
def test_a_copy_in_an_embedding_or_a_recurrent_layer_is_folded_without_loss(of):
    """An embedding's units lie in the second dimension of its weight, those of a recurrent layer behind its gates."""
    net = randomise_(Reader("GRU", num_layers=1), seed=3).eval()
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(1, 30, (40, 6), generator=generator)
    calibration = cswap.calibration_set(TensorDataset(tokens, torch.arange(40) % 4), 10)
    structure = cswap.discover(net, calibration.inputs(0, 2))
    with torch.no_grad():  # unit 3 copies unit 1
        net.emb.weight[:, 3] = net.emb.weight[:, 1]
        for gate in range(3):
            for tensor in (net.rnn.weight_ih_l0, net.rnn.weight_hh_l0, net.rnn.bias_ih_l0, net.rnn.bias_hh_l0):
                tensor[8 * gate + 3] = tensor[8 * gate + 1]
    name = next(g.name for g in structure if g.name.startswith(of) or g.name.endswith(of.partition(".")[2] or "none"))
    small, _ = pruned_to(net, structure, calibration, {name: [3]})
    found = recovered(small, net, calibration, "fold").raw
    with torch.no_grad():
        whole, cut, mended = net(tokens), small(tokens), found(tokens)
    assert float((cut - whole).abs().max()) > 0.01
    assert float((mended - whole).abs().max()) < 1e-5 * float(whole.abs().max())


def test_a_module_pruned_elsewhere_is_matched_by_its_tensors():
    net, calibration = randomise_(NETS["residual"](), seed=3).eval(), small_calibration()
    small, structure = pruned_at_random(net, calibration)
    stranger = copy.deepcopy(small)
    del stranger._cswap
    mine, theirs = (recovered(m, net, calibration, "lstsq", structure=structure) for m in (small, stranger))
    assert all(
        torch.equal(a, b)
        for a, b in zip(mine.model.state_dict().values(), theirs.model.state_dict().values(), strict=True)
    )
    alike = copy.deepcopy(net)
    with torch.no_grad():
        alike.a.bias.fill_(0.5)
    shrunk, _ = pruned_at_random(alike, calibration)
    del shrunk._cswap
    with pytest.raises(InputError, match="units of group a are alike"):
        recovered(shrunk, alike, calibration, "lstsq", structure=structure)
    with torch.no_grad():
        stranger.a.bias.add_(1.0)
    with pytest.raises(InputError, match="group a of the pruned module is no part"):
        recovered(stranger, net, calibration, "lstsq", structure=structure)


class _Untraceable(nn.Module):
    """Control flow that no graph can hold."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x) if float(x.mean()) > -1e9 else x


def test_values_kept_or_made_again_are_the_same():
    net, calibration = randomise_(NETS["residual"](), seed=3).eval(), small_calibration()
    small, _ = pruned_at_random(net, calibration)
    chunks = list(calibration.inputs(0, 80).split(32))
    kept, tight, plain = Walk(net, chunks, 1 << 30), Walk(net, chunks, 1000), Walk(_Untraceable(net), chunks, 1 << 30)
    assert (kept.kept, tight.kept, plain.kept) == (True, False, False)
    for name in ("conv", "a", "b", "c", "skip", "fc"):
        for walks in zip(kept.inputs(name), tight.inputs(name), plain.inputs(f"inner.{name}"), strict=True):
            torch.testing.assert_close(walks[0], walks[1])
            torch.testing.assert_close(walks[0], walks[2])
        for a, b in zip(kept.outputs(name), tight.outputs(name), strict=True):
            torch.testing.assert_close(a, b)
    generous = recovered(small, net, calibration, "lstsq").model.state_dict()
    frugal = recovered(small, net, calibration, "lstsq", memory=150_000).model.state_dict()
    assert all(torch.allclose(v, frugal[k], atol=1e-5) for k, v in generous.items())


def test_queries_that_lost_dimensions_aim_at_the_logits_of_all_of_them():
    torch.manual_seed(0)
    net = randomise_(VisionTransformer(32, 16, 2, 2, 32, 64, num_classes=4), seed=1).eval()
    images = torch.randn(48, 3, 32, 32)
    calibration = cswap.calibration_set(TensorDataset(images, torch.arange(4).repeat(12)), 12)
    structure = cswap.discover(net, calibration.inputs(0, 2))
    name = next(g.name for g in structure if g.name.endswith("#qk1"))
    removed = {name: np.array([0, 3, 7, 8, 12])}
    small, _ = pruned_to(net, structure, calibration, {name: removed[name].tolist()})
    whole = prepared_copy(net, structure)
    attention = name.removesuffix(".q#qk1")
    seen: dict[str, list[torch.Tensor]] = {}
    for key in ("q", "k"):
        layer = whole.get_submodule(f"{attention}.{key}")
        layer.register_forward_hook(lambda _m, _i, out, key=key: seen.setdefault(key, []).append(out.detach().double()))
    whole(calibration.inputs(0, 48))
    case = Case(small, prepared_copy(net, structure), calibration, structure, removed, small._cswap.kept)
    ((layer, matrix),) = query_targets(case).items()
    assert layer == f"{attention}.q"
    k = torch.cat(seen["k"])[..., 16:]  # of the second head
    centred = (k - k.mean(1, keepdim=True)).reshape(-1, 16)
    left = [i for i in range(16) if i not in removed[name]]
    by_hand = torch.linalg.lstsq(centred[:, left], centred).solution  # k from what is kept of it
    np.testing.assert_allclose(matrix[16:, 16:], by_hand.T, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(matrix[:16, :16], np.eye(16), atol=1e-9)
    whole_logits = torch.cat(seen["q"])[..., 16:] @ (k - k.mean(1, keepdim=True)).transpose(1, 2)
    found = recovered(small, net, calibration, "lstsq").raw

    def error(model: nn.Module) -> float:
        got: dict[str, torch.Tensor] = {}
        for key in ("q", "k"):
            part = model.get_submodule(f"{attention}.{key}")
            part.register_forward_hook(lambda _m, _i, out, key=key: got.update({key: out.detach().double()[..., 16:]}))
        model(calibration.inputs(0, 48))
        keys = got["k"] - got["k"].mean(1, keepdim=True)
        return float((got["q"] @ keys.transpose(1, 2) - whole_logits).square().mean())

    assert error(found) < 0.7 * error(small)


class _Groups(nn.Module):
    """A grouped and a depthwise convolution, a norm that nothing calls, and a layer inside one that a graph keeps whole."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, 1, 1), nn.Conv2d(8, 8, 1)
        self.grouped, self.deep = nn.Conv2d(8, 8, 3, 1, 1, groups=2), nn.Conv2d(8, 8, 3, 1, 1, groups=8)
        self.aside = nn.BatchNorm2d(8)
        self.tokens = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
        self.fc = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.b(torch.relu(self.a(x))))
        x = torch.relu(self.deep(torch.relu(self.grouped(x))))
        return self.fc(self.tokens(x.flatten(2).transpose(1, 2)).mean(1))


@pytest.mark.parametrize("how", ["bias", "bn", "lstsq", "merge", "fold"])
def test_grouped_and_inner_layers_and_norms_that_nothing_calls(how):
    torch.manual_seed(0)
    net, calibration = randomise_(_Groups(), seed=1).eval(), small_calibration()
    net.aside.running_mean.fill_(5.0)
    structure = cswap.discover(net, calibration.inputs(0, 2))
    small, _ = pruned_to(net, structure, calibration, {"a": [1, 5]})
    found = recovered(small, net, calibration, how)
    assert float(found.raw.aside.running_mean[0]) == 5.0
    if how == "lstsq":
        assert {"b", "grouped", "deep", "fc"} <= set(found.facts["lstsq"])
        x = calibration.inputs(0, 80)
        with torch.no_grad():
            assert float((found.raw(x) - net(x)).square().mean()) < 0.5 * float((small(x) - net(x)).square().mean())


def test_orders_that_undo_or_double_a_step_are_refused():
    net, calibration = randomise_(NETS["residual"](), seed=3).eval(), small_calibration()
    small, _ = pruned_at_random(net, calibration)
    for how, words in (
        ("lstsq+merge", "merge starts from the original"), ("bn+fold", "fold starts from"), ("bias+bias", "each step once"),
        ("lstsq+bias", "bias is of the network as it was cut"), ("merge+bias", "give back once more what merge has"),
        ("fold+bn+bias", "before bn and lstsq"), ("fold+bias", "give back once more what fold has"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=words):
            recovered(small, net, calibration, how)
    for first, then in (("lstsq", "merge"), ("bias", "bias"), ("merge", "bias"), ("bn", "bias")):
        other = recovered(small, net, calibration, first).raw
        with pytest.raises(InputError, match=f"{then} starts from the original.*of this module are others"):
            recovered(other, net, calibration, then)


def test_a_norm_over_tokens_takes_no_constant():
    net = nn.Sequential(
        nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 5, bias=False), nn.BatchNorm1d(5), nn.Flatten(), nn.Linear(25, 4)
    )
    net = randomise_(net, seed=0).eval()
    images = torch.randn(40, 5, 8)
    calibration = cswap.calibration_set(TensorDataset(images, torch.arange(4).repeat(10)), 10)
    structure = cswap.discover(net, calibration.inputs(0, 2))
    small, _ = pruned_to(net, structure, calibration, {"0": [1, 3]})
    found = recovered(small, net, calibration, "bias")
    assert torch.equal(found.raw[3].running_mean, net[3].running_mean)
    assert "neither a bias nor a batch norm" in found.notes[0]
