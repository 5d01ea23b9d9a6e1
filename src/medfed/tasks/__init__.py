"""The task registry: one line per file; each has a tuple ``TASKS``."""

from medfed.registry import collect
from medfed.tasks.base import Task

TASKS: dict[str, Task] = collect(
    (
        "medfed.tasks.fedkim",
        "medfed.tasks.findings",
        "medfed.tasks.open",
        "medfed.tasks.symile",
        "medfed.tasks.brats",
        "medfed.tasks.multilabel",
        "medfed.tasks.severity",
        "medfed.tasks.visual_question",
        "medfed.tasks.generation",
    ),
    "TASKS",
)
