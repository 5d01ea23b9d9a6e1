"""Controls around an injected LLM: without the patient, with heads that others trained, and in other words."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from medfed.evaluation import controls
from medfed.injection.inject import Injector
from medfed.runs.controls import Blind, ReusedHeads, best_of, with_data_of, without_data
from medfed.runs.predictors import INJECTED, InjectedPredictor
from medfed.tasks.base import TaskSet
from medfed.tasks.question_answering import QuestionAnswering
from support.llm_toys import BOTH, IMAGE, WORDY, examples, federated_model, injector, public

UNSEEN = IMAGE.model_copy(update={"name": "unseen", "question": "Is it big?"})
ASKED = QuestionAnswering(
    name="asked",
    title="Asked",
    dataset="toy",
    modalities=("image",),
    task_description="Questions on images.",
    modality_description="Text and image",
)


def trained() -> Injector:
    server = injector()
    for number in (1, 2):
        list(server.inject(public(), number))
    return server


def questions(size: int = 9) -> TaskSet:
    """Images with three questions, of which one has a text for an answer."""
    data = examples(IMAGE, size).data
    texts = ["Is it round?", "What is it?", "Is it red?"]
    answers = ["Yes", "a red thing", "No"]
    columns = [
        pl.Series("question", [texts[number % 3] for number in range(size)]),
        pl.Series("answer", [answers[number % 3] for number in range(size)]),
        pl.Series("closed", [number % 3 != 1 for number in range(size)]),
    ]
    asked = replace(data, index=data.index.with_columns(columns))
    return TaskSet(ASKED, asked, np.arange(size))


def test_another_patients_data_give_that_patients_answer() -> None:
    server, held = trained(), examples(UNSEEN, 20)
    blind = Blind(InjectedPredictor(server, 4), public(), 3)
    given = blind(held)
    assert given.keys() == {INJECTED, controls.OTHER, controls.NO_DATA}
    order = np.array([given[INJECTED].index(answer) for answer in given[controls.OTHER]])
    again = InjectedPredictor(server, 4)(with_data_of(held, order))[INJECTED]
    np.testing.assert_allclose(again, given[controls.OTHER], atol=1e-6)
    assert sorted(given[controls.OTHER]) == sorted(given[INJECTED])
    assert (order != np.arange(20)).all()
    assert given == blind(held), "the permutation is fixed"


def test_without_data_all_patients_get_the_answer_of_an_empty_prompt() -> None:
    server, held = trained(), examples(BOTH, 6)
    given = Blind(InjectedPredictor(server, 4), public(), 0)(held)[controls.NO_DATA]
    assert len({tuple(row) for row in given}) == 1
    empty = InjectedPredictor(server, 4)(without_data(held))[INJECTED]
    np.testing.assert_allclose(given, empty, atol=1e-6)
    for name in held.data.samples:  # what lies behind the mask must not matter
        held.data.samples[name][:] = 100.0
    again = Blind(InjectedPredictor(server, 4), public(), 0)(held)[controls.NO_DATA]
    np.testing.assert_allclose(given, again, atol=1e-6)


def test_open_questions_keep_their_question_and_lose_the_patient() -> None:
    server, held = trained(), questions()
    blind = Blind(InjectedPredictor(server, 4), public(), 0)
    given = blind(held)
    empty = InjectedPredictor(server, 4)(without_data(held))[INJECTED]
    assert [row["text"] for row in given[controls.NO_DATA]] == [row["text"] for row in empty]
    mine, other = (np.array([row["probabilities"] for row in given[name]]) for name in (INJECTED, controls.OTHER))
    assert not np.allclose(mine, other, atol=1e-4)
    assert controls.BY_TYPE not in given, "public data without questions know no answer by type"


def test_the_answer_by_type_is_the_most_frequent_public_one() -> None:
    held = questions()
    known = replace(held.data, index=held.data.index)
    asked = TaskSet(ASKED, known, np.array([0, 2, 3, 5]))
    given = Blind(InjectedPredictor(trained(), 4), {"vqa": asked}, 0)(held)[controls.BY_TYPE]
    assert given[0] == {"text": "No", "probabilities": [0.5, 0.5]}, "two answers each to 'is it'; the first on a tie"
    assert given[1]["probabilities"] == [0.5, 0.5], "a type that public data lack has the answer to all"


def test_heads_answer_what_they_were_not_trained_on() -> None:
    model, held = federated_model(), examples(UNSEEN, 30)
    twin = IMAGE.model_copy(update={"name": "image-task", "question": "Is it large?"})
    heads = ReusedHeads(model, (IMAGE, BOTH), ("Is it big?", "Is it round?"))
    given = heads(held)
    assert given.keys() == {"reuse/image-task", controls.NEAREST, controls.MEAN, controls.IN_HINDSIGHT}
    own = IMAGE.respond(model.eval(), TaskSet(twin, held.data, held.rows, held.labels))
    np.testing.assert_allclose(given["reuse/image-task"], own)
    choice = heads.choice(UNSEEN)
    assert choice.nearest == "image-task"
    assert choice.left_out == {"both-task": "the head reads image, sound; the task has image"}
    assert heads(examples(IMAGE, 5)) == {}, "a trained task has its own head"


def test_heads_of_other_shapes_are_left_out_with_the_reason() -> None:
    wordy = WORDY.model_copy(update={"modalities": ("image",)})
    heads = ReusedHeads(federated_model(), (IMAGE, wordy), ())
    assert heads.reason(UNSEEN, wordy) == "the head has no two answers to one question"
    assert heads.reason(wordy.model_copy(update={"name": "other"}), IMAGE).startswith("the task has no two answers")


def test_the_mean_is_of_probabilities_and_the_best_needs_labels() -> None:
    other = IMAGE.model_copy(update={"name": "other"})
    model = federated_model()
    model.tasks["other"] = other
    model.heads["other"] = other.head(model.encoders["image"].dim)
    given = ReusedHeads(model, (IMAGE, other), ())(examples(UNSEEN, 30))
    parts = [np.array(given[f"reuse/{name}"]) for name in ("image-task", "other")]
    np.testing.assert_allclose(given[controls.MEAN], np.mean(parts, axis=0))
    best = best_of([0, 1], {"wrong": [[0.2, 0.8], [0.9, 0.1]], "right": [[0.9, 0.1], [0.2, 0.8]]})
    assert best == "right"
    truths = UNSEEN.truths(examples(UNSEEN, 30))
    named = {name: given[f"reuse/{name}"] for name in ("image-task", "other")}
    assert given[controls.IN_HINDSIGHT] == named[best_of(truths, named)]


@pytest.mark.parametrize("size", [1, 2])
def test_too_few_patients_have_no_other(size: int) -> None:
    given = Blind(InjectedPredictor(trained(), 4), public(), 0)(examples(UNSEEN, size))
    assert (controls.OTHER in given) == (size == 2)
