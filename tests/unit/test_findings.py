"""Findings: files, readings, weights and answers, by hand-computed values."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from medfed.core.errors import DataError, StudyError
from medfed.datasets.base import Card
from medfed.datasets.decoded import Decoded
from medfed.evaluation.abnormality import Usual
from medfed.findings.meaning import Likelihood, about, answered, other_picture, reason, strongest, weights_of
from medfed.findings.patient import answer_patient, weights_for
from medfed.findings.predictors import Reader, Words, ceiling, nearest
from medfed.findings.reading import Scale, true_of, values_of
from medfed.modalities.timeseries import TimeSeriesModality
from medfed.records.schema import FindingScale, PictureWeights, WordsFile
from medfed.study.study import Study, load_study, study_of
from medfed.study.words import Finding, PictureSettings, WordsSettings, shipped_names
from medfed.tasks.base import TaskSet
from medfed.tasks.pictures import picture_task

CARD = Card(title="toy", version="1", licence="own", access="here", citation="none")
LABS = TimeSeriesModality(name="labs", variables=("crea", "bun"), num_hours=3)
HIGH = Finding(name="high creatinine", modality="labs", measure="crea.high", above=1.3, unit="mg/dL", source="by us")
LOW = Finding(name="low urea nitrogen", modality="labs", measure="bun.low", below=8.0, unit="mg/dL", source="by us")
PICTURE = PictureSettings(
    name="kidney-failure",
    dataset="yaib-aki",
    modalities=("labs",),
    rule="crea > 2 and bun > 30",
    units={"crea": "mg/dL"},
    source="by us",
)
TASK = picture_task(PICTURE)
WORDS = WordsSettings(findings=(HIGH, LOW), references=("anemia",), power=1.0, floor=0.0)


def stays(*hours: list[list[float]]) -> Decoded:
    """Return one decoded stay per argument: hours of (creatinine, urea nitrogen)."""
    samples = np.stack([LABS.prepare(np.array(rows, np.float64).reshape(-1, 2)) for rows in hours])
    ids = [f"stay-{number}" for number in range(len(hours))]
    index = pl.DataFrame({"example": ids, "patient": ids})
    data = Decoded("toy", CARD, index, {"labs": samples}, {"labs": np.ones(len(hours), bool)})
    return data.measured({"labs": LABS})


NAN = float("nan")
FOUR = stays([[1.0, 10], [3.0, NAN], [2.0, 40]], [[NAN, 5], [1.0, NAN]], [[NAN, NAN]], [[2.5, 20]])


def examples(data: Decoded) -> TaskSet:
    return TaskSet(TASK, data, np.arange(len(data.index)))


def test_measures_of_a_series_by_hand() -> None:
    expected = {
        "high": 3.0,
        "low": 1.0,
        "first": 1.0,
        "last": 2.0,
        "mean": 2.0,
        "sum": 6.0,
        "count": 3.0,
        "change": 1.0,
    }
    assert {kind: FOUR.measure(f"crea.{kind}")[0] for kind in expected} == expected
    one = {kind: FOUR.measure(f"crea.{kind}")[1] for kind in expected}
    assert one | {"change": 0.0} == dict.fromkeys(expected, 1.0) | {"change": 0.0}
    assert np.isnan(one["change"])
    none = [FOUR.measure(f"crea.{kind}")[2] for kind in expected if kind != "count"]
    assert np.isnan(none).all()
    assert FOUR.measure("crea.count")[2] == 0


def test_a_measure_is_in_units_whatever_is_normalised() -> None:
    moments = {"labs": FOUR.moments(LABS, np.arange(4))}
    normalised = FOUR.normalised({"labs": LABS}, moments)
    assert normalised.samples["labs"].max() < 3
    assert normalised.measure("crea.high")[0] == 3.0


def test_an_absent_modality_has_no_measure() -> None:
    FOUR.present["labs"][3] = False
    try:
        assert np.isnan(FOUR.measure("crea.high")[3])
    finally:
        FOUR.present["labs"][3] = True


def test_an_unknown_measure_names_the_nearest() -> None:
    with pytest.raises(DataError, match=r"crea\.high"):
        FOUR.measure("crea.hihg")
    with pytest.raises(DataError, match="no codes"):
        FOUR.coded("AFIB")


def test_a_picture_is_judged_by_its_rule() -> None:
    assert TASK.targets(FOUR).tolist() == [1, 0, 0, 0]
    assert TASK.usable(FOUR).all()
    assert TASK.question == "Does the patient have kidney failure?"
    assert TASK.opposite == "Is the patient free of kidney failure?"
    assert not TASK.trainable
    assert not TASK.injectable


def test_a_rule_in_another_unit_is_refused() -> None:
    other = picture_task(PICTURE.model_copy(update={"units": {"crea": "µmol/L"}}))
    with pytest.raises(StudyError, match=r"crea in µmol/L, and the data has it in mg/dL"):
        other.targets(FOUR)


def test_values_and_statements_by_hand() -> None:
    values = values_of((HIGH, LOW), examples(FOUR))
    np.testing.assert_array_equal(values, [[3.0, 10.0], [1.0, 5.0], [NAN, NAN], [2.5, 20.0]])
    np.testing.assert_array_equal(true_of((HIGH, LOW), values), [[1, 0], [0, 1], [NAN, NAN], [1, 0]])


def test_a_finding_of_a_modality_that_the_data_lacks_is_not_observed() -> None:
    absent = HIGH.model_copy(update={"modality": "vitals"})
    assert np.isnan(values_of((absent,), examples(FOUR))).all()


def test_strengths_by_hand() -> None:
    public = np.array([[value, 8.0 + value] for value in np.linspace(0, 8, 9)])  # quartiles 2, 4, 6 and 10, 12, 14
    scale = Scale.of((HIGH, LOW), public)
    given = np.array([[8.0, 6.0], [4.0, 12.0], [40.0, NAN], [0.0, 30.0]])
    # creatinine 8 lies (8−4)/4 = 1 range above and is true: 2; urea nitrogen 6 lies 1.5 below and is true: 2.5
    np.testing.assert_allclose(scale.strengths(given), [[2.0, 2.5], [1.0, 0.0], [4.0, NAN], [0.0, 0.0]])


def test_the_limit_is_the_scale_where_too_few_patients_have_a_value() -> None:
    scale = Scale.of((HIGH, LOW), np.full((20, 2), NAN))
    np.testing.assert_allclose(scale.usual, [[1.3, 8.0], [1.3, 8.0]])
    np.testing.assert_allclose(scale.strengths(np.array([[2.6, 4.0]])), [[2.0, 1.5]])


def test_weights_keep_the_strongest_that_support_the_picture() -> None:
    odds, usable = np.array([2.0, -1.0, 3.0, 0.5]), np.array([True, True, False, True])
    assert weights_of(odds, usable, WORDS.model_copy(update={"keep": 0.34})).tolist() == [2.0, 0.0, 0.0, 0.0]
    assert weights_of(odds, usable, WORDS.model_copy(update={"keep": 1.0})).tolist() == [2.0, 0.0, 0.0, 0.5]
    assert weights_of(odds, usable, WORDS.model_copy(update={"keep": 1.0, "power": 2.0})).tolist() == [
        4.0,
        0.0,
        0.0,
        0.25,
    ]
    floored = weights_of(odds, usable, WORDS.model_copy(update={"keep": 0.34, "floor": 0.1}))
    np.testing.assert_allclose(floored, [2.2, 0.2, 0.0, 0.2])
    soft = weights_of(odds, usable, WORDS.model_copy(update={"weigh": "softplus"}))
    np.testing.assert_allclose(soft, [np.log(1 + np.e**2), np.log(1 + np.e**-1), 0.0, np.log(1 + np.e**0.5)])


def test_the_mean_over_the_references_is_taken_off() -> None:
    odds = {"kidney failure": np.array([3.0, 1.0]), "anemia": np.array([1.0, 1.0]), "stroke": np.array([0.0, 2.0])}
    assert about(odds.__getitem__, "kidney failure", ("anemia", "stroke")).tolist() == [2.5, -0.5]
    assert about(odds.__getitem__, "kidney failure", ()).tolist() == [3.0, 1.0]


def test_an_answer_is_a_weighted_sum_with_its_reason() -> None:
    weights, strengths = np.array([2.0, 0.5, 0.0]), np.array([[1.0, 4.0, 3.0], [NAN, 2.0, 3.0]])
    assert answered(weights, strengths).tolist() == [4.0, 1.0]
    names = ("high creatinine", "high potassium", "fever")
    assert reason(names, weights, strengths[0]) == ("high creatinine", "high potassium")
    assert reason(names, weights, strengths[1]) == ("high potassium",)
    assert list(strongest(names, weights)) == ["high creatinine", "high potassium"]


def test_the_likelihood_is_one_half_at_the_public_median() -> None:
    function = Likelihood.of(np.linspace(0, 8, 9))
    assert function(np.array([4.0]))[0][1] == 0.5
    assert function(np.array([8.0]))[0][1] == pytest.approx(1 / (1 + np.exp(-1)))
    assert Likelihood.of(np.zeros(0))(np.array([0.0]))[0] == [0.5, 0.5]


def test_the_other_picture_is_the_next_one() -> None:
    assert other_picture(["a", "b", "c"], "c") == "a"
    assert other_picture(["a"], "a") is None


def test_the_nearest_finding_has_all_weight() -> None:
    assert nearest(np.array([0.1, 0.9, 0.4]), np.array([True, False, True])).tolist() == [0.0, 0.0, 1.0]


def test_the_ceiling_separates_what_one_finding_separates() -> None:
    rng = np.random.default_rng(0)
    truths = rng.integers(0, 2, 200)
    strengths = np.stack([truths + 0.3 * rng.random(200), rng.random(200)], axis=1)
    given = np.array(ceiling(strengths, truths, [f"p{number}" for number in range(200)], 0)["words/ceiling"])
    assert ((given[:, 1] > 0.5) == truths).mean() > 0.95
    assert ceiling(strengths, np.zeros(200, int), ["p"] * 200, 0) == {}


def test_the_ceiling_never_fits_on_the_patient_it_answers() -> None:
    """Labels are drawn by patient, and nothing else tells them: memory alone would be right."""
    rng = np.random.default_rng(1)
    patients = [f"p{number // 20}" for number in range(400)]
    labels = np.repeat(rng.permutation([0, 1] * 10), 20)
    strengths = np.repeat(np.eye(20), 20, axis=0)
    given = np.array(ceiling(strengths, labels, patients, 0)["words/ceiling"])
    assert abs(((given[:, 1] > 0.5) == labels).mean() - 0.5) < 0.3


def predictor() -> Words:
    odds = {
        "words": {"kidney failure": np.array([2.0, -1.0]), "dehydration": np.array([-1.0, 1.0]), "anemia": np.zeros(2)},
    }
    public = TaskSet(TASK, stays(*[[[1.0 + number / 8, 10.0 + number]] for number in range(9)]), np.arange(9))
    second = picture_task(PICTURE.model_copy(update={"name": "dehydration"}))
    sources = {model: given.__getitem__ for model, given in odds.items()}
    settings = WORDS.model_copy(update={"keep": 1.0})
    return Words(Reader((HIGH, LOW), {"mp": public}), settings, sources, (TASK, second))


def test_words_rank_patients_by_what_supports_the_picture() -> None:
    given = predictor()(examples(FOUR))
    positive = np.array(given["words"])[:, 1]
    assert positive.argsort().tolist()[-2:] == [3, 0]
    assert positive[1] == positive[2]
    alike = np.array(given["words/equal"])[:, 1]
    np.testing.assert_allclose(np.array(given["words+equal"])[:, 1], (positive + alike) / 2)
    assert np.array(given["words/other"])[:, 1].argmax() == 1  # the low urea nitrogen supports the other picture


def test_a_run_keeps_weights_that_answer_a_patient_alike() -> None:
    words = predictor()
    record = words.record({"words": "toy"})
    kept = weights_for(WordsFile.model_validate_json(record.model_dump_json()), "kidney-failure")
    assert kept.weights["words"] == {"high creatinine": 2.0}
    raw = {"labs": np.array([[1.0, 10], [3.0, NAN], [2.0, 40]])}
    answer = answer_patient(WORDS.findings, lambda name: LABS, kept, raw)
    assert answer.probability == pytest.approx(words(examples(FOUR))["words"][0][1])
    assert answer.sentence == "kidney failure: high creatinine"
    edited = kept.model_copy(update={"weights": {"words": {"high creatinin": 1.0}}})
    with pytest.raises(StudyError, match="high creatinine"):
        answer_patient(WORDS.findings, lambda name: LABS, edited, raw)
    with pytest.raises(StudyError, match="did you mean 'kidney-failure'"):
        weights_for(record, "kidney-failur")


def test_shipped_files_are_valid() -> None:
    for kind in ("findings", "pictures"):
        assert {"icu", "ecg"} <= set(shipped_names(kind))
    settings = WordsSettings(findings=("icu", "ecg"), pictures=("icu", "icu-scores", "ecg"))
    names = [finding.name for finding in settings.findings]
    assert {"high creatinine", "low platelet count", "rising creatinine", "ST elevation in the inferior leads"} <= set(
        names
    )
    assert {"kidney-failure", "sirs", "kdigo", "atrial-fibrillation"} <= {one.name for one in settings.pictures}
    for finding in settings.findings:
        assert finding.limit == (finding.above if finding.sign > 0 else finding.below)


def study(tmp_path: Path, words: str, more: str = "") -> Study:
    file = tmp_path / "study.toml"
    text = f'name = "s"\njob = "words"\ntrain = ["mp"]\nalgorithm = "fedavg"\nbaselines = []\n{more}\n'
    encoders = "".join(f'{name} = "transformer"\n' for name in ("vitals", "labs", "input", "output"))
    file.write_text(f"{text}[encoders]\n{encoders}[words]\n{words}\n")
    return load_study(file)


def test_a_study_has_its_own_files_by_content(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(
        '[my-picture]\ndataset = "yaib-aki"\nmodalities = ["labs"]\nrule = "crea > 4"\nsource = "by us"\n'
    )
    made = study(tmp_path, 'findings = ["icu"]\npictures = ["icu", "mine.toml"]')
    assert [task.name for task in made.tasks][-1] == "my-picture"
    assert made.dataset_names == ("yaib-aki", "yaib-mortality")
    (tmp_path / "mine.toml").unlink()
    again = Study.model_validate(made.resolved())
    assert again.hash() == made.hash()
    assert again.picture_tasks == made.picture_tasks
    assert study(tmp_path, 'findings = ["icu"]\npictures = ["icu"]').hash() != made.hash()


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ('[p]\ndataset = "yaib-aki"\nmodalities = ["labs"]\nrule = "crea >"\nsource = "x"\n', "cannot be read"),
        ('[p]\ndataset = "yaib-aki"\nmodalities = ["labs"]\nsource = "x"\n', r"\[p\], rule"),
        ('[p]\ndataset = "nowhere"\nmodalities = ["labs"]\nrule = "crea > 2"\nsource = "x"\n', "unknown dataset"),
        (
            '[p]\ndataset = "yaib-aki"\nmodalities = ["labs"]\nrule = "k > 2"\nsource = "x"\nunits = { bun = "1" }\n',
            "bun",
        ),
        (
            '[mp]\ndataset = "yaib-aki"\nmodalities = ["labs"]\nrule = "crea > 2"\nsource = "x"\n',
            "has the name of a task",
        ),
        ('rule = "crea > 2"\n', "is no table"),
        ("[p\n", "not valid TOML"),
    ],
)
def test_a_wrong_picture_file_says_what_is_wrong(tmp_path: Path, content: str, why: str) -> None:
    (tmp_path / "mine.toml").write_text(content)
    with pytest.raises(StudyError, match=why):
        study(tmp_path, 'findings = ["icu"]\npictures = ["mine.toml"]')


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ('findings = ["nosuch"]', "shipped are ecg, icu"),
        ('findings = ["nosuch.toml"]', "no file"),
        ('findings = ["icu", "icu"]', "declared twice"),
        ('findings = ["icu"]\nwordings = ["Is it?"]', "finding"),
    ],
)
def test_wrong_settings_say_what_is_wrong(tmp_path: Path, words: str, why: str) -> None:
    with pytest.raises(StudyError, match=why):
        study(tmp_path, words)


def test_a_finding_has_one_limit() -> None:
    with pytest.raises(ValueError, match="one limit"):
        Finding(name="x", modality="labs", measure="crea.high", unit="1", source="s")


def test_the_job_words_needs_findings_and_a_benchmark_has_none() -> None:
    tree = {"name": "s", "train": ["mp"], "algorithm": "fedavg", "baselines": []}
    tree["encoders"] = dict.fromkeys(("vitals", "labs", "input", "output"), "transformer")
    with pytest.raises(StudyError, match="needs findings"):
        study_of({**tree, "job": "words"}, "s")
    with pytest.raises(StudyError, match="a benchmark has none"):
        study_of({**tree, "job": "benchmark", "words": {"findings": ["icu"]}}, "s")


def test_a_scale_of_a_run_is_the_one_it_was_made_with() -> None:
    given = PictureWeights(task="t", scale={"high creatinine": FindingScale(middle=1.0, width=0.5, limit=1.3)})
    usual = Usual(np.array([given.scale["high creatinine"].middle]), np.array([given.scale["high creatinine"].width]))
    assert Scale((HIGH,), usual).strengths(np.array([[1.5]])).tolist() == [[2.0]]
