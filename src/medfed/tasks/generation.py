"""Generative question answering: an answer is a string of bytes, trained by teacher forcing and decoded greedily.

Source: EHRXQA (Bae et al. 2023) as in Med-MMFL: chest X-ray, record and question in, a short text out. Answers are
spelled in bytes: no vocabulary is learned on anyone's data, so there is none to agree on and none to leak.
"""

from __future__ import annotations

from collections import Counter
from typing import ClassVar, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from medfed.core.errors import StudyError
from medfed.core.types import Batch
from medfed.datasets.decoded import Decoded
from medfed.tasks.base import Json, Task, TaskSet, TrainableTask

__all__ = ["Generation"]

PAD, BOS, EOS = 0, 1, 2
NUM_SIGNS = 3
"""Ids that are no byte; byte b has the id b + NUM_SIGNS."""
NUM_IDS = 256 + NUM_SIGNS


@runtime_checkable
class Generator(Protocol):
    """A model that writes."""

    def generate(self, task: Task, batch: Batch, length: int) -> Int[Tensor, "batch length"]:
        """Return the ids of every answer, ending in EOS and then PAD, at most ``length`` of them."""


class Generation(TrainableTask):
    """Write the answer to the dataset's own question; ``target`` is the index column of the reference text.

    Splits are dealt by ``strata``, the column of its kind. An answer has ``max_length`` ids at most with its end sign.
    A longer one is cut in training, and cannot be right.
    """

    kind: ClassVar[str] = "generation"
    metric_kind: ClassVar[str] = "generation"
    target: str = "answer"
    strata: str = "answer_type"
    question: str = ""
    answers: tuple[str, ...] = ()
    max_length: int = Field(default=24, gt=1)

    @property
    def target_columns(self) -> tuple[str, ...]:
        """The kind of answer: as strata, answers themselves would be of one example each."""
        return (self.strata,)

    def targets(self, data: Decoded) -> Int[np.ndarray, "example length"]:
        """Ids of every answer; a row of padding where there is none."""
        texts = data.index[self.target].fill_null("")
        return np.stack([ids_of(str(text), self.max_length) for text in texts])

    def usable(self, data: Decoded) -> Bool[np.ndarray, " example"]:
        """Whether an example has an answer."""
        return np.asarray(data.index[self.target].fill_null("") != "", bool)

    def counts(self, examples: TaskSet) -> dict[str, int]:
        """How many examples there are, by kind of answer."""
        kinds = examples.data.index[self.strata].gather(examples.rows).value_counts(sort=True)
        return {str(kind): int(count) for kind, count in sorted(kinds.iter_rows())}

    def questions(self, data: Decoded) -> tuple[str, ...]:
        """Question of every example."""
        return tuple(str(question) for question in data.index["question"])

    def loss(self, outputs: Float[Tensor, "batch length id"], batch: Batch) -> Float[Tensor, ""]:
        """Mean over examples of the mean cross-entropy of the answer's ids; padding does not count."""
        target = batch.target.long()
        losses = F.cross_entropy(outputs.float().flatten(0, 1), target.flatten(), ignore_index=PAD, reduction="none")
        return (losses.view_as(target).sum(1) / (target != PAD).sum(1).clamp(min=1)).mean()

    def respond(self, model: nn.Module, examples: TaskSet) -> list[Json]:
        """Return the text that ``model`` writes for every example; raise StudyError if it cannot write."""
        if not isinstance(model, Generator):
            what, hint = "the model has no decoder, so it cannot answer in words", 'set model = "blip" in the study'
            raise StudyError(what, where=f"task {self.name!r}", hint=hint)
        written = (model.generate(self, batch, self.max_length) for batch in examples.batches_for(model))
        return [text_of(row) for answers in written for row in answers.tolist()]

    def truths(self, examples: TaskSet) -> list[Json]:
        """Return the reference of every example, whole."""
        return [str(text) for text in examples.data.index[self.target].gather(examples.rows)]

    def constants(self, examples: TaskSet) -> dict[str, list[Json]]:
        """Return the reference that most of these examples share: the best exact match that one text can have."""
        text, _ = Counter(self.truths(examples)).most_common(1)[0]
        return {"constant-frequent": [text] * len(examples)}


def ids_of(text: str, length: int) -> Int[np.ndarray, " length"]:
    """Return the bytes of ``text`` as ids, then EOS and padding; a text that is too long is cut and has no EOS."""
    ids = np.full(length, PAD, np.int64)
    if text:
        signs = [*(byte + NUM_SIGNS for byte in text.encode()), EOS][:length]
        ids[: len(signs)] = signs
    return ids


def text_of(ids: list[int]) -> str:
    """Return the text up to the first sign that is no byte; bytes that are not UTF-8 become U+FFFD."""
    end = next((place for place, number in enumerate(ids) if number < NUM_SIGNS), len(ids))
    return bytes(number - NUM_SIGNS for number in ids[:end]).decode("utf-8", errors="replace")
