"""Tasks: what one number a sample, the score σ, means."""

from cswap.tasks.base import Meter, Task, completed
from cswap.tasks.classification import Classification
from cswap.tasks.detection import Detection, SoftDetection
from cswap.tasks.segmentation import Segmentation, SoftSegmentation
from cswap.tasks.text import Text

TASKS: dict[str, type] = {
    t.name: t for t in (Classification, Text, Segmentation, SoftSegmentation, Detection, SoftDetection)
}  # fmt: skip
"""Registry: add your own class under its name."""

__all__ = [
    "TASKS",
    "Classification",
    "Detection",
    "Meter",
    "Segmentation",
    "SoftDetection",
    "SoftSegmentation",
    "Task",
    "Text",
    "completed",
]
