"""Write the parts of the documentation that are made from code and from runs.

python docs/generate.py                         docs/data-access.md from the dataset cards; docs/run-folder.md and
                                                docs/schema from the records of a run; in the README the files to
                                                read; below every section the commit, processor and day of its numbers
python docs/generate.py --check                 only compare
python docs/generate.py demo=runs/demo/…        the README's tables of the demo and of its tiny LLM, from that run
python docs/generate.py results=runs            docs/results.md and the README's headline, from the sweeps' comparisons
python docs/generate.py table3=runs/table3      the sections of one sweep, from the comparison in that folder
python docs/generate.py real=runs/fedkim-real   the tables of the real extracts, from the comparison in that folder

A section whose sweep is absent stays as it is.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from medfed.core.catalog import DATASETS
from medfed.datasets.base import Dataset
from sections import ablation, benchmark, demo, measured, reading, readme, run_folder, tables, verdict
from sections.comparison import Results, read_results

ROOT = Path(__file__).parents[1]
DATA_ACCESS = ROOT / "docs" / "data-access.md"
RUN_FOLDER, SCHEMA = ROOT / "docs" / "run-folder.md", ROOT / "docs" / "schema"
README = ROOT / "README.md"
RESULTS = ROOT / "docs" / "results.md"
HEAD = """# Data access

medfed reads every dataset in the layout of its download, and nothing needs converting. Put the folders below one data
root, in any arrangement up to three levels deep, and pass it as `--data-root`. `medfed data check ROOT` opens every
file and lists all that are bad. Each dataset has a synthetic twin in the same layout:
`medfed data synth NAME --out DIR`.

**Decoded data stays on disk.** A run keeps the arrays that it decoded in `~/.cache/medfed/decoded` (`--cache`), and the
next run reads them there. The arrays of a licensed dataset, or of patients, are a second copy under the same
agreement. Only the user can read the folder (0700). `medfed data cache` lists it, `medfed data cache --clear` empties
it, and `medfed run --no-decoded-cache` keeps nothing. An entry is valid while the dataset's files, the settings and the
decoding code are unchanged. Its own bytes must have their SHA-256. A hospital keeps decoded data only with
`medfed site join --decoded-cache`.

Most of these datasets need registration or a data use agreement. medfed never downloads data and never sends any.
(This page is made from the dataset cards: `make docs`.)
"""
Section = tuple[str, Path, str, Callable[[Results], str]]
SECTIONS: tuple[Section, ...] = (
    ("table3", RESULTS, "verdict", verdict.verdict),
    ("table3", RESULTS, "headline", tables.headline),
    ("table3", RESULTS, "table3", lambda results: tables.paper_tables(results, "Table 3", "trained")),
    ("table3", RESULTS, "figure2", lambda results: tables.paper_tables(results, "Figure 2", "unseen")),
    ("figure2", RESULTS, "figure2", lambda results: tables.paper_tables(results, "Figure 2", "unseen")),
    ("table4-5", RESULTS, "table4", lambda results: tables.paper_tables(results, "Table 4", "trained")),
    ("table4-5", RESULTS, "table5", lambda results: tables.paper_tables(results, "Table 5", "unseen")),
    ("table7", RESULTS, "table7", lambda results: tables.paper_tables(results, "Table 7", "trained")),
    ("recipe", RESULTS, "recipe", ablation.ablation),
    ("table4-5", RESULTS, "parts", ablation.ablation),
    ("table3", RESULTS, "open", tables.open_table),
    ("table3", README, "headline", readme.headline),
)
"""Sweep, page, marker and what is printed there. The cells of Figure 2 are Table 3's."""

BOARDS: tuple[tuple[str, Path, str, Callable[[benchmark.Board], str]], ...] = (
    ("medmmfl", RESULTS, "medmmfl", benchmark.blocks),
    ("medmmfl", RESULTS, "medmmfl-costs", benchmark.costs),
    ("medmmfl", README, "medmmfl", benchmark.costs),
    ("missing", RESULTS, "missing", benchmark.plain),
    ("medmmfl-real", RESULTS, "medmmfl-real", benchmark.plain),
)
"""The same for benchmarks, from their leaderboards."""

NAMED = ((README, "demo"), (README, "foundation"), (README, "real"), (RESULTS, "real"), (README, "bench"))
"""Pages and markers that are filled from a run or folder of the command line, or by the benchmarks."""

MADE: tuple[tuple[Path, str, Callable[[], str]], ...] = (
    (README, "processors", measured.processor_table),
    (README, "reading", reading.reading),
)
"""Pages and markers that are made from code and ``docs/measured.json`` alone."""

STAMPED = dict.fromkeys([*((page, marker) for _, page, marker, _ in (*SECTIONS, *BOARDS)), *NAMED[:-1]])
"""Page and marker of every section that ends with the origin of its numbers."""


def page() -> str:
    """Return the data page's text."""
    return HEAD + "".join(section(name, dataset) for name, dataset in DATASETS.items())


