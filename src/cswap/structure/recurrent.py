"""LSTM, GRU and plain RNN whose hidden units can go one by one: the layers that take the place of torch's own.

torch's modules need one hidden size in all layers and both directions. Here every layer and direction is a `Direction` of
its own size, made of two `Gates`: `ih` reads the input, `hh` the state before. A hidden unit is written by its row in
every gate of both, and read by its column in `hh` (the recurrence) and in whatever follows: that is where a cut acts.
Sources of the equations: torch.nn.LSTM, torch.nn.GRU, torch.nn.RNN.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from cswap.errors import ArtifactError
from cswap.structure.layers import LayerRule

_GATES = {"LSTM": 4, "GRU": 3, "RNN_TANH": 1, "RNN_RELU": 1}
_FUSED: dict[str, Any] = {"LSTM": torch.lstm, "GRU": torch.gru, "RNN_TANH": torch.rnn_tanh, "RNN_RELU": torch.rnn_relu}
_stepwise: ContextVar[bool] = ContextVar("stepwise", default=False)


@contextmanager
def step_by_step() -> Iterator[None]:
    """No fused kernels: every product is a call of `Gates`, so that it can be counted and looked at."""
    token = _stepwise.set(True)
    try:
        yield
    finally:
        _stepwise.reset(token)


def _refit_gates(gates: Gates) -> None:
    gates.out_features, gates.in_features = gates.weight.shape[1], gates.weight.shape[2]


class Gates(nn.Module):
    """x (…, in) → (…, G·H): one linear map a gate. weight (G, H, in), bias (G, H)."""

    layer_rule = LayerRule(
        out=(("weight", 1), ("bias", 1)), inn=(("weight", 2),), mixes=True, refit=_refit_gates, channel=-1
    )

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, gates: int) -> None:
        super().__init__()
        frozen = not weight.requires_grad
        self.weight = nn.Parameter(weight.detach().clone().view(gates, -1, weight.shape[1]), not frozen)
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone().view(gates, -1), not frozen)
        self.in_features, self.out_features = self.weight.shape[2], self.weight.shape[1]
        self.backwards = False  # whether it reads sentences from their end

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight.flatten(0, 1), None if self.bias is None else self.bias.flatten())

    def flat(self) -> nn.Linear:
        """The same map as one linear layer, on the same memory."""
        linear = nn.Linear(self.in_features, len(self.weight) * self.out_features, self.bias is not None, device="meta")
        linear.weight = nn.Parameter(self.weight.detach().view(-1, self.in_features), requires_grad=False)
        if self.bias is not None:
            linear.bias = nn.Parameter(self.bias.detach().view(-1), requires_grad=False)
        return linear


class Direction(nn.Module):
    """One layer in one direction: x (N, L, in) → outputs (N, L, H) and the last states, each (N, H).

    Samples come first whatever the model's layout, so that a cut's rows are rows of what `ih` and `hh` read.
    """

    def __init__(self, kind: str, ih: Gates, hh: Gates, reverse: bool) -> None:
        super().__init__()
        self.kind, self.ih, self.hh, self.reverse = kind, ih, hh, reverse
        self.ih.backwards = reverse

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        if self.reverse:
            x = x.flip(1)
        if not self.ih.out_features == self.hh.out_features == self.hh.in_features:
            # the fused kernels do not look: a torn artifact would make them read beyond the weights
            raise ValueError(
                f"hidden sizes differ: {self.ih.out_features}, {self.hh.out_features}, {self.hh.in_features}"
            )
        looked_at = any(m._forward_hooks or m._forward_pre_hooks for m in (self.ih, self.hh))
        outputs, states = self._steps(x) if looked_at or _stepwise.get() else self._fused(x)
        return outputs.flip(1) if self.reverse else outputs, states

    def _fused(self, x: torch.Tensor) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        weights = [g.weight.flatten(0, 1) for g in (self.ih, self.hh)]
        weights += [g.bias.flatten() for g in (self.ih, self.hh) if g.bias is not None]
        zero = x.new_zeros(1, x.shape[0], self.hh.out_features)
        start = (zero, zero) if self.kind == "LSTM" else zero
        # has_biases, layers, dropout, training, bidirectional, batch_first
        outputs, *states = _FUSED[self.kind](x, start, weights, self.ih.bias is not None, 1, 0.0, False, False, True)
        return outputs, tuple(s[0] for s in states)

    def _steps(self, x: torch.Tensor) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        h = x.new_zeros(x.shape[0], self.hh.out_features)
        c, outputs = h, []
        for gates in self.ih(x).unbind(1):
            if self.kind == "LSTM":
                i, f, g, o = (gates + self.hh(h)).chunk(4, -1)
                c = f.sigmoid() * c + i.sigmoid() * g.tanh()
                h = o.sigmoid() * c.tanh()
            elif self.kind == "GRU":
                (r, z, n), (hr, hz, hn) = gates.chunk(3, -1), self.hh(h).chunk(3, -1)
                z = (z + hz).sigmoid()
                h = (1 - z) * (n + (r + hr).sigmoid() * hn).tanh() + z * h
            else:
                h = (gates + self.hh(h)).tanh() if self.kind == "RNN_TANH" else (gates + self.hh(h)).relu()
            outputs.append(h)
        return torch.stack(outputs, 1), (h, c) if self.kind == "LSTM" else (h,)


class Recurrent(nn.Module):
    """Layers and directions of any sizes: `l0`, `l0_reverse`, `l1`, … in the place of one of torch's modules.

    x: (L, N, in), or (N, L, in) with batch_first → outputs (…, H of the last layer, both directions joined) and the last
    states: (1, N, H) as torch gives them where there is one layer in one direction, else tuples over layers and directions,
    because their sizes may differ.
    """

    def __init__(self, host: nn.RNNBase) -> None:
        super().__init__()
        self.kind, self.batch_first, self.dropout = host.mode, host.batch_first, host.dropout
        self.suffixes = [
            [f"_l{layer}{'_reverse' * way}" for way in range(1 + host.bidirectional)]
            for layer in range(host.num_layers)
        ]
        for suffix in (s for layer in self.suffixes for s in layer):
            ih, hh = (
                Gates(getattr(host, f"weight_{w}{suffix}"), getattr(host, f"bias_{w}{suffix}", None), _GATES[self.kind])
                for w in ("ih", "hh")
            )
            self.add_module(suffix[1:], Direction(self.kind, ih, hh, suffix.endswith("_reverse")))

    def forward(self, x: torch.Tensor, hx: None = None) -> tuple[torch.Tensor, Any]:
        if not isinstance(x, torch.Tensor) or x.dim() != 3 or hx is not None:
            raise TypeError("expected a batch of sequences (three dimensions) and no initial state")
        x = x if self.batch_first else x.transpose(0, 1)
        states = []
        for layer, suffixes in enumerate(self.suffixes):
            found = [self.get_submodule(s[1:])(x) for s in suffixes]
            x = torch.cat([outputs for outputs, _ in found], -1) if len(found) > 1 else found[0][0]
            states += [last for _, last in found]
            if self.training and self.dropout and layer + 1 < len(self.suffixes):
                x = F.dropout(x, self.dropout)
        by_kind = tuple(_last(s) for s in zip(*states, strict=True))
        return x if self.batch_first else x.transpose(0, 1), by_kind if self.kind == "LSTM" else by_kind[0]


def _last(states: tuple[torch.Tensor, ...]) -> torch.Tensor | tuple[torch.Tensor, ...]:
    """What a model finds as the last states, each (N, H): the usual tensor where it can be one whatever the sizes."""
    return states[0].unsqueeze(0) if len(states) == 1 else states


def why_not(module: nn.RNNBase) -> str | None:
    """Why this recurrent module cannot be replaced, or None."""
    if getattr(module, "proj_size", 0):
        return "proj_size projects its hidden units, and the projection is tied over layers"
    if module.mode not in _GATES:
        return f"its kind {module.mode} is not known"
    names = [n for n, _ in module.named_parameters(recurse=False)]
    if any(n not in names for n in module._flat_weights_names):
        return "its weights are computed (a parametrisation), not parameters of its own"
    return None


def replace_recurrent_(model: nn.Module, names: Iterable[str]) -> nn.Module:
    """Put the equivalent in the place of each named recurrent module; returns `model`. What is replaced already stays.

    Raises ArtifactError where there is none.
    """
    for name in names:
        try:
            module = model.get_submodule(name)
        except AttributeError:
            module = None
        if isinstance(module, Recurrent):
            continue
        if not isinstance(module, nn.RNNBase) or why_not(module) is not None:
            raise ArtifactError(f"expected a recurrent module {name!r} that can be replaced; the model has none")
        model.set_submodule(name, Recurrent(module).train(module.training))
    return model


class _Direction(nn.Module):
    def __init__(self, direction: Direction) -> None:
        super().__init__()
        self.ih = nn.Linear(direction.ih.in_features, direction.ih.out_features)


class StandIn(nn.Module):
    """A `Recurrent` as the dependency library can see it: one linear layer `ih` a direction, all steps at once."""

    def __init__(self, host: Recurrent) -> None:
        super().__init__()
        self.kind, self.batch_first, self.suffixes = host.kind, host.batch_first, host.suffixes
        for suffix in (s for layer in host.suffixes for s in layer):
            direction = host.get_submodule(suffix[1:])
            assert isinstance(direction, Direction)
            self.add_module(suffix[1:], _Direction(direction))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, Any]:
        # two dimensions: the library takes a concatenation of three for one over another dimension than the features'
        steps, where = x.shape[int(self.batch_first)], int(self.batch_first)
        x, states = x.mean(where), []
        for suffixes in self.suffixes:
            found = [self.get_submodule(f"{s[1:]}.ih")(x).tanh() for s in suffixes]
            x = torch.cat(found, 1) if len(found) > 1 else found[0]
            states += found
        outputs = x.unsqueeze(where).expand(*(-1, steps, -1) if self.batch_first else (steps, -1, -1))
        last = _last(tuple(states))
        return outputs, (last, last) if self.kind == "LSTM" else last
