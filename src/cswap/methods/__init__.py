"""Pruning methods: each returns a path. Add your own with `register`."""

from cswap.methods import bulk, deeplift, greedy, joint, lamp, lrp, magnitude, obs, progressive, random, taylor
from cswap.methods.path import PruningPath
from cswap.methods.ranking import ranking_path
from cswap.methods.registry import METHODS, register

__all__ = [
    "METHODS", "PruningPath", "bulk", "deeplift", "greedy", "joint", "lamp", "lrp", "magnitude", "obs", "progressive", "random",
    "ranking_path", "register", "taylor",
]  # fmt: skip
