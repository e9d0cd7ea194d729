"""Units, groups, surgery: masked equals pruned, by the rules of the method, and the checks can fail."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch_pruning as tp
import torchvision
from torch import nn
from torch.utils.data import TensorDataset

import cswap
from cswap.errors import InputError, TargetError
from cswap.structure.check import VISIBLE, agreement, random_half, randomise_
from cswap.structure.discover import count_params, discover, macs_of
from cswap.structure.groups import Slot
from cswap.structure.ledger import Ledger, check_reachable, highest_ratio
from cswap.structure.surgery import masked_copy, pruned_copy
from cswap.types import Target
from tests.conftest import off_by_one

ZOO = {
    "resnet18": (12, 64), "resnet50": (37, 64), "mobilenet_v2": (25, 64), "vgg11_bn": (10, 64), "densenet121": (120, 64),
    "googlenet": (57, 64), "squeezenet1_1": (25, 64), "efficientnet_b0": (40, 64),
}  # fmt: skip


def _zoo(name: str) -> nn.Module:
    extra = {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return getattr(torchvision.models, name)(**extra)


@pytest.mark.parametrize("name", sorted(ZOO))
def test_masked_equals_pruned_in_torchvision(name, capsys):
    groups, size = ZOO[name]
    model = randomise_(_zoo(name), seed=1).eval()
    x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(2))
    structure = discover(model, x)
    removed = random_half(structure, seed=3)
    result = agreement(model, structure, removed, x)
    with capsys.disabled():
        print(f"\n{name}: {len(structure)} groups, {structure.units} units, half removed; left out "
              f"{[(o.name, o.reason) for o in structure.left_out]}; {result}")  # fmt: skip
    assert len(structure) == groups
    assert [o.reason for o in structure.left_out if "output" not in o.reason] == []
    assert set(removed) == {g.name for g in structure}
    assert result.ok
    assert result.visible
    assert result.moved >= VISIBLE * result.allowed

    ledger = Ledger(structure)
    for group, units in removed.items():
        for n in units:
            ledger.remove(structure[group], int(n))
    small = pruned_copy(model, structure, removed)
    assert ledger.params == count_params(small)
    assert round(ledger.macs) == macs_of(small, x)[0]

    wrong = off_by_one(structure)
    with torch.no_grad():
        crossed = (masked_copy(model, structure, removed)(x) - pruned_copy(model, wrong, removed)(x)).abs().max()
    assert not crossed <= result.allowed  # the off-by-one is caught


def test_each_group_alone_and_an_off_by_one_in_each_is_caught(small_net, inputs):
    structure = discover(small_net, inputs)
    wrong, exact = off_by_one(structure), copy.deepcopy(small_net).double()
    for g in structure:
        seen = caught = 0
        for n in range(g.size):
            removed = {g.name: np.array([n], dtype=np.int64)}
            right = agreement(small_net, structure, removed, inputs)
            assert right.ok, (g.name, n, str(right))
            seen += right.visible
            with torch.no_grad():
                masked = masked_copy(exact, structure, removed)(inputs.double())
                crossed = pruned_copy(exact, wrong, removed)(inputs.double())
            caught += bool((masked - crossed).abs().max() > 1e-7)
        assert seen, f"no unit of {g.name} can be seen"
        assert caught, f"no off-by-one in {g.name} is caught"  # a dead neighbour may hide one, not all


def test_surgery_equals_the_dependency_library(small_net, inputs):
    structure = discover(small_net, inputs)
    removed = random_half(structure, 7)
    ours = pruned_copy(small_net, structure, removed).state_dict()
    theirs = copy.deepcopy(small_net)
    graph = tp.DependencyGraph().build_dependency(theirs, inputs, verbose=False)
    for g in structure:
        module = theirs.get_submodule(g.name)
        prune = graph.get_pruner_of_module(module).prune_out_channels
        graph.get_pruning_group(module, prune, removed[g.name].tolist()).prune()
    expected = theirs.state_dict()
    assert ours.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(ours[name], tensor), name


def test_groups_go_from_the_output_to_the_input():
    structure = discover(_zoo("resnet18"), torch.randn(2, 3, 64, 64))
    assert [g.name for g in structure] == [
        "layer4.1.conv1", "layer4.0.conv2", "layer4.0.conv1", "layer3.1.conv1", "layer3.0.conv2", "layer3.0.conv1",
        "layer2.1.conv1", "layer2.0.conv2", "layer2.0.conv1", "layer1.1.conv1", "layer1.0.conv1", "conv1",
    ]  # fmt: skip
    assert structure.units == 2880
    stream = structure["layer4.0.conv2"]
    assert {s.module for s in stream.producers} == {"layer4.0.conv2", "layer4.0.downsample.0", "layer4.1.conv2"}
    assert {s.module for s in stream.consumers} == {"layer4.1.conv1", "fc"}


def test_the_user_s_model_and_the_random_state_are_untouched(small_net, inputs):
    small_net.train()
    small_net.fc.weight.requires_grad_(False)
    calls = []
    handle = small_net.fc.register_forward_hook(lambda *_: calls.append(1))
    before = {k: v.clone() for k, v in small_net.state_dict().items()}
    state = torch.get_rng_state()
    structure = discover(small_net, inputs)
    pruned_copy(small_net, structure, random_half(structure, 0))
    handle.remove()
    assert torch.equal(state, torch.get_rng_state())
    assert small_net.training
    assert not small_net.fc.weight.requires_grad
    assert small_net.conv.weight.requires_grad if hasattr(small_net, "conv") else True
    assert all(torch.equal(v, small_net.state_dict()[k]) for k, v in before.items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in small_net.modules())


class _Shuffled(nn.Module):
    """Adds channels to themselves in another order: looks element-wise to a tracer, and is not."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 5, 1), nn.Linear(5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.relu(self.a(x))
        h = h + h.flip(1)
        return self.fc(torch.relu(self.b(h)).mean((2, 3)))


