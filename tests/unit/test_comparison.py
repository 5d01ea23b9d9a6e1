"""The comparison report: seeds share a label, stars only where earned, shared baselines once, settings that differ."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_report import Page

from medfed.core.errors import RunError
from medfed.report.compared import Comparison
from medfed.report.comparison import build_comparison, default_labels, write_comparison
from medfed.report.matrix import Cells
from medfed.report.names import published
from support.fake_runs import CELLS, TITLES, fake_comparison, fake_runs


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return fake_runs(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def page(folders: list[Path]) -> Page:
    return Page(build_comparison(fake_comparison(), folders))


def test_every_part_is_there(page: Page) -> None:
    for text in (*CELLS, *TITLES.values(), "Mean of the unseen tasks", "Synthetic data.", "injection.num_experts"):
        assert text in page.text
    for part in ("Results", "At a glance", "Side by side", "Differences", "Beside the paper", "Runs"):
        assert part in page.text
    assert "0, 1, 2, 3, 4" in page.text


def test_the_verdict_follows_the_significant_differences(page: Page) -> None:
    verdicts = [text for text in page.texts if text.startswith("FedKIM, AUROC")]
    assert len(verdicts) == 2
    assert "no significant difference from Federated-only" in verdicts[0]
    assert all("no significant difference from FedPlug_L; better than FedPlug." in verdict for verdict in verdicts)


def test_under_five_seeds_nothing_is_starred(tmp_path: Path) -> None:
    few = Page(build_comparison(fake_comparison(4), fake_runs(tmp_path, 4)))
    assert "Fewer than 5 seeds." in few.text
    assert "better than" not in few.text
    marks = [attributes for attributes in few.of("span") if attributes.get("class") == "marks"]
    assert marks
    assert few.texts.count("†") == few.texts.count("*") == 0


def test_a_mark_stands_at_the_cell_that_differs_from_the_first() -> None:
    cells = Cells(Comparison.model_validate(fake_comparison()), TITLES)
    (auroc, _) = cells.matrices()
    lines = {line.title: line for _, section in auroc.sections for line in section}
    titles = [column.title for column in cells.columns]
    marks = dict(zip(titles, (entry.marks for entry in lines["Mean of the unseen tasks"].entries), strict=False))
    assert marks == {"FedKIM": "", "FedPlug_L": "", "FedPlug": "†", "Federated-only": ""}


def test_a_significant_gap_to_the_own_federation_is_a_star() -> None:
    raw = fake_comparison()
    gap = next(d for d in raw["differences"] if (d["label"], d["baseline_model"]) == ("FedPlug", "federated"))
    gap["significant"] = True
    cells = Cells(Comparison.model_validate(raw), {})
    (line,) = [line for _, section in cells.matrices()[0].sections for line in section if line.mean][:1]
    assert [entry.marks for entry in line.entries] == ["", "", "†*", "", ""]


def test_a_baseline_that_all_cells_share_has_one_column_and_one_that_differs_has_more() -> None:
    raw = fake_comparison()
    assert [c.title for c in Cells(Comparison.model_validate(raw), {}).columns] == [*CELLS, "Federated-only"]
    other = next(row for row in raw["rows"] if (row["label"], row["model"]) == ("FedPlug", "federated"))
    other["per_seed"] = [0.1] * 5
    columns = [column.title for column in Cells(Comparison.model_validate(raw), {}).columns]
    assert columns[3:] == ["Federated-only (FedKIM, FedPlug_L)", "Federated-only (FedPlug)"]


def test_a_model_with_one_answer_is_flagged(page: Page) -> None:
    flags = [attributes for attributes in page.of("span") if attributes.get("title") == "one answer only"]
    assert len(flags) == 2, "FedPlug on mortality, in both tables"


def test_published_numbers_stand_beside_only_from_the_tables_that_are_named(folders: list[Path]) -> None:
    raw = fake_comparison() | {"paper": ["Figure 2"]}
    page = Page(build_comparison(raw, folders))
    sources = {row.source for row in published() if row.backbone}
    assert any(source.endswith("Figure 2") for source in sources)
    for source in sources:
        assert (source in page.text) == source.endswith("Figure 2")


def test_default_labels_join_the_seeds_of_a_configuration(folders: list[Path]) -> None:
    labels = default_labels(folders)
    assert len(labels) == len(folders) == 15
    assert list(dict.fromkeys(labels)) == [f"ablation {n}c0ffee{n}" for n in range(3)]


def test_names_from_outside_cannot_become_markup(folders: list[Path]) -> None:
    raw = fake_comparison()
    evil = "<script>alert('x')</script>"
    for row in [*raw["rows"], *raw["differences"]]:
        row["label"] = evil if row["label"] == "FedPlug" else row["label"]
    raw["labels"] = ["FedKIM", "FedPlug_L", evil]
    html = build_comparison(raw, folders)
    assert html.count("<script>") == 1
    assert evil in Page(html).text


def test_what_is_no_comparison_is_an_error_by_field(folders: list[Path], tmp_path: Path) -> None:
    with pytest.raises(RunError, match="labels"):
        write_comparison({"rows": []}, folders, tmp_path / "report.html")
    with pytest.raises(RunError, match="nowhere: no such run folder"):
        write_comparison(fake_comparison(), [tmp_path / "nowhere"], tmp_path / "report.html")
    assert list(tmp_path.iterdir()) == []
