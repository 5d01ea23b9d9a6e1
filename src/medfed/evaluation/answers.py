"""What models said about open questions, in words, and its records in ``predictions/<task>.jsonl``.

Questions and references are the dataset's own text: prediction files stay where the run is and are never published.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from medfed.errors import RunError
from medfed.evaluation.evaluate import Role, Row, hash_id

Part = Literal["all", "closed", "open"]
PARTS: tuple[Part, ...] = ("all", "closed", "open")


@dataclass(frozen=True)
class AnswerPredictions:
    """What the models said about the test examples of one open task.

    Attributes:
        task: task name.
        role: "unseen".
        options: the two answers whose likelihoods were compared.
        examples: example ids, raw or hashed.
        patients: patient of every example.
        questions: question of every example.
        references: reference answer of every example, as the dataset has it.
        closed: whether the dataset calls the question closed.
        targets: index of the reference in ``options``, −1 for another text.
        answers: model → decoded answers.
        scores: model → probability of every option.
    """

    task: str
    role: Role
    options: tuple[str, ...]
    examples: Sequence[str]
    patients: Sequence[str]
    questions: Sequence[str]
    references: Sequence[str]
    closed: Bool[np.ndarray, " example"]
    targets: Int[np.ndarray, " example"]
    answers: Mapping[str, Sequence[str]]
    scores: Mapping[str, Float[np.ndarray, "example option"]]

    def __post_init__(self) -> None:
        texts = (self.examples, self.patients, self.questions, self.references, *self.answers.values())
        lengths = {len(column) for column in texts} | {len(values) for values in (self.closed, *self.scores.values())}
        if lengths != {len(self.targets)}:
            raise RunError(
                f"{len(self.targets)} targets, but columns of {sorted(lengths)} examples",
                where=f"predictions of task {self.task}",
                hint="answer every test example, in the order of the references",
            )

    def mask(self, part: Part) -> Bool[np.ndarray, " example"]:
        """Which examples belong to ``part``."""
        return {"all": np.ones(len(self.closed), bool), "closed": self.closed, "open": ~self.closed}[part]


def answer_records(predictions: AnswerPredictions, salt: str) -> list[Row]:
    """Return one JSON-ready record per example, ids hashed with the run's ``salt``; texts stand as they are."""
    return [
        {
            "example": hash_id(salt, predictions.examples[row]),
            "patient": hash_id(salt, predictions.patients[row]),
            "question": predictions.questions[row],
            "reference": predictions.references[row],
            "closed": bool(predictions.closed[row]),
            "target": int(predictions.targets[row]),
            "answers": {model: texts[row] for model, texts in predictions.answers.items()},
            "scores": {model: [float(p) for p in values[row]] for model, values in predictions.scores.items()},
        }
        for row in range(len(predictions.targets))
    ]


def answers_from_records(
    task: str, role: Role, options: tuple[str, ...], records: Sequence[Mapping[str, Any]]
) -> AnswerPredictions:
    """Invert :func:`answer_records`; ids stay hashed."""
    examples, patients, questions, references = (
        [str(record[name]) for record in records] for name in ("example", "patient", "question", "reference")
    )
    first = records[0] if records else {"answers": {}, "scores": {}}
    return AnswerPredictions(
        task,
        role,
        options,
        examples,
        patients,
        questions,
        references,
        np.array([record["closed"] for record in records], dtype=bool),
        np.array([record["target"] for record in records], dtype=np.int64),
        {model: [str(record["answers"][model]) for record in records] for model in first["answers"]},
        {model: np.array([record["scores"][model] for record in records], np.float64) for model in first["scores"]},
    )
