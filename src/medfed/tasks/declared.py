"""Tasks as data: a table of ``tasks/*.toml`` is a task, and its ``kind`` the class with loss and metrics."""

from __future__ import annotations

from medfed.core.catalog import task_definitions
from medfed.core.registry import implementation
from medfed.tasks.base import Task

KINDS = {
    "classification": "medfed.tasks.classification:Classification",
    "visual_question": "medfed.tasks.classification:VisualQuestion",
    "multilabel": "medfed.tasks.multilabel:MultiLabel",
    "question_answering": "medfed.tasks.question_answering:QuestionAnswering",
    "generation": "medfed.tasks.generation:Generation",
    "segmentation": "medfed.tasks.segmentation:Segmentation",
    "symile_retrieval": "medfed.tasks.retrieval:SymileRetrieval",
    "pairwise_retrieval": "medfed.tasks.retrieval:PairwiseRetrieval",
}


def task_of(name: str, fields: dict[str, object]) -> Task:
    """Return the task ``name`` of its fields, ``kind`` among them."""
    given = {key: value for key, value in fields.items() if key != "kind"}
    task: Task = implementation(KINDS[str(fields["kind"])]).model_validate({"name": name, **given})
    return task


TASKS: tuple[Task, ...] = tuple(task_of(name, fields) for name, fields in task_definitions().items())
