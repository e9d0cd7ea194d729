"""Heads and inner dimensions of attention: equal before, equal masked and pruned, equal in both engines and after a load."""

from __future__ import annotations

import copy
import dataclasses
import subprocess
import sys

import numpy as np
import pytest
import torch
import torchvision
from torch import nn
from torch.utils.data import TensorDataset

import cswap
from cswap.causal.cut import PlainEngine
from cswap.causal.replay import ReplayEngine
from cswap.errors import ArtifactError
from cswap.methods.options import Options
from cswap.methods.path import PruningPath, Surgery
from cswap.recovery import recovered
from cswap.structure.attention import HeadAttention, HeadProduct, _aligned
from cswap.structure.check import VISIBLE, agreement, random_half, randomise_
from cswap.structure.discover import count_params, discover, macs_of
from cswap.structure.groups import Group, Slot, Structure
from cswap.structure.hosts import TorchAttention, Unlike, equivalent_of, replace_attention_
from cswap.structure.ledger import Ledger
from cswap.structure.surgery import kept_indices, masked_copy, prepared_copy, pruned_copy
from cswap.tasks import Classification
from cswap.types import Target
from tests.conftest import path_of


def _off_by_one(structure: Structure) -> Structure:
    """Every reader of a unit takes its neighbour; in q·k, where every product term has the same factor, k does."""

    def wrong(slot: Slot, group: Group) -> bool:
        return slot.module.endswith(".k") if "#qk" in group.name else slot.role == "consumer"

    groups = [
        Group(g.name, g.size, tuple(
            dataclasses.replace(s, positions=np.roll(s.positions, 1)) if wrong(s, g) else s for s in g.slots
        ))
        for g in structure
    ]  # fmt: skip
    return dataclasses.replace(structure, groups=tuple(groups))


def _vit() -> nn.Module:
    return torchvision.models.VisionTransformer(32, 16, 2, 2, 32, 64, num_classes=5)


def _swin() -> nn.Module:
    return torchvision.models.SwinTransformer([4, 4], 16, [2, 2], [2, 4], [4, 4], num_classes=5)


def _timm(name: str) -> nn.Module:
    timm = pytest.importorskip("timm", reason="timm is not installed")
    return timm.create_model(f"{name}_tiny_patch16_224", img_size=32, depth=2, embed_dim=48, num_classes=5)


def _hf() -> nn.Module:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, image_size=32, patch_size=16,
        num_labels=5,
    )  # fmt: skip
    return transformers.ViTForImageClassification(config)


MODELS = {
    "vit": (_vit, 32, 12), "swin": (_swin, 64, 32), "timm_vit": (lambda: _timm("vit"), 32, 16),
    "timm_deit": (lambda: _timm("deit"), 32, 16), "hf_vit": (_hf, 32, 20),
}  # fmt: skip


def _made(name: str) -> tuple[nn.Module, torch.Tensor]:
    build, size, _ = MODELS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = randomise_(build(), seed=1).eval()
    return model, torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(2))


def _ledger(structure: Structure, removed: dict[str, np.ndarray]) -> Ledger:
    ledger = Ledger(structure)
    for group, units in removed.items():
        for n in units:
            ledger.remove(structure[group], int(n))
    return ledger


@pytest.mark.parametrize("name", sorted(MODELS))
def test_masked_equals_pruned_and_both_are_counted(name):
    model, x = _made(name)
    structure = discover(model, x)
    assert len(structure) == MODELS[name][2]
    assert {g.name.partition("#")[2].rstrip("0123456789") for g in structure} == {"", "heads", "qk", "v"}
    assert not any("attention" in o.reason for o in structure.left_out)
    with torch.no_grad():
        assert (_logits(prepared_copy(model, structure)(x)) - _logits(model(x))).abs().max() < 1e-4
    for seed, kinds in ((3, "*"), (4, "*#heads"), (5, "*#qk*"), (6, "*#v*")):
        chosen = structure.select((kinds,))
        removed = random_half(chosen, seed)
        result = agreement(model, chosen, removed, x)
        assert result.ok, str(result)
        assert result.moved >= VISIBLE * result.allowed
        ledger, small = _ledger(chosen, removed), pruned_copy(model, chosen, removed)
        assert ledger.params == count_params(small)
        assert round(ledger.macs) == macs_of(small, x)[0]
        assert not _crossed(model, chosen, removed, x) <= result.allowed


