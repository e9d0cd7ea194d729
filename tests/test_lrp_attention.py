"""LRP through attention and layer norms, against loops over every product."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import cswap
from cswap.causal.cut import PlainEngine
from cswap.errors import InputError
from cswap.methods.lrp_attention import Normed, RelevantProduct
from cswap.structure.attention import HeadProduct
from cswap.structure.check import randomise_
from cswap.tasks import Classification

pytest.importorskip("zennit", reason="zennit is not installed")
from cswap.methods.lrp import lrp_scores, relevances

_EPS = 1e-6


def _stable(z: float) -> float:
    return z + (_EPS if z >= 0 else -_EPS)


def _by_hand(q, k, v, scale, mask, relevance):
    """One head: q, k (L, d), v (L, e) as arrays; relevance (L, e) of the outputs → that of q, k and v, product by product."""
    length, d, e = len(q), q.shape[1], v.shape[1]
    scores = np.array([[sum(scale * q[i, c] * k[j, c] for c in range(d)) + mask[i, j] for j in range(length)] for i in range(length)])  # fmt: skip
    shares = np.exp(scores - scores.max(1, keepdims=True))
    shares /= shares.sum(1, keepdims=True)
    to_q, to_k, to_v, to_s = np.zeros_like(q), np.zeros_like(k), np.zeros_like(v), np.zeros_like(scores)
    for i in range(length):
        for c in range(e):
            out = sum(shares[i, j] * v[j, c] for j in range(length))
            for j in range(length):
                part = shares[i, j] * v[j, c] * relevance[i, c] / (2 * _stable(out))
                to_v[j, c] += part
                to_s[i, j] += part
    for i in range(length):
        total = to_s[i].sum()
        for j in range(length):
            if np.isinf(mask[i, j]):
                continue
            of_score = scores[i, j] * (to_s[i, j] - shares[i, j] * total)
            product = sum(scale * q[i, c] * k[j, c] for c in range(d))
            for c in range(d):
                part = scale * q[i, c] * k[j, c] * of_score / (2 * _stable(product))
                to_q[i, c] += part
                to_k[j, c] += part
    return to_q, to_k, to_v


@pytest.mark.parametrize("masked", [False, True])
def test_the_product_of_the_heads_is_the_sum_over_every_product(masked):
    torch.manual_seed(0)
    heads, d, e, length = 2, 3, 2, 4
    core = HeadProduct(heads, d, e, d**-0.5, 0.0, torch.zeros(1, dtype=torch.float64))
    q, k = (torch.randn(1, length, heads * d, dtype=torch.float64, requires_grad=True) for _ in range(2))
    v = torch.randn(1, length, heads * e, dtype=torch.float64, requires_grad=True)
    mask = torch.zeros(length, length, dtype=torch.float64)
    if masked:
        mask[:, -1] = float("-inf")
    expected = core(q, k, v, mask).detach()
    ruled = RelevantProduct.of(core)
    out = ruled(q, k, v, mask)
    torch.testing.assert_close(out.detach(), expected)
    relevance = torch.randn_like(expected)
    found = torch.autograd.grad(out, (q, k, v), relevance)
    for h in range(heads):
        qk, vs = slice(h * d, (h + 1) * d), slice(h * e, (h + 1) * e)
        arrays = [t.detach().numpy()[0] for t in (q[..., qk], k[..., qk], v[..., vs])]
        by_hand = _by_hand(*arrays, d**-0.5, mask.numpy(), relevance.numpy()[0, :, vs])
        for mine, theirs in zip((found[0][..., qk], found[1][..., qk], found[2][..., vs]), by_hand, strict=True):
            np.testing.assert_allclose(mine.numpy()[0], theirs, rtol=1e-8, atol=1e-12)


def test_a_norm_over_features_hands_relevance_on():
    torch.manual_seed(0)
    norm, x = randomise_(nn.LayerNorm(5), 1).eval(), torch.randn(3, 5, requires_grad=True)
    out, relevance = Normed(norm)(x), torch.randn(3, 5)
    torch.testing.assert_close(out.detach(), norm(x).detach())
    assert torch.equal(torch.autograd.grad(out, x, relevance)[0], relevance)


class Plain(nn.Module):
    """Self-attention of one head by torch's own functions, behind a norm, and a perceptron."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qk, self.v = nn.LayerNorm(6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.a, self.b, self.fc = nn.Linear(6, 10), nn.Linear(10, 6), nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(x)
        shares = torch.softmax(torch.matmul(self.qk(x), x.transpose(1, 2)), -1)
        x = x + torch.matmul(shares, self.v(x))
        return self.fc((x + self.b(torch.relu(self.a(x)))).mean(1))


