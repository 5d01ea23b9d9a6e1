"""The synthetic twin of ECG-QA: simulated ECGs with more disturbances than PTB-XL's, and questions about them.

Answers follow the four noise columns that are written for the ECGs, and every disturbance is written there.
The ECGs lie in a folder of their own beside the questions; their ids are not those of PTB-XL's twin.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import TypeVar

import numpy as np

from medfed.datasets.base import TwinSpec
from medfed.datasets.twins.ecg import Population, write_ecg_twin
from medfed.datasets.twins.ecg_noise import NoiseShares
from medfed.modalities.signal import LEADS
from medfed.rng import numpy_rng

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

KINDS = {"single-verify": 0.6, "single-choose": 0.2, "single-query": 0.2}
SHARE_YES = 0.3
SHARE_NOISY = 0.67
"""Share of recordings with a noise: 1 − (1 − drift)(1 − static)(1 − burst)(1 − loose)."""

FOLDER_OF_FOLD = {**dict.fromkeys(range(1, 9), "train"), 9: "valid", 10: "test"}
MOST_QUESTIONS = 4
NONE = "none"
T = TypeVar("T")

Noisy = frozenset[tuple[str, str]]
"""(noise, lead) of one recording."""

Asked = tuple[str, tuple[str, ...], list[str]]
"""Question, the noises it names, and the true answers."""


def write_ecg_qa_twin(questions: Path, records: Path, spec: TwinSpec) -> None:
    """Write the ECGs under ``records`` in PTB-XL's layout, and ``{train,valid,test}/0.json`` under ``questions``."""
    records.mkdir(parents=True)
    table = write_ecg_twin(records, spec, POPULATION)
    files: dict[str, list[dict[str, object]]] = {folder: [] for folder in FOLDER_OF_FOLD.values()}
    for row in table.iter_rows(named=True):
        rng = numpy_rng("ecg-qa", spec.seed, "questions", row["ecg_id"])
        noisy = disturbed_leads({column: row[column] or "" for column in NOISES})
        rows = files[FOLDER_OF_FOLD[int(row["strat_fold"])]]
        for _ in range(int(rng.integers(1, MOST_QUESTIONS + 1))):
            kind = str(rng.choice(list(KINDS), p=list(KINDS.values())))
            rows.append(_row(kind, KINDS_OF_ASKING[kind](noisy, rng), int(row["ecg_id"]), len(rows)))
    for folder, rows in files.items():
        (questions / folder).mkdir(parents=True)
        (questions / folder / "0.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def disturbed_leads(notes: dict[str, str]) -> Noisy:
    """Read what the twin's four noise columns say: all leads, the limb leads, or one lead."""
    return frozenset((noise, lead) for column, noise in NOISES.items() for lead in _leads(notes[column].strip(" ,")))


def _leads(note: str) -> tuple[str, ...]:
    if note == "alles":
        return LEADS
    return LEADS[:6] if note == "I-AVF" else (note,) if note else ()


def _verify(noisy: Noisy, rng: np.random.Generator) -> Asked:
    """Ask for a noise in a lead, or anywhere; the quiet ones are asked about what they do not have."""
    everything = [*product(NOISES.values(), (*LEADS, ""))]
    present = {*noisy, *((noise, "") for noise, _ in noisy)}
    wanted = bool(present) and rng.random() < SHARE_YES / SHARE_NOISY
    noise, lead = _pick([pair for pair in everything if (pair in present) == wanted], rng)
    place = f" in lead {_title(lead)}" if lead else ""
    return f"Can {noise} be seen in this ECG{place}?", (noise,), ["yes" if wanted else "no"]


def _choose(noisy: Noisy, rng: np.random.Generator) -> Asked:
    """Name two noises; the answer is those present, or none."""
    one, other = rng.permutation(list(NOISES.values()))[:2].tolist()
    present = {noise for noise, _ in noisy}
    answer = [noise for noise in (one, other) if noise in present]
    return f"Which of {one} and {other} can be seen in this ECG?", (one, other), answer or [NONE]


def _query(noisy: Noisy, rng: np.random.Generator) -> Asked:
    """Ask for the noises of a lead, or for the leads of a noise."""
    if rng.random() < 0.5:
        lead = _pick(LEADS, rng)
        answer = [noise for noise in NOISES.values() if (noise, lead) in noisy]
        return f"Which noises can be seen in lead {_title(lead)} of this ECG?", tuple(NOISES.values()), answer or [NONE]
    noise = _pick([*NOISES.values()], rng)
    answer = [f"lead {_title(lead)}" for lead in LEADS if (noise, lead) in noisy]
    return f"In which leads of this ECG can {noise} be seen?", (noise,), answer or [NONE]


KINDS_OF_ASKING = dict(zip(KINDS, (_verify, _choose, _query), strict=True))


def _pick(options: Sequence[T], rng: np.random.Generator) -> T:
    return options[int(rng.integers(len(options)))]


def _title(lead: str) -> str:
    """Write aVR, aVL and aVF as ECG-QA does."""
    return lead.replace("AV", "aV")


def _row(kind: str, asked: Asked, ecg_id: int, number: int) -> dict[str, object]:
    question, noises, answer = asked
    return {
        "template_id": 26 + [*KINDS].index(kind),
        "question_id": number,
        "sample_id": number,
        "question_type": kind,
        "attribute_type": "noise",
        "question": question,
        "answer": answer,
        "ecg_id": [ecg_id],
        "attribute": [*noises],
    }
