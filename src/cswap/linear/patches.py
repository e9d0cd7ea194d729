"""A convolution or linear layer as a matrix product: rows of inputs times a matrix of weights, in groups."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from cswap.data.text import unpadded
from cswap.errors import pass_on_out_of_memory

CHUNK_BYTES = 32 << 20  # of unfolded rows: larger blocks cost fresh pages

_PLAIN = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def refusal(module: nn.Module) -> str | None:
    """Why a layer's outputs are not rows times a matrix, or None when they are."""
    if isinstance(module, _ConvTransposeNd):
        return "a transposed convolution adds up patches: not refitted"
    plain = next((c for c in _PLAIN if isinstance(module, c)), None)
    if plain is None:
        return f"{type(module).__name__} is no linear layer"
    if hooked(module):
        return "a hook changes what it reads or gives"
    return None if _is_plain(module, plain) else f"{type(module).__name__} does not use its weights as they are"


def _is_plain(module: Any, plain: Any) -> bool:
    """Whether a layer gives what one of torch's own with its weights does (not one that standardises or scales them)."""
    if type(module).forward is plain.forward and "forward" not in vars(module):
        return True
    x = _some_input(module)
    with torch.no_grad():
        return _alike(module.forward(x), plain.forward(module, x))


def hooked(module: nn.Module) -> bool:
    """Whether hooks change what a layer reads or gives; those that only look do not."""
    if not (module._forward_hooks or module._forward_pre_hooks):
        return False
    x = _some_input(module)
    try:
        with torch.no_grad():
            return not _alike(module(x), module.forward(x))
    except Exception as error:  # noqa: BLE001 — the user's own code, which may take its network's inputs alone
        pass_on_out_of_memory(error)
        return True


def _some_input(module: Any) -> torch.Tensor:
    """Two random samples of a convolution's or linear layer's input."""
    conv = isinstance(module, _ConvNd)
    places = [d * (k - 1) + 2 for k, d in zip(module.kernel_size, module.dilation, strict=True)] if conv else []
    width = module.in_channels if conv else module.in_features
    return torch.randn(2, width, *places, generator=torch.Generator().manual_seed(0)).to(module.weight)


def _alike(mine: Any, theirs: torch.Tensor) -> bool:
    return (
        isinstance(mine, torch.Tensor)
        and mine.shape == theirs.shape
        and bool(torch.isclose(mine, theirs, rtol=1e-3, atol=1e-3 * float(theirs.abs().max())).all())
    )


def groups_of(module: nn.Module) -> int:
    """How many independent matrices the layer is: 1, or the groups of a convolution."""
    return int(module.groups) if isinstance(module, _ConvNd) else 1


def columns_of(module: Any) -> int:
    """D: entries of one row, inputs a group times kernel places."""
    return prod(module.weight.shape[1:])


