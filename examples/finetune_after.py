"""For those who can train: prune in one shot, then fine-tune the smaller network, and save it with the path that made it.

Needs: pip install 'cswap[demo]'
"""

from __future__ import annotations

import tempfile

import torch
from torch.nn import functional as F

import cswap
from cswap.demo import digits, digits_resnet, train

TARGET = "params=0.5"


def accuracy(net, data) -> float:
    """Fraction that is right."""
    with torch.no_grad():
        return float((net(data.tensors[0]).argmax(1) == data.tensors[1]).float().mean())


def main() -> tuple[float, float, float]:
    """Accuracy of the whole network, of the pruned one, and of the pruned one after fine-tuning."""
    data, held_out = digits()
    model = train(digits_resnet(8), data, epochs=8)
    calibration = cswap.calibration_set(data, per_class=24)
    path = cswap.prune_path(model, calibration, target=TARGET)
    small = path.apply(model, TARGET)
    before, pruned = accuracy(model, held_out), accuracy(small, held_out)

    optimiser = torch.optim.SGD(
        small.parameters(), lr=0.02, momentum=0.9, nesterov=True
    )  # AFTER pruning: new parameters
    torch.manual_seed(0)
    small.train()
    for _ in range(4):
        for batch in torch.randperm(len(data)).split(64):
            optimiser.zero_grad()
            F.cross_entropy(small(data.tensors[0][batch]), data.tensors[1][batch]).backward()
            optimiser.step()
    small.eval()
    after = accuracy(small, held_out)
    with tempfile.TemporaryDirectory() as scratch:
        cswap.save(small, f"{scratch}/tuned", path=path, factory="cswap.demo:digits_resnet", arguments={"width": 8})
        assert accuracy(cswap.load(f"{scratch}/tuned", trust=True), held_out) == after
    print(
        f"accuracy {before:.3f}, pruned {pruned:.3f}, fine-tuned {after:.3f}; {path.ratio.params:.0%} of the parameters gone"
    )
    return before, pruned, after


if __name__ == "__main__":
    main()
