"""The support report, and networks that cannot be taken apart: said in one line, never a traceback."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cswap.data.models import ModelSpec
from cswap.errors import CswapError, MismatchError, StructureError
from cswap.pipeline import Source
from cswap.report.support import support_report
from cswap.structure.check import random_half, randomise_
from cswap.structure.discover import discover
from cswap.structure.ledger import Ledger
from tests.conftest import ResidualNet, path_of


def _net() -> nn.Module:
    return randomise_(ResidualNet(), 3).eval()


def _x() -> torch.Tensor:
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


class _Halves(nn.Module):
    """A floating-point body with a part of another kind inside."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.body, self.part = _net(), part

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.part(self.body(x))


def _scripted() -> nn.Module:
    return torch.jit.trace(_net(), _x())


def _scripted_inside() -> nn.Module:
    return _Halves(torch.jit.trace(nn.Linear(4, 4), torch.randn(2, 4)))


def _quantised() -> nn.Module:
    return _Halves(torch.ao.nn.quantized.dynamic.Linear(4, 4))


def _compiled() -> nn.Module:
    return torch.compile(_net(), backend="eager")


def _bare() -> nn.Module:
    return nn.Sequential(nn.ReLU(), nn.Flatten())


@pytest.mark.filterwarnings("ignore")  # scripting and quantising warn of their own end
@pytest.mark.parametrize(
    ("make", "said"),
    [(_scripted, "scripted"), (_scripted_inside, "its layer part is scripted"), (_quantised, "quantised"),
     (_compiled, "compiled"), (_bare, "no parameters")],
)  # fmt: skip
def test_a_network_that_cannot_be_taken_apart_is_one_true_line(make, said):
    with pytest.raises(StructureError, match=said) as caught:
        discover(make(), _x())
    assert "\n" not in str(caught.value)


def test_a_frozen_or_half_precision_network_is_pruned_as_any_other():
    expected = [g.name for g in discover(_net(), _x())]
    frozen = _net().requires_grad_(False)
    assert [g.name for g in discover(frozen, _x())] == expected
    assert not any(p.requires_grad for p in frozen.parameters())
    half = _net().half()
    assert [g.name for g in discover(half, _x().half())] == expected
    assert next(half.parameters()).dtype == torch.float16


def test_a_model_in_which_nothing_can_be_pruned_says_so():
    report = support_report(Source(ModelSpec.parse("tests/test_support.py:unprunable")), 8)
    assert report["groups"] == []
    assert "model's output" in report["nothing"]
    assert report["highest"]["params"] == 0


def test_the_report_of_a_reader_of_tokens():
    spec = ModelSpec.parse("tests/recurrent_factory.py:reader", {"num_layers": 2})
    report = support_report(Source(spec), tokens=7)
    assert [g["group"] for g in report["groups"]] == ["rnn.l1.ih", "rnn.l0.ih", "emb"]
    assert report["input"] == [7]
    assert report["nothing"] == ""
    with pytest.raises(CswapError, match="embedding table"):
        support_report(Source(ModelSpec.parse("tests/test_support.py:unprunable")), tokens=7)


def unprunable() -> nn.Module:
    """One layer."""
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 4))


def test_what_was_counted_and_what_was_removed_agree_or_it_is_an_error(monkeypatch):
    net, x = _net(), _x()
    structure = discover(net, x)
    path = path_of(structure, random_half(structure, 1), x)
    path.apply(net, f"units={path.ratio.units}")
    right = Ledger._cost
    monkeypatch.setattr(Ledger, "_cost", lambda self, name: (2 * right(self, name)[0], right(self, name)[1]))
    miscounted = path_of(structure, random_half(structure, 1), x)
    with pytest.raises(MismatchError, match="parameters are left"):
        miscounted.apply(net, f"units={miscounted.ratio.units}")
