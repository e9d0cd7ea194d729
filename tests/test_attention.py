"""Heads and inner dimensions of attention as units: equal masked and pruned, each counted once."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from cswap.structure.attention import HeadProduct, _aligned
from cswap.structure.check import VISIBLE, agreement, random_half
from cswap.structure.discover import count_params, discover, macs_of
from cswap.structure.ledger import Ledger
from cswap.structure.surgery import masked_copy, prepared_copy, pruned_copy
from tests.attention_nets import (
    MODELS,
    crossed,
    ledger_of,
    logits_of,
    made,
)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_masked_equals_pruned_and_both_are_counted(name):
    model, x = made(name)
    structure = discover(model, x)
    assert len(structure) == MODELS[name][2]
    assert {g.name.partition("#")[2].rstrip("0123456789") for g in structure} == {"", "heads", "qk", "v"}
    assert not any("attention" in o.reason for o in structure.left_out)
    with torch.no_grad():
        assert (logits_of(prepared_copy(model, structure)(x)) - logits_of(model(x))).abs().max() < 1e-4
    for seed, kinds in ((3, "*"), (4, "*#heads"), (5, "*#qk*"), (6, "*#v*")):
        chosen = structure.select((kinds,))
        removed = random_half(chosen, seed)
        result = agreement(model, chosen, removed, x)
        assert result.ok, str(result)
        assert result.moved >= VISIBLE * result.allowed
        ledger, small = ledger_of(chosen, removed), pruned_copy(model, chosen, removed)
        assert ledger.params == count_params(small)
        assert round(ledger.macs) == macs_of(small, x)[0]
        assert not crossed(model, chosen, removed, x) <= result.allowed


@pytest.mark.parametrize("name", ["timm_vit", "timm_deit"])
def test_timm_is_pruned_to_equal_networks_with_fused_attention_on_and_off(name):
    model, x = made(name)
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


def test_each_unit_of_attention_alone_and_an_off_by_one_in_each_group_is_caught():
    model, x = made("vit")
    structure = discover(model, x).select(("*layer_0*#*",))
    exact = copy.deepcopy(model).double()
    for g in structure:
        caught = 0
        for n in range(g.size):
            removed = {g.name: np.array([n], dtype=np.int64)}
            result = agreement(model, structure, removed, x)
            assert result.ok, (g.name, n, str(result))
            assert result.visible
            caught += crossed(exact, structure, removed, x.double()) > 1e-7
        assert caught == g.size, g.name


def test_a_cut_acts_where_the_method_says():
    """Dimension of q·k: its product term and no other; head and dimension of v: what the output projection reads."""
    model, x = made("vit")
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
    model, x = made("timm_vit")
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
        model, x = made(name)
        structure = discover(model, x)
        removed = {g.name: np.delete(np.arange(g.size), i % g.size) for i, g in enumerate(structure)}
        assert agreement(model, structure, removed, x).ok
        small = pruned_copy(model, structure, removed)
        assert all(
            len(p.heads) == p.qk == p.v == 1 for m in small.modules() if isinstance(m, HeadProduct) for p in m.parts
        )


def test_widths_that_a_gpus_kernels_refuse_are_found_and_plain_products_are_the_same():
    torch.manual_seed(0)
    core = HeadProduct(2, 5, 7, 0.5, 0.0, torch.zeros(1).double())
    whole = torch.randn(2, 5, 30).double()
    q, k, v = whole[..., :10], whole[..., 3:13], whole[..., 13:27]
    assert not _aligned(q)
    assert not _aligned(whole[..., 8:16])
    assert _aligned(torch.zeros(2, 5, 16))
    torch.testing.assert_close(core(q, k, v), core(q, k, v, weights=True)[0])
