"""On a GPU: every method, recovery and figure is what the CPU gives. float64, so that nothing but a mistake can differ."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import cswap
from cswap.causal.engine import working_set
from cswap.causal.replay import engine_for
from cswap.data.calibration import calibration_set
from cswap.errors import InputError
from cswap.evaluate.certificate import class_losses
from cswap.evaluate.quality import measure_quality
from cswap.methods import registry
from cswap.methods.options import Options
from cswap.recovery import recovered
from cswap.structure.discover import discover
from cswap.structure.surgery import pruned_copy
from cswap.tasks import Classification
from cswap.types import Target
from tests.conftest import PATTERN_NETS, trained_on_patterns

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.fixture(scope="module", params=sorted(PATTERN_NETS))
def case(request):
    net, data = trained_on_patterns(request.param)
    calibration = calibration_set(data, 12, 0, classes=tuple("abcd"))
    return net, data, calibration, discover(net, calibration.inputs(0, 2))


def _path(case, method, device, **options):
    net, _, calibration, structure = case
    return registry.call(
        method, net, structure, calibration, Classification(), target=Target("complete"), options=Options(**options),
        device=device, memory=1 << 30,
    )  # fmt: skip


def _taken(path):
    return [(d.group, d.unit, d.removed) for d in path.decisions]


@pytest.mark.parametrize("method", sorted(registry.METHODS))
def test_a_method_takes_the_same_path(case, method):
    if method in ("deeplift", "lrp"):
        pytest.importorskip("captum" if method == "deeplift" else "zennit")
    try:
        one = _path(case, method, "cpu")
    except InputError as refused:
        pytest.skip(str(refused))
    two = _path(case, method, "cuda")
    assert _taken(one) == _taken(two)
    for a, b in zip(one.decisions, two.decisions, strict=True):
        if a.score is not None:
            np.testing.assert_allclose(a.score, b.score, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("options", [{"cut": "compensated"}, {"effects": "verdict"}, {"swaps": True}])
def test_an_option_takes_the_same_path(case, options):
    method = "obs" if "swaps" in options else "cswap"
    one, two = (_path(case, method, d, **options) for d in ("cpu", "cuda"))
    assert _taken(one) == _taken(two)


@pytest.mark.parametrize("how", ["bias", "bn", "lstsq", "merge", "fold", "merge+lstsq", "bias+bn"])
def test_a_recovery_gives_the_same_network(case, how):
    net, data, calibration, _ = case
    small = _path(case, "magnitude", "cpu").apply(net, Target.parse("units=0.4"))
    one, two = (recovered(small, net, calibration, how, device=d) for d in ("cpu", "cuda"))
    x = data.tensors[0]
    with torch.no_grad():
        np.testing.assert_allclose(one.raw(x).numpy(), two.raw(x).numpy(), rtol=1e-6, atol=1e-6)
    assert one.declined == two.declined
    assert next(two.raw.parameters()).device.type == "cpu"


def test_a_pruned_attention_runs_on_the_gpu_whatever_its_widths():
    """The fused kernels take rows at multiples of 16 bytes alone."""
    net, data = trained_on_patterns("transformer")
    structure = discover(net, data.tensors[0][:2])
    for kind, off in ((torch.float32, 2e-3), (torch.float64, 1e-9)):
        for share in (0.1, 0.3, 0.5, 0.7):
            rng = np.random.default_rng(3)
            removed = {g.name: np.sort(rng.permutation(g.size)[: int(share * g.size)]) for g in structure}
            small = pruned_copy(net.to(kind), structure, removed).eval()
            x = data.tensors[0].to(kind)
            with torch.no_grad():
                expected, found = small(x), small.cuda()(x.cuda()).cpu()
            np.testing.assert_allclose(expected.numpy(), found.numpy(), atol=off)


def test_quality_and_losses_are_the_same_and_the_network_stays_where_it_was(case):
    net, data, _, _ = case
    small = _path(case, "random", "cpu").apply(net, Target.parse("units=0.4"))
    one, two = (measure_quality({"small": small}, data, Classification(), 4, device=d) for d in ("cpu", "cuda"))
    assert one == two
    assert next(small.parameters()).device.type == "cpu"
    a, b = (class_losses(net, small, data, Classification(), tuple("abcd"), device=d) for d in ("cpu", "cuda"))
    for name in a:
        np.testing.assert_allclose(a[name], b[name], atol=1e-9)


def test_float32_is_float32_in_what_is_measured():
    """TF32, which PyTorch's convolutions take by default, is off by 1e-3; masked and pruned networks must agree to 1e-5."""
    net = nn.Sequential(
        nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1), nn.Flatten(), nn.Linear(4096, 4)
    )
    net = net.eval()
    data = TensorDataset(torch.rand(64, 3, 8, 8), torch.arange(4).repeat(16))
    calibration = calibration_set(data, 16, 0, classes=tuple("abcd"))
    structure = discover(net, calibration.inputs(0, 2))
    found = {}
    for kind, d in ((torch.float64, "cpu"), (torch.float32, "cuda")):
        engine = engine_for(net.to(kind), structure, calibration, Classification(), device=d)
        found[d] = engine.cut(structure.groups[0], [(0, 1, 2)])[0].sigma
    np.testing.assert_allclose(found["cpu"], found["cuda"], atol=2e-6)


def test_one_call_prunes_where_there_is_a_gpu(case):
    net, _, calibration, structure = case
    paths = [
        cswap.prune_path(net, calibration, method="joint", target="params=0.3", structure=structure, device=d)
        for d in ("cpu", "auto")
    ]
    assert [d.unit for d in paths[0].decisions] == [d.unit for d in paths[1].decisions]
    small = paths[1].apply(net, Target.parse("params=0.3"))
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in net.parameters())
    assert next(small.parameters()).device.type == "cpu"


def test_batches_are_larger_on_a_gpu():
    assert working_set("cuda:0") > working_set("cpu")
