"""The twins of VQA-RAD and SLAKE: every answer is true of its film, in every language; official files are honoured."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

from medfed.datasets.base import Dataset, write_twin
from medfed.datasets.slake import Slake, SlakeChinese
from medfed.datasets.vqa_rad import VqaRad
from medfed.study.data import TwinSpec
from medfed.twins.chest_anatomy import Findings
from medfed.twins.chest_cohorts import SLAKE, VQA_RAD, Cohort, Film, draw_films
from medfed.twins.chest_facts import FINDINGS, LOCAL, facts_of, findings_of, side_of
from medfed.twins.chest_questions import Mix, Vocabulary
from medfed.twins.chest_words import CHINESE, CLINICAL, CLINICAL_MIX, ENGLISH, SLAKE_MIX

SPEC = TwinSpec(num_patients=300, image_size=32)
TWINS = [(VqaRad(), VQA_RAD, CLINICAL), (Slake(), SLAKE, ENGLISH), (SlakeChinese(), SLAKE, CHINESE)]
Written = Callable[[Dataset], Path]
each = pytest.mark.parametrize(("dataset", "cohort", "words"), TWINS, ids=lambda value: getattr(value, "name", None))


@cache
def films(cohort: Cohort) -> dict[int, Film]:
    return {film.patient: film for film in draw_films(cohort, SPEC)}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Dataset], Path]:
    """Return the root of a dataset's twin, written once."""
    roots: dict[str, Path] = {}

    def root_of(dataset: Dataset) -> Path:
        if dataset.name not in roots:
            roots[dataset.name] = tmp_path_factory.mktemp(dataset.name)
            write_twin(dataset, roots[dataset.name], SPEC)
        return roots[dataset.name]

    return root_of


def asked(
    dataset: Dataset, cohort: Cohort, words: Vocabulary, topic: str, root: Path
) -> Iterator[tuple[Film, dict[str, str], str]]:
    """Yield film, named terms and answer of every written question on ``topic``."""
    term = {word: key for key, word in words.terms.items()}
    patterns = [re.sub(r"\\{(\w+)\\}", r"(?P<\1>.+)", re.escape(template)) for template in words.templates[topic]]
    for row in dataset.index(root).iter_rows(named=True):
        for pattern in patterns:
            if match := re.fullmatch(pattern, row["question"], re.IGNORECASE):
                about = {
                    place: next((key for word, key in term.items() if word.lower() == value.lower()), value.lower())
                    for place, value in match.groupdict().items()
                }
                yield films(cohort)[int(re.sub(r"\D", "", row["patient"]))], about, row["answer"]


def is_yes(answer: str) -> bool:
    assert answer in ("yes", "no", "Yes", "No", "是", "不是")
    return answer in ("yes", "Yes", "是")


@each
def test_a_finding_is_said_to_be_there_when_it_is_drawn(
    dataset: Dataset, cohort: Cohort, words: Vocabulary, written: Written
) -> None:
    answers = set()
    for film, about, answer in asked(dataset, cohort, words, "presence", written(dataset)):
        severity = {**vars(film.findings), "gastric_air": film.anatomy.gastric_air}[about["finding"]]
        assert is_yes(answer) == (severity > 0)
        answers.add(answer)
    assert len(answers) == 2


@each
def test_a_film_is_called_normal_when_nothing_is_drawn(
    dataset: Dataset, cohort: Cohort, words: Vocabulary, written: Written
) -> None:
    seen = set()
    for topic in ("normal", "abnormal"):
        for film, _, answer in asked(dataset, cohort, words, topic, written(dataset)):
            assert is_yes(answer) == ((film.findings == Findings()) == (topic == "normal"))
            seen.add((topic, answer))
    assert len(seen) > 2


@each
def test_findings_are_listed_whole(dataset: Dataset, cohort: Cohort, words: Vocabulary, written: Written) -> None:
    lists = 0
    for film, _, answer in asked(dataset, cohort, words, "findings", written(dataset)):
        present = {words.terms.get(name, name) for name in FINDINGS if getattr(film.findings, name) > 0}
        assert set(answer.split(words.comma)) == (present or {words.terms["none"]})
        lists += 1
    assert lists


def test_the_side_is_where_the_film_lost_its_air() -> None:
    print("a patient's left is on the film's right")
    checked = set()
    for film in draw_films(VQA_RAD, TwinSpec(num_patients=400, image_size=48, difficulty=0.0)):
        local = [name for name in LOCAL if name in findings_of(film)]
        if len(local) != 1 or "oedema" in findings_of(film):
            continue
        middle = film.opacity.shape[1] // 2
        right, left = film.opacity[:, :middle].sum(), film.opacity[:, middle:].sum()
        side = side_of(film, local[0])
        if side != "both":
            assert side == ("left" if left > right else "right")
        checked.add((local[0], side))
    assert len(checked) == 7  # three findings by two sides, and effusions on both


def test_every_vocabulary_words_every_topic_of_its_mix() -> None:
    topics = {fact.topic for film in films(SLAKE).values() for fact in facts_of(film)}
    pairs: list[tuple[Vocabulary, Mix]] = [(CLINICAL, CLINICAL_MIX), (ENGLISH, SLAKE_MIX), (CHINESE, SLAKE_MIX)]
    for words, mix in pairs:
        assert set(words.templates) == set(mix.topics) <= topics
        assert sum(mix.groups.values()) == pytest.approx(1)


def test_chinese_answers_are_chinese_or_signs_that_both_languages_share(written: Written) -> None:
    answers = set(SlakeChinese().index(written(SlakeChinese()))["answer"])
    assert {answer for answer in answers if re.fullmatch(r"[A-Za-z0-9, -]+", answer)} <= set("0123456") | {"CT"}


def test_both_languages_are_asked_of_the_same_images(written: Written, tmp_path: Path) -> None:
    shutil.copytree(written(Slake()), tmp_path, dirs_exist_ok=True)
    (tmp_path / "SYNTHETIC.json").unlink()  # as in the release, where one folder holds both
    assert Slake().locate(tmp_path) == SlakeChinese().locate(tmp_path)
    english, chinese = Slake().index(tmp_path), SlakeChinese().index(tmp_path)
    assert set(chinese["patient"]) < set(english["patient"])
    assert set(english["language"]) == {"en"}
    assert not set(english["example"]) & set(chinese["example"])


def test_an_image_with_one_test_question_is_wholly_in_the_test_split(written: Written) -> None:
    root = written(VqaRad())
    files = {
        name: {row["image_name"] for row in json.loads((root / "data_RAD" / f"{name}.json").read_text("utf-8"))}
        for name in ("trainset", "testset")
    }
    both = {f"vqa-rad:{Path(name).stem}" for name in files["trainset"] & files["testset"]}
    assert both
    index = VqaRad().index(root)
    assert set(index.filter(index["patient"].is_in(sorted(both)))["split"]) == {"test"}
    assert set(index.filter(split="train")["files"].explode().str.split("/").list.last()).isdisjoint(files["testset"])
