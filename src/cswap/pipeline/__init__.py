"""The one way through: model + data → structure → effects → verdicts → path → surgery → recovery → evaluation → artifact."""

from cswap.pipeline.checks import check_fits, refuse_routed, task_named
from cswap.pipeline.finish import Finished, finish, verified_copy
from cswap.pipeline.jobs import DataChoice, Machine, OtherData, PruneJob, Source, Wish, state_hash
from cswap.pipeline.later import apply, evaluate, export, reopened
from cswap.pipeline.path import prune_path
from cswap.pipeline.prune import prune
from cswap.pipeline.watch import Both, Clock, Watcher

__all__ = [
    "Both",
    "Clock",
    "DataChoice",
    "Finished",
    "Machine",
    "OtherData",
    "PruneJob",
    "Source",
    "Watcher",
    "Wish",
    "apply",
    "check_fits",
    "evaluate",
    "export",
    "finish",
    "prune",
    "prune_path",
    "refuse_routed",
    "reopened",
    "state_hash",
    "task_named",
    "verified_copy",
]
