"""Second moments of a layer's inputs and targets, summed in a stream, and the least squares that follow from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from cswap.linear.patches import ALL, Grid, columns_of, groups_of, input_rows, output_rows

_BLOCK = 512


@dataclass(eq=False)
class Moments:
    """Sums over rows, float64: `upper` (G, D, D), products of inputs in and above the blocks of the diagonal, `xy` (G, D, O), `x` (G, D), `y` (G, O), `yy` (G, O), and the number of rows.

    Products of a block are taken in the inputs' own precision and summed in float64.
    """

    upper: torch.Tensor
    xy: torch.Tensor
    x: torch.Tensor
    y: torch.Tensor
    yy: torch.Tensor
    rows: int = 0

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
        a, b = rows.transpose(0, 1), targets.transpose(0, 1)
        for start in range(0, a.shape[2], _BLOCK):  # the lower half is the upper one's mirror
            block = a[:, :, start : start + _BLOCK].transpose(1, 2)
            self.upper[:, start : start + _BLOCK, start:] += torch.bmm(block, a[:, :, start:]).cpu()
        if b.shape[2]:
            self.xy += torch.bmm(a.transpose(1, 2), b.contiguous()).cpu()
        self.x += a.sum(1, dtype=torch.float64).cpu()
        self.y += b.sum(1, dtype=torch.float64).cpu()
        self.yy += b.double().square().sum(1).cpu()
        self.rows += len(rows)

    def second(self) -> torch.Tensor:
        """Sums of products of inputs, (G, D, D), whole."""
        above = self.upper.triu()
        return above + above.triu(1).transpose(1, 2)

    def __add__(self, other: Moments) -> Moments:
        return Moments(
            self.upper + other.upper, self.xy + other.xy, self.x + other.x, self.y + other.y, self.yy + other.yy,
            self.rows + other.rows,
        )  # fmt: skip

    def centred(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Sums of products of what is left without the means: xx (G, D, D), xy (G, D, O)."""
        mean = self.x / max(1, self.rows)
        return (
            self.second() - mean.unsqueeze(2) * self.x.unsqueeze(1),
            self.xy - mean.unsqueeze(2) * self.y.unsqueeze(1),
        )

    def intercept(self, matrix: torch.Tensor) -> torch.Tensor:
        """The constant (G, O) that makes the mean error zero."""
        return (self.y - torch.einsum("gd,gdo->go", self.x, matrix)) / max(1, self.rows)

    def error(self, matrix: torch.Tensor, constant: torch.Tensor) -> float:
        """Σ (y − x·matrix − constant)² over rows and outputs."""
        w, c = matrix, constant
        total = self.yy.sum() + (w * torch.bmm(self.second(), w)).sum() - 2 * (w * self.xy).sum()
        total = total + self.rows * (c * c).sum() - 2 * (c * self.y).sum()
        return float(total + 2 * (c * torch.einsum("gd,gdo->go", self.x, w)).sum())


def ridge(
    moments: Moments, prior: torch.Tensor, strength: float, *, intercept: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """argmin Σ (y − x·W − c)² + strength · mean diagonal · ‖W − prior‖², as (W (G, D, O), c (G, O)), float64.

    prior: (G, D, O), the weights to stay near. The mean diagonal is that of the matrix of second moments (centred with an
    intercept), so that `strength` has no unit. Raises RuntimeError when the system is singular at this strength.
    """
    xx, xy = moments.centred() if intercept else (moments.second(), moments.xy)
    mean = xx.diagonal(dim1=1, dim2=2).mean(1)
    mean = torch.where(mean > 0, mean, torch.ones_like(mean))
    system = xx.clone()
    system.diagonal(dim1=1, dim2=2).add_((strength * mean).unsqueeze(1))
    factor = torch.linalg.cholesky(system)
    matrix = prior + torch.cholesky_solve(xy - torch.bmm(xx, prior), factor)
    constant = moments.intercept(matrix) if intercept else torch.zeros_like(moments.y)
    return matrix, constant
