"""The synthetic twins of VQA-RAD and SLAKE: chest phantoms in their native folders, with questions true of each film.

Kinds of question, the closed share and the yes share follow the releases; organs other than the chest do not occur.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from medfed.core.rng import numpy_rng
from medfed.datasets.images import write_grey
from medfed.datasets.slake import FOLDER as SLAKE_FOLDER
from medfed.datasets.vqa_rad import FOLDER as VQA_RAD_FOLDER
from medfed.study.data import TwinSpec
from medfed.twins.chest_cohorts import SLAKE, VQA_RAD, Film, draw_films
from medfed.twins.chest_questions import MOST_QUESTIONS, Question, draw_questions
from medfed.twins.chest_words import CHINESE, CLINICAL, CLINICAL_MIX, ENGLISH, SLAKE_MIX

SHARE_TESTED, SHARE_IN_BOTH_FILES = 0.15, 0.1
"""Of VQA-RAD's images: those with test questions only, and those with questions in both official files."""
SLAKE_SHARES = {"train": 0.7, "validate": 0.15, "test": 0.15}
LANGUAGES = (("en", ENGLISH, 1.0), ("zh", CHINESE, 0.3))
"""Code, words, and share of images with questions in it."""
Row = dict[str, object]


def write_vqa_rad_twin(root: Path, spec: TwinSpec) -> None:
    """Write ``images/`` and the two official files into ``data_RAD``."""
    root = root / VQA_RAD_FOLDER
    (root / "images").mkdir(parents=True)
    files: dict[str, list[Row]] = {"trainset": [], "testset": []}
    number = 0
    for film in draw_films(VQA_RAD, spec):
        rng = numpy_rng(spec.seed, "vqa-rad", "questions", film.patient)
        name = f"twin{film.patient:05d}.jpg"
        write_grey(root / "images" / name, film.grey)
        place = rng.random()
        questions = draw_questions(film, CLINICAL, CLINICAL_MIX, _count(rng), rng)
        for position, question in enumerate(questions):
            both = place < SHARE_TESTED + SHARE_IN_BOTH_FILES and position == 0
            files["testset" if place < SHARE_TESTED or both else "trainset"].append(
                _vqa_rad_row(question, name, number := number + 1)
            )
    for file, rows in files.items():
        _write_json(root / f"{file}.json", rows)


def write_slake_twin(root: Path, spec: TwinSpec) -> None:
    """Write ``imgs/`` and the three official files, in both languages, in ``Slake1.0``."""
    root = root / SLAKE_FOLDER
    files: dict[str, list[Row]] = {name: [] for name in SLAKE_SHARES}
    number = 0
    for film in draw_films(SLAKE, spec):
        rng = numpy_rng(spec.seed, "slake", "questions", film.patient)
        folder = f"xmlab{film.patient}"
        (root / "imgs" / folder).mkdir(parents=True)
        write_grey(root / "imgs" / folder / "source.jpg", film.grey)
        file = str(rng.choice(list(files), p=list(SLAKE_SHARES.values())))
        for language, vocabulary, share in LANGUAGES:
            if film.patient > 1 and rng.random() >= share:  # the first has questions in every language
                continue
            for question in draw_questions(film, vocabulary, SLAKE_MIX, _count(rng), rng):
                files[file].append(_slake_row(question, film, language, number := number + 1))
    for file, rows in files.items():
        _write_json(root / f"{file}.json", rows)


def _count(rng: np.random.Generator) -> int:
    return int(rng.integers(1, MOST_QUESTIONS + 1))


def _vqa_rad_row(question: Question, image: str, number: int) -> Row:
    return {
        "qid": number,
        "image_name": image,
        "image_organ": "CHEST",
        "answer": question.answer,
        "answer_type": "CLOSED" if question.closed else "OPEN",
        "question_type": question.kind,
        "question": question.text,
        "phrase_type": "freeform",
    }


def _slake_row(question: Question, film: Film, language: str, number: int) -> Row:
    knowledge = question.kind == "KG"
    return {
        "img_id": film.patient,
        "img_name": f"xmlab{film.patient}/source.jpg",
        "question": question.text,
        "answer": question.answer,
        "q_lang": language,
        "location": "Lung",
        "modality": "X-Ray",
        "answer_type": "CLOSED" if question.closed else "OPEN",
        "base_type": "kvqa" if knowledge else "vqa",
        "content_type": question.kind,
        "triple": ["khead" if knowledge else "vhead", "_", "_"],
        "qid": number,
    }


def _write_json(path: Path, rows: list[Row]) -> None:
    path.write_text(json.dumps(rows, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
