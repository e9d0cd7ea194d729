"""Methods side by side: one network, the same samples, the same held-out data."""

from cswap.compare.job import RATIOS, CompareJob
from cswap.compare.run import compare
from cswap.compare.summary import curve_of, quality_of

__all__ = ["RATIOS", "CompareJob", "compare", "curve_of", "quality_of"]
