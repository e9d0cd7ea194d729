"""Second moments of a layer's inputs and targets, summed in a stream, and the least squares that follow from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from cswap.linear.patches import ALL, Grid, columns_of, groups_of, input_rows, output_rows

_BLOCK = 512


def too_large(columns: int, memory: int, groups: int = 1) -> str | None:
    """What to say where a fit from so many columns does not fit the memory (bytes); None where it does.

    At once it takes its moments, those of what judges it, the system and its factor.
    """
    needed = 4 * 8 * groups * columns**2
    if needed <= memory:
        return None
    return f"moments of {columns:,} columns need {needed / 2**30:.3g} GiB and {memory / 2**30:.3g} are given (--memory)"


@dataclass(eq=False)
class Moments:
    """Sums over rows, float64, of inputs and targets less the means of the first block (`origin` (G, D), `start` (G, O)).

    `upper` (G, D, D): products of inputs in and above the blocks of the diagonal; `xy` (G, D, O), `x` (G, D), `y` (G, O),
    `yy` (G, O), and the number of rows. Products of a block are taken in the inputs' own precision, at least float32, and summed in float64:
    taken about the first block's means, they keep what large means would round away. Sums lie where the rows come from.
    """

    upper: torch.Tensor
    xy: torch.Tensor
    x: torch.Tensor
    y: torch.Tensor
    yy: torch.Tensor
    origin: torch.Tensor | None = None
    start: torch.Tensor | None = None
    rows: int = 0
    mirrored: bool = False  # whether the lower half of `upper` is the upper one's mirror

    @classmethod
    def empty(cls, groups: int, columns: int, outputs: int) -> Moments:
        """Nothing seen yet."""

        def zeros(*shape: int) -> torch.Tensor:
            return torch.zeros(shape, dtype=torch.float64)

        return cls(
            zeros(groups, columns, columns), zeros(groups, columns, outputs), zeros(groups, columns),
            zeros(groups, outputs), zeros(groups, outputs),
        )  # fmt: skip

    @classmethod
    def of(cls, module: Any, outputs: int) -> Moments:
        """For a layer that is to give `outputs` channels."""
        g = groups_of(module)
        return cls.empty(g, columns_of(module), outputs // g)

    def add(self, module: Any, x: torch.Tensor, y: torch.Tensor, grid: Grid = ALL) -> None:
        """Count the layer's inputs x (N, …) and the outputs y (N, …) it should give, at the places of the grid."""
        targets, start = output_rows(module, y, grid), 0
        for rows in input_rows(module, x, grid):
            part = targets[start : start + len(rows)]
            start += len(rows)
            self.add_rows(rows, part)

    def add_rows(self, rows: torch.Tensor, targets: torch.Tensor) -> None:
        """rows (R, G, D), targets (R, G, O)."""
        if torch.finfo(rows.dtype).bits < 32:  # sums of products would leave float16's range
            rows, targets = rows.float(), targets.float()
        if self.origin is None or self.start is None:
            self._move(rows.device)
            # rounded to the inputs' precision, so that exactly this is subtracted
            self.origin = rows.double().mean(0).to(rows.dtype).double()
            self.start = targets.double().mean(0).to(targets.dtype).double()
        a = (rows - self.origin.to(rows)).transpose(0, 1)
        b = (targets - self.start.to(targets)).transpose(0, 1)
        for start in range(0, a.shape[2], _BLOCK):  # the lower half is the upper one's mirror
            block = a[:, :, start : start + _BLOCK].transpose(1, 2)
            self.upper[:, start : start + _BLOCK, start:] += torch.bmm(block, a[:, :, start:])
        if b.shape[2]:
            self.xy += torch.bmm(a.transpose(1, 2), b.contiguous())
        self.x += a.sum(1, dtype=torch.float64)
        self.y += b.sum(1, dtype=torch.float64)
        self.yy += b.double().square().sum(1)
        self.rows += len(rows)
        self.mirrored = False

    def _move(self, device: torch.device) -> None:
        for name in ("upper", "xy", "x", "y", "yy"):
            setattr(self, name, getattr(self, name).to(device))

    def _places(self) -> tuple[torch.Tensor, torch.Tensor]:
        """What inputs and targets are counted from."""
        if self.origin is None or self.start is None:
            return torch.zeros_like(self.x), torch.zeros_like(self.y)
        return self.origin, self.start

    def mean(self) -> torch.Tensor:
        """Mean input, (G, D)."""
        return self.x / max(1, self.rows) + self._places()[0]

    def _second(self) -> torch.Tensor:
        if not self.mirrored:
            self.upper.triu_()
            self.upper += self.upper.triu(1).transpose(1, 2)
            self.mirrored = True
        return self.upper

    def centred(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Sums of products of what is left without the means: xx (G, D, D), xy (G, D, O)."""
        mean = self.x / max(1, self.rows)
        return (
            self._second() - mean.unsqueeze(2) * self.x.unsqueeze(1),
            self.xy - mean.unsqueeze(2) * self.y.unsqueeze(1),
        )

    def whole(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Sums of products of inputs and targets as they are: xx (G, D, D), xy (G, D, O)."""
        (xx, xy), (s, t), n = self.centred(), self._places(), max(1, self.rows)
        x, y = self.x / n + s, self.y / n + t
        return xx + n * x.unsqueeze(2) * x.unsqueeze(1), xy + n * x.unsqueeze(2) * y.unsqueeze(1)

    def intercept(self, matrix: torch.Tensor) -> torch.Tensor:
        """The constant (G, O) that makes the mean error zero."""
        y = self.y / max(1, self.rows) + self._places()[1]
        return y - torch.einsum("gd,gdo->go", self.mean(), matrix)

    def spread(self) -> float:
        """Σ (y − mean)² over rows and outputs."""
        return float(self.yy.sum() - (self.y**2).sum() / max(1, self.rows))

    def error(self, matrix: torch.Tensor, constant: torch.Tensor) -> float:
        """Σ (y − x·matrix − constant)² over rows and outputs."""
        w, (s, t) = matrix, self._places()
        c = constant + torch.einsum("gd,gdo->go", s, w) - t  # of inputs and targets as they are counted
        total = self.yy.sum() + (w * torch.bmm(self._second(), w)).sum() - 2 * (w * self.xy).sum()
        total = total + self.rows * (c * c).sum() - 2 * (c * self.y).sum()
        return float(total + 2 * (c * torch.einsum("gd,gdo->go", self.x, w)).sum())


class Ridge:
    """argmin Σ (y − x·W − c)² + strength · mean diagonal · ‖W − prior‖², at any strength: what strengths share is made once.

    prior: (G, D, O), the weights to stay near. The mean diagonal is that of the matrix of second moments (centred with an
    intercept), so that a strength has no unit.
    """

    def __init__(self, moments: Moments, prior: torch.Tensor, *, intercept: bool) -> None:
        self.moments, self.prior, self.intercept = moments, prior, intercept
        self._system, xy = moments.centred() if intercept else moments.whole()
        self._gap = xy - torch.bmm(self._system, prior)
        self._diagonal = self._system.diagonal(dim1=1, dim2=2).clone()
        mean = self._diagonal.mean(1, keepdim=True)
        self._mean = torch.where(mean > 0, mean, torch.ones_like(mean))

    def at(self, strength: float) -> tuple[torch.Tensor, torch.Tensor]:
        """W (G, D, O) and c (G, O), float64. Raises RuntimeError when the system is singular at this strength."""
        self._system.diagonal(dim1=1, dim2=2).copy_(self._diagonal + strength * self._mean)
        matrix = self.prior + torch.cholesky_solve(self._gap, torch.linalg.cholesky(self._system))
        return matrix, self.moments.intercept(matrix) if self.intercept else torch.zeros_like(self.moments.y)
