"""Grouped convolutions: which channels of which dimensions can only go together.

A grouped convolution maps each block of input channels to its own block of output channels and to nothing else, as a
depthwise one does with single channels. So a whole block is the unit: its input channels, its filters, its output
channels. What is left is a grouped convolution with fewer groups of the same shape.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from cswap.structure.groups import Slot
from cswap.types import IntArray


@dataclass(frozen=True, eq=False)
class Dimension:
    """One dimension as the dependency graph shows it: `size` channels written by `root`, its slots, or why it is refused.

    `blocks`: (grouped convolution, whether its outputs, positions, owners), which are no slots yet. `writers`: every layer
    that writes these channels, which a refused dimension has no slots to tell.
    """

    root: str
    size: int
    slots: tuple[Slot, ...]
    blocks: tuple[tuple[str, bool, IntArray, IntArray], ...] = ()
    refused: str = ""
    writers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Grouped:
    """A grouped convolution's blocks: input and output channels of one."""

    inn: int
    out: int
    groups: int


class _Sets:
    """Disjoint sets of 0 … n − 1 (union by the smaller root)."""

    def __init__(self, n: int) -> None:
        self.parent = list(range(n))

    def find(self, i: int) -> int:
        while self.parent[i] != i:
            self.parent[i] = self.parent[self.parent[i]]
            i = self.parent[i]
        return i

    def union(self, members: Sequence[int]) -> None:
        first = min(self.find(int(i)) for i in members)
        for i in members:
            self.parent[self.find(int(i))] = first


def joined(dimensions: Sequence[Dimension], convs: dict[str, Grouped]) -> Iterator[Dimension]:
    """Dimensions without blocks as they are; those that share a grouped convolution as one, its units being what must go together."""
    meets = _Sets(len(dimensions))
    for name in convs:
        members = [i for i, d in enumerate(dimensions) if any(b[0] == name for b in d.blocks)]
        if members:
            meets.union(members)
    clusters: dict[int, list[Dimension]] = {}
    for i, d in enumerate(dimensions):
        clusters.setdefault(meets.find(i), []).append(d)
    for cluster in clusters.values():
        yield cluster[0] if not cluster[0].blocks else _one(cluster, convs)


def _one(cluster: list[Dimension], convs: dict[str, Grouped]) -> Dimension:
    """The dimensions of one cluster with the units that grouped convolutions leave them."""
    start = np.concatenate([[0], np.cumsum([d.size for d in cluster])])
    size = int(start[-1])
    root = cluster[0].root
    reason = next((d.refused for d in cluster if d.refused), "")
    writers = tuple(dict.fromkeys(w for d in cluster for w in d.writers))
    inputs: dict[str, list[IntArray]] = {}
    block_of: dict[tuple[str, int], list[int]] = {}
    for d, offset in zip(cluster, start, strict=False):
        for name, writes, positions, owner in d.blocks:
            each = convs[name].out if writes else convs[name].inn
            for block, atom in zip((positions // each).tolist(), (owner + offset).tolist(), strict=True):
                block_of.setdefault((name, block), []).append(atom)
            inputs.setdefault(f"{name}:{'out' if writes else 'in'}", []).append(positions)
    for name in dict.fromkeys(b[0] for d in cluster for b in d.blocks):
        conv = convs[name]
        for side, width in (("in", conv.inn * conv.groups), ("out", conv.out * conv.groups)):
            found = np.concatenate(inputs.get(f"{name}:{side}", [np.empty(0, dtype=np.int64)]))
            if len(np.unique(found)) != width or len(found) != width:
                reason = reason or f"not all channels of the grouped convolution {name} can be pruned"
    if reason:
        return Dimension(root, size, (), (), reason, writers)
    atoms = _Sets(size)
    for members in block_of.values():
        atoms.union(members)
    unit_of = np.unique([atoms.find(i) for i in range(size)], return_inverse=True)[1].astype(np.int64)
    slots: dict[tuple[str, str], Slot] = {}
    for d, offset in zip(cluster, start, strict=False):
        for s in d.slots:
            mine = Slot(s.module, s.side, s.role, s.positions, unit_of[s.owner + offset])
            other = slots.get((s.module, s.side))
            if other is not None:  # two of the joined dimensions lie side by side in one layer, behind a concat
                if np.intersect1d(other.positions, mine.positions).size:
                    why = f"{s.module} meets these channels twice, in different places"
                    return Dimension(root, size, (), (), why, writers)
                mine = Slot(
                    s.module, s.side, s.role,
                    np.concatenate([other.positions, mine.positions]), np.concatenate([other.owner, mine.owner]),
                )  # fmt: skip
            slots[s.module, s.side] = mine
    for name in dict.fromkeys(b[0] for d in cluster for b in d.blocks):
        conv = convs[name]
        owner = np.repeat([unit_of[block_of[name, b][0]] for b in range(conv.groups)], conv.out).astype(np.int64)
        slots[name, "out"] = Slot(name, "out", "channelwise", np.arange(len(owner), dtype=np.int64), owner)
    return Dimension(root, int(unit_of.max()) + 1, tuple(slots.values()), writers=writers)
