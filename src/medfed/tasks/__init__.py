"""The task registry: one line per file; each has a tuple ``TASKS``."""

from __future__ import annotations

from medfed.core.registry import collect
from medfed.tasks.base import Task

TASKS: dict[str, Task] = collect(
    (
        "medfed.tasks.fedkim",
        "medfed.tasks.fedkim",
        "medfed.tasks.fedkim",
        "medfed.tasks.retrieval",
        "medfed.tasks.segmentation",
        "medfed.tasks.multilabel",
        "medfed.tasks.fedkim",
        "medfed.tasks.classification",
        "medfed.tasks.generation",
    ),
    "TASKS",
)