@pytest.mark.parametrize("name", ["timm_vit", "timm_deit"])
def test_timm_is_pruned_to_equal_networks_with_fused_attention_on_and_off(name):
    model, x = _made(name)
    whole, pruned = [], []
    for fused in (True, False):
        net = copy.deepcopy(model)
        hosts = [m for m in net.modules() if hasattr(m, "fused_attn")]
        assert hosts
        for host in hosts:
            host.fused_attn = fused
        structure = discover(net, x)
        assert len(structure) == MODELS[name][2]
        removed = random_half(structure, 3)
        result = agreement(net, structure, removed, x)
        assert result.ok, str(result)
        assert result.visible
        small = pruned_copy(net, structure, removed)
        with torch.no_grad():
            whole.append(net(x))
            pruned.append((small.state_dict(), small(x)))
    (one, here), (other, there) = pruned
    assert one.keys() == other.keys()
    assert all(torch.equal(t, other[n]) for n, t in one.items())
    np.testing.assert_allclose(here.numpy(), there.numpy(), atol=1e-5)
    np.testing.assert_allclose(whole[0].numpy(), whole[1].numpy(), atol=1e-5)
    assert (here - whole[0]).abs().max() > 1e-2


def _crossed(model, structure, removed, x) -> float:
    """How far the masked network is from one that was pruned with an off-by-one; infinite where that does not even run."""
    with torch.no_grad():
        masked = _logits(masked_copy(model, structure, removed)(x))
        try:
            wrong = _logits(pruned_copy(model, _off_by_one(structure), removed)(x))
        except RuntimeError:
            return float("inf")
    return float((masked - wrong).abs().max())


def _logits(out):
    return out if isinstance(out, torch.Tensor) else out.logits


def test_each_unit_of_attention_alone_and_an_off_by_one_in_each_group_is_caught():
    model, x = _made("vit")
    structure = discover(model, x).select(("*layer_0*#*",))
    exact = copy.deepcopy(model).double()
    for g in structure:
        caught = 0
        for n in range(g.size):
            removed = {g.name: np.array([n], dtype=np.int64)}
            result = agreement(model, structure, removed, x)
            assert result.ok, (g.name, n, str(result))
            assert result.visible
            caught += _crossed(exact, structure, removed, x.double()) > 1e-7
        assert caught == g.size, g.name


def test_a_cut_acts_where_the_method_says():
    """Dimension of q·k: its product term and no other; head and dimension of v: what the output projection reads."""
    model, x = _made("vit")
    structure = discover(model, x)
    name = "encoder.layers.encoder_layer_0.self_attention"
    core = masked_copy(model, structure, {f"{name}.q#qk1": np.array([2, 5])}).get_submodule(f"{name}.core")
    expected = torch.full((32,), 16**-0.5)
    expected[[18, 21]] = 0
    assert torch.equal(core.weight, expected)
    small = pruned_copy(model, structure, {f"{name}.q#qk1": np.array([2, 5])}).get_submodule(f"{name}.core")
    assert torch.equal(small.weight, torch.full((30,), 16**-0.5))  # the scale of 16 dimensions stays, with 14 left
    cut = masked_copy(model, structure, {f"{name}.q#heads": np.array([1]), f"{name}.v#v0": np.array([3])})
    zero = (cut.get_submodule(f"{name}.out").weight == 0).all(0).nonzero().flatten().tolist()
    assert zero == [3, *range(16, 32)]


def test_a_head_and_its_dimensions_overlap_and_are_counted_once_in_any_order():
    model, x = _made("timm_vit")
    structure = discover(model, x)
    rng, name = np.random.default_rng(0), "blocks.0.attn"
    pairs = [(f"{name}.q#heads", n) for n in (0, 2)] + [(f"{name}.q#qk0", n) for n in range(15)]
    pairs += [(f"{name}.v#v{h}", n) for h in (0, 1) for n in range(1, 16)]
    counts = set()
    for _ in range(5):
        ledger = Ledger(structure)
        for g, n in rng.permutation(np.array(pairs, dtype=object)):
            ledger.remove(structure[g], int(n))
        small = pruned_copy(model, structure, ledger.removed())
        assert (ledger.params, round(ledger.macs)) == (count_params(small), macs_of(small, x)[0])
        counts.add((ledger.params, ledger.macs))
    assert len(counts) == 1
    assert agreement(model, structure, ledger.removed(), x).ok
    part = small.blocks[0].attn.core.parts
    assert [(p.heads, p.qk, p.v) for p in part] == [((1,), 16, 1)]


