"""The controls without an LLM: chosen without labels, counted by hand, and judged before the LLM is praised."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from medfed.core.catalog import MODALITIES, TASKS
from medfed.core.errors import StudyError
from medfed.core.rng import numpy_rng
from medfed.data.cohort import Cohort
from medfed.evaluation import controls
from medfed.evaluation.abnormality import LEAST_PATIENTS, abnormality
from medfed.evaluation.metrics import rank_correlation
from medfed.evaluation.responses import TaskResponses
from medfed.evaluation.score import score_run
from medfed.modalities.signal import SignalModality
from medfed.modalities.timeseries import TimeSeriesModality
from medfed.records.folder import RunFolder
from medfed.records.schema import AnswerCheck, ControlFile, Reuse, ScoreFile, TaskFacts
from medfed.report.models import model_title
from medfed.report.page import build_report
from medfed.report.results import against_controls, sentences, summary_table
from medfed.runs.baselines import baselines_of, one_lora
from medfed.runs.controls import AbnormalValues, question_type
from medfed.study.evaluation import EvaluationSettings
from medfed.study.study import load_study
from medfed.tasks.base import TaskSet
from support.fake_runs import fake_run, yes_or_no

DEMO = Path(__file__).parents[2] / "studies" / "demo.toml"
CLOSED = [name for name, task in TASKS.items() if getattr(task, "negation", "")]


def test_the_nearest_text_shares_its_rare_words() -> None:
    texts = {"sepsis": "predict the onset of sepsis", "film": "interpret the film of the chest"}
    corpus = [*texts.values(), "predict the death of the patient", "the sound of the heart"]
    found = controls.similarities("will sepsis occur in the patient", texts, corpus)
    assert found["sepsis"] > found["film"] > 0, "a rare word counts more than two common ones"
    assert controls.similarities("sepsis", {"same": "Sepsis?"}, corpus)["same"] == pytest.approx(1)
    assert controls.similarities("unseen words", {"other": "nothing alike"}, corpus)["other"] == 0
    assert found == controls.similarities("will sepsis occur in the patient", texts, corpus)


def test_abnormality_is_worked_out_by_hand() -> None:
    usual = np.arange(9.0)[:, None]  # median 4, quartiles 2 and 6: a range of 4
    low, high = np.array([[4.0], [0.0], [-96.0], [np.nan]]), np.array([[4.0], [10.0], [96.0], [np.nan]])
    counted = abnormality((low, high), (usual, usual))
    assert counted.tolist() == [0.0, 1.0 + 1.5, 3.0 + 3.0, 0.0]


def test_a_variable_that_few_have_or_that_never_varies_counts_nothing() -> None:
    few = np.where(np.arange(20)[:, None] < LEAST_PATIENTS - 1, np.arange(20.0)[:, None], np.nan)
    flat, given = np.ones((20, 1)), np.array([[50.0]])
    assert abnormality((given, given), (few, few)).item() == 0
    assert abnormality((given, given), (flat, flat)).item() == 0


def test_extremes_are_of_observed_values() -> None:
    series = TimeSeriesModality(name="two", variables=("a", "b"), num_hours=3)
    stay = np.stack([series.prepare(np.array([[1.0, np.nan], [-2.0, np.nan], [0.5, np.nan]]))])
    found = series.extremes(stay)
    assert found is not None
    assert found[0].tolist()[0][0] == -2
    assert found[1].tolist()[0][0] == 1
    assert np.isnan([found[0][0, 1], found[1][0, 1]]).all(), "a zero that stands for no measurement is no value"
    assert MODALITIES["person"].extremes(np.ones((1, 1, 4), np.float32)) is None
    assert MODALITIES["image"].extremes(np.ones((1, 1, 4, 4), np.float32)) is None
    low, high = SignalModality().extremes(np.array([[[-1.0, 0.0, 2.0]] * 12], np.float32))
    assert (low == -1).all()
    assert (high == 2).all()


@pytest.mark.parametrize("patients", ["abcdef", "aabbcc", "aaabcd", "abacad"])
def test_donors_are_other_patients_and_give_once(patients: str) -> None:
    for number in range(20):
        order = np.random.default_rng(number).permutation(len(patients)).tolist()
        takes = controls.donors(list(patients), order)
        assert takes is not None
        assert sorted(takes) == list(range(len(patients)))
        assert all(patients[row] != patients[other] for row, other in enumerate(takes))
    assert controls.donors(list("aab"), [0, 1, 2]) is None
    assert controls.donors([], []) is None or controls.donors([], []) == []


def test_rank_correlation_knows_ties_and_constants() -> None:
    assert rank_correlation([1, 2, 3, 4], [10, 20, 30, 40]) == pytest.approx(1)
    assert rank_correlation([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1)
    assert rank_correlation([1, 1, 2], [5, 5, 9]) == pytest.approx(1)
    assert rank_correlation([1, 1, 1], [1, 2, 3]) is None


def icu(values: Sequence[float], task: str) -> TaskSet:
    """Examples of one variable that reach these heart rates; class 1 where it is above 100."""
    stays = np.zeros((len(values), 24, 14), np.float32)
    stays[:, 0, 0], stays[:, 0, 7] = values, 1
    rest = ("labs", "input", "output")
    others = {name: np.zeros((len(values), *MODALITIES[name].sample_shape), np.float32) for name in rest}
    return TaskSet.from_arrays(TASKS[task], {"vitals": stays, **others}, (np.array(values) > 100).astype(np.int8))


def test_the_count_ranks_by_how_unusual_values_are_and_reads_no_label() -> None:
    rng = np.random.default_rng(0)
    public = {"mp": icu(rng.normal(80, 10, 60).tolist(), "mp")}
    count = AbnormalValues(dict(MODALITIES.items()), public)
    test = icu([80.0, 130.0, 20.0, 95.0], "sp")
    (column,) = count(test).values()
    positive = [row[1] for row in column]
    assert positive[1] > positive[3] > positive[0]
    assert positive[2] > positive[3], "a very low value is abnormal as well"
    assert [sum(row) for row in column] == pytest.approx([1] * 4)
    test.labels.targets[:] = 1 - test.labels.targets
    assert count(test)[controls.COUNT] == column


def test_nothing_is_counted_in_a_picture_or_without_public_examples() -> None:
    image = np.zeros((3, *MODALITIES["image"].sample_shape), np.float32)
    film = TaskSet.from_arrays(TASKS["cd"], {"image": image}, np.array([0, 1, 0]))
    count = AbnormalValues(dict(MODALITIES.items()), {"cd": film})
    assert count(film) == {}
    assert "no values to count" in count.reason(TASKS["cd"])
    assert "no public example" in count.reason(TASKS["sp"])
    assert "two answers" in count.reason(TASKS["mr"])


@pytest.mark.parametrize("name", CLOSED)
def test_every_closed_task_declares_a_negation_and_paraphrases_of_its_own(name: str) -> None:
    task = TASKS[name]
    asked = [task.question, task.opposite, *task.reworded]
    assert len(set(asked)) == len(asked) == 4
    assert all(question.endswith("?") for question in asked)


def test_a_task_without_declared_questions_has_them_by_rule() -> None:
    task = TASKS["mortality-eicu"]
    assert task.question in task.opposite
    assert len({task.question, task.opposite, *task.reworded}) == 4
    assert len(CLOSED) == 12


def scored(separations: dict[str, float], seed: int = 0) -> ScoreFile:
    """A task of 200 examples; a model's scores of the classes lie so far apart."""
    rng = numpy_rng("controls", seed)
    targets = (rng.random(200) < 0.4).astype(int)
    noise = rng.normal(size=200)
    columns = {name: 1 / (1 + np.exp(-(noise + gap * targets))) for name, gap in separations.items()}
    facts = TaskFacts(title="Sepsis", role="unseen", answers=("No", "Yes"))
    return score_run([("sp", facts, yes_or_no("sp", targets, columns))], seed, EvaluationSettings(num_resamples=100))


