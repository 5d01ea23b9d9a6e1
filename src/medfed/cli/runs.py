"""The verbs that use a finished run: ``medfed predict``, ``medfed play`` and ``medfed export``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from medfed.cli.options import DEFAULT_CACHE, Cache, Foundation, Plugins, RunFolder, output
from medfed.core.errors import RunError

if TYPE_CHECKING:
    from medfed.ask.asking import Answer
    from medfed.ask.inputs import Kind
    from medfed.runs.loaded import LoadedRun

NUM_EXPERTS_PRINTED = 3
WORDS = 'Compare these answers, separated by commas: "yes,no"'
CASES = "Many questions: columns id, image, ecg, icu, task, question, answers, as needed"
WEIGHTS = "Print one JSON object, with the weights of all experts"
HOURS = "CSV or parquet, a row per hour, a column per variable (empty: not measured)"
ANSWERED = "With --csv: answers go here; rows answered here are skipped"


def register(app: typer.Typer) -> None:
    """Add the verbs to ``app``."""
    for verb in (predict, play, export):
        app.command(help=_flowing(verb.__doc__ or ""))(verb)


def _flowing(text: str) -> str:
    """Join the lines of every paragraph, so that a terminal breaks them where it ends itself."""
    return "\n\n".join(" ".join(part.split()) for part in text.split("\n\n"))


def predict(
    folder: RunFolder,
    image: Annotated[Path | None, typer.Option(help="A picture: PNG, JPEG or DICOM")] = None,
    ecg: Annotated[Path | None, typer.Option(help="A 12-lead WFDB header (.hea), its .dat file next to it")] = None,
    icu: Annotated[Path | None, typer.Option(help=HOURS)] = None,
    question: Annotated[str | None, typer.Option(help="Ask this instead of the task's own question")] = None,
    answers: Annotated[str | None, typer.Option(help=WORDS)] = None,
    task: Annotated[str | None, typer.Option(help="A task that reads the files; else it is found, see above")] = None,
    as_json: Annotated[bool, typer.Option("--json", help=WEIGHTS)] = False,
    csv: Annotated[Path | None, typer.Option(help=CASES)] = None,
    out: Annotated[Path | None, typer.Option(help=ANSWERED)] = None,
    cache: Cache = DEFAULT_CACHE,
    foundation: Foundation = None,
    plugins: Plugins = None,
) -> None:
    """Ask a run's injected LLM about files: one question here, or with --csv many.

    Closed questions get the probability of every answer. They are a closed task's own question, a question with
    --answers, and a question that reads like yes or no. Such a question begins with is, are, does, has, can, will, …,
    or goes on with one behind a comma or colon, and offers no "or". Any other is answered in words. Its probability is
    the geometric mean of the probabilities of the answer's tokens.

    Without --task, a task of the run that reads all files is chosen. The task whose own question it is comes first,
    then an open task, then the one whose question has most words in common with it. Without --question the task must
    be the only one with a question of its own. The task's descriptions choose the experts.

    With --csv, paths are relative to the CSV file. A row that cannot be answered gets its reason in the column error of
    --out, and the exit status is 1 if there is one. The same command goes on where it was stopped. It tries rows with
    an error again, and rows that changed, themselves or in the content of their files.
    """
    from medfed.ask.asking import Request, ask
    from medfed.ask.task_selection import parse_answers
    from medfed.runs.loaded import LoadedRun

    given: dict[Kind, Path | None] = {"image": image, "ecg": ecg, "icu": icu}
    if csv is not None or out is not None:
        _predict_all(folder, csv, out, [*filter(given.get, given)], cache, foundation)
        return
    request = Request({kind: path for kind, path in given.items() if path}, task, question, parse_answers(answers))
    answer = ask(_noted(LoadedRun(folder, cache.expanduser(), foundation)), request)
    if as_json:
        typer.echo(json.dumps(answer._asdict(), ensure_ascii=False))
    else:
        _show(answer)


def play(
    folder: RunFolder,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one")] = 0,
    open_page: Annotated[bool, typer.Option("--open", help="Open the page in the browser")] = False,
    cache: Cache = DEFAULT_CACHE,
    foundation: Foundation = None,
    plugins: Plugins = None,
) -> None:
    """Open a page on this machine to drop a file, ask, and see picture or trace, answer and expert weights.

    The page is served to this machine only and loads nothing from elsewhere. Files are read in memory and in a folder
    that is removed at once. Nothing of them is logged. Ctrl-C ends it.
    """
    from medfed.ask.page.app import listen, serve
    from medfed.runs.loaded import LoadedRun

    listening = listen(port)
    run = _noted(LoadedRun(folder, cache.expanduser(), foundation))
    serve(run, folder.resolve().name, listening, open_page=open_page)


def export(
    folder: RunFolder,
    out: Annotated[Path, typer.Option(help="A new folder")],
    tasks: Annotated[
        list[str] | None, typer.Option("--task", help="Write this task as an ordinary LoRA; several get a folder each")
    ] = None,
    rank: Annotated[int | None, typer.Option(help="Cut the LoRA to this rank, and print the error")] = None,
    merge: Annotated[bool, typer.Option("--merge", help="Write a whole model with the task's LoRA in it")] = False,
    cache: Cache = DEFAULT_CACHE,
    foundation: Foundation = None,
    plugins: Plugins = None,
) -> None:
    """Write a run's adapter for others: the routed one, or with --task a LoRA that any server takes."""
    from medfed.export.export import Form, export_run

    for exported in export_run(folder, out, cache.expanduser(), foundation, Form(tasks or (), rank, merge)):
        typer.echo("\n".join([str(exported.folder), *(f"  {sentence}" for sentence in exported.notes)]))


def _noted(run: LoadedRun) -> LoadedRun:
    """Print what an old run did not record."""
    if run.note:
        typer.echo(f"note: {run.note}", err=True)
    return run


def _predict_all(
    folder: Path, csv: Path | None, out: Path | None, files: list[str], cache: Path, foundation: Path | None
) -> None:
    from medfed.ask.batch import answer_table, open_tables
    from medfed.runs.loaded import LoadedRun

    if csv is None or out is None:
        raise RunError("--csv and --out go together", hint="medfed predict RUN --csv cases.csv --out answers.csv")
    if files:
        raise RunError(f"--{files[0]} together with --csv", hint="name the files in the CSV's columns")
    tables = open_tables(csv, out, folder.resolve().name)
    counts = answer_table(_noted(LoadedRun(folder, cache.expanduser(), foundation)), tables)
    typer.echo(f"{out}: {counts.answered} answered, {counts.skipped} answered before, {counts.failed} not answered")
    if counts.failed:
        typer.echo(f"the column error of {out} says why; the same command tries those rows again", err=True)
        raise typer.Exit(1)


def _show(answer: Answer) -> None:
    table = Table("answer", "probability")
    rows: Mapping[str, float | None] = answer.probabilities or {answer.answer or "(no answer)": answer.probability}
    for text, sure in sorted(rows.items(), key=lambda row: -(row[1] or 0)):
        table.add_row(text, "–" if sure is None else f"{sure:.3f}")
    console = output()
    console.print(table)
    if answer.cut:
        console.print("cut: the answer was still running at evaluation.max_new_tokens", highlight=False)
    heaviest = ", ".join(f"{one['expert']} ({one['weight']:.2f})" for one in answer.experts[:NUM_EXPERTS_PRINTED])
    console.print(f"task {answer.task}: {answer.question}", highlight=False, markup=False, soft_wrap=True)
    console.print(f"experts: {heaviest or 'none'}", highlight=False)
