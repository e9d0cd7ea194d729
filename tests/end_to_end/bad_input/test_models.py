"""Factories and networks that cannot be made or run."""

from __future__ import annotations

import pytest

from tests.end_to_end.bad_input.conftest import refused

MODELS: dict[str, tuple[str, tuple[str, ...]]] = {
    "empty": ("", ("model", "expected")),
    "no-colon": ("resnet18", ("model", "expected")),
    "no-name": ("torchvision:", ("model", "expected")),
    "torchvision-unknown": ("torchvision:resnet19", ("resnet19",)),
    "timm-unknown": ("timm:no_such_net", ("no_such_net",)),
    "hf-nowhere": ("hf:/nowhere/at/all", ("/nowhere/at/all",)),
    "no-file": ("/nowhere.py:net", ("/nowhere.py",)),
    "no-factory": ("{root}/net.py:nosuch", ("nosuch",)),
    "raises": ("{root}/net.py:broken", ("this factory fails",)),
    "no-module": ("{root}/net.py:not_a_module", ("nn.Module", "int")),
    "no-package": ("no.such.package:net", ("no.such.package",)),
    "not-callable": ("{root}/net.py:__doc__", ("__doc__",)),
    "syntax": ("{root}/syntax.py:net", ("syntax.py",)),
    "import-fails": ("{root}/imports.py:net", ("imports.py",)),
    "exits": ("{root}/exits.py:net", ("exits.py",)),
    "module-exits": ("builtins:exit", ("raised SystemExit",)),
    "binary": ("{root}/binary.py:net", ("binary.py",)),
    "a-class-that-needs-arguments": ("torch.nn:Linear", ("Linear",)),
}


@pytest.mark.parametrize("case", list(MODELS))
def test_a_model(place, capsys, case):
    spec, words = MODELS[case]
    (place.root / "syntax.py").write_text("def net(:\n")
    (place.root / "imports.py").write_text("import no_such_module_at_all\n")
    (place.root / "exits.py").write_text("import sys\nsys.exit(0)\n")
    (place.root / "binary.py").write_bytes(bytes(range(256)))
    arguments = place.prune("out")
    arguments[arguments.index(f"{place.factory}:colours")] = spec.format(root=place.root)
    refused(capsys, place, arguments, *words)


FACTORIES: dict[str, tuple[str, tuple[str, ...], int]] = {
    "takes-other-inputs": ("def net():\n    return nn.Sequential(nn.Flatten(), nn.Linear(7, 3))\n", ("inputs", "3, 8, 8"), 2),
    "other-number-of-classes": ("def net():\n    return nn.Sequential(nn.Flatten(), nn.Linear(192, 5))\n", ("5", "3"), 2),
    "gives-nan": (
        "class N(nn.Module):\n    def __init__(self):\n        super().__init__()\n        self.a = nn.Conv2d(3, 4, 1)\n        self.f = nn.Linear(4, 3)\n"
        "    def forward(self, x):\n        return self.f(self.a(x).mean((2, 3))) * float('nan')\n\ndef net():\n    return N()\n",
        ("finite",), 2,
    ),
    "gives-a-tuple-of-nothing": (
        "class N(nn.Module):\n    def __init__(self):\n        super().__init__()\n        self.f = nn.Linear(3, 3)\n"
        "    def forward(self, x):\n        return ()\n\ndef net():\n    return N()\n",
        ("logits", "tuple"), 2,
    ),
    "nothing-to-prune": ("def net():\n    return nn.Sequential(nn.Flatten(), nn.Linear(192, 3))\n", ("nothing can be pruned",), 1),
    "no-parameters": ("def net():\n    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())\n", ("no parameters",), 1),
    "scripted": ("def net():\n    return torch.jit.script(nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)))\n", ("script",), 1),
}  # fmt: skip


@pytest.mark.parametrize("case", list(FACTORIES))
def test_a_network(place, capsys, case):
    source, words, status = FACTORIES[case]
    (place.root / "other.py").write_text("import torch\nfrom torch import nn\n\n\n" + source)
    arguments = place.prune("out")
    arguments[arguments.index(f"{place.factory}:colours")] = f"{place.root / 'other.py'}:net"
    del arguments[arguments.index("--weights") : arguments.index("--weights") + 2]
    refused(capsys, place, arguments, *words, status=status)
