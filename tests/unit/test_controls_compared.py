"""Controls in tables: over seeds in a sweep's report, terminal and Markdown, and in the pages' generated sections."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from medfed.evaluation.compare import compare_runs
from medfed.evaluation.controls import BOUNDS, JUDGED
from medfed.evaluation.verdict import over_controls
from medfed.export.model_card import all_scores
from medfed.records.folder import RunFolder
from medfed.records.schema import ComparisonFile, ControlFile, ScoreFile
from medfed.report.comparison import comparison_tables, markdown, sentences
from medfed.report.controls import control_table
from medfed.report.models import model_title
from medfed.report.page import build_report
from medfed.report.run import Run
from medfed.study.evaluation import BootstrapSettings
from sections import ablation, controls, demo, readme, tables, verdict
from sections.comparison import Results
from support.fake_runs import EMBARRASSING, fake_controlled_runs
from support.html_pages import Page

IN_WORDS = {"blind/other", "blind/none", "blind/type", "lora"}
ALL = {"federated", "heads", "local", "centralised", "reuse/nearest", "reuse/mean", "reuse/best", "count", *IN_WORDS}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return fake_controlled_runs(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def comparison(runs: list[Path]) -> ComparisonFile:
    compared = compare_runs(runs, ["FedKIM"] * len(runs), BootstrapSettings(num_resamples=200))
    return compared.model_copy(update={"name": "controlled", "folders": tuple(map(str, runs))})


def test_the_llm_is_paired_with_every_control_over_seeds(comparison: ComparisonFile) -> None:
    gaps = {(gap.baseline_model, gap.task, gap.part): gap for gap in comparison.differences if gap.metric == "auroc"}
    values = {(row.model, row.task, row.part): row.value for row in comparison.rows if row.metric == "auroc"}
    assert {model for model, *_ in gaps} == ALL
    for (model, task, part), gap in gaps.items():
        assert gap.value == pytest.approx(values["fedkim", task, part] - values[model, task, part])
        assert gap.num_seeds == 3
        assert gap.ci_low <= gap.value <= gap.ci_high
        assert (gap.p is None) == (model in BOUNDS), "nobody claims to beat a bound: it is in no family"


def test_yes_or_no_among_open_questions_has_the_likelihoods_scores_of_a_run(
    runs: list[Path], comparison: ComparisonFile
) -> None:
    def of_seed(run: Path) -> float:
        rows = RunFolder(run).read(ScoreFile).rows
        return next(r.value for r in rows if (r.task, r.model, r.metric, r.part) == ("mr", "fedkim", "auroc", "closed"))

    (row,) = [
        row
        for row in comparison.rows
        if (row.task, row.model, row.metric, row.part) == ("mr", "fedkim", "auroc", "closed")
    ]
    assert row.per_seed == pytest.approx([of_seed(run) for run in runs])
    assert not [row for row in comparison.rows if row.task == "mr" and row.metric == "auroc" and row.part is None]
    assert not [row for row in comparison.rows if row.task.startswith("mean-") and row.part]


def test_what_answers_follow_is_the_mean_over_seeds(runs: list[Path], comparison: ComparisonFile) -> None:
    (check,) = comparison.answers
    each = [RunFolder(run).read(ControlFile).answers[0] for run in runs]
    assert check.rank_correlation["reuse/mp"] == pytest.approx(sum(c.rank_correlation["reuse/mp"] for c in each) / 3)
    assert check.negation == pytest.approx(0.1)
    assert (check.label, check.task, check.num_seeds, check.n) == ("FedKIM", "sp", 3, 50)


def test_the_first_screen_of_a_sweep_says_where_the_llm_loses(runs: list[Path], comparison: ComparisonFile) -> None:
    leading = [
        gap for gap in comparison.differences if (gap.metric, gap.part) in (("auroc", None), ("token_f1", "open"))
    ]
    lost = over_controls(leading).lost
    assert [gap.baseline_model for gap in lost["sp", None]] == ["reuse/nearest"], "the best in hindsight is a bound"
    assert "blind/type" in [gap.baseline_model for gap in lost["mr", "open"]]
    said = sentences(comparison)[-1]
    assert said.startswith("FedKIM: better than every control, on 4 tasks")
    assert "It loses on SP to: Nearest head reused (−" in said
    assert "Most frequent answer by type" in said
    page = build_report(comparison, runs)
    assert page.index("It loses on Sepsis prediction to: Nearest head reused") < page.index('id="results"')
    assert markdown(comparison).index("It loses on SP") < markdown(comparison).index("## MP")


def test_a_sweep_prints_every_control_as_a_row(runs: list[Path], comparison: ComparisonFile) -> None:
    page = Page(build_report(comparison, runs))
    console = Console(width=160)
    with console.capture() as capture:
        console.print(*comparison_tables(comparison))
    for model in ALL:
        assert model_title(model) in page.text
        assert model_title(model) in capture.get()
        assert f"| {model_title(model)} |" in markdown(comparison)
    assert "Head cd reused" not in capture.get(), "single heads would drown the others"
    for text in ("Open questions, token F1", "Yes/no among open questions, AUROC", "What the LLM's answers follow"):
        assert text in page.text
    assert "## What the LLM's answers follow" in markdown(comparison)


def test_no_table_of_a_sweep_pools_open_questions_with_yes_or_no(runs: list[Path], comparison: ComparisonFile) -> None:
    pooled = [row for row in comparison.rows if (row.task, row.part, row.metric) == ("mr", "all", "token_f1")]
    assert pooled, "they are on file for published numbers"
    assert "n = 120 " not in [text for text in Page(build_report(comparison, runs)).texts if "Questions" in text]
    assert "MR, all questions" not in markdown(comparison)
    assert "MR, open questions (n = 60)" in markdown(comparison)


def test_the_terminal_marks_the_controls_that_a_run_loses_to(runs: list[Path]) -> None:
    console = Console(width=80)
    with console.capture() as capture:
        console.print(control_table(runs[0]))
    lines = {line.split()[0]: line for line in capture.get().splitlines() if line.strip()}
    assert "…" not in capture.get()
    assert "!" in lines["SP"], "the nearest head is better"
    assert "!" not in lines["MP"]


def test_the_pages_print_every_control_of_a_run(runs: list[Path]) -> None:
    text = demo.results(runs[0])
    assert text.index("It loses on") < text.index("| Trained tasks, AUROC |")
    for model in (*EMBARRASSING["trained"], "reuse/nearest", "reuse/mean", "reuse/best", *IN_WORDS):
        assert f"| {model_title(model)} |" in text
    assert "Head cd reused |" not in text
    row = next(line for line in text.splitlines() if line.startswith("| Nearest head reused |"))
    assert "<br>**−" in row, "a loss is bold"
    hindsight = next(line for line in text.splitlines() if line.startswith("| Best head in hindsight |"))
    assert "<br>−" in hindsight
    assert "**" not in hindsight, "a bound is none"
    assert "| Best constant answer |" in text
    assert "head mp reused 0.75" in text


@pytest.mark.parametrize("made", [readme.headline, readme.real, tables.headline, tables.real_table, verdict.verdict])
def test_the_pages_print_every_control_over_seeds(made, comparison: ComparisonFile) -> None:
    text = made(Results(comparison))
    assert "Nearest head reused" in text
    assert controls.NO_CONTROLS not in text
    if made is not verdict.verdict:
        assert all(f"| {model_title(model)} |" in text for model in (*ALL, "fedkim"))
    if made in (readme.headline, readme.real, verdict.verdict):
        asked = text.index("- Is it better than every control?")
        assert asked < text.index("| task |"), "the first screen"
        assert "It loses on Sepsis prediction to: Nearest head reused (−" in text


def test_the_papers_tables_and_the_recipe_have_controls(comparison: ComparisonFile) -> None:
    assert "| Nearest head reused |" in tables.paper_tables(Results(comparison), "Figure 2", "unseen")
    assert "Head cd reused" not in tables.paper_tables(Results(comparison), "Figure 2", "unseen")
    assert "| 2 of 4 tasks |" in ablation.ablation(Results(comparison))


def test_runs_older_than_the_controls_say_so(comparison: ComparisonFile) -> None:
    rows = [row for row in comparison.rows if row.model in ("fedkim", "federated") or row.model not in JUDGED]
    rows = [row for row in rows if not row.model.startswith("reuse/")]
    old = Results(comparison.model_copy(update={"rows": tuple(rows), "differences": (), "answers": ()}))
    for made in (readme.headline, readme.real, tables.headline, tables.real_table):
        assert made(old).count(controls.NO_CONTROLS) == 1
    assert "every control" not in verdict.verdict(old)


def test_the_model_card_names_the_control_that_is_hardest_to_beat(runs: list[Path]) -> None:
    table = all_scores(Run(runs[0]))
    line = next(line for line in table.splitlines() if line.startswith("| Sepsis prediction | unseen | 120 | AUROC |"))
    gap = next(
        gap
        for gap in RunFolder(runs[0]).read(ScoreFile).differences
        if (gap.task, gap.metric, gap.model, gap.baseline) == ("sp", "auroc", "fedkim", "reuse/nearest")
    )
    assert f"Nearest head reused, {gap.value:+.3f}".replace("-", "−") in line, "the best in hindsight is a bound"