def section(name: str, dataset: Dataset) -> str:
    """Return one dataset's section."""
    card = dataset.card
    lines = [
        f"\n## {card.title}\n",
        f"- name: `{name}`; recognised by `{dataset.marker}`",
        f"- version {card.version}; licence {card.licence}; access: {card.access}",
        f"- modalities: {', '.join(dataset.modalities)}; targets: {', '.join(dataset.targets)}",
    ]
    if card.sites:
        lines.append(f"- sites: {', '.join(card.sites)}")
    lines.append(f"- cite: {card.citation}")
    if card.note:
        lines.append(f"- note: {card.note}")
    return "\n".join(lines) + "\n"


def made() -> dict[Path, str]:
    """Return the content of every file that is made from code alone."""
    schemas = {SCHEMA / name: text for name, text in run_folder.schema_files().items()}
    return {DATA_ACCESS: page(), RUN_FOLDER: run_folder.page(), **schemas}


def insert(page: Path, name: str, text: str) -> None:
    """Put ``text`` between the page's markers of ``name``."""
    rewrite(page, name, lambda _: text)


def rewrite(page: Path, name: str, change: Callable[[str], str]) -> None:
    """Replace the text between the page's markers of ``name`` by what ``change`` makes of it."""
    old = page.read_text(encoding="utf-8")
    pattern = rf"(<!-- {name} -->\n)(.*?)(<!-- /{name} -->)"
    new, count = re.subn(pattern, lambda match: f"{match[1]}{change(match[2])}\n{match[3]}", old, flags=re.DOTALL)
    if count != 1:
        sys.exit(f"{page.name} has no markers <!-- {name} --> … <!-- /{name} -->")
    page.write_text(new, encoding="utf-8")


def stamp() -> None:
    """Fill the sections that need no run, and end every other section with the origin of its numbers."""
    for page, marker, made in MADE:
        insert(page, marker, made())
    for page, marker in STAMPED:
        rewrite(page, marker, partial(measured.stamped, marker))


def fill(kind: str, place: Path) -> None:
    """Fill the sections of one ``kind=place`` of the command line."""
    if kind == "demo":
        insert(README, "demo", demo.results(place))
        insert(README, "foundation", demo.foundation(place))
        measured.keep(("demo", "foundation"), measured.of_runs([place]), measured.demo_values(place))
    elif kind == "real":
        results = read_results(place)
        if results is None:
            sys.exit(f"{place}: no comparison.json; run: medfed run studies/fedkim-real.toml --data-root DIR --seeds …")
        insert(RESULTS, "real", f"{results.seeds()}\n\n{tables.real_table(results)}")
        insert(README, "real", readme.real(results))
        measured.keep(("real",), measured.of_runs(map(Path, results.typed.folders)))
    elif kind == "results":
        for sweep in dict.fromkeys(sweep for sweep, *_ in SECTIONS):
            fill_sweep(sweep, place / sweep)
        for sweep in dict.fromkeys(sweep for sweep, *_ in BOARDS):
            fill_board(sweep, place / sweep)
    elif kind in {sweep for sweep, *_ in SECTIONS}:
        fill_sweep(kind, place)
    elif kind in {sweep for sweep, *_ in BOARDS}:
        fill_board(kind, place)
    else:
        sys.exit(f"{kind!r} is none of demo, real, results, and no sweep")


def fill_sweep(sweep: str, folder: Path) -> None:
    """Fill the sections of a sweep from the comparison in ``folder``; without one they stay as they are."""
    results = read_results(folder)
    for page, marker, printed in (section[1:] for section in SECTIONS if section[0] == sweep):
        if results is None:
            sys.stderr.write(f"{folder}: no comparison.json; {page.name}, {marker}: left as it is\n")
        else:
            insert(page, marker, printed(results))
    if results is not None:
        markers = [marker for name, _, marker, _ in SECTIONS if name == sweep]
        measured.keep(markers, measured.of_runs(map(Path, results.typed.folders)))


def fill_board(sweep: str, folder: Path) -> None:
    """Fill the sections of a benchmark from the leaderboard in ``folder``; without one they stay as they are."""
    board = benchmark.read_board(folder)
    for page, marker, printed in (section[1:] for section in BOARDS if section[0] == sweep):
        if board is None:
            sys.stderr.write(f"{folder}: no leaderboard.json; {page.name}, {marker}: left as it is\n")
        else:
            insert(page, marker, printed(board))
    if board is not None:
        markers = [marker for name, _, marker, _ in BOARDS if name == sweep]
        measured.keep(markers, measured.of_runs(map(Path, board.folders)))


if __name__ == "__main__":
    if "--check" in sys.argv:
        stale = [path for path, text in made().items() if not path.is_file() or path.read_text("utf-8") != text]
        sys.exit(f"stale: {', '.join(str(path.relative_to(ROOT)) for path in stale)}; run: make docs" if stale else 0)
    SCHEMA.mkdir(exist_ok=True)
    for path, text in made().items():
        path.write_text(text, encoding="utf-8")
    for argument in sys.argv[1:]:
        kind, _, folder = argument.partition("=")
        fill(kind, Path(folder))
    stamp()
