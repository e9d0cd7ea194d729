"""The shared real network on real images, where they are at hand."""

from __future__ import annotations

import json
import re
import zipfile

import pytest
import torch

import cswap
from cswap.cli.app import main


@pytest.mark.slow
def test_resnet18_on_cifar10_ten_per_cent(shared, tmp_path, capsys):
    """Quality on 1,000 held-out images keeps this short; the benchmark runs all 10,000."""
    with zipfile.ZipFile(shared / "data" / "cifar10.zip") as archive:
        names = archive.namelist()
        wanted = [n for n in names if re.search(r"/test/[a-z]+/0[0-9]{3}\.jpg|/train/[a-z]+/00[0-4][0-9]\.jpg", n)]
        archive.extractall(tmp_path, wanted)
    out = tmp_path / "out"
    status = main([
        "prune", "--model", f"{shared}/models/zoo.py:resnet18_cifar", "--weights",
        f"{shared}/models/resnet18_cifar10.safetensors", "--data", str(tmp_path / "cifar10"), "--image-size", "32",
        "--mean", "0.4914,0.4822,0.4465", "--std", "0.2470,0.2435,0.2616", "--per-class", "4", "--target", "params=0.02",
        "--eval-samples", "1000", "--out", str(out), "--quiet", "--json",
    ])  # fmt: skip
    assert status == 0, capsys.readouterr().err
    summary = json.loads(capsys.readouterr().out)
    stated = float(re.search(r"\| ([0-9.]+) % \|", (shared / "models" / "README.md").read_text())[1]) / 100
    noise = 4 * (stated * (1 - stated) / summary["held_out_samples"]) ** 0.5
    assert summary["baseline"]["quality"]["accuracy"] == pytest.approx(stated, abs=noise)
    assert summary["baseline"]["params"] == 11_173_962
    assert summary["baseline"]["macs"] == pytest.approx(0.555e9, rel=0.01)
    assert summary["ratio"]["params"] >= 0.02
    assert summary["pruned"]["params"] <= 0.98 * summary["baseline"]["params"]
    assert cswap.load(out, trust=True)(torch.zeros(1, 3, 32, 32)).shape == (1, 10)
