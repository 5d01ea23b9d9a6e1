"""Examinations of LLMs: options by likelihood, yes against no, texts by token; scored like any task, and paired."""

from __future__ import annotations

import numpy as np
import pytest

from medfed.datasets.examinations import EXAMINATIONS, Question
from medfed.evaluation.score import score_run
from medfed.llm.foundation import Foundation
from medfed.llm.knowledge import examine
from medfed.llm.language_model import LanguageModel
from medfed.study.evaluation import EvaluationSettings
from support.llm_toys import language_model, tokenizer

CHOICE = [Question(str(n), f"Is it {n}?", ("A", "B", "C", "D"), n % 4) for n in range(12)]
CLOSED = [Question(str(n), f"Is it {n}?", ("yes", "no"), n % 2) for n in range(12)]
TEXT = [Question(str(n), f"Is it {n}?", (f"It is {n} round red things",), 0) for n in range(12)]


def toy(**changes: object) -> LanguageModel:
    return LanguageModel(Foundation("toy", language_model(**changes), tokenizer(), {"sha256": "0" * 64}))


def test_an_option_is_chosen_by_the_likelihood_of_its_letter() -> None:
    model = toy()
    _, facts, lines = examine({"before": model}, EXAMINATIONS["medmcqa"], CHOICE)
    pairs = [(one.text, answer) for one in CHOICE for answer in "ABCD"]
    expected = model.likelihoods(pairs, lead="The right letter is").reshape(12, 4)
    found = np.array([line.responses["before"] for line in lines])
    assert found.sum(1) == pytest.approx(np.ones(12))
    assert (found.argmax(1) == expected.argmax(1)).all()
    assert [line.truth for line in lines] == [one.right for one in CHOICE]
    rows = {row.metric: row for row in score_run([("medmcqa", facts, lines)], 0).rows if row.model == "before"}
    assert rows["accuracy"].value == pytest.approx(np.mean(expected.argmax(1) == [one.right for one in CHOICE]))
    assert rows["accuracy"].primary


def test_yes_is_the_positive_answer() -> None:
    model = toy()
    _, facts, lines = examine({"before": model}, EXAMINATIONS["pubmedqa"], CLOSED)
    odds = model.log_odds([one.text for one in CLOSED], ("yes", "no"))
    assert [line.responses["before"][1] > 0.5 for line in lines] == list(odds > 0)
    assert [line.truth for line in lines] == [1 - one.right for one in CLOSED]
    assert facts.answers == ("no", "yes")


def test_a_text_counts_by_its_tokens() -> None:
    model = toy()
    _, _, lines = examine({"before": model}, EXAMINATIONS["medquad"], TEXT)
    (total,) = model.likelihoods([(TEXT[0].text, TEXT[0].answers[0])])
    assert lines[0].responses["before"] == pytest.approx(-total / model.num_tokens(TEXT[0].answers[0]))
    assert lines[0].responses["before"] > 0


def test_two_models_are_compared_question_by_question() -> None:
    models = {"before": toy(), "after": toy(hidden_size=16)}
    for name, questions in (("medmcqa", CHOICE), ("medquad", TEXT)):
        task = examine(models, EXAMINATIONS[name], questions)
        scores = score_run([task], 0, EvaluationSettings(comparisons=(("after", "before"),), num_resamples=100))
        primary = {row.model: row.value for row in scores.rows if row.primary}
        (difference,) = [row for row in scores.differences if row.primary and row.baseline == "before"]
        assert difference.value == pytest.approx(primary["after"] - primary["before"])
        assert difference.ci_low < difference.ci_high
        assert difference.ci_low <= difference.value <= difference.ci_high
