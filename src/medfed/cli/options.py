"""Arguments and options that several verbs of the command share."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

DEFAULT_CACHE = Path("~/.cache/medfed")
StudyFile = Annotated[Path, typer.Argument(help="A shipped study or sweep (medfed list), or a file of your own")]
DataRoot = Annotated[Path | None, typer.Option("--data-root", help="Folder that holds the datasets in native layout")]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="Override a setting: --set rounds.num_rounds=3")]
Cache = Annotated[Path, typer.Option("--cache", envvar="MEDFED_CACHE", help="Twins, decoded data, LLMs")]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Leave unreadable examples out; the report counts them")]
Foundation = Annotated[
    Path | None,
    typer.Option("--foundation", help="Folder of a Hugging Face causal LM, or a name of `medfed foundation list`"),
]


def named_run(given: Path) -> Path:
    """Return the folder of the run that ``given`` names; the records are imported now."""
    from medfed.records.folder import find_run

    return find_run(given)


RunFolder = Annotated[
    Path,
    typer.Argument(
        callback=named_run,
        help="A run folder, runs/demo/1a2b3c4d-seed0; or latest, or a study's name for its latest run",
    ),
]


def _load_plugins(context: typer.Context, given: list[str] | None) -> list[str] | None:
    """Load the plugins before the verb begins, so that its study may name their parts."""
    if given and not context.resilient_parsing:
        from medfed.core.plugins import load

        for reference in given:
            load(reference)
    return given


Plugins = Annotated[
    list[str] | None,
    typer.Option("--plugin", callback=_load_plugins, help="Use the parts in this .py file or installed module"),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON")]


def output() -> Console:
    """Return a console for tables: as wide as the terminal; in a pipe or file as wide as the table, nothing cut."""
    console = Console()
    return console if console.is_terminal else Console(width=10_000)


def print_rows(rows: Sequence[Mapping[str, object]], *, as_json: bool) -> None:
    """Print ``rows``, which share their keys, as a table or as JSON."""
    if as_json:
        typer.echo(json.dumps(rows, ensure_ascii=False, indent=1))
        return
    table = Table(*rows[0]) if rows else Table()
    for row in rows:
        cells = [value if isinstance(value, list | tuple) else [value] for value in row.values()]
        table.add_row(*(" ".join(map(str, cell)) for cell in cells))
    output().print(table)
