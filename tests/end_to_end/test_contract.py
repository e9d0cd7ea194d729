"""Promises of the public contract that no other file is about: logs, seeds, widths, and what Python is told."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import cswap
from cswap.cli.app import main
from cswap.errors import CswapWarning, InputError, RunError, TargetError
from cswap.evaluate.quality import measure_quality
from cswap.methods.path import PruningPath
from cswap.structure.discover import discover
from cswap.structure.ledger import RoundedLedger
from cswap.types import Target


def test_a_run_that_failed_says_where_its_log_is(place, capsys, monkeypatch):
    def fails(*_args, **_more):
        raise RunError("the score is not finite on calibration samples 0 to 17: NaN or Inf inside")

    monkeypatch.setattr("cswap.pipeline.prune", fails)
    capsys.readouterr()
    assert main(place.prune("out")) == 1
    (line,) = capsys.readouterr().err.splitlines()
    found = re.search("NaN or Inf inside; the log is (.+)$", line)
    assert found is not None, line
    log = Path(found[1])
    assert "RunError" in log.read_text()
    log.unlink()


def test_nothing_typed_is_told_in_words(capsys):
    assert main([]) == 2
    assert "cswap: expected a command, got none (cswap --help)" in capsys.readouterr().err


def test_one_unit_is_told_of_whatever_a_class_says_of_it(place, capsys):
    assert main(place.prune("out", target="params=0.5")) == 0
    out = str(place.root / "out")
    path = [json.loads(line) for line in (place.root / "out" / "path.jsonl").read_text().splitlines()]
    of_none = next(d for d in path if d["verdict"] == "neutral")
    asked = ["explain", out, "--group", of_none["group"], "--unit", str(of_none["unit"]), "--class", "red"]
    capsys.readouterr()
    assert main([*asked, "--json"]) == 0
    (told,) = json.loads(capsys.readouterr().out)["units"]
    assert (told["unit"], told["verdict"]) == (of_none["unit"], "neutral")
    assert main(asked) == 0
    said = capsys.readouterr().out
    assert "not reached" not in said
    assert "no significant effect" in said
    assert "blue" not in said


def test_compare_takes_a_seed_and_widths(place, capsys):
    words = place.prune("c", "--methods", "magnitude,random", "--ratios", "0,0.3", "--ratio-in", "params", "--no-latency", "--json")  # fmt: skip
    at = words.index("--target")
    del words[at : at + 2]
    words = ["compare", *words[1:], "--seed", "3"]
    capsys.readouterr()
    assert main([*words, "--round-to", "3"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert main([*words, "--resume"]) == 0  # what was measured in other widths is not taken for this
    free = json.loads(capsys.readouterr().out)
    assert found["seeds"] == free["seeds"] == [3]
    assert (found["round_to"], free["round_to"]) == (3, 1)
    for name in ("magnitude", "random"):
        rounded, plain = (d["methods"][name]["by_seed"]["3"]["points"][-1] for d in (found, free))
        assert min(rounded["ratio"]["params"], plain["ratio"]["params"]) >= 0.3
        # 12 and 6 channels, of which a multiple of 3 is left: as many parameters as one of few networks has
        assert rounded["params"] in {
            (27 + 1) * a + 2 * a + (a + 1) * b + (b + 1) * 3 for a in (3, 6, 9, 12) for b in (3, 6)
        }


def test_widths_are_multiples_in_every_layer_of_a_unit():
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.down = nn.Linear(10, 64), nn.Linear(32, 4)

        def forward(self, x):
            value, gate = self.up(x).chunk(2, dim=-1)
            return self.down(value * torch.sigmoid(gate))

    structure = discover(Gated().eval(), torch.randn(2, 10))
    (group,) = structure.groups
    ledger = RoundedLedger(structure, 8)
    for unit in range(12):
        ledger.remove(group, unit)
    assert len(ledger.removed()[group.name]) == 8  # of the 12: 24 are left, and 48 rows of `up`


def _planted(per_class: int = 20) -> tuple[nn.Module, cswap.CalibrationSet]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 3)).eval()
    with torch.no_grad():
        net[0].weight.copy_(torch.cat([torch.eye(3), 0.1 * torch.randn(3, 3)]))
        net[2].weight.copy_(torch.cat([5 * torch.eye(3), torch.zeros(3, 3)], 1))
    labels = torch.arange(3).repeat(per_class)
    data = TensorDataset(torch.eye(3)[labels] + 0.1 * torch.randn(len(labels), 3), labels)
    return net, cswap.calibration_set(data, per_class)


def test_what_python_saves_has_a_summary_and_goes_to_the_end_of_its_path(tmp_path):
    net, calibration = _planted()
    path = cswap.prune_path(net, calibration, method="magnitude", target=Target("complete"))
    small = path.apply(net, Target("complete"))
    (tmp_path / "own.py").write_text(
        "from torch import nn\n\n\ndef own():\n    return nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 3))\n"
    )
    cswap.save(small, tmp_path / "a", path=path, factory=f"{tmp_path / 'own.py'}:own")
    summary = json.loads((tmp_path / "a" / "summary.json").read_text())
    assert (summary["method"], summary["target"]) == ("magnitude", "complete")
    assert summary["pruned"]["params"] == sum(p.numel() for p in small.parameters())
    assert summary["baseline"] == {"quality": {}, "latency_ms": {}, "params": 45, "macs": 36}
    again = cswap.load(tmp_path / "a", trust=True)
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), small.state_dict().values(), strict=True))
    assert main(["report", str(tmp_path / "a")]) == 0
    assert main(["explain", str(tmp_path / "a")]) == 0


def test_a_save_that_fails_leaves_no_folder(tmp_path):
    net, calibration = _planted()
    path = cswap.prune_path(net, calibration, method="magnitude", target="params=0.3")
    small = path.apply(net, "params=0.3")
    (tmp_path / "own.py").write_text("from torch import nn\n\n\ndef own():\n    return nn.Linear(3, 3)\n")
    for factory, words in (
        (f"{tmp_path / 'own.py'}:own", "has no tensor"),
        (f"{tmp_path / 'none.py'}:own", "none.py"),
        (_planted, "expected factory as a model spec"),
    ):
        with pytest.raises(cswap.errors.CswapError, match=words):
            cswap.save(small, tmp_path / "b", path=path, factory=factory)
        assert not (tmp_path / "b").exists()
    cswap.save(small, tmp_path / "c", path=path)
    with pytest.raises(InputError, match="load: expected factory as a function"):
        cswap.load(tmp_path / "c", factory="own.py:own")
    for wrong in (0.5, None):
        with pytest.raises(TargetError, match=f"target {wrong}: expected params=F"):
            path.apply(net, wrong)
    with pytest.raises(TargetError, match=r"prune_path\(…, target=.params=0.6.\) makes a longer one"):
        path.apply(net, "params=0.6")


def test_inputs_that_are_not_finite_are_named():
    net, calibration = _planted()
    data = calibration.dataset
    assert isinstance(data, TensorDataset)
    data.tensors[0][7, 1] = float("nan")
    with pytest.warns(CswapWarning, match="1 of the 60 samples that quality is measured on hold NaN or Inf"):
        measure_quality({"net": net}, data, cswap.Classification(), 3)
    with pytest.raises(cswap.errors.DataError, match="calibration: sample 7 of the data: expected finite inputs"):
        cswap.prune_path(net, cswap.calibration_set(data, 20), target="params=0.3")


def test_what_greedy_ranks_by_is_its_score():
    net, calibration = _planted()
    path: PruningPath = cswap.prune_path(net, calibration, method="greedy", target="units=0.5")
    gains = [d.score for d in path]
    assert all(isinstance(g, float) for g in gains)
    before = net(calibration.inputs(0, 60)).softmax(1)[range(60), calibration.targets]
    unit = path[0].unit
    with torch.no_grad():
        net[2].weight[:, unit] = 0
    after = net(calibration.inputs(0, 60)).softmax(1)[range(60), calibration.targets]
    assert gains[0] == pytest.approx(float((after - before).detach().double().sum()), abs=1e-4)
