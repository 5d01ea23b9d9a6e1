"""Sweeps: every shipped one parses with all its cells, equal cells share a run, and mistakes are named."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from medfed.core.errors import StudyError
from medfed.report.comparison import PAPER_METRICS
from medfed.report.published import published
from medfed.study.study import load_study, merged
from medfed.study.sweep import Plan, is_sweep, load_plan, parse_seeds

STUDIES = Path(__file__).parents[2] / "studies"
SWEEPS = sorted(path for path in STUDIES.glob("*.toml") if "axes" in tomllib.loads(path.read_text(encoding="utf-8")))
TABLES = [path for path in SWEEPS if path.stem.startswith(("table", "figure"))]
"""The FedKIM paper's tables and figure."""
SMALL = """
name = "small"
base = "base.toml"
seeds = [3, 4]
[set]
rounds.num_rounds = 7
[axes.backbone.FedAvg]
[axes.backbone.FedProx]
algorithm = { name = "fedprox", mu = 0.5 }
[axes.method.FedKIM]
[axes.method.FedPlug]
injection.num_experts = 0
[quick]
seeds = [0]
[quick.set]
rounds.num_rounds = 1
"""


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    (tmp_path / "base.toml").write_text((STUDIES / "demo.toml").read_text(encoding="utf-8"), encoding="utf-8")
    path = tmp_path / "small.toml"
    path.write_text(SMALL, encoding="utf-8")
    return path


def hashes(plan: Plan) -> dict[str, str]:
    return {cell.label: cell.study.hash() for cell in plan.cells}


@pytest.mark.parametrize("quick", [False, True], ids=["full", "quick"])
@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_every_shipped_sweep_has_valid_cells_that_differ(path: Path, quick: bool) -> None:
    plan = load_plan(path, quick=quick)
    assert is_sweep(path)
    assert bool(plan.paper) == (path in TABLES)
    assert len(set(hashes(plan).values())) == len(plan.cells) == len(set(hashes(plan)))
    injects = plan.cells[0].study.job == "inject"
    assert len(plan.seeds) == (1 if quick else 5) or not (quick or injects)
    assert not quick or max(cell.study.rounds.num_rounds for cell in plan.cells) <= 2


def test_the_papers_tables_have_the_papers_rows() -> None:
    assert {path.stem for path in TABLES} == {"figure2", "table3", "table4-5", "table7"}
    backbones, methods = ("FedAvg", "FedProx"), ("medfed", "FedKIM", "FedPlug_L", "FedPlug")
    pairs = [f"{backbone} · {method}" for backbone in backbones for method in methods]
    for name in ("table3", "figure2"):
        cells = load_plan(STUDIES / f"{name}.toml").cells
        assert [cell.label for cell in cells] == pairs
        settings = {cell.values["method"]: cell.study.injection for cell in cells}
        assert [settings[method].recipe for method in methods] == ["medfed", "paper", "paper", "paper"]
        assert [settings[method].num_experts for method in methods] == [12, 12, 1, 0]
        assert {cell.values["backbone"]: cell.study.algorithm.name for cell in cells} == {
            "FedAvg": "fedavg",
            "FedProx": "fedprox",
        }
    ablations = {cell.label: cell.study for cell in load_plan(STUDIES / "table4-5.toml").cells}
    assert list(ablations) == ["FedKIM", "FedKIM_pub", "FedKIM_T", "FedKIM_M"]
    assert {study.injection.recipe for study in ablations.values()} == {"paper"}
    assert not ablations["FedKIM_pub"].federate
    assert not ablations["FedKIM_T"].injection.router.use_task_description
    assert not ablations["FedKIM_M"].injection.router.use_modality_description
    singles = load_plan(STUDIES / "table7.toml").cells
    assert [cell.label for cell in singles] == [
        f"{task} · {pair}" for task in ("CD", "LOD", "EAD", "MP") for pair in pairs
    ]
    assert {(cell.values["task"], cell.study.train) for cell in singles} == {
        (name.upper(), (name,)) for name in ("cd", "lod", "ead", "mp")
    }


