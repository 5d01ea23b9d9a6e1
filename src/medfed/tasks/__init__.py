"""The task registry: one line per task."""

from medfed.registry import by_name
from medfed.tasks.base import Task
from medfed.tasks.fedkim import FEDKIM_TASKS

TASKS: dict[str, Task] = by_name((*FEDKIM_TASKS,))