def test_the_llm_is_paired_with_every_control_and_no_control_is_averaged() -> None:
    scores = scored({"fedkim": 1.0, "reuse/mp": 2.0, "reuse/nearest": 2.0, "reuse/best": 2.0, "count": 0.5})
    assert {row.model for row in scores.rows} >= {"reuse/mp", "reuse/nearest", "count"}
    assert "reuse" not in {row.model for row in scores.rows}
    gaps = {gap.baseline: gap for gap in scores.differences if gap.metric == "auroc" and gap.model == "fedkim"}
    assert gaps.keys() == {"reuse/mp", "reuse/nearest", "reuse/best", "count"}
    values = {row.model: row.value for row in scores.rows if row.metric == "auroc"}
    for name, gap in gaps.items():
        assert gap.value == pytest.approx(values["fedkim"] - values[name])
        assert gap.ci_low is not None


def test_the_first_screen_says_where_the_llm_loses() -> None:
    lost = scored({"fedkim": 0.3, "reuse/nearest": 2.0, "count": 0.1})
    (said,) = against_controls(lost)
    assert "on 1 task: supported on 0, not distinguishable on 0, contradicted on 1." in said
    assert "It loses on Sepsis to: Nearest head reused (−" in said
    gap = next(gap for gap in lost.differences if (gap.baseline, gap.metric) == ("reuse/nearest", "auroc"))
    assert f"{gap.value:+.3f}".replace("-", "−") in said
    assert said in sentences(scored({"fedkim": 0.3, "reuse/nearest": 2.0, "count": 0.1}))
    (won,) = against_controls(scored({"fedkim": 3.0, "reuse/nearest": 0.2, "count": 0.1}))
    assert "supported on 1" in won
    assert "loses" not in won


