"""The pages that need no package: decisions have their form, and the list of files to read keeps its limits."""

from __future__ import annotations

import re
from pathlib import Path

from sections import reading

ROOT = Path(__file__).parents[2]
DECISIONS = ROOT / "docs" / "decisions"
PARTS = (
    r"[^\n]+",
    r"20\d\d-\d\d-\d\d",
    r"- \*\*Context\.\*\* [^\n]+\n- \*\*Decision\.\*\* [^\n]+\n- \*\*Consequence\.\*\* [^\n]+",
)
ENTRY = re.compile(r"\n\n".join(PARTS) + r"\n*")


def test_an_injection_run_can_be_read_in_25_files_and_5000_lines() -> None:
    names = [name for name, _ in reading.FILES]
    assert len(set(names)) == len(names) <= reading.MAX_FILES
    lines = {name: reading.num_lines(name) for name in names}
    print(lines)
    assert sum(lines.values()) <= reading.MAX_LINES


def test_decisions_have_a_date_and_three_parts_and_every_page_is_listed() -> None:
    index = (DECISIONS / "README.md").read_text(encoding="utf-8")
    pages = [page for page in sorted(DECISIONS.glob("*.md")) if page.name != "README.md"]
    assert len(pages) > 1
    for page in pages:
        assert f"]({page.name})" in index
        title, *entries = page.read_text(encoding="utf-8").split("\n## ")
        assert title == f"# Decisions: {page.stem}\n"
        assert entries
        for entry in entries:
            assert ENTRY.fullmatch(entry), f"{page.name}: {entry}"


def test_every_file_that_the_method_page_names_exists() -> None:
    text = (ROOT / "docs" / "method.md").read_text(encoding="utf-8")
    places = (ROOT, ROOT / "src" / "medfed", ROOT / "tests" / "unit", ROOT / "studies")
    named = set(re.findall(r"`([\w/.-]+\.(?:py|toml))`", text))
    assert len(named) > 30
    assert sorted(name for name in named if not any((place / name).exists() for place in places)) == []
