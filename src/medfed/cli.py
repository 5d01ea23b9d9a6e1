"""The ``medfed`` command: verbs without logic. Heavy imports stay inside the verbs, so ``--help`` is instant."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, get_args

import typer
from rich.console import Console
from rich.table import Table

from medfed import __version__
from medfed.cli_runs import register
from medfed.cli_sites import federation_app, site_app
from medfed.errors import DataError, MedfedError
from medfed.progress import Reporter

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
data_app = typer.Typer(no_args_is_help=True, help="Datasets: list them, write synthetic twins, check a folder.")
app.add_typer(data_app, name="data")
app.add_typer(federation_app, name="federation")
app.add_typer(site_app, name="site")

StudyFile = Annotated[Path, typer.Argument(help="A study or sweep file, e.g. studies/demo.toml, studies/table3.toml")]
DataRoot = Annotated[Path | None, typer.Option("--data-root", help="Folder that holds the datasets in native layout")]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="Override a setting: --set rounds.num_rounds=3")]
Cache = Annotated[Path, typer.Option("--cache", envvar="MEDFED_CACHE", help="Twins, decoded data, the tiny LLM")]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Leave unreadable examples out; the report counts them")]
Corpus = Annotated[Path | None, typer.Option("--corpus", help="Folder of text to pre-train the tiny LLM on")]
Foundation = Annotated[Path | None, typer.Option("--foundation", help="Folder of a Hugging Face causal LM")]
ShowExamples = Annotated[bool, typer.Option("--show-examples", help="Show a few test examples even of real patients")]
Workers = Annotated[
    int | None,
    typer.Option(
        "--workers",
        min=1,
        help="Of a sweep: runs at once, by default as many as CPUs. Of one study: processes that train its clients, "
        "by default 1; results are the same",
    ),
]
Dtype = Annotated[str | None, typer.Option("--dtype", help="Of the LLM's frozen weights: float32, bfloat16, float16")]
In4Bit = Annotated[bool, typer.Option("--load-in-4bit", help="Hold the LLM's linear maps in 4 bits")]
DeviceMap = Annotated[str | None, typer.Option("--device-map", help="Where the LLM's weights go: auto, cpu, cuda:0, …")]
KeepDecoded = Annotated[
    bool,
    typer.Option(
        "--decoded-cache/--no-decoded-cache", help="Keep decoded data (patients' data) in the cache for the next run"
    ),
]
RunFolder = Annotated[Path, typer.Argument(help="A run folder, e.g. runs/demo/1a2b3c4d-seed0")]

DEFAULT_CACHE = Path("~/.cache/medfed")
ENVIRONMENT = {
    # Small models on many threads cost several times the CPU; medfed parallelises over processes.
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    # Nothing is looked up, fetched or reported over a network.
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}


def main() -> None:
    """Run the command; a mistake in input becomes one message and the error's exit status."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        app(standalone_mode=True)
    except MedfedError as error:
        plain = Console(stderr=True, highlight=False, markup=False, emoji=False)
        plain.print(f"error: {error}", style="red", soft_wrap=True)
        sys.exit(error.exit_status)
    except KeyboardInterrupt:
        Console(stderr=True).print("interrupted; the same command goes on from the last checkpoint", markup=False)
        sys.exit(130)


@app.callback(invoke_without_command=True)
def version(show: Annotated[bool, typer.Option("--version", help="Print the version")] = False) -> None:
    """Federated multimodal learning for medicine."""
    if show:
        typer.echo(__version__)
        raise typer.Exit


@app.command(name="list")
def list_parts() -> None:
    """List tasks, modalities, encoders, algorithms, foundations and baselines."""
    from medfed.federated.algorithms import ALGORITHMS
    from medfed.modalities import ENCODERS, MODALITIES
    from medfed.study import Baseline
    from medfed.tasks import TASKS

    table = Table("task", "title", "dataset", "modalities", "question")
    for task in TASKS.values():
        table.add_row(
            task.name, task.title, task.dataset, " ".join(task.modalities), task.question or "each example's own"
        )
    console = Console()
    console.print(table)
    for kind, names in (("modalities", MODALITIES), ("encoders", ENCODERS), ("algorithms", ALGORITHMS)):
        console.print(f"{kind}: {', '.join(names)}", highlight=False)
    console.print("foundations: tiny, huggingface", highlight=False)
    console.print(f"baselines: {', '.join(get_args(Baseline))}", highlight=False)


@app.command()
def doctor() -> None:
    """Say what this machine has and whether medfed can run here."""
    from medfed.diagnosis import diagnose

    table = Table("check", "found", "verdict")
    checks = diagnose()
    for check in checks:
        table.add_row(check.name, check.found, "ok" if check.ok else f"problem: {check.hint}")
    Console().print(table)
    if not all(check.ok for check in checks):
        raise typer.Exit(1)


