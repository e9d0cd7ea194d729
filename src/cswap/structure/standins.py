"""What the dependency library is shown in the place of layers it cannot see, and which recurrent modules may be replaced."""

from __future__ import annotations

import copy

import torch
from torch import nn

from cswap.errors import pass_on_out_of_memory
from cswap.structure.check import TOLERANCE, randomise_, scale_of, tensors_of, widest
from cswap.structure.groups import LeftOut, Slot
from cswap.structure.layers import is_frozen_norm
from cswap.structure.recurrent import Direction, Recurrent, StandIn, replace_recurrent_, why_not


class _Norm(nn.BatchNorm2d):
    """A frozen batch norm, and what else its class holds (an activation, a dropout), as a batch norm."""

    def __init__(self, host: nn.Module) -> None:
        super().__init__(host.get_buffer("weight").shape[0])
        for name, child in host.named_children():
            self.add_module(name, child)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = super().forward(x)
        for child in self.children():
            x = child(x)
        return x


def with_stand_ins(model: nn.Module) -> nn.Module:
    """A copy to be traced: frozen batch norms as batch norms, recurrent layers as linear ones, all under their own names."""
    traced = copy.deepcopy(model)
    for name, module in list(traced.named_modules()):
        if is_frozen_norm(module):
            traced.set_submodule(name, _Norm(module).eval())
        elif isinstance(module, Recurrent):
            traced.set_submodule(name, StandIn(module))
    return traced


def recurrent_of(model: nn.Module, inputs: torch.Tensor, seed: int) -> tuple[dict[str, str], list[LeftOut]]:
    """Recurrent modules that have an equivalent, and the kind of each; the others with the reason.

    Equality is checked on a randomised copy, at the model's outputs. `model` is untouched.
    """
    found: dict[str, str] = {}
    left_out: list[LeftOut] = []
    hosts = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.RNNBase)]
    if not hosts:
        return found, left_out
    trial = randomise_(copy.deepcopy(model), seed, inputs).requires_grad_(False)
    every = [m for _, m in model.named_modules(remove_duplicate=False)]
    for name, host in hosts:
        why = why_not(host)
        if sum(m is host for m in every) > 1:
            why = "it is in the model under two names"
        why = why or _differs(trial, name, inputs)
        if why:
            left_out.append(LeftOut(name, host.hidden_size, f"{type(host).__name__}: {why}"))
        else:
            found[name] = host.mode.lower()
    return found, left_out


def _differs(model: nn.Module, name: str, inputs: torch.Tensor) -> str | None:
    """Why the equivalent of this module may not take its place, or None."""
    if not name:
        return "it is the whole model"
    with torch.no_grad():
        before = tensors_of(model(inputs))
        try:
            after = tensors_of(replace_recurrent_(copy.deepcopy(model), [name])(inputs))
        except Exception as error:  # noqa: BLE001 — whatever it raises is the reason to leave the module alone
            pass_on_out_of_memory(error)
            return f"its equivalent does not run ({type(error).__name__}: {str(error).splitlines()[0][:120]})"
    off = widest(list(zip(before, after, strict=True))) if len(before) == len(after) else float("inf")
    return None if off <= TOLERANCE * scale_of(before) else f"its equivalent gives other outputs (by {off:.2g})"


def with_recurrence(slots: list[Slot], model: nn.Module) -> list[Slot]:
    """Hidden units that the library saw written by `ih` are written and read by `hh` too."""
    made = []
    for s in slots:
        owner, _, leaf = s.module.rpartition(".")
        if s.side == "out" and leaf == "ih" and owner and isinstance(model.get_submodule(owner), Direction):
            made.append(Slot(f"{owner}.hh", "out", "producer", s.positions, s.owner))
            made.append(Slot(f"{owner}.hh", "in", "consumer", s.positions, s.owner))
    return [*slots, *made]
