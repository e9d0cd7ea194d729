"""Train with Lightning, prune the network inside in one shot, test the smaller one with the same Trainer.

Needs: pip install lightning 'cswap[demo]'
"""

from __future__ import annotations

import copy

import lightning as L
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader

import cswap
from cswap.demo import digits, digits_resnet


class Digits(L.LightningModule):
    """A network, its loss and its accuracy."""

    def __init__(self, net: torch.nn.Module) -> None:
        super().__init__()
        self.net = net

    def training_step(self, batch, index):
        x, y = batch
        return F.cross_entropy(self.net(x), y)

    def test_step(self, batch, index):
        x, y = batch
        self.log("accuracy", (self.net(x).argmax(1) == y).float().mean())

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=3e-3)


def main() -> tuple[float, float]:
    """Accuracy of the whole and of the pruned network."""
    train, held_out = digits()
    trainer = L.Trainer(
        max_epochs=6,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    module = Digits(digits_resnet(8))
    trainer.fit(module, DataLoader(train, 64, shuffle=True))
    tests = DataLoader(held_out, 128)
    before = trainer.test(module, tests, verbose=False)[0]["accuracy"]

    net = module.net.eval().cpu()
    calibration = cswap.calibration_set(train, per_class=24)
    path = cswap.prune_path(net, calibration, target="params=0.2")
    smaller = copy.copy(module)  # the same Lightning module, around another network
    smaller._modules = {**module._modules, "net": path.apply(net, "params=0.2")}
    after = trainer.test(smaller, tests, verbose=False)[0]["accuracy"]
    print(f"accuracy {before:.3f} -> {after:.3f} with {path.ratio.params:.0%} of the parameters gone")
    return before, after


if __name__ == "__main__":
    main()