@app.command()
def run(
    study: StudyFile,
    data_root: DataRoot = None,
    overrides: Overrides = None,
    runs: Annotated[Path, typer.Option("--runs", help="Where run folders go")] = Path("runs"),
    cache: Cache = DEFAULT_CACHE,
    corpus: Corpus = None,
    foundation: Foundation = None,
    skip_bad: SkipBad = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would run, and stop")] = False,
    report: Annotated[Path | None, typer.Option("--report", help="Also copy the report here")] = None,
    seeds: Annotated[str | None, typer.Option("--seeds", help="Run at these seeds and compare: --seeds 0,1,2")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A sweep's quick form: all cells, minutes")] = False,
    workers: Workers = None,
    show_examples: ShowExamples = False,
    dtype: Dtype = None,
    load_in_4bit: In4Bit = False,
    device_map: DeviceMap = None,
    keep_decoded: KeepDecoded = True,
) -> None:
    """Run a study, or a sweep of studies, end to end, or go on where it was interrupted; nothing is computed twice."""
    from medfed.compare import run_sweep
    from medfed.pipeline import Places, run_study
    from medfed.study import foundation_overrides, load_study
    from medfed.sweep import is_sweep, load_plan, parse_seeds

    places = Places(runs, cache.expanduser(), data_root, corpus, foundation, skip_bad, show_examples)
    overrides = [*(overrides or []), *foundation_overrides(dtype, load_in_4bit, device_map)]
    places = replace(places, keep_decoded=keep_decoded)
    reporter = Reporter(Console())
    if seeds is None and not quick and not is_sweep(study):
        places = replace(places, workers=workers or 1)
        run_study(load_study(study, overrides), places, reporter, dry_run=dry_run, report=report)
        return
    plan = load_plan(study, overrides, parse_seeds(seeds), quick=quick)
    if dry_run:
        for cell in plan.cells:
            for seed in plan.seeds:
                reporter.say(f"{cell.label}, seed {seed}")
                run_study(cell.at(seed), places, reporter, dry_run=True)
        return
    run_sweep(plan, places, reporter, workers or os.cpu_count() or 1, report)


@app.command()
def evaluate(
    folder: RunFolder,
    data_root: DataRoot = None,
    cache: Cache = DEFAULT_CACHE,
    foundation: Foundation = None,
    keep_decoded: KeepDecoded = True,
) -> None:
    """Score a finished run again from its last checkpoint, and compare with what it wrote."""
    from medfed.pipeline import Places, evaluate_again

    places = Places(folder.parent, cache.expanduser(), data_root, None, foundation, keep_decoded=keep_decoded)
    evaluate_again(folder, places, Reporter(Console()))


@app.command()
def report(
    folders: Annotated[
        list[Path], typer.Argument(help="Run folders; several are compared, seeds of one hash together")
    ],
    out: Annotated[Path, typer.Option("--out", help="The HTML file")] = Path("report.html"),
) -> None:
    """Build a run's report again from its files, or compare several runs on one page."""
    from medfed.report.html import write_report

    for folder in folders:
        _require_folder(folder)
    if len(folders) == 1:
        write_report(folders[0], out)
    else:
        from medfed.evaluation.compare import compare_runs
        from medfed.report.comparison import default_labels, write_comparison

        write_comparison(compare_runs(folders, default_labels(folders)), folders, out)
    typer.echo(out)


@app.command()
def export(
    folder: RunFolder,
    out: Annotated[Path, typer.Option("--out", help="A new folder")],
    tasks: Annotated[
        list[str] | None,
        typer.Option("--task", help="Write this task as an ordinary LoRA; several get a folder each"),
    ] = None,
    rank: Annotated[int | None, typer.Option("--rank", help="Cut the LoRA to this rank, and print the error")] = None,
    merge: Annotated[bool, typer.Option("--merge", help="Write a whole model with the task's LoRA in it")] = False,
    cache: Cache = DEFAULT_CACHE,
    foundation: Foundation = None,
) -> None:
    """Write a run's adapter for others: the routed one, or with --task a LoRA that any server takes."""
    from medfed.export import export_run

    written = export_run(folder, out, cache.expanduser(), foundation, tasks=tasks or [], rank=rank, merge=merge)
    for exported in written:
        typer.echo("\n".join([str(exported.folder), *(f"  {sentence}" for sentence in exported.said)]))


@app.command()
def foundation(
    folder: Annotated[Path, typer.Argument(help="Folder of a Hugging Face causal LM")],
) -> None:
    """Print the checksum that pins an LLM in a study: foundation.sha256."""
    from medfed.injection.checksum import checksum_files, foundation_checksum
    from medfed.injection.huggingface import HuggingFaceSettings, locate

    found = locate(HuggingFaceSettings(), folder)
    typer.echo(f"{foundation_checksum(found)}  {' '.join(path.name for path in checksum_files(found))}")


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(help="Folder of an InternLM2 checkpoint (MMedLM 2), in safetensors")],
    out: Annotated[Path, typer.Argument(help="A new folder, for --foundation")],
) -> None:
    """Turn an InternLM2 checkpoint, which needs code of its own, into the same LLM as a Llama, which needs none."""
    from medfed.injection.internlm2 import convert as convert_internlm2

    convert_internlm2(source, out)
    typer.echo(out)