def test_what_cannot_be_pruned_safely_is_left_out_with_its_reason(inputs):
    structure = discover(_Shuffled(), inputs)
    assert [g.name for g in structure] == ["b"]
    assert "disagree" in {o.name: o.reason for o in structure.left_out}["a"]


def test_a_norm_over_neighbouring_channels_is_seen_however_little_it_does(inputs):
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU(), nn.LocalResponseNorm(5, 1e-4, 0.75, 2.0), nn.Conv2d(16, 8, 3), nn.ReLU(), nn.Conv2d(8, 2, 1)
    )  # fmt: skip
    structure = discover(net, inputs)
    assert [g.name for g in structure] == ["3"]
    assert "disagree" in {o.name: o.reason for o in structure.left_out}["0"]


class _Gated(nn.Module):
    """A layer whose first half is gated by its second, by torch's own function or module."""

    def __init__(self, module: bool) -> None:
        super().__init__()
        self.a, self.b, self.fc = nn.Conv2d(3, 16, 3), nn.Conv2d(8, 5, 1), nn.Linear(5, 2)
        self.gate = nn.GLU(1) if module else lambda x: nn.functional.glu(x, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(torch.relu(self.b(self.gate(self.a(x)))).mean((2, 3)))


@pytest.mark.parametrize("module", [True, False])
def test_a_gate_and_what_it_gates_go_together(inputs, module):
    before = nn.functional.glu
    structure = discover(_Gated(module), inputs)
    assert nn.functional.glu is before
    assert {g.name: g.size for g in structure} == {"a": 8, "b": 5}
    (gated,) = (s for g in structure for s in g.producers if s.module == "a")
    assert {n: p.tolist() for n, p in gated.by_unit.items()} == {n: [n, n + 8] for n in range(8)}


class _Narrow(nn.Module):
    """Half of the channels of a sum come from a layer of their own, and a grouped layer ties them: all of that layer must not go."""

    def __init__(self) -> None:
        super().__init__()
        self.x, self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1), nn.Conv2d(8, 4, 1)
        self.tied, self.fc = nn.Conv2d(8, 8, 1, groups=4), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.x(x))
        x = x + torch.relu(torch.cat([self.a(x), self.b(x)], 1))
        return self.fc((x + self.tied(x)).mean((2, 3)))


