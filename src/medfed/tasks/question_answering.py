"""Open questions: every example brings its own question, the LLM answers in words (FedKIM's MR, MS and SNC).

There is no head: only the injected LLM answers such a task. Its answers are decoded greedily. If the reference is one
of ``answers`` (yes or no), the likelihoods of ``answers`` are compared as well.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import polars as pl
from jaxtyping import Bool, Int

from medfed.core.errors import DataError
from medfed.datasets.decoded import Decoded
from medfed.tasks.base import Json, Task, TaskSet

__all__ = ["QuestionAnswering"]

QUESTION, CLOSED = "question", "closed"
"""Index columns: the question, and whether it wants one of a few answers."""


class QuestionAnswering(Task):
    """Answer the dataset's own question; ``target`` is the index column of the reference text.

    ``question`` is empty: the dataset's index has the questions.
    """

    kind: ClassVar[str] = "question_answering"
    metric_kind: ClassVar[str] = "questions"
    target: str = "answer"
    question: str = ""
    answers: tuple[str, ...] = ("No", "Yes")

    def targets(self, data: Decoded) -> Int[np.ndarray, " example"]:
        """Index of the reference in ``answers``, in upper or lower case; −1 where it is another text."""
        number = {answer.lower(): index for index, answer in enumerate(self.answers)}
        texts = [str(text).strip().lower() for text in _column(data, self.target)]
        return np.array([number.get(text, -1) for text in texts], dtype=np.int64)

    def usable(self, data: Decoded) -> Bool[np.ndarray, " example"]:
        """Whether an example has a question and a reference."""
        filled = [_column(data, name).fill_null("").str.strip_chars() != "" for name in (QUESTION, self.target)]
        return (filled[0] & filled[1]).to_numpy()

    def questions(self, data: Decoded) -> tuple[str, ...]:
        """Question of every example."""
        return tuple(str(text) for text in _column(data, QUESTION))

    def truths(self, examples: TaskSet) -> list[Json]:
        """Return reference, kind of question, and class index (−1: another text) of every example, in order."""
        references = _column(examples.data, self.target).gather(examples.rows)
        closed = _column(examples.data, CLOSED).fill_null(value=False).gather(examples.rows)
        rows = zip(references, closed, examples.targets.tolist(), strict=True)
        return [{"reference": str(text), "closed": bool(mark), "target": target} for text, mark, target in rows]


def _column(data: Decoded, name: str) -> pl.Series:
    if name not in data.index.columns:
        hint = "ask open questions of a question-answering dataset"
        raise DataError(f"no column {name!r}; known: {', '.join(data.index.columns)}", where=data.name, hint=hint)
    return data.index[name]
