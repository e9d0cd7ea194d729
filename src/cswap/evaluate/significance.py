"""Whether one network is worse than another on the same samples."""

from __future__ import annotations

from cswap.types import BoolArray


def mcnemar(first: BoolArray, second: BoolArray) -> float:
    """One-sided p that `second` is right less often than `first`: both (N,), whether each sample is right.

    Exact, on the samples where they differ (McNemar, 1947): under no difference each is as often right alone.
    """
    from scipy import stats  # here: it takes a second to import

    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    if not only_first + only_second:
        return 1.0
    return float(stats.binomtest(only_first, only_first + only_second, 0.5, alternative="greater").pvalue)