def test_every_cell_that_is_called_fedkim_has_a_recipe_of_the_paper() -> None:
    recipes = {"medfed": set(), "paper": set(), "released": set()}
    for path in SWEEPS:
        for cell in load_plan(path).cells:
            if cell.study.job == "inject":
                recipes[cell.study.injection.recipe].add(cell.label.rpartition(" · ")[2])
    print(recipes)
    assert recipes["released"] == {"released", "FedKIM (released code)"}
    papers = re.compile(r"FedKIM|FedPlug|paper")
    assert all(papers.match(label) for label in recipes["paper"])
    assert not any(label.startswith(("FedKIM", "FedPlug")) for label in recipes["medfed"])


def test_the_papers_study_has_all_twelve_tasks() -> None:
    study = load_study(STUDIES / "fedkim-paper.toml")
    print("Table 2: CD LOD EAD MP; ECD PED AD EBD SP MR MS SNC")
    assert study.train == ("cd", "lod", "ead", "mp")
    assert set(study.unseen) == {"ecd", "ped", "ad", "ebd", "sp", "mr", "ms", "snc"}
    assert study.injection.recipe == "paper"


def test_table_7_has_every_row_and_column_of_the_paper_that_can_be_computed() -> None:
    printed = [row for row in published() if row.place == "Table 7"]
    rows = {(row.task, row.backbone, row.method) for row in printed}
    cells = {tuple(cell.values.values()) for cell in load_plan(STUDIES / "table7.toml").cells}
    print("4 tasks × 2 backbones × 3 methods × 4 metrics = 96 numbers; MMedLM-2's columns are empty")
    assert len(printed) == 96
    assert len(rows) == 24
    assert rows == {cell for cell in cells if cell[2] != "medfed"}
    assert {row.metric for row in printed} == set(PAPER_METRICS) - {"bleu1"}


def test_the_routers_of_the_paper_and_its_code_run_to_round_30() -> None:
    cells = {cell.label: cell.study for cell in load_plan(STUDIES / "router.toml").cells}
    assert [*cells][:3] == ["paper", "released", "medfed"]
    assert {study.rounds.num_rounds for study in cells.values()} == {30}
    assert [cells[name].injection.recipe for name in ("paper", "released", "medfed")] == ["paper", "released", "medfed"]
    assert cells["paper, normalised"].injection.router.normalise_embeddings
    assert cells["paper, normalised"].injection.router.attention == "linear"
    assert cells["paper, twice the scale"].injection.alpha == 2 * cells["paper"].injection.rank


def test_cells_with_equal_settings_share_a_run_folder() -> None:
    table, figure = (load_plan(STUDIES / f"{name}.toml") for name in ("table3", "figure2"))
    assert hashes(table) == hashes(figure)
    assert {cell.study.name for cell in (*table.cells, *figure.cells)} == {"demo"}
    assert hashes(load_plan(STUDIES / "table4-5.toml"))["FedKIM"] == hashes(table)["FedAvg · FedKIM"]


def test_settings_are_laid_over_the_base_in_order_of_set_axes_quick_and_overrides(sweep: Path) -> None:
    base = load_study(sweep.parent / "base.toml")
    cells = {cell.label: cell.study for cell in load_plan(sweep).cells}
    assert list(cells) == ["FedAvg · FedKIM", "FedAvg · FedPlug", "FedProx · FedKIM", "FedProx · FedPlug"]
    assert cells["FedAvg · FedKIM"] == base.model_copy(
        update={"rounds": base.rounds.model_copy(update={"num_rounds": 7})}
    )
    study = cells["FedProx · FedPlug"]
    assert study.resolved()["algorithm"] == {"name": "fedprox", "mu": 0.5, "weighting": "examples"}
    assert (study.injection.num_experts, study.rounds.num_rounds) == (0, 7)
    assert load_plan(sweep, quick=True).cells[0].study.rounds.num_rounds == 1
    assert load_plan(sweep, ["rounds.num_rounds=9"], quick=True).cells[0].study.rounds.num_rounds == 9