def test_the_fewest_that_may_be_left_still_run():
    for name in ("swin", "hf_vit"):
        model, x = _made(name)
        structure = discover(model, x)
        removed = {g.name: np.delete(np.arange(g.size), i % g.size) for i, g in enumerate(structure)}
        assert agreement(model, structure, removed, x).ok
        small = pruned_copy(model, structure, removed)
        assert all(
            len(p.heads) == p.qk == p.v == 1 for m in small.modules() if isinstance(m, HeadProduct) for p in m.parts
        )


# nn.MultiheadAttention


def _mha(**kwargs) -> nn.MultiheadAttention:
    return randomise_(nn.MultiheadAttention(12, 3, **kwargs), 5).eval()


@pytest.mark.parametrize("grad", [False, True])  # without gradients PyTorch takes its fused kernel
@pytest.mark.parametrize(
    "kwargs", [{}, {"batch_first": True}, {"bias": False}, {"kdim": 7, "vdim": 5, "batch_first": True}]
)
def test_the_equivalent_of_multihead_attention_gives_the_same(kwargs, grad):
    host = _mha(**kwargs)
    mine = equivalent_of(host)
    assert isinstance(mine, TorchAttention)
    g = torch.Generator().manual_seed(0)
    n, length, source = 2, 4, 6
    x = torch.randn(n, length, 12, generator=g)
    k, v = torch.randn(n, source, host.kdim, generator=g), torch.randn(n, source, host.vdim, generator=g)
    if not host.batch_first:
        x, k, v = (t.transpose(0, 1) for t in (x, k, v))
    bool_mask = torch.rand(length, source, generator=g) < 0.3
    bool_mask[:, 0] = False
    padding = torch.zeros(n, source, dtype=torch.bool)
    padding[1, -2:] = True
    by_head = torch.randn(n * 3, length, source, generator=g)
    masks = [{}, {"attn_mask": bool_mask}, {"attn_mask": torch.randn(length, source, generator=g)}, {"attn_mask": by_head},
             {"key_padding_mask": padding}, {"attn_mask": bool_mask, "key_padding_mask": padding}]  # fmt: skip
    with torch.set_grad_enabled(grad):
        for mask in masks:
            for need in (True, False):
                a, b = (m(x, k, v, need_weights=need, **mask) for m in (host, mine))
                torch.testing.assert_close(a[0], b[0], atol=1e-5, rtol=1e-5)
                if need:
                    torch.testing.assert_close(a[1], b[1], atol=1e-5, rtol=1e-5)
                else:
                    assert b[1] is None
        if host._qkv_same_embed_dim:
            torch.testing.assert_close(host(x, x, x)[0], mine(x, x, x)[0], atol=1e-5, rtol=1e-5)
            alone = x[:, 0] if not host.batch_first else x[0]
            torch.testing.assert_close(host(alone, alone, alone)[0], mine(alone, alone, alone)[0], atol=1e-5, rtol=1e-5)


def test_what_has_no_equivalent_says_why():
    for kwargs in ({"add_bias_kv": True}, {"add_zero_attn": True}):
        with pytest.raises(Unlike, match="add a key"):
            equivalent_of(_mha(**kwargs))
    assert equivalent_of(nn.Linear(3, 3)) is None
    v2 = torchvision.models.swin_transformer.ShiftedWindowAttentionV2(8, [4, 4], [0, 0], 2)
    with pytest.raises(Unlike, match="cosine"):
        equivalent_of(v2)
    timm = pytest.importorskip("timm", reason="timm is not installed")
    normed = timm.layers.Attention(16, 2, qk_norm=True, norm_layer=nn.LayerNorm)
    with pytest.raises(Unlike, match="q_norm mixes"):
        equivalent_of(normed)


