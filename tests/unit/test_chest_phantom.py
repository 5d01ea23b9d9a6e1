"""A finding changes the phantom where, and the way, its cause changes a chest."""

from __future__ import annotations

import numpy as np
import pytest

from medfed.study.data import TwinSpec
from medfed.twins.chest import render
from medfed.twins.chest_anatomy import Anatomy, Findings, Style
from medfed.twins.chest_cohorts import CHEXPERT, COVID, NIH, PAEDIATRIC, RSNA, Cohort, draw_films
from medfed.twins.chest_dicom import opacity_boxes

SIZE = 96
STRAIGHT = Style(0.0, 0.0, 0.0, gain=1.0, offset=0.0, gamma=1.0, blur=0.5, noise=0.0, collimation=1.1)


def change(side: int = 1, **severity: float) -> np.ndarray:
    """Film with a finding minus the same patient's without, averaged over patients; rows × columns."""
    films = []
    for seed in range(4):
        patient = Anatomy.draw(np.random.default_rng(seed))
        patient = Anatomy(**{**vars(patient), "side": side, "bilateral": False})
        pair = [
            render(patient, findings, STRAIGHT, (SIZE, SIZE), np.random.default_rng(0))[0]
            for findings in (Findings(**severity), Findings())
        ]
        films.append(pair[0] - pair[1])
    return np.mean(films, axis=0)


LEFT, RIGHT = np.s_[:, : SIZE // 2], np.s_[:, SIZE // 2 :]


@pytest.mark.parametrize("finding", ["consolidation", "effusion"])
@pytest.mark.parametrize("side", [-1, 1])
def test_one_sided_findings_whiten_their_side_only(finding: str, side: int) -> None:
    delta = change(side, **{finding: 0.8})
    sick, healthy = (delta[RIGHT], delta[LEFT]) if side > 0 else (delta[LEFT], delta[RIGHT])
    assert sick.sum() > 10
    assert abs(healthy).max() < 0.01  # blur carries a trace over the midline


def test_ground_glass_is_on_both_sides_and_peripheral() -> None:
    delta = change(ground_glass=1.0)
    assert min(delta[LEFT].sum(), delta[RIGHT].sum()) > 10
    columns = delta.sum(0)
    assert columns[8:30].sum() + columns[66:88].sum() > 2 * columns[36:60].sum()


def test_effusion_fills_from_below_and_climbs_the_wall() -> None:
    mild, severe = change(effusion=0.3)[RIGHT], change(effusion=0.9)[RIGHT]

    def top(delta: np.ndarray) -> int:
        return int(np.nonzero(delta.max(1) > 0.05)[0].min())

    assert top(severe) < top(mild)  # the fluid rises with severity
    lateral, medial = severe[:, 30:38], severe[:, 14:22]
    assert top(lateral) < top(medial)  # the meniscus: higher at the wall


def test_collapse_pulls_the_midline_and_lifts_the_diaphragm() -> None:
    for side in (-1, 1):
        patient = Anatomy(**{**vars(Anatomy.draw(np.random.default_rng(3))), "side": side})
        sick, well = (
            render(patient, Findings(atelectasis=severity), STRAIGHT, (SIZE, SIZE), np.random.default_rng(0))[0]
            for severity in (1.0, 0.0)
        )
        profiles = [film[20:30, 30:66].mean(0) - film[20:30, 30:66].min() for film in (sick, well)]
        middles = [float(np.average(np.arange(36), weights=profile)) for profile in profiles]
        assert side * (middles[0] - middles[1]) > 1  # columns towards the collapsed side
        half = RIGHT if side > 0 else LEFT
        base = np.s_[55:75]
        assert sick[half][base].mean() > well[half][base].mean() + 0.02


@pytest.mark.parametrize(("finding", "rows"), [("wide_mediastinum", np.s_[20:45]), ("cardiomegaly", np.s_[45:75])])
def test_a_wide_centre_is_wide_at_its_level(finding: str, rows: slice) -> None:
    delta = change(**{finding: 1.0})
    level = delta[rows].clip(min=0).sum()
    assert level > 0.7 * delta.clip(min=0).sum()


@pytest.mark.parametrize("cohort", [COVID, RSNA, CHEXPERT, NIH, PAEDIATRIC], ids=lambda cohort: cohort.name)
def test_films_are_a_function_of_the_spec(cohort: Cohort) -> None:
    spec = TwinSpec(num_patients=3, seed=3, image_size=32)
    first, again = list(draw_films(cohort, spec)), list(draw_films(cohort, spec))
    other = list(draw_films(cohort, spec.model_copy(update={"seed": 4})))
    assert all(np.array_equal(a.grey, b.grey) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0].grey, other[0].grey)
    assert all(film.grey.dtype == np.float32 and 0 <= film.grey.min() <= film.grey.max() <= 1 for film in first)


def test_more_patients_leave_earlier_ones_as_they_were() -> None:
    few, many = (list(draw_films(COVID, TwinSpec(num_patients=number, image_size=32))) for number in (3, 5))
    assert all(np.array_equal(a.grey, b.grey) for a, b in zip(few, many, strict=False))


def test_difficulty_one_leaves_nothing_to_see() -> None:
    films = draw_films(RSNA, TwinSpec(num_patients=15, difficulty=1.0, image_size=32))
    assert max(film.opacity.max() for film in films) == 0


@pytest.mark.parametrize(
    ("cohort", "finding", "share"),
    # effusion: heart failure 0.28 · 0.65; without it pneumonia or immobility 0.72 · (1 − 0.78 · 0.70) · 0.35;
    # with none of them 0.72 · 0.78 · 0.70 · 0.06
    [(COVID, "ground_glass", 0.40), (CHEXPERT, "effusion", 0.182 + 0.114 + 0.024)],
    ids=["covid", "effusion"],
)
def test_prevalence(cohort: Cohort, finding: str, share: float) -> None:
    rng = np.random.default_rng(0)
    drawn = np.mean([getattr(cohort.diagnose(rng), finding) > 0 for _ in range(400)])
    assert abs(drawn - share) < 3 * np.sqrt(share * (1 - share) / 400)


def test_boxes_hold_the_opacity() -> None:
    for film in draw_films(RSNA, TwinSpec(num_patients=20, difficulty=0.2)):
        if film.opacity.max() < 0.3:
            continue
        row, column = np.unravel_index(int(film.opacity.argmax()), film.opacity.shape)
        boxes = opacity_boxes(film)
        assert any(x <= column < x + width and y <= row < y + height for x, y, width, height in boxes)