register(app)


@data_app.command(name="list")
def list_data() -> None:
    """List the datasets with licence and access page."""
    from medfed.datasets import DATASETS

    table = Table("dataset", "title", "version", "licence", "modalities", "targets", "access")
    for name, dataset in DATASETS.items():
        card = dataset.card
        columns = (" ".join(dataset.modalities), " ".join(dataset.targets), card.access)
        table.add_row(name, card.title, card.version, card.licence, *columns)
    Console().print(table)


@data_app.command()
def synth(
    out: Annotated[Path, typer.Option("--out", help="Folder to write into")],
    name: Annotated[str | None, typer.Argument(help="A dataset's name, or 'all'")] = None,
    study: Annotated[Path | None, typer.Option("--study", help="Write the folders of this study's sites")] = None,
    overrides: Overrides = None,
    num_patients: Annotated[int, typer.Option(min=1)] = 400,
    difficulty: Annotated[float, typer.Option(min=0, max=1)] = 0.5,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Write a dataset's synthetic twin in its native layout, or with --study a folder for every site and the server."""
    from medfed.datasets import DATASETS
    from medfed.datasets.base import TwinSpec, write_twin
    from medfed.registry import lookup

    if study is not None:
        from medfed.prepare import write_folders
        from medfed.study import load_study

        write_folders(load_study(study, overrides or []), out, Reporter(Console()))
        return
    if name is None:
        raise DataError("nothing to write", hint="name a dataset (medfed data list), or a study: --study FILE")
    chosen = list(DATASETS.values()) if name == "all" else [lookup(DATASETS, name, "dataset")]
    spec = TwinSpec(num_patients=num_patients, difficulty=difficulty, seed=seed)
    reporter = Reporter(Console())
    for dataset in chosen:
        folder = out / dataset.name
        if folder.exists():
            raise DataError("the folder exists", where=folder, hint="choose another --out, or remove it")
        with reporter.phase(f"write {folder}"):
            write_twin(dataset, folder, spec)


@data_app.command()
def check(
    data_root: Annotated[Path, typer.Argument(help="Folder that holds datasets in native layout")],
    names: Annotated[list[str] | None, typer.Option("--dataset", help="Check these only")] = None,
) -> None:
    """Open every file of every dataset found under a folder; list all that are bad, at once."""
    from medfed.inspection import check_folder

    reporter = Reporter(Console())
    if check_folder(data_root, names or [], reporter):
        raise typer.Exit(1)


@data_app.command(name="cache")
def decoded_cache(
    cache: Cache = DEFAULT_CACHE,
    clear: Annotated[bool, typer.Option("--clear", help="Remove the decoded data, all of it")] = False,
) -> None:
    """List the decoded data that runs keep, or remove it."""
    from medfed.datasets.decoded_cache import DecodedCache
    from medfed.report.names import size

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
    study: StudyFile,
    data_root: DataRoot = None,
    overrides: Overrides = None,
    cache: Cache = DEFAULT_CACHE,
    skip_bad: SkipBad = False,
    out: Annotated[Path, typer.Option("--out", help="The JSON file: who holds which examples")] = Path(
        "partition.json"
    ),
    show: Annotated[bool, typer.Option("--show", help="Draw it too, as an SVG beside the JSON file")] = False,
) -> None:
    """Divide a study's data over clients and server without training, and say who holds what."""
    from medfed.prepare import cohort_of, decode_all, find_sources
    from medfed.report.page import write_whole
    from medfed.report.partition import partition_picture, partition_rows
    from medfed.study import load_study

    chosen, reporter = load_study(study, overrides or []), Reporter(Console())
    sources = find_sources(chosen, data_root, cache.expanduser(), reporter)
    data = decode_all(chosen, sources, skip_bad, reporter)
    record = cohort_of(chosen, sources, data, skip_bad, reporter).partition
    table = Table("client", "task", "examples", "by class", title=f"{record['scheme']}, hash {record['hash']}")
    for client, task, count, classes in partition_rows(record):
        table.add_row(client, task, str(count), classes)
    reporter.console.print(table)
    write_whole(json.dumps(record, indent=1) + "\n", out)
    reporter.say(f"partition: {out}")
    if show:
        picture = out.with_suffix(".svg")
        write_whole(partition_picture(record, {task.name: task.title for task in chosen.tasks}), picture)
        reporter.say(f"picture: {picture}")


def _require_folder(folder: Path) -> None:
    if not (folder / "study.json").is_file():
        raise MedfedError("not a run folder: no study.json", where=folder, hint="pass runs/<study>/<hash>-seed<n>")