def test_attention_without_an_equivalent_leaves_the_mlps_to_be_pruned():
    from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformer, SwinTransformerBlockV2

    model = SwinTransformer(
        [4, 4], 16, [2, 2], [2, 4], [4, 4], num_classes=4, block=SwinTransformerBlockV2, downsample_layer=PatchMergingV2
    )
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    model = randomise_(model, 1, x).eval()
    structure = discover(model, x)
    assert len(structure) == 4
    assert {g.size for g in structure} == {64, 128}
    assert sum("cosine" in o.reason for o in structure.left_out) == 4
    removed = random_half(structure, 3)
    result = agreement(model, structure, removed, x)
    assert result.ok, str(result)
    assert result.visible
    assert not _crossed(model, structure, removed, x) <= result.allowed


class _Token(nn.Module):
    """A layer is given a view of a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.ones(1, 6))
        self.inner, self.fc = nn.Sequential(nn.Linear(6, 5), nn.ReLU()), nn.Linear(5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.inner(self.token.expand(len(x), -1)) + self.inner(x))


def test_a_parameter_s_view_given_to_a_layer_is_counted():
    model = _Token()
    assert macs_of(model, torch.randn(2, 6))[0] == 6 * 5 * 2 + 5 * 2
    assert all(p.requires_grad for p in model.parameters())


class _Head(nn.Module):
    """An encoder layer of PyTorch's own, whose fused kernel knows equal heads only."""

    def __init__(self, **kwargs) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(12, 3, 20, batch_first=True, **kwargs)
        self.fc = nn.Linear(12, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.layer(x).mean(1))


def test_pytorch_s_own_encoder_layer():
    model, x = randomise_(_Head(), 3).eval(), torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(0))
    structure = discover(model, x)
    assert {g.name for g in structure} >= {"layer.self_attn.q#heads", "layer.self_attn.v#v2", "layer.self_attn.q#qk0"}
    with torch.no_grad():
        assert (model(x) - prepared_copy(model, structure)(x)).abs().max() < 1e-5
    assert agreement(model, structure, random_half(structure, 1), x).ok


