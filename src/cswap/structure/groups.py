"""Units and groups as data: which dimension of which layer each unit lives on. Knows no dependency library."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from functools import cached_property
from typing import Any, Literal

import numpy as np

from cswap.errors import InputError
from cswap.types import IntArray

WIDEST = 10**8
"""Positions that a slot read from a file may have."""

Side = Literal["out", "in"]
Role = Literal["producer", "consumer", "channelwise"]


@dataclass(frozen=True, eq=False)
class Slot:
    """Where the units of a group live in one layer.

    `positions` (P,): indices on that side of the layer; `owner` (P,): the unit each belongs to. Behind a flatten a unit
    owns several positions; behind a concat the positions are offset.
    """

    module: str
    side: Side
    role: Role
    positions: IntArray
    owner: IntArray

    def of(self, units: IntArray) -> IntArray:
        """All positions the given units own, sorted."""
        return np.sort(self.positions[np.isin(self.owner, units)])

    @cached_property
    def by_unit(self) -> dict[int, IntArray]:
        """Positions of each unit."""
        order = np.argsort(self.owner, kind="stable")
        owners, starts = np.unique(self.owner[order], return_index=True)
        parts = np.split(self.positions[order], starts[1:])
        return dict(zip(owners.tolist(), parts, strict=True))

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values; the usual one-to-one case is written as its length."""
        identity = np.array_equal(self.positions, np.arange(len(self.positions))) and np.array_equal(
            self.owner, self.positions
        )
        where: dict[str, Any] = (
            {"identity": len(self.positions)}
            if identity
            else {"positions": self.positions.tolist(), "owner": self.owner.tolist()}
        )
        return {"module": self.module, "side": self.side, "role": self.role, **where}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Slot:
        """The inverse of `as_dict`; raises KeyError, TypeError or ValueError on malformed data."""
        if "identity" in data:
            if not 0 <= int(data["identity"]) <= WIDEST:
                raise ValueError(f"a width of {data['identity']}")
            positions = np.arange(int(data["identity"]), dtype=np.int64)
            owner = positions
        else:
            positions = np.asarray(data["positions"], dtype=np.int64)
            owner = np.asarray(data["owner"], dtype=np.int64)
        if data["side"] not in ("out", "in") or data["role"] not in ("producer", "consumer", "channelwise"):
            raise ValueError(f"unknown side or role in {data['module']!r}")
        return cls(str(data["module"]), data["side"], data["role"], positions, owner)


@dataclass(frozen=True, eq=False)
class Group:
    """All units that live on one dimension, in index order; `name` is its first producer in forward order."""

    name: str
    size: int
    slots: tuple[Slot, ...]

    @cached_property
    def producers(self) -> tuple[Slot, ...]:
        """Where the units are written."""
        return tuple(s for s in self.slots if s.role == "producer")

    @cached_property
    def consumers(self) -> tuple[Slot, ...]:
        """Where the units are read by weights: the only place a cut acts."""
        return tuple(s for s in self.slots if s.role == "consumer")

    @cached_property
    def channelwise(self) -> tuple[Slot, ...]:
        """Layers that act on the units one by one: norms, depthwise convolutions."""
        return tuple(s for s in self.slots if s.role == "channelwise")

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"name": self.name, "size": self.size, "slots": [s.as_dict() for s in self.slots]}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Group:
        """The inverse of `as_dict`."""
        return cls(str(data["name"]), int(data["size"]), tuple(Slot.from_dict(s) for s in data["slots"]))


@dataclass(frozen=True)
class LeftOut:
    """A dimension that is not pruned, and the reason. `layers`: the others that write the same channels."""

    name: str
    size: int
    reason: str
    layers: tuple[str, ...] = ()

    @classmethod
    def group(cls, group: Group, reason: str) -> LeftOut:
        """A whole group that is left out."""
        layers = tuple(s.module for s in group.producers if s.module != group.name)
        return cls(group.name, group.size, reason, layers)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"name": self.name, "size": self.size, "reason": self.reason, "layers": list(self.layers)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> LeftOut:
        """The inverse of `as_dict`; older artifacts name no layers."""
        layers = tuple(str(n) for n in data.get("layers", ()))
        return cls(str(data["name"]), int(data["size"]), str(data["reason"]), layers)


