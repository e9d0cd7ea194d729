"""Taking inputs out of a least-squares layer, with the closed-form update of what stays (optimal brain surgeon)."""

from __future__ import annotations

import copy

import torch

DAMPING = 1e-3  # of the mean diagonal: what the moments of a few hundred samples cannot tell from zero


def _inverted(moments: torch.Tensor, damping: float, scale: float) -> tuple[torch.Tensor, float]:
    """Of the damped moments, and what was added to their diagonal; ten times the damping where rounding has left none."""
    system = moments.clone()
    system.diagonal().add_(damping * scale)
    factor, failed = torch.linalg.cholesky_ex(system)
    if int(failed):
        return _inverted(moments, 10 * damping, scale)
    return torch.cholesky_inverse(factor), damping * scale


def _solved(system: torch.Tensor, sides: torch.Tensor) -> torch.Tensor:
    """system⁻¹ · sides for a symmetric positive definite system; by LU where rounding has left it none."""
    factor, failed = torch.linalg.cholesky_ex(system)
    found: torch.Tensor = torch.linalg.solve(system, sides) if int(failed) else torch.cholesky_solve(sides, factor)
    return found


class Inverse:
    """The inverse of damped, centred second moments of a layer's inputs, `inverse` (D, D) float64, as inputs go.

    moments: (D, D) centred second moments a row; mean: (D,). Without columns p the best linear guess at them is
    x̂_p = −(H⁻¹_pp)⁻¹ H⁻¹_p,rest (x − mean)_rest, and the outputs' squared error a row rises by tr(W_pᵀ (H⁻¹_pp)⁻¹ W_p) (Hassibi
    and Stork, 1993; by blocks Kurtic et al., 2022, arXiv 2203.07259).
    """

    def __init__(self, moments: torch.Tensor, mean: torch.Tensor, damping: float = DAMPING) -> None:
        scale = float(moments.diagonal().mean())
        self.inverse, self.added = _inverted(moments, damping, scale if scale > 0 else 1.0)
        self.mean = mean
        self.gone = torch.zeros(len(moments), dtype=torch.bool, device=moments.device)

    def among(self, columns: torch.Tensor) -> Inverse:
        """A copy of these columns alone; what `take` and `costs` do to them there, they do here, as long as no other goes."""
        few = copy.copy(self)
        few.inverse, few.mean = self.inverse[columns][:, columns].clone(), self.mean[columns]
        few.gone = self.gone[columns]
        return few

    def filters(self, columns: torch.Tensor, read: torch.Tensor | None = None) -> torch.Tensor:
        """(r, D): rows f with f·(x − mean) = x̂_p − x_p, for each of the r columns p that would go.

        read: (O, r) weights of the columns; then (O, D), their product with the filters, at the price of the fewer rows.
        """
        rows = self.inverse[columns]
        own = rows[:, columns]
        if read is None:
            return -_solved(own, rows)
        return -(_solved(own, read.T.to(rows)).T @ rows)

    def costs(self, blocks: torch.Tensor, weights: torch.Tensor, importance: torch.Tensor) -> torch.Tensor:
        """What taking out each block alone adds to the weighted squared error a row, (B,).

        blocks: (B, k) columns; weights: (D, O), as updated so far; importance: (O,) ≥ 0, what an output's error counts.
        """
        own = self.inverse[blocks.unsqueeze(2), blocks.unsqueeze(1)]  # (B, k, k)
        w = weights[blocks] * importance.clamp_min(0).sqrt()  # (B, k, O)
        found: torch.Tensor = (w * torch.linalg.solve(own, w)).sum((1, 2))
        return found

    def take(self, columns: torch.Tensor, weights: torch.Tensor | None = None) -> None:
        """Take columns out for good; `weights` (D, O) are updated in place, those of the columns becoming zero."""
        filters = self.filters(columns)
        if weights is not None:
            weights += filters.T @ weights[columns]
            weights[columns] = 0.0
        self.inverse.addmm_(self.inverse[:, columns], filters)
        # what is gone takes no part any more: a unit diagonal keeps every later block invertible
        self.inverse[columns] = 0.0
        self.inverse[:, columns] = 0.0
        self.inverse[columns, columns] = 1.0
        self.gone[columns] = True

    def gains(
        self, blocks: torch.Tensor, moments: torch.Tensor, weights: torch.Tensor, original: torch.Tensor, importance: torch.Tensor
    ) -> torch.Tensor:  # fmt: skip
        """What putting back each block that was taken saves of the weighted squared error a row, (B,): the opposite of `costs`.

        blocks: (B, k) columns that are gone; moments: (D, D) damped, of all columns; weights, original: (D, O), as updated and
        as they were at first. By the Schur complement S of a block in the moments of what is kept with it:
        rᵀ S⁻¹ r with r = H_p (W₀ − W).
        """
        count, size = blocks.shape
        columns = blocks.flatten()
        across = moments[:, columns].clone()
        across[self.gone] = 0.0  # what is gone, the blocks too, is no part of what is kept
        through = (self.inverse @ across).view(len(across), count, size)
        own = moments[blocks.unsqueeze(2), blocks.unsqueeze(1)]
        schur = own - torch.einsum("dbi,dbj->bij", across.view(len(across), count, size), through)
        residual = (moments[columns] @ (original - weights)).view(count, size, -1) * importance.clamp_min(0).sqrt()
        found: torch.Tensor = (residual * torch.linalg.solve(schur, residual)).sum((1, 2))
        return found

    def give(self, columns: torch.Tensor, moments: torch.Tensor, weights: torch.Tensor, original: torch.Tensor) -> None:
        """Put columns back that were taken; `weights` (D, O) are updated in place. The opposite of `take`."""
        across = moments[:, columns].clone()
        across[self.gone] = 0.0
        through = self.inverse @ across
        schur = torch.linalg.inv(moments[columns][:, columns] - across.T @ through)
        step = schur @ (moments[columns] @ (original - weights))
        weights -= through @ step
        weights[columns] = step
        self.inverse.addmm_(through @ schur, through.T)
        self.inverse[:, columns] = -through @ schur
        self.inverse[columns] = self.inverse[:, columns].T
        self.inverse[columns.unsqueeze(1), columns] = schur
        self.gone[columns] = False
