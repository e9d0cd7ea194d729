"""Pruning methods: each returns a path. Add your own with `register`."""

from cswap.methods import magnitude, progressive, random
from cswap.methods.path import PruningPath
from cswap.methods.ranking import ranking_path
from cswap.methods.registry import METHODS, register

__all__ = ["METHODS", "PruningPath", "magnitude", "progressive", "random", "ranking_path", "register"]
