"""The comparison report: seeds share a label, stars only where earned, shared baselines once, settings that differ."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from medfed.core.errors import RunError
from medfed.records.schema import ComparisonFile
from medfed.report.comparison import Compared, comparison_page, default_labels, markdown
from medfed.report.html import Cell, Row
from medfed.report.models import is_constant
from medfed.report.page import build_report, write_report
from medfed.report.published import published
from support.fake_runs import CELLS, TITLES, fake_comparison, fake_runs
from support.html_pages import Page


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return fake_runs(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def page(folders: list[Path]) -> Page:
    return Page(build_report(fake_comparison(), folders))


def test_every_part_is_there(page: Page) -> None:
    for text in (*CELLS, *TITLES.values(), "Mean of the unseen tasks", "Synthetic data.", "injection.num_experts"):
        assert text in page.text
    for part in ("Results", "At a glance", "Side by side", "Differences", "The paper's numbers", "Runs"):
        assert part in page.text
    assert "0, 1, 2, 3, 4" in page.text


def test_the_verdict_follows_the_intervals(page: Page) -> None:
    verdicts = [text for text in page.texts if text.startswith("FedKIM, AUROC")]
    assert len(verdicts) == 2
    assert "better than Federated-only: not distinguishable" in verdicts[0]
    for verdict in verdicts:
        assert "better than FedPlug_L: not distinguishable; better than FedPlug: supported." in verdict


def test_under_five_seeds_nothing_is_starred(tmp_path: Path) -> None:
    few = Page(build_report(fake_comparison(4), fake_runs(tmp_path, 4)))
    assert "Fewer than 5 seeds." in few.text
    assert few.texts.count("†") == few.texts.count("*") == 0
    many = Page(build_report(fake_comparison(), fake_runs(tmp_path / "five", 5)))
    assert many.texts.count("†") > 0


def with_first(kind: str, found: dict[str, object], **changes: object) -> ComparisonFile:
    """The fake comparison with one row or difference changed: the first whose fields are as ``found`` says."""
    whole = fake_comparison()
    rows = list(getattr(whole, kind))
    place = next(n for n, row in enumerate(rows) if all(getattr(row, name) == v for name, v in found.items()))
    rows[place] = rows[place].model_copy(update=changes)
    return whole.model_copy(update={kind: tuple(rows)})


def marks_of(comparison: ComparisonFile, title: str) -> dict[str, str]:
    (results, *_) = comparison_page(comparison, []).sections
    table = results.parts[1]
    rows: list[Row] = [row for group in table.groups for row in group.rows if row.head == title]
    cells = [cell for cell in rows[0].cells if isinstance(cell, Cell)]
    return {column.title: cell.marks for column, cell in zip(table.columns[1:], cells, strict=False)}


def test_a_mark_stands_at_the_cell_that_differs_from_the_first() -> None:
    marks = marks_of(fake_comparison(), "Mean of the unseen tasks")
    constant = {"Best constant answer": ""}
    assert marks == {"FedKIM": "", "FedPlug_L": "", "FedPlug": "†", "Federated-only": ""} | constant


def test_a_significant_gap_to_the_own_federation_is_a_star() -> None:
    gap = {"label": "FedPlug", "baseline_model": "federated", "metric": "auroc"}
    marks = marks_of(with_first("differences", gap, significant=True), "Mean of the trained tasks")
    assert list(marks.values()) == ["", "", "†*", "", ""]


def test_a_baseline_that_all_cells_share_has_one_column_and_one_that_differs_has_more() -> None:
    def titles(comparison: ComparisonFile) -> list[str]:
        return [member.title for member in Compared(comparison).members if not is_constant(member.model)]

    assert titles(fake_comparison()) == [*CELLS, "Federated-only"]
    other = with_first("rows", {"label": "FedPlug", "model": "federated"}, per_seed=(0.1,) * 5)
    assert titles(other)[3:] == ["Federated-only (FedKIM, FedPlug_L)", "Federated-only (FedPlug)"]


def test_a_model_with_one_answer_is_flagged(page: Page) -> None:
    flags = [attributes for attributes in page.of("span") if attributes.get("title") == "one answer only"]
    assert len(flags) == 2, "FedPlug on mortality, in both tables"


def test_published_numbers_come_only_from_the_tables_that_are_named(folders: list[Path]) -> None:
    page = Page(build_report(fake_comparison().model_copy(update={"paper": ("Figure 2",)}), folders))
    sources = {row.source for row in published() if row.backbone}
    assert any(source.endswith("Figure 2") for source in sources)
    for source in sources:
        assert (source in page.text) == source.endswith("Figure 2")


def test_the_routers_mixtures_are_drawn_and_listed_round_by_round(folders: list[Path]) -> None:
    assert '<section id="router">' not in build_report(fake_comparison(), folders), "no run of these logs its router"
    distances = {"FedKIM": {1: (0.0002, 0.0006), 2: (0.03, 0.05)}, "FedPlug_L": {1: (0.1,)}}
    entropies = {"FedKIM": {1: (2.4, 2.5), 2: (0.002, 0.004)}}
    made = fake_comparison().model_copy(update={"distances": distances, "entropies": entropies})
    made = ComparisonFile.model_validate_json(made.model_dump_json())
    html = build_report(made, folders)
    assert '<section id="router">' in html
    assert "Total-variation distance between the weights of two tasks" in Page(html).text
    assert "FedKIM: 0.0004 at 1" in html
    assert "FedKIM: 0.04 at 2" in html
    assert "FedKIM: 0.003 at 2" in html
    lines = markdown(made).splitlines()
    assert "| FedKIM | 0.0004 | 0.04 |" in lines
    assert "| FedPlug_L | 0.1 | – |" in lines
    assert "| FedKIM | 2.5 | 0.003 |" in lines


def test_default_labels_join_the_seeds_of_a_configuration(folders: list[Path]) -> None:
    labels = default_labels(folders)
    assert len(labels) == len(folders) == 15
    assert list(dict.fromkeys(labels)) == [f"ablation {n}c0ffee{n}" for n in range(3)]


def test_names_from_outside_cannot_become_markup(folders: list[Path]) -> None:
    evil = "<script>alert('x')</script>"
    text = fake_comparison().model_dump_json().replace('"FedPlug"', json.dumps(evil))
    html = build_report(ComparisonFile.model_validate_json(text), folders)
    assert html.count("<script>") == 1
    assert evil in Page(html).text


def test_a_folder_that_is_not_there_is_an_error_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="nowhere: no such run folder"):
        write_report(fake_comparison(), tmp_path / "report.html", [tmp_path / "nowhere"])
    assert list(tmp_path.iterdir()) == []
