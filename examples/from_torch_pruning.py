"""For users of Torch-Pruning: what is called what, and `cswap.recover` on a network that Torch-Pruning made.

| Torch-Pruning | cswap |
| --- | --- |
| importance | a method: `cswap`, or a ranking (`magnitude`, `taylor`, `obs`, …) |
| pruning ratio of channels | a target: the fraction REMOVED of `params`, `macs` or `units` |
| ignored layers | `--exclude GROUP`; outputs are never units |
| a dependency group | a group, of units that live on one dimension |
| `pruner.step()` changes the model | `path.apply(model, target)` gives a new one |
| fine-tune afterwards | `recover` in closed form; fine-tuning is possible too |

Needs: pip install 'cswap[demo]'
"""

from __future__ import annotations

import copy

import torch
import torch_pruning as tp

import cswap
from cswap.demo import digits, digits_resnet, train


def accuracy(net, data) -> float:
    """Fraction that is right."""
    with torch.no_grad():
        return float((net(data.tensors[0]).argmax(1) == data.tensors[1]).float().mean())


def main() -> dict[str, float]:
    """Accuracy of the whole network, and pruned by each way."""
    data, held_out = digits()
    model = train(digits_resnet(8), data, epochs=8)
    calibration = cswap.calibration_set(data, per_class=24)
    found = {"whole": accuracy(model, held_out)}

    theirs = copy.deepcopy(model)
    pruner = tp.pruner.MagnitudePruner(
        theirs, held_out.tensors[0][:2], importance=tp.importance.MagnitudeImportance(p=2), pruning_ratio=0.15,
        ignored_layers=[theirs.fc],
    )  # fmt: skip
    pruner.step()
    found["Torch-Pruning"] = accuracy(theirs.eval(), held_out)
    found["Torch-Pruning, recovered"] = accuracy(cswap.recover(theirs, model, calibration, how="lstsq"), held_out)

    gone = 1 - sum(p.numel() for p in theirs.parameters()) / sum(p.numel() for p in model.parameters())
    path = cswap.prune_path(model, calibration, target=f"params={gone:.4f}")
    found["cswap"] = accuracy(path.apply(model, f"params={gone:.4f}"), held_out)
    print(f"{gone:.0%} of the parameters gone: " + ", ".join(f"{n} {a:.3f}" for n, a in found.items()))
    return found


if __name__ == "__main__":
    main()
