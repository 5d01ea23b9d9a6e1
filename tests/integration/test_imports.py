"""What a module does not import, seen in a fresh interpreter."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from support.fake_runs import fake_run

HEAVY = {"torch", "transformers", "sklearn", "scipy", "matplotlib", "numpy"}
LLM = {"peft", "transformers", "bitsandbytes", "medfed.injection.inject", "medfed.llm.foundation"}


def imported(code: str, wanted: set[str]) -> set[str]:
    """Return which of ``wanted`` a fresh interpreter has imported after ``code``."""
    code += f"\nimport sys; print(*({wanted} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "module",
    [
        "medfed.records.folder",
        "medfed.evaluation.score",
        "medfed.evaluation.compare",
        "medfed.evaluation.leaderboard",
        "medfed.evaluation.verdict",
        "medfed.report.single",
        "medfed.report.comparison",
        "medfed.report.leaderboard",
    ],
)
def test_records_scores_and_report_need_no_torch(module: str) -> None:
    assert imported(f"import {module}", {"torch", "transformers", "matplotlib.pyplot"}) == set()


def test_a_finished_runs_table_needs_no_charts_and_no_learning_library(tmp_path: Path) -> None:
    run = fake_run(tmp_path, num_examples=40, num_resamples=20)
    code = (
        f"from pathlib import Path; from medfed.report.results import summary_table; summary_table(Path({str(run)!r}))"
    )
    assert imported(code, HEAVY) == set()


@pytest.mark.parametrize(
    ("code", "light"),
    [
        ("import medfed; dir(medfed)", HEAVY | {"polars", "pydantic", "medfed.api", "medfed.study"}),
        ("import medfed; medfed.MedfedError; medfed.register", HEAVY | {"polars", "medfed.api"}),
        ("import medfed; medfed.load_study('demo')", HEAVY - {"numpy"}),
        ("import medfed; medfed.Dataset", {"torch", "transformers", "medfed.api"}),
    ],
)
def test_a_public_name_imports_its_own_module_alone(code: str, light: set[str]) -> None:
    assert imported(code, light) == set()


def test_the_commands_help_needs_neither_settings_nor_records() -> None:
    light = HEAVY | {"polars", "medfed.records.schema", "medfed.study.study"}
    assert imported("import medfed.cli.app", light) == set()
    assert imported("import medfed.cli.app, medfed.records.folder", light) == {"medfed.records.schema"}, (
        "the check sees nothing"
    )


def test_settings_and_their_checks_need_no_torch() -> None:
    code = (
        "from medfed.study.algorithms import Composition, FedBN, FedProx, Scaffold\n"
        "from medfed.study.federation import ClientSettings\n"
        "Composition(sharing=FedBN(), local=FedProx(), server='fedadam').check(ClientSettings())\n"
        "Scaffold(option='I').check(ClientSettings())\n"
    )
    assert imported(code, {"torch", "numpy"}) == set()


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_the_command_prints_a_finished_runs_scores_without_a_learning_library(
    tmp_path: Path, options: list[str]
) -> None:
    run = fake_run(tmp_path, num_examples=40, num_resamples=20)
    words = ["medfed", "scores", str(run), *options]
    code = (
        f"import sys; sys.argv = {words!r}\nfrom medfed.cli import main\n"
        "try: main()\nexcept SystemExit as end: assert not end.code\nprint('END')"
    )
    printed = subprocess.run(
        [sys.executable, "-c", f"{code}; print(*({HEAVY} & set(sys.modules)))"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    table, _, heavy = printed.rpartition("END")
    assert heavy.split() == []
    if options:
        rows = json.loads(table)["rows"]
        assert rows == json.loads((run / "scores.json").read_text(encoding="utf-8"))["rows"]
    else:
        assert "AUROC [95 % CI]" in table


def test_a_benchmark_needs_none_of_the_llms_libraries() -> None:
    assert imported("import medfed.runs.pipeline, medfed.runs.compare", LLM | {"sklearn"}) == set()
    assert imported("import medfed.runs.loaded", LLM) >= {"peft", "transformers"}
