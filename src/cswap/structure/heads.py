"""From a network with attention to one whose heads can go: which modules are replaced, checked first, and their groups."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import nn

from cswap.errors import pass_on_out_of_memory
from cswap.structure.attention import HeadAttention
from cswap.structure.calls import run_hooked
from cswap.structure.check import TOLERANCE, randomise_, scale_of, tensors_of, widest
from cswap.structure.groups import Group, LeftOut, Slot
from cswap.structure.hosts import Unlike, equivalent_of, is_attention, replace_attention_, widths_of
from cswap.types import IntArray


def attention_of(model: nn.Module, inputs: torch.Tensor, seed: int) -> tuple[dict[str, str], list[LeftOut]]:
    """Attention modules that have an equivalent, and the kind of each; the others with the reason.

    Equality is checked on a randomised copy, on what each module gets when the model takes `inputs`, then as a whole on
    the model itself. `model` is untouched.
    """
    names = [n for n, _ in model.named_modules(remove_duplicate=False)]
    if not any(n and is_attention(m) for n, m in model.named_modules()):
        return {}, []
    found: dict[str, str] = {}
    left_out: list[LeftOut] = []
    made: dict[str, HeadAttention] = {}
    trial = randomise_(copy.deepcopy(model), seed, inputs).requires_grad_(False)
    modules = dict(trial.named_modules())
    for name, module in modules.items():
        try:
            equivalent = equivalent_of(module) if name and not isinstance(module, HeadAttention) else None
            if equivalent is not None and sum(modules.get(n) is module for n in names) > 1:
                raise Unlike("two modules of the model are this one")
            if equivalent is not None and equivalent.reader_of(name) not in {*names, f"{name}.out"}:
                raise Unlike(f"the layer that reads its heads is not at {equivalent.reader_of(name)}")
        except Unlike as reason:
            left_out.append(LeftOut(name, int(getattr(module, "num_heads", 0)), f"attention: {reason}"))
            continue
        if equivalent is not None:
            made[name] = equivalent
    for name, why in _compared(trial, made, inputs).items():
        if why:
            left_out.append(LeftOut(name, made[name].core.heads, f"attention: {why}"))
        else:
            found[name] = made[name].kind
    return (found, left_out) if not found or _same(model, found, inputs) else ({}, [*left_out, *_undone(found, made)])


def _undone(found: dict[str, str], made: dict[str, HeadAttention]) -> list[LeftOut]:
    why = "attention: replaced all at once, the model gives other outputs"
    return [LeftOut(n, made[n].core.heads, why) for n in found]


def _compared(trial: nn.Module, made: dict[str, HeadAttention], inputs: torch.Tensor) -> dict[str, str]:
    """By name, why an equivalent may not take its module's place; empty where it may. Never called: not among them."""
    why: dict[str, str] = {}
    handles = []
    for name, equivalent in made.items():

        def hook(
            _m: nn.Module, args: Any, kwargs: Any, out: Any, name: str = name, mine: nn.Module = equivalent
        ) -> None:
            try:
                again = mine(*args, **kwargs)
            except Exception as error:  # noqa: BLE001 — a module of another signature or wiring
                pass_on_out_of_memory(error)
                said = (str(error).splitlines() or [""])[0][:100]
                why[name] = f"its equivalent does not run ({type(error).__name__}: {said})"
                return
            if isinstance(out, torch.Tensor) != isinstance(again, torch.Tensor):
                why[name] = "it returns a tensor alone, or its equivalent does"
            first, second = tensors_of(out)[:1], tensors_of(again)[:1]
            off = widest(list(zip(first, second, strict=False))) if first else float("inf")
            if not off <= TOLERANCE * scale_of(first):
                why[name] = f"its equivalent gives other outputs (by {off:.2g})"
            why.setdefault(name, "")

        handles.append(trial.get_submodule(name).register_forward_hook(hook, with_kwargs=True))
    run_hooked(trial, inputs, handles)
    return why


def _same(model: nn.Module, names: Iterable[str], inputs: torch.Tensor) -> bool:
    """Whether the model with these modules replaced gives the same outputs, and has as many parameters."""
    other = replace_attention_(copy.deepcopy(model), names)
    if sum(p.numel() for p in other.parameters()) != sum(p.numel() for p in model.parameters()):
        return False  # a tensor is shared with another module
    with torch.no_grad():
        before, after = tensors_of(model(inputs)), tensors_of(other(inputs))
    return bool(widest(list(zip(before, after, strict=True))) <= TOLERANCE * scale_of(before))


