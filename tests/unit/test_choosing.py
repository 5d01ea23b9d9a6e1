"""The rule that finds a question's task, and whether it is compared or answered in words."""

from __future__ import annotations

import pytest

from medfed.ask.task_selection import Plan, is_closed, parse_answers, plan
from medfed.core.catalog import TASKS
from medfed.core.errors import StudyError
from medfed.study.study import Study, study_of
from support.studies import QUICK


@pytest.fixture(scope="module")
def study() -> Study:
    return study_of({**QUICK}, "quick")


def without(*names: str) -> Study:
    return study_of({**QUICK, "unseen": [name for name in QUICK["unseen"] if name not in names]}, "quick")


@pytest.mark.parametrize(
    ("question", "closed"),
    [
        ("Is there a pleural effusion?", True),
        ("  does THIS film look normal", True),
        ("Based on this image, is the patient COVID-19 positive?", True),
        ("Assess this CT image: should it be classified as lung opacity?", True),
        ("Isn’t this normal?", True),
        ("这张图像正常吗?", True),
        ("是否有胸腔积液", True),
        ("Is the lesion left or right?", False),
        ("What is seen, and is it large?", False),
        ("Which lead is noisy?", False),
        ("Island of Langerhans?", False),
        ("这是什么器官?", False),
        ("", False),
    ],
)
def test_a_yes_no_question_is_known_by_its_form(question: str, closed: bool) -> None:
    assert is_closed(question) is closed


def test_every_closed_task_of_the_paper_has_a_closed_question() -> None:
    own = [TASKS[name].question for name in ("cd", "lod", "ead", "mp", "ecd", "ped", "ad", "ebd", "sp")]
    assert [question for question in own if not is_closed(question)] == []


def test_a_tasks_own_question_finds_it_in_any_letters(study: Study) -> None:
    asked = plan(study, ["image"], question="does this image show evidence of PLEURAL EFFUSION")
    assert asked == Plan(TASKS["ped"], "ped", TASKS["ped"].question, closed=True)


@pytest.mark.parametrize(("question", "closed"), [("Is the heart large?", True), ("Where is the lesion?", False)])
def test_a_question_of_ones_own_goes_to_an_open_task(study: Study, question: str, closed: bool) -> None:
    asked = plan(study, ["image"], question=question)
    assert (asked.name, asked.question, asked.closed) == ("mr", question, closed)
    assert asked.task.question == ""  # another question's calibration must not be applied to it
    # snc is no task of the study, but reads ECGs, as the study does
    assert plan(study, ["ecg"], question=question).name == "snc"


def test_where_no_task_is_open_the_most_similar_question_tells(study: Study) -> None:
    assert plan(study, ["icu"], question="Will this patient die soon?").name == "mp"
    assert plan(study, ["icu"], question="What will the patient die of?").closed is False


def test_without_a_question_only_one_task_may_suit(study: Study) -> None:
    assert plan(study, ["ecg"]).name == "ead"
    with pytest.raises(StudyError, match=r"lod: Assess.*ped: Does this image"):
        plan(study, ["image"])
    assert plan(without("ped"), ["image"]).name == "lod"


def test_a_task_of_two_files_is_asked_with_both() -> None:
    tree = {**QUICK, "train": ["covid-icu", "cd"], "unseen": []}
    both = study_of({**tree, "encoders": {"image": "vit-mini", "covid-labs": "transformer"}}, "quick")
    assert plan(both, ["image", "icu"]).name == "covid-icu"
    assert plan(both, ["image"]).name == "cd"  # it needs no table
    assert plan(both, ["image"], "covid-icu").name == "covid-icu"
    assert plan(both, ["icu"]).name == "covid-icu"
    assert plan(both, ["image"], question="Where is the lesion?").name == "mr"
    assert plan(both, ["image", "icu"], question="Where is the lesion?").name == "covid-icu"


def test_a_named_task_may_be_one_the_run_never_met(study: Study) -> None:
    assert plan(study, ["image"], "ad") == Plan(TASKS["ad"], "ad", TASKS["ad"].question, closed=True)
    assert plan(study, ["image"], "ms", "Is it a CT?").task.answers == ("No", "Yes")


def test_candidate_answers_close_any_question(study: Study) -> None:
    asked = plan(study, ["image"], question="Which side?", answers=("left", "right"))
    assert asked.closed
    assert asked.task.answers == ("left", "right")
    # the same answers in other letters stay the task's own, whose calibration then holds
    assert plan(study, ["image"], "ped", answers=("yes", "no")).task == TASKS["ped"]


@pytest.mark.parametrize(
    ("kinds", "task", "question", "message"),
    [
        ([], None, "Is it?", "nothing to look at"),
        (["image", "ecg"], None, "Is it?", "--image and --ecg together"),
        (["ecg"], "ped", None, "nothing of --ecg"),
        (["image"], "pedd", None, "did you mean ped"),
        (["image"], "mr", None, "no question of its own"),
        (["image"], "path-vqa", "Is it?", "has encoders for image"),
    ],
)
def test_what_does_not_fit_is_said(
    study: Study, kinds: list, task: str | None, question: str | None, message: str
) -> None:
    with pytest.raises(StudyError, match=message):
        plan(study, kinds, task, question)


def test_a_run_without_the_modality_says_which_it_has() -> None:
    tree = {**QUICK, "train": ["ead"], "unseen": [], "encoders": {"ecg": "conv1d"}}
    with pytest.raises(StudyError, match=r"no encoder for --image.*\n.*it reads --ecg"):
        plan(study_of(tree, "quick"), ["image"], question="Is it?")


def test_answers_are_separated_by_commas() -> None:
    assert parse_answers(" left, right ,both sides") == ("left", "right", "both sides")
    assert parse_answers(None) == parse_answers("") == ()
    for wrong in ("yes", "Yes, yes"):
        with pytest.raises(StudyError, match="two or more, all different"):
            parse_answers(wrong)
