"""What training recipes share: how weights and report are kept, and the loop of dense networks (AdamW, a rate that rises, falls
and cools, a checkpoint an epoch)."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from _machine import machine


@dataclass(frozen=True)
class Fit:
    """rate: the highest of a one-cycle schedule over `cycle` epochs; in the last `cool` of `epochs` it falls to 0 in a line."""

    epochs: int
    cycle: int
    cool: int
    rate: float
    seed: int
    batch: int
    decay: float = 0.02

    def run(
        self, model: nn.Module, work: Path, samples: int, loss_of: Callable[[torch.Tensor, Any], torch.Tensor]
    ) -> int:
        """Train `model` in place to the last epoch, from the last checkpoint in `work`; returns seconds in all.

        loss_of: from the numbers of a batch's samples and the epoch's random generator.
        """
        work.mkdir(parents=True, exist_ok=True)
        optimiser = torch.optim.AdamW(model.parameters(), lr=self.rate, weight_decay=self.decay)
        steps = samples // self.batch
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, self.rate, total_steps=self.cycle * steps)
        held = {"model": model, "optimiser": optimiser, "schedule": schedule}
        state: dict[str, Any] = {"epoch": 0, "seconds": 0.0}
        if (work / "last.pt").exists():
            state = torch.load(work / "last.pt", weights_only=True)
            for name, part in held.items():
                part.load_state_dict(state[name])
        for epoch in range(state["epoch"], self.epochs):
            begin, generator = time.perf_counter(), torch.Generator().manual_seed(1000 * self.seed + epoch)
            order, total = torch.randperm(samples, generator=generator), 0.0
            model.train()
            for i in range(steps):
                optimiser.zero_grad()
                loss = loss_of(order[self.batch * i : self.batch * (i + 1)], generator)
                loss.backward()
                optimiser.step()
                left = (self.epochs - epoch - (i + 1) / steps) / self.cool
                if left > 1:
                    schedule.step()
                else:
                    optimiser.param_groups[0]["lr"] = schedule.get_last_lr()[0] * left
                total += loss.item()
            state["seconds"] += time.perf_counter() - begin
            print(f"epoch {epoch + 1}/{self.epochs}: loss {total / steps:.4f}, {state['seconds']:.0f} s", flush=True)
            state |= {"epoch": epoch + 1, **{name: part.state_dict() for name, part in held.items()}}
            torch.save(state, work / "next.pt")
            (work / "next.pt").replace(work / "last.pt")
        return round(state["seconds"])


def keep(model: nn.Module, out: Path) -> None:
    """Write float16 weights, and give the model what is left of its own by that."""
    out.parent.mkdir(parents=True, exist_ok=True)
    kept = {k: v.half() if v.is_floating_point() else v for k, v in model.state_dict().items()}
    save_file({k: v.contiguous() for k, v in kept.items()}, out)
    model.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in kept.items()})


def report(out: Path, data: dict[str, Any]) -> None:
    """What was done and reached, beside the weights."""
    text = json.dumps({**data, **machine()}, indent=1)
    out.with_suffix(".json").write_text(text + "\n")
    print(text)
