"""Eight questions in words, yes/no and open ones, with the answers of a model; their scores are worked out by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from medfed.evaluation.responses import TaskResponses
from medfed.records.schema import TaskFacts
from medfed.study.evaluation import EvaluationSettings

FAST = EvaluationSettings(num_resamples=200)
REFERENCES = ["Yes", "no", "yes", "No", "left lower lobe", "right lower lobe", "the left lower lobe", "axial"]
ANSWERS = ["yes", "yes", "yes.", "", "left lobe", "right lower lobe", "left lower lobe", "coronal"]
TARGETS = [1, 0, 1, 0, -1, -1, -1, -1]
CHANCE = [0.9, 0.6, 0.8, 0.2, 0.5, 0.5, 0.5, 0.5]
FACTS = TaskFacts(role="unseen", kind="questions", answers=("No", "Yes"))


def worded(
    answers: Mapping[str, Sequence[str]] | None = None,
    closed: Sequence[bool] | None = None,
    targets: Sequence[int] = TARGETS,
) -> TaskResponses:
    """Return the eight questions; ``answers`` by model, ``closed`` and ``targets`` by question."""
    closed = [target >= 0 for target in targets] if closed is None else closed
    truths = [
        {"reference": reference, "closed": one, "target": target}
        for reference, one, target in zip(REFERENCES, closed, targets, strict=True)
    ]
    given = {
        model: [{"text": text, "probabilities": [1 - p, p]} for text, p in zip(texts, CHANCE, strict=False)]
        for model, texts in (answers or {"fedkim": ANSWERS}).items()
    }
    examples, patients = [f"e{number}" for number in range(8)], [f"p{number // 2}" for number in range(8)]
    return TaskResponses("asked", FACTS, examples, patients, None, truths, given)
