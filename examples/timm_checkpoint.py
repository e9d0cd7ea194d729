"""A timm checkpoint on the command line: `timm:NAME` with a .safetensors file.

Needs: pip install 'cswap[demo,timm]'. The checkpoint is trained here on digits, since nothing is downloaded.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import timm
import torch
from safetensors.torch import save_model

import cswap
from cswap.cli.app import main as command
from cswap.demo import digits, train

NAME, ARGUMENTS = "resnet10t.c3_in1k", {"in_chans": 1, "num_classes": 10}


def main() -> tuple[float, float]:
    """Accuracy of the whole and of the pruned network."""
    name = NAME.partition(".")[0]
    data, held_out = digits()
    model = train(timm.create_model(name, pretrained=False, **ARGUMENTS), data, epochs=3)
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint, out = Path(scratch) / "model.safetensors", Path(scratch) / "artifact"
        save_model(model, str(checkpoint))
        status = command([
            "prune", "--model", f"timm:{name}", "--model-arg", "in_chans=1", "--model-arg", "num_classes=10",
            "--weights", str(checkpoint), "--data", "cswap.demo:digits", "--per-class", "16", "--method", "taylor",
            "--scope", "global", "--per", "params", "--target", "params=0.2", "--recover", "bn", "--out", str(out), "--quiet",
        ])  # fmt: skip
        assert status == 0
        summary = json.loads((out / "summary.json").read_text())
        small = cswap.load(out)  # a timm model needs no trust
    with torch.no_grad():
        after = float((small(held_out.tensors[0]).argmax(1) == held_out.tensors[1]).float().mean())
    before = summary["baseline"]["quality"]["accuracy"]
    print(f"{name}: accuracy {before:.3f} -> {after:.3f} with {summary['ratio']['params']:.0%} of the parameters gone")
    return before, after


if __name__ == "__main__":
    main()
