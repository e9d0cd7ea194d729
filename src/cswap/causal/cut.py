"""The cut `do(n)` by hooks at every consumer and full forward passes. Plain and correct: the fast engine is held to it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from cswap.causal.engine import Engine, Job, Scores
from cswap.causal.layout import sample_dims
from cswap.errors import MethodError
from cswap.structure.groups import Group, Slot, consumers_of
from cswap.structure.images import takes_channels_last
from cswap.structure.layers import channel_dim
from cswap.structure.surgery import prepared_copy, zero_cut_


class _RowsDoNotMatch(Exception):
    """A consumer's input is not laid out sample by sample, so cut sets cannot share a batch."""


class PlainEngine(Engine):
    """Every cut by a full forward pass of the masked network."""

    name = "plain: hooks and full forward passes"

    def __init__(self, model: nn.Module, *args: Any, **settings: Any) -> None:
        super().__init__(model, *args, **settings)
        net = prepared_copy(model, self.structure).eval().requires_grad_(False).to(self.device)
        few = self._ready(self.calibration.inputs(0, 2))
        last = net.to(memory_format=torch.channels_last) if few.dim() == 4 else net
        self.channels_last = takes_channels_last(last, few)
        self._net = last if self.channels_last else last.to(memory_format=torch.contiguous_format)
        self._waiting: dict[str, list[int]] = {}  # removed, and not yet zero in the network
        self._largest = self._probe()
        self._together = self._samples_first()
        self.rows(None)  # refuses a sample that does not fit

    @property
    def net(self) -> nn.Module:
        """The network as it stands, on the device; what was removed since it was last asked for is cut together."""
        if self._waiting:
            zero_cut_(
                self._net, self.structure, {g: np.asarray(sorted(u), dtype=np.int64) for g, u in self._waiting.items()}
            )
            self._waiting = {}
        return self._net

    def _probe(self) -> int:
        """Bytes of the largest input and output of a layer, of one sample; `self.all_bytes`: of all layers' outputs."""
        largest = self.all_bytes = 0

        def see(_m: nn.Module, inputs: Any, output: Any) -> None:
            nonlocal largest
            self.all_bytes += output.numel() * output.element_size() if isinstance(output, torch.Tensor) else 0
            both = [t for t in (*inputs, output) if isinstance(t, torch.Tensor)]
            largest = max(largest, sum(t.numel() * t.element_size() for t in both))

        handles = [m.register_forward_hook(see) for m in self.net.modules()]
        try:
            self.outputs(None, [()], self._ready(self.calibration.inputs(0, 1)))
        finally:
            for handle in handles:
                handle.remove()
        return largest

    def _samples_first(self) -> bool:
        """Whether every consumer's input has its samples in dimension 0, one after the other, so that cut sets may share a batch."""
        try:
            return set(self.sample_dims(self.structure.groups).values()) <= {0}
        except MethodError:
            return False

    def sample_dims(self, groups: Iterable[Group]) -> dict[str, int]:
        """See `layout.sample_dims`, of all layers that read a unit. Raises MethodError."""
        one, other = (self._ready(x) for x in self.calibration.ends())
        return sample_dims(self.net, consumers_of(groups), one, other)

    def rows(self, group: Group | None) -> int:
        return self._rows_for(self._largest // 2, 2 * self._largest)

    def units_together(self, group: Group, samples: int | None = None) -> int:
        return super().units_together(group, samples) if self._together else 1

    def remove(self, group: str, units: Sequence[int]) -> None:
        self._waiting.setdefault(group, []).extend(int(n) for n in units)

    def _evaluate(self, group: Group | None, jobs: list[Job]) -> list[Scores]:
        if not self._together and len(jobs) > 1:
            return [s for j in jobs for s in self._evaluate(group, [j])]
        try:
            inputs = torch.cat([self._inputs(j.start, j.stop) for j in jobs])
            outputs = self.outputs(group, [j.cut for j in jobs], inputs, [j.rows for j in jobs])
        except _RowsDoNotMatch:
            self._together = False
            return self._evaluate(group, jobs)
        return self._scored(outputs, jobs)

    def outputs(
        self, group: Group | None, cuts: Sequence[Sequence[int]], inputs: torch.Tensor, shares: list[int] | None = None
    ) -> Any:
        """The model's outputs; `shares`: how many of the inputs, in order, each cut set is for (by default equally many)."""
        shares = shares or [len(inputs) // len(cuts)] * len(cuts)
        with torch.no_grad(), self._precision(), self._hooked(group, cuts, shares):
            return self.net(inputs)

    @contextmanager
    def _hooked(self, group: Group | None, cuts: Sequence[Sequence[int]], shares: list[int]) -> Iterator[None]:
        handles = []
        try:
            if group is not None and any(len(c) for c in cuts):
                for slot in group.consumers:
                    module = self.net.get_submodule(slot.module)
                    handles.append(module.register_forward_pre_hook(_cut_hook(slot, cuts, shares, channel_dim(module))))
            yield
        finally:
            for handle in handles:
                handle.remove()


def _cut_hook(slot: Slot, cuts: Sequence[Sequence[int]], shares: list[int], dim: int) -> Any:
    """Zero, in each cut set's rows of a consumer's input, the positions its units own."""
    none = np.empty(0, dtype=np.int64)
    positions = [
        torch.from_numpy(np.concatenate([slot.by_unit.get(int(n), none) for n in cut]) if len(cut) else none)
        for cut in cuts
    ]
    rows = sum(shares)

    def hook(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        x = args[0]
        if len(cuts) > 1 and x.shape[0] % rows:
            raise _RowsDoNotMatch
        x = x.clone()
        each, start = x.shape[0] // rows if len(cuts) > 1 else 0, 0
        for index, share in zip(positions, shares, strict=True):
            if len(index):
                part = x[start : start + share * each] if len(cuts) > 1 else x
                part.index_fill_(dim, index.to(x.device, non_blocking=True), 0.0)
            start += share * each
        return (x, *args[1:])

    return hook