def test_seeds_come_from_the_file_the_quick_form_or_the_command(sweep: Path) -> None:
    assert load_plan(sweep).seeds == (3, 4)
    assert load_plan(sweep, quick=True).seeds == (0,)
    assert load_plan(sweep, seeds=[8, 9], quick=True).seeds == (8, 9)
    assert [load_plan(sweep).cells[0].at(seed).seed for seed in (3, 4)] == [3, 4]


def test_a_plain_study_is_a_sweep_of_one_cell() -> None:
    plan = load_plan(STUDIES / "demo.toml", seeds=(0, 1, 2))
    assert [cell.label for cell in plan.cells] == ["demo"]
    assert plan.cells[0].study == load_study(STUDIES / "demo.toml")
    assert (plan.seeds, plan.pairs) == ((0, 1, 2), [])


def test_cells_are_compared_along_the_last_axis(sweep: Path) -> None:
    assert load_plan(sweep).pairs == [
        ("FedAvg · FedKIM", "FedAvg · FedPlug"),
        ("FedProx · FedKIM", "FedProx · FedPlug"),
    ]


def test_tables_merge_deeply_and_another_name_replaces() -> None:
    base = {"a": {"x": 1, "y": 2}, "algorithm": "fedprox", "foundation": {"kind": "tiny", "num_steps": 3}}
    assert merged(base, {"a": {"y": 5}})["a"] == {"x": 1, "y": 5}
    assert merged(base, {"algorithm": {"mu": 0.1}})["algorithm"] == {"name": "fedprox", "mu": 0.1}
    assert merged(base, {"algorithm": {"name": "fedavg"}})["algorithm"] == {"name": "fedavg"}
    assert merged(base, {"algorithm": "fedavg"})["algorithm"] == "fedavg"
    assert merged(base, {"foundation": {"kind": "huggingface"}})["foundation"] == {"kind": "huggingface"}
    assert merged(base, {"foundation": {"kind": "tiny", "lr": 1}})["foundation"]["num_steps"] == 3
    assert base["a"] == {"x": 1, "y": 2}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("seeds = [3, 4]", "seed = [3, 4]", "small.toml: unknown key 'seed'.*did you mean 'seeds'"),
        ("seeds = [3, 4]", "seeds = []", "small.toml: seeds"),
        ("base.toml", "bass.toml", "bass.toml: no such study file"),
        ('base = "base.toml"', "", "small.toml: base"),
        ("num_experts", "num_expert", "cell FedAvg · FedPlug: unknown key 'injection.num_expert'.*'num_experts'"),
        ("mu = 0.5", "mu = -1", "cell FedProx · FedKIM: algorithm"),
        ("rounds.num_rounds = 1", "round.num_rounds = 1", "unknown key 'round'"),
        ("[quick]", "[quik]", "unknown key 'quik'.*did you mean 'quick'"),
    ],
)
def test_mistakes_are_named(sweep: Path, old: str, new: str, message: str) -> None:
    sweep.write_text(SMALL.replace(old, new), encoding="utf-8")
    with pytest.raises(StudyError) as caught:
        load_plan(sweep, quick="round." in new)
    assert re.search(message, str(caught.value), re.DOTALL), str(caught.value)


def test_a_study_without_a_quick_form_says_so_and_one_with_it_is_smaller() -> None:
    with pytest.raises(StudyError, match="no quick form"):
        load_plan(STUDIES / "fedkim-3sites.toml", quick=True)
    whole, quick = (load_plan(STUDIES / "demo.toml", quick=short).cells[0].study for short in (False, True))
    assert (whole.rounds.num_rounds, quick.rounds.num_rounds) == (10, 2)


def test_seeds_are_whole_numbers() -> None:
    with pytest.raises(StudyError, match="--seeds wants whole numbers"):
        parse_seeds("0,one")
    assert parse_seeds("0, 2,2") == (0, 2)