class _Lying(nn.Module):
    """Looks like timm's attention and reads its heads in another order."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj, self.num_heads, self.scale = nn.Linear(12, 36), nn.Linear(12, 12), 3, 0.5

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (4, 3, 3)).permute(3, 0, 4, 1, 2)
        return self.proj((torch.softmax(q @ k.transpose(-1, -2) * 0.5, -1) @ v).transpose(1, 2).flatten(2))


def test_an_equivalent_that_differs_is_not_used():
    model = nn.Sequential(nn.Linear(6, 12), _Lying(), nn.Flatten(), nn.Linear(60, 4)).eval()
    structure = discover(model, torch.randn(2, 5, 6))
    assert not structure.replaced
    assert any("gives other outputs" in o.reason for o in structure.left_out if o.name == "1")


def test_a_model_without_that_attention_cannot_take_it():
    with pytest.raises(ArtifactError, match="expected an attention module"):
        replace_attention_(nn.Sequential(nn.Linear(3, 3)), ["0"])


# engines and effects


def _data(size: int, classes: int = 5) -> cswap.CalibrationSet:
    g = torch.Generator().manual_seed(5)
    n = 4 * classes
    return cswap.calibration_set(
        TensorDataset(torch.randn(n, 3, size, size, generator=g), torch.arange(n) % classes), n // classes
    )


@pytest.mark.parametrize("name", ["vit", "swin", "timm_vit"])
def test_both_engines_agree_while_units_of_every_kind_go(name):
    model, x = _made(name)
    model, calibration = model.double(), _data(x.shape[-1])
    structure = discover(model, x)
    some = [g.name for g in structure if "#" in g.name][:: 1 if name == "vit" else 5]
    structure = structure.select((*some, "*0*mlp*"))
    fast = ReplayEngine(model, structure, calibration, Classification())
    plain = PlainEngine(model, structure, calibration, Classification())
    moved = 0.0
    for group in structure:
        fast.enter(group)
        cuts = [[n] for n in range(min(group.size, 6))] + [[0, 1]]
        for a, b in zip(fast.cut(group, cuts), plain.cut(group, cuts), strict=True):
            np.testing.assert_allclose(a.sigma, b.sigma, atol=1e-10)
            moved = max(moved, float(np.abs(a.sigma - plain.scores().sigma).max()))
        for n in range(0, group.size - 1, 2):
            for engine in (fast, plain):
                engine.remove(group.name, [n])
        np.testing.assert_allclose(fast.scores(group).sigma, plain.scores().sigma, atol=1e-10)
        np.testing.assert_allclose(fast.scores().sigma, plain.scores().sigma, atol=1e-10)
    assert not fast.notes
    assert moved > 1e-4


@pytest.fixture(scope="module")
def confident():
    """A tiny ViT with data whose labels are what it says."""
    model, _ = _made("vit")
    x = torch.randn(200, 3, 32, 32, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        model.heads.head.bias -= model(x).mean(0)
        labels = model(x).argmax(1)
    return model, cswap.calibration_set(TensorDataset(x, labels), 8)


@pytest.mark.parametrize("method", ["cswap", "magnitude", "taylor", "taylor2", "deeplift", "lrp", "random"])
def test_every_method_takes_heads(method, confident):
    model, calibration = confident
    structure = discover(model, calibration.inputs(0, 2)).select(("*layer_1*",))
    path = cswap.prune_path(model, calibration, structure=structure, method=method, target="units=0.3")
    assert path.ratio.units >= 0.3
    assert {d.group.partition("#")[2][:1] for d in path} & {"h", "q", "v"}  # units of attention, of some kind
    removed, _, ratio = path.prefix("units=0.3")
    assert agreement(model, structure, removed, calibration.inputs(0, 4)).ok
    assert 1 - count_params(path.apply(model, "units=0.3")) / structure.total_params == pytest.approx(ratio.params)


class _Planted(nn.Module):
    """One attention layer over 4 tokens of 4 features; head h carries feature h alone, which only class h needs."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 4, batch_first=True)
        self.hidden, self.fc = nn.Linear(4, 8), nn.Linear(8, 4)
        with torch.no_grad():
            self.attention.in_proj_weight.zero_()
            self.attention.in_proj_weight[8:].copy_(torch.eye(4))
            self.attention.out_proj.weight.copy_(torch.eye(4))
            self.hidden.weight.copy_(torch.cat([torch.eye(4), -torch.eye(4)]))
            self.fc.weight.copy_(torch.cat([3 * torch.eye(4), 0 * torch.eye(4)], 1))
            for linear in (self.attention.out_proj, self.hidden, self.fc):
                linear.bias.zero_()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(torch.relu(self.hidden(self.attention(x, x, x, need_weights=False)[0].mean(1))))


def test_a_planted_head_is_needed_by_its_class_alone():
    g, n = torch.Generator().manual_seed(0), 64
    labels = torch.arange(n) % 4
    x = torch.zeros(n, 4, 4)
    x[torch.arange(n), :, labels] = 1.0 + 0.2 * torch.rand(n, 4, generator=g)
    calibration = cswap.calibration_set(TensorDataset(x, labels), 16)
    model = _Planted().eval()
    structure = discover(model, calibration.inputs(0, 2)).select(("attention.q#heads",))
    path = cswap.prune_path(model, calibration, structure=structure, method="cbp")
    tested = [d for d in path if d.phase == "test"]
    assert len(tested) == 4
    for d in tested:
        assert d.verdict == "critical"
        assert [e.pi for e in d.effects.values()].count(-1) == 1
        assert d.effects.at(d.unit).pi == -1  # the others gain: a rival logit of theirs is gone, or nothing is


# the artifact

_FACTORIES = """
import torchvision

def vit():
    return torchvision.models.VisionTransformer(32, 16, 2, 2, 32, 64, num_classes=5)

def swin():
    return torchvision.models.SwinTransformer([4, 4], 16, [2, 2], [2, 4], [4, 4], num_classes=5)
"""
_LOAD = """
import sys, torch, cswap
small = cswap.load(sys.argv[1], trust=True)
with torch.no_grad():
    out = small(torch.load(sys.argv[2], weights_only=True))
torch.save(getattr(out, "logits", out), sys.argv[3])
"""


