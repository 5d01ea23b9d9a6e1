"""``medfed data``: list datasets, write synthetic twins, check a folder, see the cache, divide a study's data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from medfed.cli import options
from medfed.core.errors import DataError
from medfed.core.progress import Reporter

data_app = typer.Typer(no_args_is_help=True, help="Datasets: list them, write synthetic twins, check a folder.")


@data_app.command(name="list")
def list_data(as_json: options.AsJson = False, plugins: options.Plugins = None) -> None:
    """List the datasets with licence and access page."""
    from medfed.core.catalog import DATASETS

    rows = []
    for name, dataset in DATASETS.items():
        card = {fact: getattr(dataset.card, fact) for fact in ("title", "version", "licence")}
        about = {"modalities": dataset.modalities, "targets": dataset.targets, "access": dataset.card.access}
        rows.append({"dataset": name, **card, **about})
    options.print_rows(rows, as_json=as_json)


@data_app.command()
def synth(
    out: Annotated[Path, typer.Option(help="Folder to write into")],
    name: Annotated[str | None, typer.Argument(help="A dataset's name, or 'all'")] = None,
    study: Annotated[Path | None, typer.Option(help="Write the folders of this study's sites")] = None,
    overrides: options.Overrides = None,
    num_patients: Annotated[int, typer.Option(min=1)] = 400,
    difficulty: Annotated[float, typer.Option(min=0, max=1)] = 0.5,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    plugins: options.Plugins = None,
) -> None:
    """Write a dataset's synthetic twin in its native layout, or with --study a folder for every site and the server."""
    from medfed.core.catalog import DATASETS
    from medfed.study.data import TwinSpec
    from medfed.twins.writing import write_folders, write_new

    if study is not None:
        from medfed.study.study import find_study, load_study

        write_folders(load_study(find_study(study), overrides or []), out, Reporter(Console()))
        return
    if name is None:
        raise DataError("nothing to write", hint="name a dataset (medfed data list), or a study: --study FILE")
    spec = TwinSpec(num_patients=num_patients, difficulty=difficulty, seed=seed)
    for chosen in [key for key in DATASETS if DATASETS[key].has_twin] if name == "all" else [name]:
        write_new(DATASETS.lookup(chosen), out / chosen, spec, Reporter(Console()))


@data_app.command()
def check(
    data_root: Annotated[Path, typer.Argument(help="Folder that holds datasets in native layout")],
    names: Annotated[list[str] | None, typer.Option("--dataset", help="Check these only")] = None,
    plugins: options.Plugins = None,
) -> None:
    """Open every file of every dataset found under a folder; list all that are bad, at once."""
    from medfed.data.decode import check_folder

    if check_folder(data_root, names or [], Reporter(Console())):
        raise typer.Exit(1)


@data_app.command(name="cache")
def decoded_cache(
    cache: options.Cache = options.DEFAULT_CACHE,
    clear: Annotated[bool, typer.Option("--clear", help="Remove the decoded data, all of it")] = False,
) -> None:
    """List the decoded data that runs keep, or remove it."""
    from medfed.data.cache import DecodedCache
    from medfed.report.text import size

    kept, console = DecodedCache(cache.expanduser()), Console()
    if clear:
        kept.clear()
    entries = kept.entries()
    table = Table("dataset", "from", "examples", "size", title=f"decoded data in {cache.expanduser()}")
    for entry in entries:
        table.add_row(entry.dataset, entry.root, f"{entry.num_examples:,}", size(entry.num_bytes))
    console.print(table if entries else f"no decoded data in {cache.expanduser()}")


@data_app.command()
def partition(
    study: options.StudyFile,
    data_root: options.DataRoot = None,
    overrides: options.Overrides = None,
    cache: options.Cache = options.DEFAULT_CACHE,
    skip_bad: options.SkipBad = False,
    out: Annotated[Path, typer.Option(help="The JSON file: who holds which examples")] = Path("partition.json"),
    show: Annotated[bool, typer.Option("--show", help="Draw it too, as an SVG next to the JSON file")] = False,
    plugins: options.Plugins = None,
) -> None:
    """Divide a study's data over clients and server without training, and say who holds what."""
    from medfed.core.files import write_whole
    from medfed.data.cohort import cohort_of
    from medfed.data.decode import Reading, decode_all
    from medfed.data.sources import find_sources
    from medfed.records.folder import file_bytes
    from medfed.records.schema import PartitionFile
    from medfed.report.federation import partition_picture, partition_rows
    from medfed.study.study import find_study, load_study

    chosen, reporter = load_study(find_study(study), overrides or []), Reporter(Console())
    sources = find_sources(chosen, data_root, cache.expanduser(), reporter)
    reading = Reading(reporter, skip_bad)
    data = decode_all(chosen, sources.roots, reading)
    record = PartitionFile.model_validate(cohort_of(chosen, sources, data, reading).partition)
    table = Table("client", "task", "examples", "by class", title=f"{record.scheme}, hash {record.hash}")
    for client, task, count, classes in partition_rows(record):
        table.add_row(client, task, str(count), classes)
    reporter.console.print(table)
    write_whole(out, file_bytes(record))
    reporter.say(f"partition: {out}")
    if show:
        picture = out.with_suffix(".svg")
        write_whole(picture, partition_picture(record, {task.name: task.title for task in chosen.tasks}))
        reporter.say(f"picture: {picture}")