def test_the_best_head_in_hindsight_decides_nothing() -> None:
    said = against_controls(scored({"fedkim": 1.5, "reuse/best": 4.0, "reuse/mp": 4.0, "count": 0.1}))
    assert "loses" not in said[0]
    assert "hindsight" in model_title("reuse/best")


def test_a_run_without_controls_says_nothing_of_them(tmp_path: Path) -> None:
    run = fake_run(tmp_path)
    assert against_controls(RunFolder(run).read(ScoreFile)) == []
    page = build_report(run)
    assert 'id="controls"' not in page
    assert "every control" not in page


def test_the_report_has_differences_choices_and_checks(tmp_path: Path) -> None:
    run = RunFolder(fake_run(tmp_path))
    run.write(scored({"fedkim": 0.3, "reuse/mp": 2.0, "reuse/nearest": 2.0, "reuse/best": 2.0, "blind/none": 0.0}))
    reuse = Reuse(task="sp", nearest="mp", best="mp", similarity={"mp": 0.8}, left_out={"cd": "the head reads image"})
    check = AnswerCheck(
        task="sp", rank_correlation={"reuse/mp": 0.95}, n=50, negation=0.1, paraphrases=0.9, opposite="Is it not?"
    )
    run.write(ControlFile(reuse=(reuse,), answers=(check,), absent={"cd": {"count": "no values to count in image"}}))
    page = build_report(run.root)
    for text in ("Below a model's value", "the head reads image", "0.95", "no values to count in image"):
        assert text.replace("'", "&#39;") in page
    assert page.index("It loses on") < page.index("Unseen tasks, AUROC")
    assert "It loses" in str(summary_table(run.root).caption)


def test_one_lora_has_the_rank_and_the_scale_of_all_experts() -> None:
    study = load_study(DEMO, ["injection.num_experts=4", "injection.rank=3", "injection.alpha=6"])
    one = one_lora(study).injection
    assert (one.num_experts, one.rank) == (1, 12)
    assert one.alpha / one.rank == pytest.approx(study.injection.alpha / study.injection.rank / 4)


def test_one_lora_is_a_baseline_by_name_which_injection_decides() -> None:
    def folder(*overrides: str) -> str:
        study = load_study(DEMO, ['train=["cd"]', "unseen=[]", 'baselines=["lora"]', *overrides])
        image = np.zeros((4, 1, 64, 64), np.float32)
        held = TaskSet.from_arrays(TASKS["cd"], {"image": image}, np.array([0, 1, 0, 1]))
        cohort = Cohort({"client-0": {"cd": held}}, {}, {}, {}, {}, {}, {})
        (baseline,) = baselines_of(study, cohort, {"covid-radiography": "1"}, Path("runs"))
        return baseline.run.root.name

    assert folder().startswith("lora-")
    assert folder() == folder("evaluation.num_resamples=7")
    assert folder() != folder("injection.lr=0.1")
    with pytest.raises(StudyError, match="an injected LLM, and a benchmark has none"):
        load_study(DEMO, ['job="benchmark"', "unseen=[]", 'baselines=["lora"]'])


def test_open_questions_rank_models_and_where_there_are_none_yes_and_no_do() -> None:
    def lines(references: Sequence[str], closed: Sequence[bool]) -> TaskResponses:
        truths = [
            {"reference": text, "closed": one, "target": 1 if one else -1}
            for text, one in zip(references, closed, strict=True)
        ]
        given = [{"text": text, "probabilities": [0.2, 0.8]} for text in references]
        ids = [f"e{number}" for number in range(len(references))]
        return TaskResponses("mr", TaskFacts(kind="questions"), ids, ids, None, truths, {"fedkim": given})

    assert lines(["yes", "lung"], [True, False]).leading == "open"
    assert lines(["yes", "yes"], [True, True]).leading == "closed"


def test_questions_of_one_type_begin_alike() -> None:
    assert question_type("Is there a fracture?") == question_type("is THERE any mass?")
    assert question_type("What organ is it?") != question_type("Is there a fracture?")
