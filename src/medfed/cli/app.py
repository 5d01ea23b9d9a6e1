"""The ``medfed`` command: verbs without logic. Heavy imports stay inside the verbs, so ``--help`` is instant."""

from __future__ import annotations

import json
import logging
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from medfed import __version__
from medfed.cli import options
from medfed.cli import runs as cli_runs
from medfed.cli.data import data_app
from medfed.cli.foundation import convert, foundation_app
from medfed.cli.llm import ask, examine
from medfed.cli.sites import federation_app, site_app
from medfed.cli.words import words
from medfed.core.errors import MedfedError
from medfed.core.processes import warm_up
from medfed.core.progress import Reporter

if TYPE_CHECKING:
    from medfed.runs.context import RunPaths
    from medfed.study.study import Study
    from medfed.study.sweep import Plan

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)
app.add_typer(data_app, name="data")
app.add_typer(federation_app, name="federation")
app.add_typer(site_app, name="site")
app.add_typer(foundation_app, name="foundation")
KEPT = "Keep decoded data (patients' data) in the cache for the next run"
KeepDecoded = Annotated[bool, typer.Option("--decoded-cache/--no-decoded-cache", help=KEPT)]
AT_ONCE = (
    "Of a sweep: runs at once, by default as many as CPUs. Of one study: processes that train its clients, by default "
    "1; results are the same"
)
COMPARED = "Run folders; several are compared, seeds of one hash together"
EXAMPLES = "Show a few test examples even of real patients"
DTYPES = "Of the LLM's frozen weights: auto (the faster one by a trial), float32, bfloat16, float16"
OFFLINE, FETCHING = "HF_HUB_OFFLINE", ["foundation", "get"]
ENVIRONMENT = {
    # Small models on many threads cost several times the CPU; medfed parallelises over processes.
    **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
    "TOKENIZERS_PARALLELISM": "false",
    # Nothing is looked up, fetched or reported over a network, except by the command that is there to fetch.
    OFFLINE: "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}


def main() -> None:
    """Run the command; a mistake in input becomes one message and the error's exit status."""
    for name, value in ENVIRONMENT.items():
        if not (name == OFFLINE and sys.argv[1:3] == FETCHING):
            os.environ.setdefault(name, value)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # at every start it tells of a kernel to be fetched
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
def list_parts(as_json: options.AsJson = False, plugins: options.Plugins = None) -> None:
    """List studies, tasks, modalities, encoders, models, algorithms, datasets, LLMs, baselines and plugins."""
    from medfed.core.catalog import REGISTRIES, TASKS, registered_plugins, task_definitions
    from medfed.study.study import shipped_studies

    facts, default = ("title", "dataset", "modalities"), "each example's own"
    declared = task_definitions()
    others = {name: TASKS[name].model_dump() for name in TASKS if name not in declared}
    tasks = [
        {"task": name, **{key: fields[key] for key in facts}, "question": fields.get("question") or default}
        for name, fields in (declared | others).items()
    ]
    names = {
        "studies": list(shipped_studies()),
        **{parts.plural: list(parts) for parts in REGISTRIES if parts is not TASKS},
        "llms": ["tiny", "huggingface"],
        "baselines": ["federated", "local", "centralised", "lora"],
        "plugins": list(dict.fromkeys(map(str, registered_plugins()))),
    }
    if as_json:
        typer.echo(json.dumps({"tasks": tasks, **names}, ensure_ascii=False, indent=1))
        return
    options.print_rows(tasks, as_json=False)
    for kind, listed in names.items():
        if listed:
            typer.echo(f"{kind}: {', '.join(listed)}")


@app.command()
def runs(
    folder: Annotated[Path, typer.Option("--runs", help="Where run folders are")] = Path("runs"),
    as_json: options.AsJson = False,
) -> None:
    """List the runs in a folder, the latest first."""
    from medfed.records.folder import listed_runs

    options.print_rows(listed_runs(folder), as_json=as_json)


@app.command()
def doctor() -> None:
    """Say what this machine has and whether medfed can run here."""
    from medfed.core.diagnosis import diagnose

    table = Table("check", "found", "verdict")
    checks = diagnose()
    for check in checks:
        table.add_row(check.name, check.value, "ok" if check.ok else f"problem: {check.hint}")
    Console().print(table)
    if not all(check.ok for check in checks):
        raise typer.Exit(1)


@app.command()
def run(
    study: options.StudyFile,
    data_root: options.DataRoot = None,
    overrides: options.Overrides = None,
    runs: Annotated[Path, typer.Option(help="Where run folders go")] = Path("runs"),
    cache: options.Cache = options.DEFAULT_CACHE,
    corpus: Annotated[Path | None, typer.Option(help="Folder of text to pre-train the tiny LLM on")] = None,
    foundation: options.Foundation = None,
    skip_bad: options.SkipBad = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would run, and stop")] = False,
    report: Annotated[Path | None, typer.Option(help="Also copy the report here")] = None,
    seeds: Annotated[str | None, typer.Option(help="Run at these seeds and compare: --seeds 0,1,2")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="The quick form, in minutes: smaller, all cells")] = False,
    workers: Annotated[int | None, typer.Option(min=1, help=AT_ONCE)] = None,
    show_examples: Annotated[bool, typer.Option("--show-examples", help=EXAMPLES)] = False,
    dtype: Annotated[str | None, typer.Option(help=DTYPES)] = None,
    in_4bit: Annotated[bool, typer.Option("--load-in-4bit", help="Hold the LLM's linear maps in 4 bits")] = False,
    device_map: Annotated[str | None, typer.Option(help="Where the LLM's weights go: auto, cpu, cuda:0, …")] = None,
    keep_decoded: KeepDecoded = True,
    plugins: options.Plugins = None,
) -> None:
    """Run a study, or a sweep of studies, end to end, or go on where it was interrupted; nothing is computed twice."""
    from medfed.study.study import find_study, foundation_overrides
    from medfed.study.sweep import is_sweep, load_plan, parse_seeds

    # The study is read before anything large is imported: a typing error costs no second.
    file = find_study(study)
    overrides = [*(overrides or []), *foundation_overrides(dtype, in_4bit, device_map)]
    single = seeds is None and not is_sweep(file)
    plan = load_plan(file, overrides, parse_seeds(seeds), quick=quick)
    if workers != 1 and not (single and workers is None):
        # The forked workers need them; what starts threads of its own (polars) must come later.
        injects = any(cell.study.job == "inject" for cell in plan.cells)
        warm_up("torch", "transformers", *(["peft"] if injects else []))
    from medfed.runs.context import RunPaths

    paths = RunPaths(runs, cache.expanduser(), data_root, corpus, foundation, skip_bad, show_examples)
    paths, reporter = replace(paths, keep_decoded=keep_decoded), Reporter(Console())
    if single:
        _run_one(plan.cells[0].study, replace(paths, workers=workers or 1), reporter, report, dry_run=dry_run)
    elif dry_run:
        _say_what_would_run(plan, paths, reporter)
    else:
        from medfed.runs.compare import run_sweep

        run_sweep(plan, paths, reporter, workers or os.cpu_count() or 1, report)