@pytest.mark.parametrize("method", ["cswap", "cbp", "greedy", "magnitude", "random", "taylor"])
@pytest.mark.parametrize("per", ["unit", "params"])
def test_a_layer_with_some_of_a_group_s_units_keeps_one(method, per):
    net, g = randomise_(_Narrow(), 1).eval(), torch.Generator().manual_seed(0)
    x = torch.randn(64, 3, 4, 4, generator=g)
    with torch.no_grad():
        lead = net(x) @ torch.tensor([1.0, -1.0])
        net.fc.bias[0] -= lead.median()
        net.fc.weight *= 3 / lead.std()
        net.fc.bias *= 3 / lead.std()
        y = net(x).argmax(1)
    calibration = cswap.calibration_set(TensorDataset(x, y), int(torch.bincount(y).min()))
    structure = cswap.discover(net, calibration.inputs(0, 2))
    wide = next(g for g in structure if any(s.module == "a" for s in g.slots))
    scope = "global" if per == "params" and method in ("magnitude", "random", "taylor") else "layer"
    path = cswap.prune_path(net, calibration, method=method, structure=structure, scope=scope, per=per)
    assert any(len(slot.by_unit) < wide.size for slot in wide.slots), "or there is nothing to test"
    removed, _, ratio = path.prefix(Target("complete"))
    ledger = Ledger(structure)
    for n in removed[wide.name].tolist():
        ledger.remove(wide, n)
    small = path.apply(net, Target("complete"))  # masked equals pruned, and what the path counts is what is there
    assert min(small.a.out_channels, small.b.out_channels) >= 1
    assert ratio.params == pytest.approx(highest_ratio(structure).params)
    for n in sorted(set(range(wide.size)) - set(removed[wide.name].tolist())):
        with pytest.raises(TargetError, match=r"keeps at least one|the last that one of its layers has"):
            ledger.remove(wide, n)


def test_norms_that_mix_are_left_out():
    convnext = discover(_zoo("convnext_tiny"), torch.randn(2, 3, 64, 64))
    assert len(convnext) == 18  # the hidden layers of its MLPs
    assert any("LayerNorm" in o.reason for o in convnext.left_out)


def test_where_the_dependency_library_fails_chains_are_seen_and_the_rest_is_left_out():
    structure = discover(_zoo("shufflenet_v2_x0_5"), torch.randn(2, 3, 64, 64))
    assert "stage2.1.branch2.0" in [g.name for g in structure]  # between two convolutions of a branch
    reasons = {o.name: o.reason for o in structure.left_out}
    assert "ZeroDivisionError" in reasons["stage2.1.branch2.5"]  # goes into the shuffle


