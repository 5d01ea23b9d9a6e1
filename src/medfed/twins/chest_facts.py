"""True statements about a drawn film, as language-free facts: the question-answering twins put them into words.

Sides are the patient's, as in reports. A fact's terms are keys of a vocabulary (``chest_words``).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from medfed.twins.chest_cohorts import Film

LUNG = ("consolidation", "effusion", "atelectasis", "oedema")
HEART = ("cardiomegaly", "wide_mediastinum")
FINDINGS = LUNG + HEART
LOCAL = ("consolidation", "effusion", "atelectasis")
"""Findings of one side; an effusion may be on both."""
LARGE_ABOVE = 0.6
"""Severity from which a finding is called large: half of them."""


class Fact(NamedTuple):
    """A question's topic, the terms that fill it, and the true answer's terms.

    Attributes:
        topic: subject of the question; a key of a vocabulary's templates.
        answer: the answer as terms; ``("yes",)`` or ``("no",)`` where the topic is a statement.
        about: terms that the question names, by placeholder.
    """

    topic: str
    answer: tuple[str, ...]
    about: dict[str, str]


def facts_of(film: Film) -> list[Fact]:
    """Return every fact that a question can ask of ``film``."""
    return [*_statements(film), *_choices(film), *_descriptions(film)]


def findings_of(film: Film) -> tuple[str, ...]:
    """Return the findings the film has, lungs first."""
    return tuple(name for name in FINDINGS if getattr(film.findings, name) > 0)


def side_of(film: Film, finding: str) -> str:
    """Return ``left``, ``right`` or ``both``, of a finding in :data:`LOCAL`."""
    if finding == "effusion" and film.anatomy.bilateral:
        return "both"
    return "left" if film.anatomy.side > 0 else "right"


def _statements(film: Film) -> Iterator[Fact]:
    """Facts that are answered by yes or no."""
    present = findings_of(film)
    for finding in FINDINGS:
        yield _statement("presence", finding in present, finding=finding)
    yield _statement("presence", film.anatomy.gastric_air > 0, finding="gastric_air")
    yield _statement("normal", not present)
    yield _statement("abnormal", bool(present))
    yield _statement("lungs_healthy", not set(LUNG) & set(present))
    yield _statement("heart_large", "cardiomegaly" in present)
    for finding in (name for name in LOCAL if name in present):
        yield _statement("large", getattr(film.findings, finding) > LARGE_ABOVE, finding=finding)
        for side in ("left", "right"):
            yield _statement("on_side", side_of(film, finding) in (side, "both"), finding=finding, side=side)
    for topic, terms in (
        ("is_modality", ("x-ray", "ct", "mri")),
        ("is_organ", ("chest", "head", "abdomen")),
        ("is_plane", ("frontal", "axial")),
        ("contains", ("lung", "liver", "heart", "spleen")),
    ):
        for term in terms:
            yield _statement(topic, term in ("x-ray", "chest", "frontal", "lung", "heart"), term=term)


def _choices(film: Film) -> Iterator[Fact]:
    """Facts that are answered by one of the options that the question names."""
    present = findings_of(film)
    for finding in (name for name in LOCAL if name in present and side_of(film, name) != "both"):
        yield Fact("left_or_right", (side_of(film, finding),), {"finding": finding})
    lung, heart = set(LUNG) & set(present), "cardiomegaly" in present
    if bool(lung) != heart:
        yield Fact("lung_or_heart", ("lung" if lung else "heart",), {})
    yield Fact("normal_or_abnormal", ("abnormal" if present else "normal",), {})
    yield Fact("lung_heart_larger", ("lung",), {})


def _descriptions(film: Film) -> Iterator[Fact]:
    """Facts that are answered in own words."""
    present = findings_of(film)
    yield Fact("findings", present or ("none",), {})
    if present:
        yield Fact("worst", (max(present, key=lambda name: getattr(film.findings, name)),), {})
    for finding in (name for name in LOCAL if name in present):
        yield Fact("where", (_place(film, finding),), {"finding": finding})
        size = "large" if getattr(film.findings, finding) > LARGE_ABOVE else "small"
        yield Fact("size", (size,), {"finding": finding})
    yield Fact("num_findings", (str(len(present)),), {})
    yield Fact("modality", ("x-ray",), {})
    yield Fact("view", (film.view,), {})
    yield Fact("organ", ("chest",), {})
    yield Fact("largest_organ", ("lung",), {})
    yield Fact("num_lungs", ("2",), {})
    yield Fact("lung_colour", ("black",), {})
    yield Fact("lung_function", ("breathe",), {})
    yield Fact("heart_function", ("pump",), {})


def _place(film: Film, finding: str) -> str:
    side = side_of(film, finding)
    if finding == "consolidation":
        return f"{side} {'upper' if film.anatomy.upper_lobe else 'lower'} lobe"
    return f"{side} base" if finding == "atelectasis" else f"{side} side"


def _statement(topic: str, true: bool, **about: str) -> Fact:
    return Fact(topic, ("yes" if true else "no",), about)