def saved(tmp_path, model: nn.Module, structure: Structure, spec: str, arguments=None) -> nn.Module:
    """Half of everything goes, and the artifact is in tmp_path/run."""
    removed = random_half(structure, 3)
    small = pruned_copy(model, structure, removed)
    path = PruningPath(structure, "random", Options().as_dict(), tuple("abcde"))
    ratio = _ledger(structure, removed).ratio()
    small._cswap = Surgery(Target("units", 0.5), ratio, 0, removed, kept_indices(structure, removed), structure)
    cswap.save(small, tmp_path / "run", path=path, factory=spec, arguments=arguments)
    return small


def loaded_elsewhere(tmp_path, x: torch.Tensor) -> torch.Tensor:
    """Logits of the artifact, loaded in a new process."""
    torch.save(x, tmp_path / "x.pt")
    command = [sys.executable, "-c", _LOAD, str(tmp_path / "run"), str(tmp_path / "x.pt"), str(tmp_path / "y.pt")]
    subprocess.run(command, check=True)
    return torch.load(tmp_path / "y.pt", weights_only=True)


@pytest.mark.parametrize("name", ["vit", "swin", "timm_vit"])
def test_what_was_saved_loads_in_a_new_process_to_the_same_logits(tmp_path, name):
    model, x = _made(name)
    (tmp_path / "own.py").write_text(_FACTORIES)
    spec, arguments = f"{tmp_path}/own.py:{name}", None
    if name == "timm_vit":
        spec, arguments = "timm:vit_tiny_patch16_224", {"img_size": 32, "depth": 2, "embed_dim": 48, "num_classes": 5}
    small = saved(tmp_path, model, discover(model, x), spec, arguments)
    with torch.no_grad():
        assert torch.equal(loaded_elsewhere(tmp_path, x), small(x))
        assert (small(x) - model(x)).abs().max() > 1e-2
    assert any(isinstance(m, HeadAttention) for m in cswap.load(tmp_path / "run", trust=True).modules())
    from cswap.artifacts.folder import open_artifact

    assert open_artifact(tmp_path / "run").structure.replaced


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size"), [("vit_b_16", 32), ("swin_t", 64)])
def test_torchvision_s_own(name, size):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        arguments = {"image_size": size} if name == "vit_b_16" else {}
        model = randomise_(torchvision.models.get_model(name, **arguments), 1).eval()
    x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(2))
    structure = discover(model, x)
    removed = random_half(structure, 3)
    result = agreement(model, structure, removed, x)
    assert result.ok, str(result)
    assert result.moved >= VISIBLE * result.allowed
    small = pruned_copy(model, structure, removed)
    ledger = _ledger(structure, removed)
    assert (ledger.params, round(ledger.macs)) == (count_params(small), macs_of(small, x)[0])
    assert not _crossed(model, structure, removed, x) <= result.allowed


def test_widths_that_a_gpus_kernels_refuse_are_found_and_plain_products_are_the_same():
    torch.manual_seed(0)
    core = HeadProduct(2, 5, 7, 0.5, 0.0, torch.zeros(1).double())
    whole = torch.randn(2, 5, 30).double()
    q, k, v = whole[..., :10], whole[..., 3:13], whole[..., 13:27]
    assert not _aligned(q)
    assert not _aligned(whole[..., 8:16])
    assert _aligned(torch.zeros(2, 5, 16))
    torch.testing.assert_close(core(q, k, v), core(q, k, v, weights=True)[0])


@pytest.mark.parametrize("how", ["merge", "fold", "lstsq"])
def test_a_pruned_transformer_is_recovered(how):
    """Merging averages weights, and leaves the numbers of the heads as they are."""
    torch.manual_seed(0)
    net = randomise_(torchvision.models.VisionTransformer(8, 4, 2, 2, 16, 24, num_classes=4), seed=0).eval()
    x, y = torch.randn(48, 3, 8, 8), torch.arange(4).repeat(12)
    calibration = cswap.calibration_set(TensorDataset(x, y), 12)
    structure = discover(net, x[:2])
    path = path_of(structure, random_half(structure, 0), x[:2])
    small = path.apply(net, Target("units", path.ratio.units))
    found = recovered(small, net, calibration, how).raw
    for (name, a), b in zip(small.state_dict().items(), found.state_dict().values(), strict=True):
        assert a.shape == b.shape
        assert a.is_floating_point() or torch.equal(a, b), name
