"""Tasks: what one number a sample, the score σ, means."""

from cswap.tasks.base import Meter, Task
from cswap.tasks.classification import Classification
from cswap.tasks.text import Text

TASKS: dict[str, type] = {"classification": Classification, "text": Text}
"""Registry: add your own class under its name."""

__all__ = ["TASKS", "Classification", "Meter", "Task", "Text"]
