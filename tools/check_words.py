"""Hold prose and names to the words and the sentence length of ``tools/words.toml``.

    python tools/check_words.py            every finding as file:line: message; exit status 1 if there is one
    python tools/check_words.py --count    findings per room instead
    python tools/check_words.py PATH …     only the files below these paths

Checked are Markdown pages, HTML templates, docstrings, help texts, messages and the names that Python code defines.
The check needs the standard library only.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
RULES = Path(__file__).with_name("words.toml")
PLACEHOLDER = "CODE"
"""Stands for a code span, a URL or an inserted value: one word, and none of ours."""


class Block(NamedTuple):
    """A piece of prose: a paragraph, a list item, a heading, a table row, a message.

    Attributes:
        line: line of the file at which it starts.
        text: its text, line breaks kept.
        is_prose: whether it consists of sentences; a table row and a record of a list do not.
        is_title: whether it is a heading, which needs no subject.
    """

    line: int
    text: str
    is_prose: bool = True
    is_title: bool = False


class Name(NamedTuple):
    """A name that a file defines."""

    line: int
    name: str


class Finding(NamedTuple):
    """A departure from the rules."""

    line: int
    message: str


@dataclass(frozen=True)
class Banned:
    """A word that has a better one.

    Attributes:
        forms: the word and its inflections, in lower case.
        use: the word to write instead.
        prose: whether it is banned from prose.
        names: ``"part"`` bans it as a part of a name, ``"whole"`` as a whole name, ``""`` not at all.
        allowed: phrases in which it is right, as a pattern; None for none.
    """

    forms: tuple[str, ...]
    use: str
    prose: bool
    names: str
    allowed: re.Pattern[str] | None

    @classmethod
    def of(cls, entry: dict[str, object]) -> Banned:
        """Read an entry of the file."""
        phrases = [re.escape(str(phrase)).replace(r"\ ", r"\s+") for phrase in entry.get("allowed", ())]  # type: ignore[attr-defined]
        allowed = re.compile("|".join(phrases), re.IGNORECASE) if phrases else None
        forms = tuple(str(form) for form in entry["forms"])  # type: ignore[attr-defined]
        return cls(forms, str(entry["use"]), bool(entry.get("prose", True)), str(entry.get("names", "part")), allowed)


@dataclass(frozen=True)
class Rules:
    """The contents of ``words.toml``."""

    max_words: int
    banned: tuple[Banned, ...]
    openers: frozenset[str]
    records: frozenset[str]
    names_allowed: frozenset[str]
    paths: dict[str, tuple[str, ...]]

    @classmethod
    def read(cls, file: Path = RULES) -> Rules:
        """Read ``file``."""
        raw = tomllib.loads(file.read_text(encoding="utf-8"))
        return cls(
            raw["max_words"],
            tuple(Banned.of(entry) for entry in raw["banned"]),
            frozenset(raw["openers"]),
            frozenset(raw["records"]),
            frozenset(raw["names_allowed"]),
            {kind: tuple(patterns) for kind, patterns in raw["paths"].items()},
        )


# --- from a file to blocks and names ---

FENCE = re.compile(r"^\s*(```|~~~)")
ITEM = re.compile(r"^(\s*)([-*+]|\d+\.)\s+")


def markdown_blocks(text: str, records: frozenset[str] = frozenset()) -> Iterator[Block]:
    """Yield paragraphs, headings, list items and table rows; code blocks and comments are left out."""
    text = re.sub(r"<!--.*?-->", _lines, text, flags=re.DOTALL)
    held: list[str] = []
    start, is_code = 0, False
    for number, line in enumerate([*text.splitlines(), ""], 1):
        if FENCE.match(line):
            is_code = not is_code
        begins = is_code or not line.strip() or line.lstrip().startswith(("#", "|", "```", "~~~")) or ITEM.match(line)
        if held and begins:
            yield _item(start, "\n".join(held), records)
            held = []
        if is_code or FENCE.match(line) or not line.strip():
            continue
        if line.lstrip().startswith("|"):
            yield Block(number, line, is_prose=False)
        elif line.lstrip().startswith("#"):
            yield Block(number, line.lstrip("# "), is_title=True)
        else:
            start = start if held else number
            held.append(ITEM.sub("", line) if not held else line)


def _item(line: int, text: str, records: frozenset[str]) -> Block:
    first = re.match(r"(\w+)\b", text)
    return Block(line, text, is_prose=not (first and first[1] in records))


SECTION = re.compile(r"^(Args|Attributes|Returns|Raises|Yields|Shapes|Notes?|Example|Examples):\s*$")
ENTRY = re.compile(r"^[*\w.,\s`\"']{1,60}: ")
COMMAND = re.compile(r"^\s*(python|medfed|make) [\w/-]|.*\S {3,}\S")
"""A line of usage: a command, or two columns."""
CODE_INDENT = 2


def docstring_blocks(text: str, line: int) -> Iterator[Block]:
    """Yield the paragraphs of a docstring and the entries of its sections; indented code and commands are left out."""
    lines = text.expandtabs().splitlines()
    margin = min((len(one) - len(one.lstrip()) for one in lines[1:] if one.strip()), default=0)
    held: list[str] = []
    start, level = line, 0
    for offset, raw in enumerate([*lines, ""]):
        one = raw.strip() if offset == 0 else raw[margin:].rstrip()
        indent = len(one) - len(one.lstrip())
        is_section = bool(SECTION.match(one))
        in_section = level > 0 and indent >= level
        is_code = (indent >= CODE_INDENT and not in_section and not held) or bool(COMMAND.match(one))
        is_entry = in_section and indent == level and bool(ENTRY.match(one.lstrip()))
        begins = not one.strip() or is_section or is_entry or is_code or bool(ITEM.match(one))
        if held and (begins or (level > 0 and one.strip() and indent < level)):
            yield Block(start, "\n".join(held))
            held = []
        if is_section:
            level = 4
        elif one.strip() and indent == 0:
            level = 0
        if not one.strip() or is_section or is_code or ">>>" in one:
            continue
        start = start if held else line + offset
        text = ENTRY.sub("", one.lstrip()) if is_entry else one.lstrip()
        held.append(text if held else ITEM.sub("", text))


HELP = frozenset({"help", "hint", "description", "note", "what"})
PRINTING = frozenset({"say", "warn", "note", "line", "echo", "exit"})


def python_blocks(tree: ast.Module) -> Iterator[Block]:
    """Yield docstrings, help texts and messages."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield from docstring_blocks(node.value.value, node.lineno)
        elif isinstance(node, ast.Call):
            yield from _call_blocks(node)