class _Seq2Seq(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inn = nn.Linear(12, 16)
        self.transformer = nn.Transformer(16, 2, 2, 2, 24, batch_first=True)
        self.head = nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.inn(x)
        return self.head(self.transformer(x, x.flip(1)).mean(1))


def test_an_encoder_that_a_decoder_attends_to_is_seen():
    structure = discover(_Seq2Seq(), torch.randn(2, 5, 12))
    names = {g.name for g in structure}
    for part in ("encoder", "decoder"):
        assert {f"transformer.{part}.layers.{i}.linear1" for i in (0, 1)} <= names
    assert {f"transformer.encoder.layers.{i}.self_attn.q#heads" for i in (0, 1)} <= names


class _Masked(nn.Module):
    """As many tokens as the attention is wide, and a mask of them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 20), nn.Linear(20, 16)
        self.attention, self.head = nn.MultiheadAttention(16, 2, batch_first=True), nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.second(self.first(x) + self.first(x.flip(2)))
        return self.head(self.attention(tokens, tokens, tokens, key_padding_mask=x[..., 0] > 9)[0].mean(1))


def test_a_mask_as_wide_as_the_attention_is_no_input_of_it():
    for tokens in (15, 16):
        groups = {g.name: g.size for g in discover(_Masked(), torch.randn(2, tokens, 6))}
        assert groups["attention.q#heads"] == 2, tokens
        assert groups["first"] == 20, tokens


def test_a_narrow_gate_does_not_write_what_it_gates():
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.hidden, self.wide, self.gate = nn.Linear(6, 8), nn.Linear(8, 3), nn.Linear(8, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.hidden(x).relu()
            return self.wide(x) * self.gate(x).sigmoid()

    out = {o.name: o for o in discover(Gated(), torch.randn(2, 6)).left_out}
    assert out["wide"].layers == ()
    assert out["gate"].reason


@pytest.mark.parametrize(
    ("name", "inputs"),
    [
        ("seq2seq", (2, 5, 12)), ("vit_b_16", (2, 3, 224, 224)), ("shufflenet_v2_x0_5", (2, 3, 64, 64)),
        ("convnext_tiny", (2, 3, 64, 64)), ("densenet121", (2, 3, 64, 64)), ("swin_t", (2, 3, 64, 64)),
    ],
)  # fmt: skip
def test_every_layer_is_in_a_group_or_left_out_with_a_reason(name, inputs):
    """An attention's own layers go by its name; what no forward pass calls is listed apart."""
    model = _Seq2Seq() if name == "seq2seq" else _zoo(name)
    structure = discover(model, torch.randn(inputs), verify=False)
    told = {s.module for g in structure for s in g.slots if s.side == "out"} | set(structure.uncalled)
    told |= {n for o in structure.left_out for n in (o.name, *o.layers)}
    attentions = {n for n in told if n in structure.replaced}
    silent = [
        n
        for n, m in model.named_modules()
        if isinstance(m, nn.Linear | nn.Conv2d) and n not in told and n.rpartition(".")[0] not in attentions
    ]
    assert silent == []
    assert all(o.reason for o in structure.left_out)
    again = type(structure).from_dict(structure.as_dict())
    assert again.left_out == structure.left_out


def test_attention_counts_and_its_own_layers_are_not_called_unused():
    vit = torchvision.models.VisionTransformer(32, 16, 2, 2, 32, 64, num_classes=5)
    structure = discover(vit, torch.randn(2, 3, 32, 32))
    assert [g.size for g in structure if "#" not in g.name] == [64, 64]
    assert structure.uncalled == ()
    assert any("LayerNorm" in o.reason for o in structure.left_out)
    assert structure.total_macs > 2 * 5 * 32 * (3 * 32 + 32 + 2 * 64)  # projections and MLPs of both layers, 5 tokens


def test_a_computed_weight_is_left_out_with_its_reason(inputs):
    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 6, 1))
            self.b, self.fc = nn.Conv2d(6, 5, 1), nn.Linear(5, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(torch.relu(self.b(torch.relu(self.a(x)))).mean((2, 3)))

    structure = discover(Normed(), inputs)
    assert [g.name for g in structure] == ["b"]
    assert any("parametrisation" in o.reason for o in structure.left_out)


def test_faint_units_are_compared_in_float64_at_the_consumers(inputs):
    class Faint(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 1.0 + 1e-9 * self.b(torch.relu(self.a(x)))

    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    net = randomise_(Faint()).eval()
    structure = discover(net, x)
    result = agreement(net, structure, random_half(structure, 0), x)
    assert (result.where, result.visible, result.ok) == ("consumers", True, True)


def test_ledger_refuses_the_last_unit_and_targets_out_of_reach(small_net, inputs):
    structure = discover(small_net, inputs)
    ledger, g = Ledger(structure), structure.groups[0]
    for n in range(g.size - 1):
        ledger.remove(g, n)
    with pytest.raises(TargetError, match="keeps at least one"):
        ledger.remove(g, g.size - 1)
    with pytest.raises(TargetError, match="already"):
        ledger.remove(g, 0)
    beyond = Target("params", min(0.9999, highest_ratio(structure).params + 0.01))
    with pytest.raises(TargetError, match="out of reach"):
        check_reachable(structure, beyond)


def test_only_and_exclude(small_net, inputs):
    structure = discover(small_net, inputs)
    name = structure.groups[0].name
    assert [g.name for g in structure.select((name,))] == [name]
    assert name not in [g.name for g in structure.select((), (name,))]
    assert any("excluded" in o.reason for o in structure.select((), (name,)).left_out)
    with pytest.raises(InputError, match="matches no group"):
        structure.select(("nosuch*",))


def test_slots_know_their_units():
    slot = Slot("m", "in", "consumer", np.arange(6), np.repeat(np.arange(3), 2))
    assert slot.of(np.array([2, 0])).tolist() == [0, 1, 4, 5]
    assert slot.by_unit[1].tolist() == [2, 3]
    assert Slot.from_dict(slot.as_dict()).by_unit[1].tolist() == [2, 3]
    with pytest.raises(ValueError, match="side"):
        Slot.from_dict({**slot.as_dict(), "side": "up"})


class Rotated(nn.Module):
    """Rotary positions over two axes: the dependency library counts a split's parts by who reads them, and fails."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 16), nn.Linear(16, 12)
        self.gate, self.up, self.down = nn.Linear(12, 20), nn.Linear(12, 20), nn.Linear(20, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        angles = torch.linspace(0, 1, 8)

        def turned(part: torch.Tensor) -> torch.Tensor:
            half = torch.cat([-part[..., 4:], part[..., :4]], -1)
            return part * angles.cos() + half * angles.sin()

        parts = torch.split(self.first(x), [8, 8], -1)
        y = self.second(torch.cat([turned(p) for p in parts], -1))
        return self.down(self.gate(y).relu() * self.up(y))


def test_where_the_library_fails_on_one_operation_the_rest_is_still_seen():
    net, x = Rotated().eval(), torch.randn(2, 5, 8)
    with pytest.raises(IndexError):
        tp.DependencyGraph().build_dependency(net, x)
    found = discover(net, x)
    assert {g.name: g.size for g in found} == {"gate": 20, "second": 12}
    assert any(x.name == "first" and "library fails on it" in x.reason for x in found.left_out)
