"""The choice of controls, and whether the LLM's own answers follow heads and question."""

from __future__ import annotations

from medfed.records.schema.base import File, Number, Record


class Reuse(Record):
    """The trained heads that answered one task which nobody trained.

    Attributes:
        task: the task that they answered.
        nearest: the trained task whose text is nearest; labels have no part in it.
        best: the trained task with the highest score, in hindsight.
        similarity: trained task → cosine of the texts.
        left_out: trained task → why its head did not answer.
    """

    task: str
    nearest: str | None = None
    best: str | None = None
    similarity: dict[str, Number] = {}
    left_out: dict[str, str] = {}


class AnswerCheck(Record):
    """Whether the injected LLM's answers to one closed task follow the heads, and the question.

    Attributes:
        task: the task.
        rank_correlation: model → Spearman's rank correlation of its answers with the LLM's, over all test examples.
        n: test examples of the question in other words.
        negation: share of them where the negated question has the opposite answer.
        paraphrases: share of answers to paraphrases that equal that to the question.
        opposite, reworded: the questions.
    """

    task: str
    rank_correlation: dict[str, Number] = {}
    n: int = 0
    negation: Number = None
    paraphrases: Number = None
    opposite: str = ""
    reworded: tuple[str, ...] = ()


class ControlFile(File, path="controls.json"):
    """``controls.json``: which controls answered what, and what the LLM's own answers follow.

    Attributes:
        reuse: the heads that answered each unseen task.
        absent: task → control → why it has no answer there.
        answers: closed tasks, and whether the LLM's answers follow heads and question.
    """

    reuse: tuple[Reuse, ...] = ()
    absent: dict[str, dict[str, str]] = {}
    answers: tuple[AnswerCheck, ...] = ()
