"""The synthetic twin of ECG-QA: simulated ECGs with more disturbances than PTB-XL's, and questions about them.

Answers follow the four noise columns that are written for the ECGs, and every disturbance is written there.
The ECGs have a folder of their own next to the questions; their ids are not those of PTB-XL's twin.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import TypeVar

import numpy as np

from medfed.core.rng import numpy_rng
from medfed.datasets.ecg_qa import TWIN_RECORDS, EcgQa
from medfed.modalities.signal import LEADS
from medfed.study.data import TwinSpec
from medfed.twins.ecg import Population, write_ecg_twin
from medfed.twins.ecg_noise import NoiseShares

POPULATION = Population(
    "ecg-qa", 500_000, 500_000, NoiseShares(drift=0.3, static=0.25, burst=0.25, noted=1.0, first_burst=3, loose=0.15)
)

NOISES = {
    "static_noise": "static noise",
    "burst_noise": "burst noise",
    "baseline_drift": "baseline drift",
    "electrodes_problems": "electrodes problems",
}
"""Column of the table → what ECG-QA calls it."""
KINDS = ("single-verify", "single-choose", "single-query")
SHARES_NOISY, SHARES_QUIET = (0.48, 0.26, 0.26), (0.85, 0.075, 0.075)
"""Shares of the kinds for ECGs with and without noise: so three in five are verified, and few answers are ``none``."""
SHARE_YES = 0.56
"""Share of yes for ECGs with noise: about three in ten over all, as in ECG-QA."""
SHARE_ABOUT_NOISE = 0.8
"""Share of the other questions about ECGs with noise that ask about what is there."""
FOLDER_OF_FOLD = {**dict.fromkeys(range(1, 9), "train"), 9: "valid", 10: "test"}
MOST_QUESTIONS = 4
NONE = "none"
T = TypeVar("T")
Noisy = frozenset[tuple[str, str]]
"""(noise, lead) of one recording."""
Drawn = tuple[str, tuple[str, ...], list[str]]
"""Question, the noises it names, and the true answers."""


def write_ecg_qa_twin(root: Path, spec: TwinSpec) -> None:
    """Write ECGs, which are not those of PTB-XL's twin, in its layout, and ``{train,valid,test}/0.json`` about them."""
    questions, records = root / EcgQa.marker, root / TWIN_RECORDS
    records.mkdir(parents=True)
    table = write_ecg_twin(records, spec, POPULATION)
    files: dict[str, list[dict[str, object]]] = {folder: [] for folder in FOLDER_OF_FOLD.values()}
    for row in table.iter_rows(named=True):
        rng = numpy_rng("ecg-qa", spec.seed, "questions", row["ecg_id"])
        noisy = disturbed_leads({column: row[column] or "" for column in NOISES})
        rows = files[FOLDER_OF_FOLD[int(row["strat_fold"])]]
        for kind, question in _questions(noisy, rng):
            rows.append(_row(kind, question, int(row["ecg_id"]), len(rows)))
    for folder, rows in files.items():
        (questions / folder).mkdir(parents=True)
        (questions / folder / "0.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def _questions(noisy: Noisy, rng: np.random.Generator) -> list[tuple[int, Drawn]]:
    """Draw one to four different questions, each with its kind's number."""
    drawn: dict[str, tuple[int, Drawn]] = {}
    for _ in range(int(rng.integers(1, MOST_QUESTIONS + 1))):
        kind = int(rng.choice(len(KINDS), p=SHARES_NOISY if noisy else SHARES_QUIET))
        question = (_verify, _choose, _query)[kind](noisy, rng)
        drawn[question[0]] = (kind, question)
    return list(drawn.values())


def disturbed_leads(notes: dict[str, str]) -> Noisy:
    """Read what the twin's four noise columns say: all leads, the limb leads, or one lead."""
    return frozenset((noise, lead) for column, noise in NOISES.items() for lead in _leads(notes[column].strip(" ,")))


def _leads(note: str) -> tuple[str, ...]:
    if note == "alles":
        return LEADS
    return LEADS[:6] if note == "I-AVF" else (note,) if note else ()


def _verify(noisy: Noisy, rng: np.random.Generator) -> Drawn:
    """Ask for a noise in a lead, or anywhere; of a quiet ECG the question is about an absent one."""
    everything = [*product(NOISES.values(), (*LEADS, ""))]
    present = {*noisy, *((noise, "") for noise, _ in noisy)}
    wanted = bool(present) and rng.random() < SHARE_YES
    noise, lead = _pick([pair for pair in everything if (pair in present) == wanted], rng)
    place = f" in lead {_title(lead)}" if lead else ""
    return f"Can {noise} be seen in this ECG{place}?", (noise,), ["yes" if wanted else "no"]


def _choose(noisy: Noisy, rng: np.random.Generator) -> Drawn:
    """Name two noises; the answer is those present, or none."""
    present = {noise for noise, _ in noisy}
    first, _ = _subject(noisy, rng)
    second = _pick([noise for noise in NOISES.values() if noise != first], rng)
    named = tuple(noise for noise in NOISES.values() if noise in (first, second))
    answer = [noise for noise in named if noise in present]
    return f"Which of {' and '.join(named)} can be seen in this ECG?", named, answer or [NONE]


def _query(noisy: Noisy, rng: np.random.Generator) -> Drawn:
    """Ask for the noises of a lead, or for the leads of a noise."""
    noise, lead = _subject(noisy, rng)
    if rng.random() < 0.5:
        answer = [other for other in NOISES.values() if (other, lead) in noisy]
        return f"Which noises can be seen in lead {_title(lead)} of this ECG?", tuple(NOISES.values()), answer or [NONE]
    answer = [f"lead {_title(other)}" for other in LEADS if (noise, other) in noisy]
    return f"In which leads of this ECG can {noise} be seen?", (noise,), answer or [NONE]


def _subject(noisy: Noisy, rng: np.random.Generator) -> tuple[str, str]:
    """Return a noise and a lead to ask about."""
    present = noisy and rng.random() < SHARE_ABOUT_NOISE
    return _pick(sorted(noisy) if present else [*product(NOISES.values(), LEADS)], rng)


def _pick(options: Sequence[T], rng: np.random.Generator) -> T:
    return options[int(rng.integers(len(options)))]


def _title(lead: str) -> str:
    """Write aVR, aVL and aVF as ECG-QA does."""
    return lead.replace("AV", "aV")


def _row(kind: int, drawn: Drawn, ecg_id: int, number: int) -> dict[str, object]:
    question, noises, answer = drawn
    return {
        "template_id": 26 + kind,
        "question_id": number,
        "sample_id": number,
        "question_type": KINDS[kind],
        "attribute_type": "noise",
        "question": question,
        "answer": answer,
        "ecg_id": [ecg_id],
        "attribute": [*noises],
    }
