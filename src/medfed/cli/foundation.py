"""The verbs about LLMs on disk: ``medfed foundation`` and ``medfed convert``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the verbs to ``app``."""
    for verb in (foundation, convert):
        app.command()(verb)


def foundation(
    folder: Annotated[Path, typer.Argument(help="Folder of a Hugging Face causal LM")],
) -> None:
    """Print the checksum that pins an LLM in a study: foundation.sha256."""
    from medfed.llm.checkpoints import checksum_files, foundation_checksum
    from medfed.llm.huggingface import locate
    from medfed.study.foundation import HuggingFaceSettings

    place = locate(HuggingFaceSettings(), folder)
    typer.echo(f"{foundation_checksum(place)}  {' '.join(path.name for path in checksum_files(place))}")


def convert(
    source: Annotated[Path, typer.Argument(help="Folder of an InternLM2 checkpoint (MMedLM 2), in safetensors")],
    out: Annotated[Path, typer.Argument(help="A new folder, for --foundation")],
) -> None:
    """Turn an InternLM2 checkpoint, which needs code of its own, into the same LLM as a Llama, which needs none."""
    from medfed.llm.internlm2 import convert as convert_internlm2

    convert_internlm2(source, out)
    typer.echo(out)
