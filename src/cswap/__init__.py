"""cswap: makes a trained PyTorch network smaller in one shot, without fine-tuning, and says why each part could go."""

from cswap._version import __version__
from cswap.artifacts.folder import load, open_artifact, save
from cswap.causal.store import DifferenceStore, measure_differences
from cswap.compare import CompareJob
from cswap.compare import compare as compare_methods
from cswap.data.calibration import CalibrationSet, calibration_set
from cswap.errors import CswapError
from cswap.methods import PruningPath, ranking_path, register
from cswap.methods.options import Options
from cswap.pipeline import prune_path
from cswap.recovery import Recovery, recover, recovered
from cswap.structure.discover import discover
from cswap.tasks import Classification, Detection, Segmentation, Task
from cswap.types import Decision, Ratio, Target, Verdict

__all__ = [
    "CalibrationSet", "Classification", "CompareJob", "CswapError", "Decision", "Detection", "DifferenceStore", "Options", "PruningPath", "Ratio", "Recovery", "Segmentation", "Target", "Task",
    "Verdict", "__version__", "calibration_set", "compare_methods", "discover", "load", "measure_differences", "open_artifact", "prune_path", "ranking_path",
    "recover", "recovered", "register", "save",
]  # fmt: skip