def _run_one(study: Study, paths: RunPaths, reporter: Reporter, report: Path | None, *, dry_run: bool) -> None:
    from medfed.runs.pipeline import run_study

    made = run_study(study, paths, reporter, dry_run=dry_run, report=report)
    if not dry_run:
        _say_what_next(made, study, reporter)


def _say_what_would_run(plan: Plan, paths: RunPaths, reporter: Reporter) -> None:
    from medfed.runs.pipeline import run_study

    for cell in plan.cells:
        for seed in plan.seeds:
            reporter.say(f"{cell.label}, seed {seed}")
            run_study(cell.at(seed), paths, reporter, dry_run=True)


def _say_what_next(made: Path, study: Study, reporter: Reporter) -> None:
    """Name the commands that use the run."""
    reporter.say("what next:")
    reporter.say(f"  medfed report {made} --out report.html")
    if study.job == "inject":
        reporter.say(f"  medfed predict {made} --image FILE --question 'Is there a pleural effusion?'")
        reporter.say(f"  medfed play {made} --open")
        reporter.say(f"  medfed export {made} --task {study.train[0]} --out exported")


@app.command()
def evaluate(
    folder: options.RunFolder,
    data_root: options.DataRoot = None,
    cache: options.Cache = options.DEFAULT_CACHE,
    foundation: options.Foundation = None,
    keep_decoded: KeepDecoded = True,
    plugins: options.Plugins = None,
) -> None:
    """Score a finished run again from its last checkpoint, and compare with what it wrote."""
    from medfed.runs.context import RunPaths
    from medfed.runs.loaded import evaluate_again

    paths = RunPaths(folder.parent, cache.expanduser(), data_root, None, foundation, keep_decoded=keep_decoded)
    evaluate_again(folder, paths, Reporter(Console()))


@app.command()
def scores(folder: options.RunFolder, as_json: options.AsJson = False) -> None:
    """Print a finished run's table from its files; with --json every metric, interval and difference."""
    from medfed.records.folder import RunFolder
    from medfed.records.schema import ScoreFile
    from medfed.report.controls import run_tables

    record = RunFolder(folder).read(ScoreFile)
    if as_json:
        typer.echo(record.model_dump_json(indent=1))
    else:
        options.output().print(*run_tables(folder))


@app.command()
def report(
    folders: Annotated[
        list[Path], typer.Argument(help="Run folders; several are compared, seeds of one hash together")
    ],
    out: Annotated[Path, typer.Option(help="The HTML file")] = Path("report.html"),
    plugins: options.Plugins = None,
) -> None:
    """Build a run's report again from its files, or compare several runs on one page."""
    from medfed.report.page import write_report

    folders = [options.named_run(folder) for folder in folders]
    for folder in folders:
        if not (folder / "study.json").is_file():
            hint = "pass runs/<study>/<hash>-seed<n>"
            raise MedfedError("not a run folder: no study.json", where=folder, hint=hint)
    if len(folders) == 1:
        write_report(folders[0], out)
    else:
        from medfed.evaluation.compare import compare_runs
        from medfed.report.comparison import default_labels

        write_report(compare_runs(folders, default_labels(folders)), out, folders)
    typer.echo(out)


cli_runs.register(app)


app.command()(convert)
app.command()(ask)
app.command()(words)
foundation_app.command()(examine)
