"""The one way through: model + data → structure → effects → verdicts → path → surgery → recovery → evaluation → artifact."""

from cswap.pipeline.checks import check_fits, same_classes, task_named
from cswap.pipeline.finish import Finished, finish, verified_copy
from cswap.pipeline.jobs import DataChoice, Machine, PruneJob, Source, Wish, state_hash
from cswap.pipeline.later import apply, choice_of, evaluate, export, original_of
from cswap.pipeline.path import prune_path
from cswap.pipeline.prune import prune
from cswap.pipeline.watch import Both, Clock, Watcher

__all__ = [
    "Both",
    "Clock",
    "DataChoice",
    "Finished",
    "Machine",
    "PruneJob",
    "Source",
    "Watcher",
    "Wish",
    "apply",
    "check_fits",
    "choice_of",
    "evaluate",
    "export",
    "finish",
    "original_of",
    "prune",
    "prune_path",
    "same_classes",
    "state_hash",
    "task_named",
    "verified_copy",
]
