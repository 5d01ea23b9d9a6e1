"""."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import polars as pl
import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from medfed.core.types import Batch
from medfed.datasets.base import Card
from medfed.datasets.decoded import Decoded
from medfed.tasks.base import Task


class Labels(NamedTuple):
    """What a task makes of a whole dataset, once for all parties that hold some of it."""

    targets: Shaped[np.ndarray, "example *target"]
    questions: tuple[str, ...]

    @classmethod
    def of(cls, task: Task, data: Decoded) -> Labels:
        """Return the targets and the questions of every example."""
        return cls(task.targets(data), task.questions(data))


class TaskSet:
    """The examples of one task that one party (a client, the server's public set, …) may see.

    Args:
        task: the task.
        data: the whole dataset, shared with other parties.
        rows: which of its examples the party sees.
        labels: of the whole dataset, where another set of this task has them; see :meth:`holding`.
    """

    def __init__(
        self, task: Task, data: Decoded, rows: Int[np.ndarray, " example"], labels: Labels | None = None
    ) -> None:
        self.task, self.data, self.rows = task, data, rows
        self.labels = Labels.of(task, data) if labels is None else labels

    @classmethod
    def from_arrays(
        cls,
        task: Task,
        samples: Mapping[str, Shaped[np.ndarray, "example *sample"]],
        targets: Int[np.ndarray, " example"],
        source: str = "arrays",
    ) -> TaskSet:
        """Return one's own arrays as examples of ``task``: every modality present, every example its own patient."""
        count = len(targets)
        ids = [f"{source}-{task.name}-{number}" for number in range(count)]
        index = pl.DataFrame({"example": ids, "patient": ids, task.target: pl.Series(targets, dtype=pl.Int8)})
        card = Card(title=source, version="1", licence="own", access="in memory", citation="none")
        data = Decoded(source, card, index, samples, {name: np.ones(count, bool) for name in samples})
        return cls(task, data, np.arange(count))

    def holding(self, rows: Int[np.ndarray, " example"]) -> TaskSet:
        """Return other ``rows`` of the same task and dataset; what is known of all examples is shared, not copied."""
        return TaskSet(self.task, self.data, rows, self.labels)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def targets(self) -> Shaped[Tensor, "example *target"]:
        """What is right for every example, ``[example, *target]``."""
        return torch.from_numpy(self.labels.targets[self.rows])

    @property
    def examples(self) -> list[str]:
        """Id of every example."""
        return [self.data.examples[row] for row in self.rows]

    @property
    def patients(self) -> list[str]:
        """Patient of every example."""
        return [str(patient) for patient in self.data.index["patient"].gather(self.rows)]

    def batch(self, positions: Int[np.ndarray, " batch"]) -> Batch:
        """Return the examples at ``positions`` (into this set) as one batch."""
        rows = self.rows[positions]
        return Batch(
            {name: torch.from_numpy(self.data.samples[name][rows]) for name in self.task.modalities},
            {name: torch.from_numpy(self.data.present[name][rows]) for name in self.task.modalities},
            torch.from_numpy(self.labels.targets[rows]),
            tuple(self.data.examples[row] for row in rows),
            tuple(self.labels.questions[row] for row in rows) if self.labels.questions else (),
        )

    def batches(self, size: int) -> list[Batch]:
        """Return all examples in order, in batches of at most ``size``."""
        return [self.batch(np.arange(start, min(start + size, len(self)))) for start in range(0, len(self), size)]