def head_groups(model: nn.Module, names: Iterable[str]) -> list[Group]:
    """The groups of every replaced attention; see attention.py for what their units are."""
    groups: list[Group] = []
    for name in names:
        module = model.get_submodule(name)
        assert isinstance(module, HeadAttention)
        groups += _groups(module, name)
    return groups


def _groups(module: HeadAttention, name: str) -> list[Group]:
    core, reader = module.core, module.reader_of(name)
    heads, qk, v = core.heads, len(core.weight) // core.heads, len(core.v_head) // core.heads

    def slots(where: list[tuple[str, str, str]], positions: IntArray, owner: IntArray) -> list[Slot]:
        return [Slot(f"{name}.{m}" if m != reader else m, s, r, positions, owner) for m, s, r in where]  # type: ignore[arg-type]

    of_qk = [("q", "out", "producer"), ("k", "out", "producer")]
    of_v = [("v", "out", "producer"), ("core", "out", "channelwise"), (reader, "in", "consumer")]
    every = np.arange(heads, dtype=np.int64)
    whole = slots([*of_qk, ("core", "in", "channelwise")], np.arange(heads * qk), every.repeat(qk))
    whole += slots(of_v, np.arange(heads * v), every.repeat(v))
    if getattr(module, "bias", None) is not None:
        whole += slots([("bias", "out", "channelwise")], every, every)
    groups = [Group(f"{name}.q#heads", heads, tuple(whole))] if heads > 1 else []
    for h in range(heads):
        if v > 1:
            groups.append(Group(f"{name}.v#v{h}", v, tuple(slots(of_v, np.arange(h * v, (h + 1) * v), np.arange(v)))))
        if qk > 1:
            where = [*of_qk, ("core", "in", "consumer")]
            own = slots(where, np.arange(h * qk, (h + 1) * qk), np.arange(qk))
            groups.append(Group(f"{name}.q#qk{h}", qk, tuple(own)))
    return groups


class Whole(nn.Linear):
    """What the dependency library sees of an attention: its input and output widths. `read`: its output is the heads'."""

    read = False


class StandIn(nn.Module):
    """One linear layer in the place of an attention, with what its kind returns around the first result."""

    def __init__(self, host: HeadAttention) -> None:
        super().__init__()
        out = host.out if isinstance(host.out, nn.Linear) else host.v
        self.whole, self.alone = Whole(host.q.in_features, out.out_features), host.alone
        self.memory = Whole(host.k.in_features, out.out_features)
        self.whole.read = self.memory.read = out is host.v
        # an encoder layer of PyTorch's own asks for these
        for name in ("batch_first", "num_heads", "in_proj_bias", "_qkv_same_embed_dim"):
            if hasattr(host, name):
                setattr(self, name, getattr(host, name))

    def forward(self, x: torch.Tensor, *others: Any, **named: Any) -> Any:
        """x (…, E) → (…, E'), or a pair with None. What it attends to besides x is behind it too: an encoder is, say."""
        out = self.whole(x)
        for other in (*others, *named.values()):
            if (
                isinstance(other, torch.Tensor)
                and other is not x
                and other.requires_grad  # a mask has no layer behind it
                and other.shape[-1:] == (self.memory.in_features,)
            ):
                out = out + self.memory(other).mean(tuple(range(other.dim() - 1)))
        return out if self.alone else (out, None)


class Closed(nn.Module):
    """One linear layer in the place of an attention whose heads cannot go: the library need not, and may never, see through."""

    def __init__(self, inputs: int, outputs: int, alone: bool) -> None:
        super().__init__()
        self.whole, self.alone = Whole(inputs, outputs), alone

    def forward(self, *given: Any, **named: Any) -> Any:
        """hidden_states (…, E) → (…, E'), or a pair with None."""
        out = self.whole(given[0] if given else named["hidden_states"])
        return out if self.alone else (out, None)


def with_whole_heads(model: nn.Module, names: Iterable[str]) -> nn.Module:
    """A copy to be traced by the dependency library, each replaced attention, and each of other libraries', being one layer."""
    traced = copy.deepcopy(model)
    for name, module in list(traced.named_modules()):
        if name and (widths := widths_of(module)) is not None:
            traced.set_submodule(name, Closed(*widths))
    for name in names:
        module = traced.get_submodule(name)
        assert isinstance(module, HeadAttention)
        traced.set_submodule(name, StandIn(module))
    return traced


def names_in(traced: nn.Module) -> dict[nn.Module, str]:
    """Names of the modules of a copy that was made for tracing; an attention's one layer has the attention's."""
    return {m: n.rpartition(".")[0] if isinstance(m, Whole) else n for n, m in traced.named_modules()}
