"""Exported networks: equal to the module, any batch size, run where there is no cswap; and nothing written when they are not."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

import cswap
from cswap.artifacts.export import export
from cswap.cli.app import main
from cswap.errors import InputError, MismatchError, MissingPartError, RunError

NO_CSWAP = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "cswap":
            raise ImportError("no cswap here")
sys.meta_path.insert(0, Refuse())
import numpy as np
x = np.load(sys.argv[2])
if sys.argv[1].endswith("onnx"):
    import onnxruntime
    y = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"]).run(None, {"input": x})[0]
else:
    import torch
    y = torch.export.load(sys.argv[1]).module()(torch.from_numpy(x)).detach().numpy()
assert not any(m.partition(".")[0] == "cswap" for m in sys.modules)
np.save(sys.argv[3], y)
"""


@pytest.fixture
def artifact(place):
    assert main(place.prune("out", target="units=0.4")) == 0
    return place.root / "out"


@pytest.mark.parametrize("form", ["onnx", "pt2"])
def test_an_export_runs_without_cswap_and_gives_the_same(place, artifact, form, capsys):
    if form == "onnx":
        pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
        pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    capsys.readouterr()
    assert main(["export", str(artifact), "--format", form, "--trust", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["samples"] == 15
    assert told["max_abs_difference"] <= told["allowed"]
    x = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    np.save(place.root / "x.npy", x.numpy())
    script = place.root / "run.py"
    script.write_text(NO_CSWAP)
    subprocess.run(
        [sys.executable, str(script), told["file"], str(place.root / "x.npy"), str(place.root / "y.npy")], check=True
    )
    expected = cswap.load(artifact, trust=True)(x).detach().numpy()
    np.testing.assert_allclose(np.load(place.root / "y.npy"), expected, atol=told["allowed"])
    capsys.readouterr()
    assert main(["export", str(artifact), "--format", form, "--trust"]) == 2
    assert "--force replaces it" in capsys.readouterr().err
    assert main(["report", str(artifact)]) == 0, "an artifact with an export in it stays one"


class Drifts(torch.nn.Module):
    """Gives something else whenever it is called again, so that no export can agree."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.calls = torch.nn.Linear(4, 2), 0

    def forward(self, x):
        self.calls += 1
        return self.fc(x) + self.calls


class Branches(torch.nn.Module):
    """What it does depends on the values."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = torch.nn.Linear(4, 2)

    def forward(self, x):
        return self.fc(x) if x.sum().item() > 0 else -self.fc(x)


def test_what_differs_or_cannot_be_traced_leaves_nothing(tmp_path):
    x = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    with pytest.raises(MismatchError, match="differ from the module's"):
        export(Drifts(), tmp_path / "a.pt2", x, format="pt2")
    with pytest.raises(RunError, match="cannot trace this model"):
        export(Branches(), tmp_path / "b.pt2", x, format="pt2")
    with pytest.raises(InputError, match="expected one of onnx, pt2, got 'tflite'"):
        export(Branches(), tmp_path / "b.tflite", x, format="tflite")
    with pytest.raises(InputError, match="at least 2 real inputs"):
        export(Branches(), tmp_path / "b.pt2", x[:1], format="pt2")
    assert list(tmp_path.iterdir()) == []


class Maps(torch.nn.Module):
    """Gives a dict, as segmentation networks do."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(1, 3, 3, padding=1)

    def forward(self, x):
        return {"out": self.conv(x), "aux": x}


class Boxes(torch.nn.Module):
    """Gives lists, as detectors do."""

    def forward(self, x):
        return [{"boxes": x}]


def test_a_dict_with_out_is_exported_and_a_list_of_boxes_refused(tmp_path):
    x = torch.randn(4, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    net = Maps()
    export(net, tmp_path / "maps.pt2", x, format="pt2")
    again = torch.export.load(tmp_path / "maps.pt2").module()(x)
    assert torch.allclose(again, net(x)["out"], atol=1e-6)
    with pytest.raises(InputError, match="output is one tensor"):
        export(Boxes(), tmp_path / "boxes.pt2", x, format="pt2")
    assert [f.name for f in tmp_path.iterdir()] == ["maps.pt2"]


def test_a_missing_library_names_the_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingPartError, match=r"pip install 'cswap\[export\]'"):
        export(torch.nn.Linear(4, 2), tmp_path / "a.onnx", torch.zeros(2, 4), format="onnx")
    assert list(tmp_path.iterdir()) == []