def _tokens(per_class: int = 6) -> cswap.CalibrationSet:
    torch.manual_seed(3)
    return cswap.calibration_set(
        TensorDataset(torch.randn(4 * per_class, 5, 6), torch.arange(4).repeat(per_class)), per_class
    )


def test_attention_that_is_written_out_has_its_rules_too():
    net, calibration = randomise_(Plain(), 2).eval().double(), _tokens()
    calibration = cswap.calibration_set(
        TensorDataset(calibration.inputs(0, 24).double(), torch.from_numpy(calibration.targets)), 6
    )
    with torch.no_grad():
        for name, p in net.named_parameters():
            if name.endswith("bias"):
                p.zero_()
    structure = cswap.discover(net, calibration.inputs(0, 2))
    (sums,) = relevances(PlainEngine(net, structure, calibration, Classification()), structure)
    labels = torch.from_numpy(calibration.targets).view(-1, 1)
    x = calibration.inputs(0, 24)
    with torch.no_grad():
        mean = net.norm(x)
        shares = torch.softmax(net.qk(mean) @ mean.transpose(1, 2), -1)
        stream = mean + shares @ net.v(mean)
        branch = net.b(torch.relu(net.a(stream)))
        whole = (stream + branch).mean(1)
        share = whole * net.fc.weight[labels.squeeze(1)]  # relevance of what the head reads
        each = (stream + branch) / 5 * net.fc.weight[labels.squeeze(1)].unsqueeze(1)
        expected = (each * branch / (stream + branch)).sum((1, 2))
    assert float(share.abs().max()) > 0
    np.testing.assert_allclose(sums["a"].sum(1), expected.numpy(), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_vision_transformers_are_ranked(library):
    torch.manual_seed(0)
    if library == "timm":
        timm = pytest.importorskip("timm")
        net = timm.create_model(
            "vit_tiny_patch16_224", img_size=16, patch_size=8, embed_dim=24, depth=2, num_heads=3, num_classes=4
        )
    else:
        from torchvision.models import VisionTransformer

        net = VisionTransformer(16, 8, 2, 2, 16, 32, num_classes=4)
    net = randomise_(net, 1).eval()
    calibration = cswap.calibration_set(TensorDataset(torch.randn(12, 3, 16, 16), torch.arange(4).repeat(3)), 3)
    structure = cswap.discover(net, calibration.inputs(0, 2))
    scores = lrp_scores(net, structure, calibration, Classification())
    for group in structure:
        assert np.isfinite(scores[group.name]).all(), group.name
        assert (scores[group.name] > 0).mean() > 0.5, group.name
    again = lrp_scores(net, structure, calibration, Classification())
    assert all(np.array_equal(again[n], s) for n, s in scores.items())


def test_what_has_no_rule_is_still_refused():
    class Wavy(Plain):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(torch.sin(x) + torch.cos(self.v(x)))

    net, calibration = randomise_(Wavy(), 2).eval(), _tokens()
    structure = cswap.discover(net, calibration.inputs(0, 2))
    with pytest.raises(InputError, match="no rule hands relevance through .*cos"):
        lrp_scores(net, structure, calibration, Classification())


class Upstream(nn.Module):
    """A hidden layer in front of an attention, which is written out, or torch's own of two heads; no constants anywhere."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 7, bias=False), nn.Linear(7, 6, bias=False)
        self.q, self.k, self.v = (nn.Linear(6, 6, bias=False) for _ in range(3))
        self.many = nn.MultiheadAttention(6, heads, bias=False, batch_first=True) if heads > 1 else None
        self.fc = nn.Linear(6, 4, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.down(torch.relu(self.up(x)))
        if self.many is not None:
            return self.fc(self.many(x, x, x, need_weights=False)[0].mean(1))
        shares = torch.softmax(torch.matmul(self.q(x), self.k(x).transpose(1, 2)), -1)
        return self.fc(torch.matmul(shares, self.v(x)).mean(1))


def _through(weight: np.ndarray, x: np.ndarray, relevance: np.ndarray) -> np.ndarray:
    """Epsilon, by loops: x (L, I), weight (O, I), relevance (L, O) of the outputs -> (L, I) of the inputs."""
    found = np.zeros_like(x)
    for place in range(len(x)):
        for o in range(len(weight)):
            z = _stable(sum(weight[o, i] * x[place, i] for i in range(x.shape[1])))
            for i in range(x.shape[1]):
                found[place, i] += weight[o, i] * x[place, i] * relevance[place, o] / z
    return found


@pytest.mark.parametrize("heads", [1, 2])
def test_a_unit_in_front_of_an_attention_by_hand(heads):
    torch.manual_seed(1)
    net = Upstream(heads).eval().double()
    with torch.no_grad():
        for p in net.parameters():
            p.normal_(0, 0.7)
    tokens = _tokens()
    data = TensorDataset(tokens.inputs(0, 24).double(), torch.from_numpy(tokens.targets))
    calibration = cswap.calibration_set(data, 6)
    structure = cswap.discover(net, calibration.inputs(0, 2))
    (group,) = [g for g in structure if [s.module for s in g.producers] == ["up"]]
    scores = lrp_scores(net, structure, calibration, Classification())[group.name]
    if heads > 1:
        q, k, v = (w.detach().numpy() for w in net.many.in_proj_weight.chunk(3))
        out_weight, size = net.many.out_proj.weight.detach().numpy(), 3
    else:
        q, k, v = (m.weight.detach().numpy() for m in (net.q, net.k, net.v))
        out_weight, size = None, 6
    up, down, fc = (m.weight.detach().numpy() for m in (net.up, net.down, net.fc))
    total, without = np.zeros(7), np.zeros(7)
    for x, target in zip(calibration.inputs(0, 24).numpy(), calibration.targets, strict=True):
        hidden = np.maximum(x @ up.T, 0.0)
        t = hidden @ down.T
        qs, ks, vs = t @ q.T, t @ k.T, t @ v.T
        scale, mixed = (size**-0.5 if heads > 1 else 1.0), np.zeros_like(t)
        for h in range(heads):
            own = slice(h * size, (h + 1) * size)
            s = np.exp(scale * qs[:, own] @ ks[:, own].T)
            mixed[:, own] = (s / s.sum(1, keepdims=True)) @ vs[:, own]
        given = mixed if out_weight is None else mixed @ out_weight.T
        mean = given.mean(0)
        logit = fc[target] @ mean
        at_mean = fc[target] * mean * logit / _stable(logit)
        at_given = given / len(given) / np.array([_stable(m) for m in mean]) * at_mean
        at_mixed = at_given if out_weight is None else _through(out_weight, mixed, at_given)
        parts = []
        for h in range(heads):
            own = slice(h * size, (h + 1) * size)
            parts.append(_by_hand(qs[:, own], ks[:, own], vs[:, own], scale, np.zeros((5, 5)), at_mixed[:, own]))
        to_q, to_k, to_v = (np.concatenate(p, 1) for p in zip(*parts, strict=True))
        values = _through(v, t, to_v)
        at_t = _through(q, t, to_q) + _through(k, t, to_k) + values
        total += np.abs(_through(down, hidden, at_t).sum(0))
        without += np.abs(_through(down, hidden, 2 * values).sum(0))
    assert np.abs(total - without).max() > 0.05 * total.max()  # what scores hand on is not nothing
    np.testing.assert_allclose(scores, total / 24, rtol=1e-5)