@dataclass(frozen=True)
class LayerCost:
    """A layer's original sizes: tensor shapes by name, MACs a sample, its size a side, and the axes of each side.

    `axes`: side -> (tensor name, dimension) pairs. A channel-by-channel layer has the side "out" alone. `additive`: MACs go
    with the sum of the sides' sizes, not with their product.
    """

    tensors: dict[str, tuple[int, ...]]
    macs: int
    sides: dict[str, int]
    axes: dict[str, tuple[tuple[str, int], ...]]
    additive: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "tensors": {t: list(s) for t, s in self.tensors.items()},
            "macs": self.macs,
            "sides": self.sides,
            "axes": {side: [list(a) for a in axes] for side, axes in self.axes.items()},
            **({"additive": True} if self.additive else {}),
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> LayerCost:
        """The inverse of `as_dict`."""
        return cls(
            {str(t): tuple(int(v) for v in s) for t, s in data["tensors"].items()},
            int(data["macs"]),
            {str(k): int(v) for k, v in data["sides"].items()},
            {str(k): tuple((str(t), int(d)) for t, d in axes) for k, axes in data["axes"].items()},
            bool(data.get("additive", False)),
        )


@dataclass(frozen=True, eq=False)
class Structure:
    """What can be pruned in one network, from the output to the input, and what cannot.

    `total_params`, `total_macs` (one sample) count the whole network; `layers` only those a group touches. `replaced`: names
    of modules that must become equivalent ones before anything is cut, and the kind of each (see attention.py, recurrent.py).
    `pace`: milliseconds a MAC of each group on a machine, where they were measured.
    """

    groups: tuple[Group, ...]
    left_out: tuple[LeftOut, ...]
    uncalled: tuple[str, ...]
    layers: dict[str, LayerCost]
    total_params: int
    total_macs: int
    input_shape: tuple[int, ...]
    replaced: dict[str, str] = field(default_factory=dict)
    pace: dict[str, float] = field(default_factory=dict)
    _by_name: dict[str, Group] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_by_name", {g.name: g for g in self.groups})

    def __iter__(self) -> Iterator[Group]:
        return iter(self.groups)

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, name: str) -> Group:
        if name not in self._by_name:
            raise InputError(f"no group {name!r}; the groups are: {', '.join(self._by_name) or 'none'}")
        return self._by_name[name]

    @property
    def units(self) -> int:
        """Number of units in all groups."""
        return sum(g.size for g in self.groups)

    def select(self, only: tuple[str, ...] = (), exclude: tuple[str, ...] = ()) -> Structure:
        """The same network with the groups whose name matches `only` and not `exclude` (shell patterns).

        Parameters and MACs keep counting the whole network, units those selected. Raises InputError when a pattern matches no group.
        """
        names = [g.name for g in self.groups]
        for pattern in (*only, *exclude):
            if not any(fnmatch(n, pattern) for n in names):
                raise InputError(f"pattern {pattern!r} matches no group; the groups are: {', '.join(names)}")
        kept: list[Group] = []
        dropped: list[Group] = []
        for group in self.groups:
            wanted = (not only or any(fnmatch(group.name, p) for p in only)) and not any(
                fnmatch(group.name, p) for p in exclude
            )
            (kept if wanted else dropped).append(group)
        if not kept:
            raise InputError("--only and --exclude together leave no group to prune")
        reasons = tuple(LeftOut.group(g, "excluded by --only or --exclude") for g in dropped)
        return replace(self, groups=tuple(kept), left_out=self.left_out + reasons)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values, enough to shrink and to count without analysing the network again."""
        return {
            "groups": [g.as_dict() for g in self.groups],
            "left_out": [x.as_dict() for x in self.left_out],
            "uncalled": list(self.uncalled),
            "layers": {n: c.as_dict() for n, c in self.layers.items()},
            "total_params": self.total_params,
            "total_macs": self.total_macs,
            "input_shape": list(self.input_shape),
            "replaced": self.replaced,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Structure:
        """The inverse of `as_dict`."""
        return cls(
            groups=tuple(Group.from_dict(g) for g in data["groups"]),
            left_out=tuple(LeftOut.from_dict(x) for x in data["left_out"]),
            uncalled=tuple(str(n) for n in data["uncalled"]),
            layers={str(n): LayerCost.from_dict(c) for n, c in data["layers"].items()},
            total_params=int(data["total_params"]),
            total_macs=int(data["total_macs"]),
            input_shape=tuple(int(v) for v in data["input_shape"]),
            replaced={str(n): str(k) for n, k in data.get("replaced", {}).items()},
        )


Removed = dict[str, IntArray]
"""Units removed, by group name: sorted original indices."""


def consumers_of(groups: Iterable[Group]) -> list[str]:
    """Names of all layers that read a unit, each once."""
    return list(dict.fromkeys(s.module for g in groups for s in g.consumers))
