"""Arguments and options that several verbs of the command share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

DEFAULT_CACHE = Path("~/.cache/medfed")
StudyFile = Annotated[Path, typer.Argument(help="A study or sweep file, e.g. studies/demo.toml, studies/table3.toml")]
DataRoot = Annotated[Path | None, typer.Option("--data-root", help="Folder that holds the datasets in native layout")]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="Override a setting: --set rounds.num_rounds=3")]
Cache = Annotated[Path, typer.Option("--cache", envvar="MEDFED_CACHE", help="Twins, decoded data, the tiny LLM")]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Leave unreadable examples out; the report counts them")]
Foundation = Annotated[Path | None, typer.Option("--foundation", help="Folder of a Hugging Face causal LM")]
RunFolder = Annotated[Path, typer.Argument(help="A run folder, e.g. runs/demo/1a2b3c4d-seed0")]
