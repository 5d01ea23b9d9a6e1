"""The documentation is true: generated pages are fresh, and every command of the README parses."""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from typer.testing import CliRunner

import generate
from medfed.cli.app import app
from sections import measured
from sections.ablation import CHANGES

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_the_data_page_is_what_the_cards_say() -> None:
    assert generate.DATA_ACCESS.read_text(encoding="utf-8") == generate.page(), "run: make docs"


def test_every_section_that_is_written_has_its_markers_and_no_marker_is_orphaned() -> None:
    made = (*generate.SECTIONS, *generate.BOARDS)
    written = {(page, marker) for _, page, marker, _ in made} | set(generate.NAMED)
    written |= {(page, marker) for page, marker, _ in generate.MADE}
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        found += [
            (page, name) for name in re.findall(r"^<!-- ([a-z0-9-]+) -->\n(?:.*?)^<!-- /\1 -->$", text, re.M | re.S)
        ]
        # A comment that says who runs a block is no section's: see test_deployment_page.py.
        markers = re.findall(r"<!-- (?!run: |not run: )", text)
        assert len(markers) == 2 * sum(where == page for where, _ in found), page
    assert sorted(found) == sorted(written)


@pytest.mark.parametrize(("page", "marker", "made"), generate.MADE)
def test_a_section_that_needs_no_run_is_fresh(page: Path, marker: str, made: Callable[[], str]) -> None:
    assert f"<!-- {marker} -->\n{made()}\n<!-- /{marker} -->" in page.read_text(encoding="utf-8"), "run: make docs"


@pytest.mark.parametrize(("page", "marker"), generate.STAMPED)
def test_a_section_of_measured_numbers_ends_with_commit_processor_and_day(page: Path, marker: str) -> None:
    (text,) = re.findall(rf"<!-- {marker} -->\n(.*?)\n<!-- /{marker} -->", page.read_text(encoding="utf-8"), re.DOTALL)
    assert text == measured.stamped(marker, text), "run: make docs"
    assert re.search(r"\d\.\d", text) is None or text.endswith(str(measured.read()[0][marker]))


def test_every_change_of_the_recipe_study_has_its_sentence() -> None:
    for name in ("recipe", "table4-5"):
        axes = tomllib.loads((ROOT / "studies" / f"{name}.toml").read_text(encoding="utf-8"))["axes"]
        (changes,) = axes.values()
        assert set(list(changes)[1:]) <= CHANGES.keys(), name


def commands() -> list[str]:
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    blocks = [block for language, block in fenced if language in ("", "bash", "sh")]
    lines = [line.split("#")[0].strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return sorted({line for line in lines if line.startswith("medfed ")})


@cache
def help_of(*verbs: str) -> str:
    shown = CliRunner().invoke(app, [*verbs, "--help"], env={"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"})
    assert shown.exit_code == 0, shown.output
    return shown.output


@pytest.mark.parametrize("command", commands())
def test_every_documented_command_exists_with_its_options(command: str) -> None:
    words = shlex.split(command)[1:]
    depth = 2 if words[0] in ("data", "federation", "site") or words[:2] == ["foundation", "examine"] else 1
    verbs = [word for word in words[:depth] if not word.startswith("-")]
    assert help_of(*verbs)
    for option in (word.split("=")[0] for word in words if word.startswith("--")):
        assert option in help_of(*verbs), f"{command}: no {option}"


def test_every_make_target_of_the_readme_exists() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"`make ([a-z-]+)", README)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\((?!https?://|#)([^)#]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / link).exists(), f"{page.name}: {link}"