def _call_blocks(call: ast.Call) -> Iterator[Block]:
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    texts = [keyword.value for keyword in call.keywords if keyword.arg in HELP]
    if name.endswith("Error") or name in PRINTING:
        texts += call.args[:1]
    for node in texts:
        text = _string(node)
        if text:
            yield Block(node.lineno, text)


def _string(node: ast.expr) -> str:
    """Return a constant or formatted string; inserted values are placeholders; empty for anything else."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    if isinstance(node, ast.JoinedStr):
        return "".join(_string(part) if isinstance(part, ast.Constant) else PLACEHOLDER for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _string(node.left) + _string(node.right)
    return ""


def python_names(tree: ast.Module, module: str) -> Iterator[Name]:
    """Yield the module's own name and every class, function, argument, variable and attribute that it defines."""
    yield Name(1, module)
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield Name(node.lineno, node.name)
        elif isinstance(node, ast.arg):
            yield Name(node.lineno, node.arg)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield Name(node.lineno, node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield Name(node.lineno, node.attr)
        elif isinstance(node, ast.alias) and node.asname:
            yield Name(node.lineno, node.asname)


class _Html(HTMLParser):
    """Collects the text between block elements."""

    INLINE = frozenset({"a", "b", "i", "em", "strong", "span", "abbr", "sub", "sup", "var", "br"})
    SKIPPED = frozenset({"script", "style", "svg"})

    def __init__(self) -> None:
        super().__init__()
        self.blocks: list[Block] = []
        self._held: list[str] = []
        self._start, self._skipped, self._is_code = 1, 0, False

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self._skipped += tag in self.SKIPPED
        if tag == "code":
            self._is_code = True
        elif tag not in self.INLINE:
            self.flush()

    def handle_endtag(self, tag: str) -> None:
        self._skipped -= tag in self.SKIPPED
        if tag == "code":
            self._is_code = False
        elif tag not in self.INLINE:
            self.flush()

    def handle_data(self, data: str) -> None:
        if not self._skipped and data.strip():
            self._start = self._start if self._held else self.getpos()[0]
            self._held.append(PLACEHOLDER if self._is_code else data)

    def flush(self) -> None:
        """End the block."""
        if self._held:
            self.blocks.append(Block(self._start, "".join(self._held).strip()))
        self._held = []


def html_blocks(text: str) -> list[Block]:
    """Return the texts of a template; its expressions are placeholders, its statements nothing."""
    text = re.sub(r"\{\{.*?\}\}", PLACEHOLDER, text, flags=re.DOTALL)
    text = re.sub(r"\{[%#].*?[%#]\}", _lines, text, flags=re.DOTALL)
    parser = _Html()
    parser.feed(text)
    parser.flush()
    return parser.blocks


# --- from a block to sentences ---

RST_TABLE = re.compile(r"^=+ +=[= ]*$.*^=+ +=[= ]*$", re.DOTALL | re.MULTILINE)
CODE = re.compile(r"(`+)(?!`).*?(?<!`)\1(?!`)", re.DOTALL)
LINK = re.compile(r"!?\[([^\]]*)\]\([^)]*\)")
URL = re.compile(r"https?://\S+|\b(?:doi|arXiv):\S+")
TAG = re.compile(r"</?[a-zA-Z][^>\n]*>")
CITATION = re.compile(r"\([^()]{0,90}\b(?:19|20)\d\d\b[^()]{0,60}\)")
OPERATOR = r"[←→↔=+−*/·×÷≤≥<>≈≠∈≪≫|:^±-]|:=|\*\*|<=|>="
FORMULA = re.compile(rf"\S+(?:\s+(?:{OPERATOR})\s+\S+)+")
ONE_NAME = r"(?:CODE\S*|(?:[A-Z]|\d)[\w./×-]*(?:[ \n](?:[A-Z][\w.-]*|\d[\w.]*)){0,2})"
NAMES = re.compile(rf"{ONE_NAME}(?:[,;]\s+{ONE_NAME})+(?:,?\s+(?:and|or)\s+{ONE_NAME})?")
END = re.compile(r"[.!?][\"”’)\]]*(?=\s)")
ABBREVIATION = re.compile(r"(?:\b(?:al|e\.g|i\.e|vs|cf|Eq|Fig|Alg|Sec|No|approx|etc|resp|ca|St)|\b[A-Z])\.[\"”’)\]]*$")


def plain(text: str) -> str:
    """Return ``text`` without markup; code spans and URLs are placeholders; line breaks stay where they are."""
    text = RST_TABLE.sub(_lines, text)
    text = CODE.sub(lambda match: PLACEHOLDER + _lines(match), text)
    text = LINK.sub(lambda match: match[1], text)
    text = URL.sub(PLACEHOLDER, text)
    return TAG.sub("", text).replace("*", "")


def _lines(match: re.Match[str]) -> str:
    """Return the line breaks of what is left out, so that lines keep their numbers."""
    return "\n" * match[0].count("\n")


def sentences(text: str) -> Iterator[tuple[int, str]]:
    """Yield (offset, sentence) of plain text."""
    start = 0
    for match in END.finditer(text):
        if not ABBREVIATION.search(text[start : match.end()]):
            yield start, text[start : match.end()]
            start = match.end()
    if text[start:].strip():
        yield start, text[start:]


def num_words(sentence: str) -> int:
    """Count words: a formula, a list of names and a code span are one each, a citation in brackets none."""
    text = CITATION.sub("", sentence)
    text = FORMULA.sub(PLACEHOLDER, text)
    text = NAMES.sub(PLACEHOLDER, text)
    return sum(any(character.isalnum() for character in word) for word in text.split())


# --- the rules ---

PARTS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")


def check_block(block: Block, rules: Rules) -> Iterator[Finding]:
    """Yield what a block departs from: banned words, long sentences, sentences without a noun as subject."""
    text = plain(block.text)
    for banned in rules.banned:
        if banned.prose:
            yield from _banned(block, text, banned)
    if not block.is_prose:
        return
    for offset, sentence in sentences(text):
        lead = len(sentence) - len(sentence.lstrip())
        line = block.line + text.count("\n", 0, offset + lead)
        count = num_words(sentence)
        if count > rules.max_words:
            begin = " ".join(sentence.split()[:6])
            yield Finding(line, f"{count} words in a sentence, at most {rules.max_words}: “{begin} …”")
        first = sentence.split(None, 1)[0].strip('“"(*') if sentence.strip() else ""
        if first in rules.openers and "?" not in sentence and not block.is_title:
            yield Finding(line, f"subject: a sentence starts with “{first}”, not with a noun")


def _banned(block: Block, text: str, banned: Banned) -> Iterator[Finding]:
    if banned.allowed:
        text = banned.allowed.sub(lambda match: re.sub(r"\S", "-", match[0]), text)
    forms = "|".join(map(re.escape, banned.forms))
    for match in re.finditer(rf"(?<![\w-])(?:{forms})(?![\w-])", text, re.IGNORECASE):
        if not (match[0].isupper() and len(match[0]) > 1):
            line = block.line + text.count("\n", 0, match.start())
            yield Finding(line, f"“{match[0]}”: write {banned.use}")


def check_name(name: Name, rules: Rules) -> Iterator[Finding]:
    """Yield a finding where a name is, or holds, a banned word."""
    if name.name in rules.names_allowed or name.name.startswith("__"):
        return
    parts = [part.lower() for part in PARTS.findall(name.name)]
    for banned in rules.banned:
        held = parts if banned.names == "part" else [name.name.strip("_").lower()] if banned.names else []
        if set(held) & set(banned.forms):
            yield Finding(name.line, f"name {name.name!r}: write {banned.use}")


def check_file(file: Path, rules: Rules, *, names: bool = True, prose: bool = True) -> list[Finding]:
    """Return the findings of one file in order of line."""
    text = file.read_text(encoding="utf-8")
    blocks: Iterable[Block] = ()
    defined: Iterable[Name] = ()
    if file.suffix == ".md":
        blocks = markdown_blocks(text, rules.records)
    elif file.suffix == ".html":
        blocks = html_blocks(text)
    else:
        try:
            tree = ast.parse(text, str(file))
        except SyntaxError as error:
            return [Finding(error.lineno or 1, f"cannot be read: {error.msg}")]
        blocks = python_blocks(tree) if prose else ()
        defined = python_names(tree, file.stem) if names else ()
    findings = {finding for block in blocks for finding in check_block(block, rules)}
    findings.update(finding for name in defined for finding in check_name(name, rules))
    return sorted(findings)


def files(rules: Rules, only: Iterable[Path] = (), root: Path = ROOT) -> Iterator[tuple[Path, bool, bool]]:
    """Yield (file, whether its prose, whether its names are checked)."""
    chosen: dict[Path, list[bool]] = {}
    for position, kind in enumerate(("prose", "names")):
        for pattern in rules.paths[kind]:
            for file in root.glob(pattern):
                chosen.setdefault(file, [False, False])[position] = True
    wanted = [path.resolve() for path in only]
    for file, (prose, names) in sorted(chosen.items()):
        if not wanted or any(file == path or path in file.parents for path in wanted):
            yield file, prose, names


def room(file: Path, root: Path = ROOT) -> str:
    """Return the package below ``src/medfed``, or the first folder."""
    parts = file.relative_to(root).parts
    if parts[:2] == ("src", "medfed"):
        return f"medfed/{parts[2]}"
    return parts[0]


def main(arguments: list[str] | None = None, root: Path = ROOT) -> int:
    """Check the files below ``root`` and print; return the exit status."""
    parser = argparse.ArgumentParser(description="Hold prose and names to the word list.")
    parser.add_argument("paths", nargs="*", type=Path, help="only files below these")
    parser.add_argument("--count", action="store_true", help="print findings per room")
    options = parser.parse_args(arguments)
    rules, counts, total = Rules.read(), dict[str, Counter[str]](), 0
    for file, prose, names in files(rules, options.paths, root):
        for finding in check_file(file, rules, names=names, prose=prose):
            total += 1
            counts.setdefault(room(file, root), Counter())[kind(finding)] += 1
            if not options.count:
                sys.stdout.write(f"{file.relative_to(root)}:{finding.line}: {finding.message}\n")
    if options.count:
        for name, held in sorted(counts.items()):
            sys.stdout.write(f"{name:28}" + "".join(f"{held[one]:5} {one}" for one in KINDS) + "\n")
    sys.stdout.write(f"{total} findings\n" if total else "words and sentences: nothing to change\n")
    return int(total > 0)


KINDS = ("words", "sentences", "subjects", "names")


def kind(finding: Finding) -> str:
    """Return which rule a finding is of."""
    for one in ("subject", "name"):
        if finding.message.startswith(one):
            return f"{one}s"
    return "words" if finding.message.startswith("“") else "sentences"


if __name__ == "__main__":
    sys.exit(main())
