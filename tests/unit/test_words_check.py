"""The check of words finds what it should, at the right line, and lets good prose pass."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "tools"))

import check_words  # noqa: E402
from check_words import Block, Name, Rules  # noqa: E402

RULES = Rules.read()
WORD = "client "
LONG = (WORD * 26).strip() + "."
FITS = (WORD * 25).strip() + "."


def findings(text: str, suffix: str, folder: Path) -> list[tuple[int, str]]:
    """What the check says of a file with this text, as (line, kind)."""
    file = folder / f"page{suffix}"
    file.write_text(text, encoding="utf-8")
    return [(one.line, check_words.kind(one)) for one in check_words.check_file(file, RULES)]


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("One, two, three.", 3),
        ("The mean `of all of these` counts.", 4),
        ("The step x ← x + η · v is one word.", 6),
        ("FedAvg, FedProx, SCAFFOLD, FedNova and MOON run.", 2),
        ("Experts are scaled (Hu et al. 2022) by α.", 5),
        ("See [the long page](docs/long.md) at https://example.org/a_b for more.", 8),
    ],
)
def test_words_are_counted_as_a_reader_counts_them(text: str, count: int) -> None:
    assert check_words.num_words(check_words.plain(text)) == count


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("One. Two! Three?", 3),
        ("Wang et al. wrote it, e.g. in Eq. 3, as T. Dinh did.", 1),
        ("It takes 0.5 s. medfed waits.", 2),
        ("First clause; second clause.", 1),
    ],
)
def test_sentences_end_where_they_end(text: str, count: int) -> None:
    assert len(list(check_words.sentences(text))) == count


def test_markdown_leaves_out_code_tables_and_comments_and_keeps_the_lines(tmp_path: Path) -> None:
    skipped = f"# Title\n\n<!-- {LONG}\n-->\n```\n{LONG} letter\n```\n| {LONG} |\n|---|\n"
    page = f"{skipped}\nShort.\n{LONG}\n- {FITS}\n- {LONG}\n"
    assert findings(page, ".md", tmp_path) == [(12, "sentences"), (14, "sentences")]


def test_an_item_of_a_list_is_a_sentence_of_its_own(tmp_path: Path) -> None:
    item = "- " + WORD * 20 + "\n"
    assert findings(item * 3, ".md", tmp_path) == []
    assert findings("- " + WORD * 26 + "\n", ".md", tmp_path) == [(1, "sentences")]


def test_a_banned_word_is_named_in_prose_and_in_tables_and_not_in_code(tmp_path: Path) -> None:
    page = "The server sends\na letter.\n\n| a letter |\n\n`letter` and [text](letter.md)\n"
    assert findings(page, ".md", tmp_path) == [(2, "words"), (4, "words")]


def test_a_word_may_stand_in_its_other_sense(tmp_path: Path) -> None:
    assert findings("A name has letters, digits and dots. POST is a method.\n", ".md", tmp_path) == []


def test_a_sentence_has_a_noun_as_subject_but_a_question_and_a_title_need_none(tmp_path: Path) -> None:
    page = "# What travels\n\nWhat travels is small.\n\nWhat travels?\n"
    assert findings(page, ".md", tmp_path) == [(3, "subjects")]


def test_docstrings_help_texts_and_messages_are_held_to_the_list(tmp_path: Path) -> None:
    code = f'''"""A module.

Attributes:
    first: {FITS}
    second: {LONG}

    python tools/run.py      {LONG}
"""

OPTION = Option(help="sends a letter")


def work(value: int) -> None:
    """{LONG}"""
    text = "a letter that nobody reads"
    raise StudyError(f"{{value}} is no lesson", hint="mend it")
'''
    assert findings(code, ".py", tmp_path) == [
        (5, "sentences"),
        (10, "words"),
        (14, "sentences"),
        (16, "words"),
        (16, "words"),
    ]


@pytest.mark.parametrize("name", ["told_errors", "NumTold", "desk", "SiteDesk", "found", "own", "_arm"])
def test_a_name_holds_no_banned_word(name: str) -> None:
    assert len(list(check_words.check_name(Name(1, name), RULES))) == 1


@pytest.mark.parametrize("name", ["reported_errors", "foundation", "num_found", "alarm", "__post_init__", "postal"])
def test_a_name_that_only_looks_like_a_banned_word_passes(name: str) -> None:
    assert list(check_words.check_name(Name(1, name), RULES)) == []


def test_every_name_that_a_file_defines_is_seen() -> None:
    code = "import a as b\nclass C:\n    d: int = 0\n    def e(self, f): self.g = [h for h in f]\n"
    names = {name.name for name in check_words.python_names(ast.parse(code), "m")}
    assert names == {"m", "b", "C", "d", "e", "self", "f", "g", "h"}


def test_templates_are_read_without_tags_and_expressions(tmp_path: Path) -> None:
    page = "<p>The {{ letter }} is\n<b>one</b> letter.</p>\n{% if letter %}\n<script>letter</script>\n"
    assert findings(page, ".html", tmp_path) == [(2, "words")]


def test_every_banned_word_has_a_better_one_that_is_not_banned() -> None:
    forms = {form for banned in RULES.banned for form in banned.forms}
    for banned in RULES.banned:
        assert banned.use
        assert not list(check_words.check_block(Block(1, f"`{banned.forms[0]}`: {banned.use}."), RULES))
    assert len(forms) == sum(len(banned.forms) for banned in RULES.banned), "a word stands in one entry only"


def test_the_command_prints_file_line_and_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "README.md").write_text("# Title\n\nThe server sends\na letter.\n", encoding="utf-8")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "page.md").write_text("A message.\n", encoding="utf-8")
    assert check_words.main([], tmp_path) == 1
    assert capsys.readouterr().out == "README.md:4: “letter”: write message\n1 findings\n"
    assert check_words.main(["--count"], tmp_path) == 1
    assert capsys.readouterr().out.split()[:3] == ["README.md", "1", "words"]
    assert check_words.main([str(tmp_path / "docs")], tmp_path) == 0


def test_the_glossary_has_at_most_20_words_and_the_banned_words_of_the_list() -> None:
    text = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
    own, avoided = text.split("## Words to avoid")
    assert 1 <= len([line for line in own.splitlines() if line.startswith("| ")]) - 1 <= 20
    named = set(re.findall(r"`(\w+)`", "".join(line for line in avoided.splitlines() if line.startswith("| `"))))
    assert named == {banned.forms[0] for banned in RULES.banned}
