"""Upper confidence bounds of a mean loss that lies in [−1, 1]. Knows no network: numbers in, numbers out."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from cswap.causal.stats import Moments, upper_mean
from cswap.errors import InputError
from cswap.types import FloatArray

_STEP = 0.0005  # between losses tried as the mean: the bound is rounded up to the next
_AT_ONCE = 64  # samples: most losses are refuted by the first of them
_SHARE = 0.95  # of the largest bet that cannot be lost whole
_PRIOR = 1e-3  # variance before anything was seen


def betting(losses: FloatArray, alpha: float) -> float:
    """The smallest τ on a grid up to 1 for which a gambler against "the mean loss is at least τ" has won 1/α.

    losses: (n,) in [−1, 1], in an order that does not depend on them. The capital Π(1 + λᵢ(τ − Lᵢ)) is a supermartingale
    when the mean is τ or more, whatever the bets λᵢ ∈ [0, 1/(1 − τ)) that are made of what was seen before; so by Ville's
    inequality the bound holds with probability 1 − α at every n, exactly. Bets: the plug-in of Waudby-Smith and Ramdas
    (2024, arXiv 2010.09686, "aGRAPA"). Without any loss it is about 3.2/n at α = 0.05.
    """
    n = len(losses)
    if not n or np.isnan(losses).any():  # NaN refutes nothing
        return 1.0
    taus = _grid(n)
    count = np.arange(n)
    sums = np.concatenate([[0.0], np.cumsum(losses)[:-1]])
    squares = np.concatenate([[0.0], np.cumsum(losses**2)[:-1]])
    mean = sums / (count + 1)  # as if one loss of 0 had been seen
    variance = (_PRIOR + squares) / (count + 1) - mean**2
    kept, capital = np.arange(len(taus)), np.zeros((len(taus), 1))  # those not refuted yet, and what was won
    for i in range(0, n, _AT_ONCE):
        tau, part = taus[kept, None], slice(i, i + _AT_ONCE)
        gap = tau - mean[part]
        bet = np.clip(gap / np.maximum(variance[part] + gap**2, 1e-12), 0.0, _SHARE / np.maximum(1 - tau, 1e-9))
        won = capital + np.cumsum(np.log1p(np.maximum(bet * (tau - losses[part]), -1 + 1e-12)), axis=1)
        left = won.max(axis=1) < np.log(1 / alpha)
        kept, capital = kept[left], won[left, -1:]
        if not len(kept):
            return float(taus[0])
    return float(taus[min(kept[-1] + 1, len(taus) - 1)])


def _grid(n: int) -> FloatArray:
    """Losses tried as the mean, rising to 1: 0.0005 apart, and below 0.05 a hundredth of themselves; the least is 1/n or less, and
    n samples that lost nothing refute about 3/n."""
    fine = np.geomspace(max(min(_STEP, 1 / n), 1e-7), 100 * _STEP, 1 + int(100 * np.log(100 * max(1.0, n * _STEP))))
    return np.unique(np.round(np.concatenate([fine, np.arange(100, 1 + round(1 / _STEP)) * _STEP]), 8))


def bernstein(losses: FloatArray, alpha: float) -> float:
    """The empirical Bernstein bound of Maurer and Pontil (2009, theorem 4), for losses (n,) in [−1, 1]: exact, and wider."""
    n = len(losses)
    if n < 2:
        return 1.0
    log = np.log(2 / alpha)
    bound = losses.mean() + np.sqrt(2 * losses.var(ddof=1) * log / n) + 2 * 7 * log / (3 * (n - 1))
    return float(min(1.0, bound))


def student(losses: FloatArray, alpha: float) -> float:
    """The one-sided t bound: approximate, for losses without heavy tails."""
    if len(losses) < 2 or np.isnan(losses).any():  # moments leave NaN out
        return 1.0
    return float(upper_mean(Moments.of(losses), alpha))


BOUNDS: dict[str, Callable[[FloatArray, float], float]] = {"betting": betting, "bernstein": bernstein, "t": student}
APPROXIMATE = ("t",)


def at_best(samples: int, alpha: float, bound: str) -> float:
    """The least mean loss that so many samples of a class can certify, none of which lost or gained anything."""
    return BOUNDS[bound](np.zeros(samples), alpha)


def check_claim(margin: float, bound: str) -> None:
    """A margin τ is a loss of mean score between 0 and 1, and its bound one of `BOUNDS`. Raises InputError."""
    if not 0 < margin < 1:
        raise InputError(f"margin: expected a number between 0 and 1, got {margin}")
    if bound not in BOUNDS:
        raise InputError(f"bound: expected one of {', '.join(BOUNDS)}, got {bound!r}")