def matrix_of(module: Any) -> torch.Tensor:
    """The weights as (G, D, O) float64: G groups, D inputs a group (channel-major, then kernel places), O outputs a group."""
    w = module.weight.detach().double()
    g = groups_of(module)
    matrix: torch.Tensor = w.reshape(g, w.shape[0] // g, -1).transpose(1, 2)
    return matrix


def set_matrix(module: Any, matrix: torch.Tensor) -> None:
    """The inverse of `matrix_of`."""
    weight = module.weight
    with torch.no_grad():
        weight.copy_(matrix.transpose(1, 2).reshape(weight.shape).to(weight))


@dataclass(frozen=True)
class Grid:
    """Which places of a convolution's output are rows: every `step`-th along each axis, from a start that moves from sample to
    sample. `first`: where in the turn a batch begins."""

    step: int = 1
    first: int = 0

    def starts(self, sample: int, sizes: Sequence[int]) -> list[int]:
        """Sample `sample`'s first place along each axis: 7 and the number of starts have no common factor, so samples in turn go through all."""
        turn = 7 * (self.first + sample)
        return [(turn // self.step**axis) % min(self.step, size) for axis, size in enumerate(sizes)]


ALL = Grid()
_WIDEST = 4  # few samples should go through all of its starts
_CHEAP = 1 << 15  # rows that narrow layers get besides, at next to no cost


def grid_for(module: Any, rows: int, enough: int) -> int:
    """The widest step, at most `_WIDEST`, that leaves `enough` of a convolution's `rows` rows; 1 for other layers."""
    if not isinstance(module, _ConvNd) or rows <= enough:
        return 1
    return min(_WIDEST, max(1, int((rows / enough) ** (1 / len(module.kernel_size)))))


def _sizes(conv: Any, x: torch.Tensor) -> list[int]:
    """A convolution's output along each axis."""
    nd, padding = len(conv.kernel_size), conv._reversed_padding_repeated_twice
    return [
        (s + sum(padding[2 * (nd - 1 - i) : 2 * (nd - i)]) - d * (k - 1) - 1) // st + 1
        for i, (s, k, d, st) in enumerate(zip(x.shape[2:], conv.kernel_size, conv.dilation, conv.stride, strict=True))
    ]


def at_tokens(module: nn.Module, values: torch.Tensor, inputs: torch.Tensor | None) -> torch.Tensor:
    """What a layer has, of text (`inputs`) without the padding (`unpadded`); along a convolution's sentence padding is a place like others."""
    if inputs is None or isinstance(module, _ConvNd):
        return values
    backwards = getattr(module, "backwards", False) and values.dim() == 3
    return unpadded(values.flip(1) if backwards else values, inputs)


def places_of(module: Any, x: torch.Tensor) -> int:
    """Rows a sample of the layer's inputs x (N, …)."""
    return x[0].numel() // x.shape[-1] if isinstance(module, nn.Linear) else prod(_sizes(module, x))


def moving_grid(module: Any, x: torch.Tensor, chunk: int, samples: int, enough: int) -> Grid:
    """The places of chunk number `chunk`, x (N, …) of `samples` in all, that leave about `enough` rows a column, and `_CHEAP` in all."""
    return Grid(grid_for(module, places_of(module, x) * samples, max(_CHEAP, enough * columns_of(module))), chunk)


def input_rows(module: Any, x: torch.Tensor, grid: Grid = ALL) -> Iterator[torch.Tensor]:
    """The layer's input (N, …) as blocks (rows, G, D), in the order of `output_rows`; a row a sample and place of the grid."""
    if isinstance(module, nn.Linear):
        yield from torch.split(x.reshape(-1, 1, x.shape[-1]), max(1, CHUNK_BYTES // (x.shape[-1] * x.element_size())))
        return
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    padding = module._reversed_padding_repeated_twice
    out = _sizes(module, x)
    per_sample = prod(-(-o // grid.step) for o in out) * x.shape[1] * prod(module.kernel_size) * x.element_size()
    at_once = max(1, CHUNK_BYTES // per_sample)
    for begin in range(0, len(x), at_once):
        part = x[begin : begin + at_once]
        padded = F.pad(part, padding, mode=mode).contiguous() if any(padding) else part.contiguous()
        if grid.step == 1:
            yield _unfolded(module, padded, out, 1, [0] * len(out))
        else:
            starts = [grid.starts(begin + i, out) for i in range(len(part))]
            yield torch.cat([_unfolded(module, padded[i : i + 1], out, grid.step, s) for i, s in enumerate(starts)])


def _unfolded(
    module: Any, padded: torch.Tensor, sizes: Sequence[int], step: int, starts: Sequence[int]
) -> torch.Tensor:
    """Rows (R, G, D) of samples (N, …), padded already, at every `step`-th of the output's places from `starts`."""
    out = [-(-(o - start) // step) for o, start in zip(sizes, starts, strict=True)]
    n, c, *strides = padded.stride()
    moves = [s * st for s, st in zip(strides, module.stride, strict=True)]
    view = padded.as_strided(
        (len(padded), *out, padded.shape[1], *module.kernel_size),
        (n, *(m * step for m in moves), c, *(s * d for s, d in zip(strides, module.dilation, strict=True))),
        padded.storage_offset() + sum(m * start for m, start in zip(moves, starts, strict=True)),
    )  # fmt: skip
    return view.reshape(len(padded) * prod(out), module.groups, -1)


def output_rows(module: Any, y: torch.Tensor, grid: Grid = ALL) -> torch.Tensor:
    """The layer's output (N, …) as (rows, G, O), at the places of the grid."""
    y = y if isinstance(module, nn.Linear) else y.movedim(1, -1)
    if isinstance(module, _ConvNd) and grid.step > 1:
        starts = [grid.starts(i, y.shape[1:-1]) for i in range(len(y))]
        parts = [sample[tuple(slice(s, None, grid.step) for s in at)] for sample, at in zip(y, starts, strict=True)]
        y = torch.cat([part.reshape(-1, y.shape[-1]) for part in parts])
    flat = y.reshape(-1, y.shape[-1])
    return flat.reshape(len(flat), groups_of(module), -1)
