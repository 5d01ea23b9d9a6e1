"""The verb ``medfed words``: the weights of findings by an LLM, and answers by them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medfed.cli.options import AsJson, RunFolder, output, print_rows

if TYPE_CHECKING:
    from medfed.records.schema import WordsFile

MOST = 5
"""Findings that the list of all pictures names."""
WEIGHTS = "Use the weights of this file, an edited copy of the run's words.json"
HOURS = "Answer for this stay: CSV or parquet, a row per hour, a column per variable"
RECORD = "Answer for this 12-lead ECG: a WFDB header (.hea), its .dat file next to it"


def words(
    folder: RunFolder,
    task: Annotated[str | None, typer.Option(help="A clinical picture: print all its weights, or answer it")] = None,
    icu: Annotated[Path | None, typer.Option(help=HOURS)] = None,
    ecg: Annotated[Path | None, typer.Option(help=RECORD)] = None,
    weights: Annotated[Path | None, typer.Option(help=WEIGHTS)] = None,
    as_json: AsJson = False,
) -> None:
    """Print how well questions are answered by findings that an LLM weighs, and the weights.

    With --task all weights of one picture are printed. With a patient's file too, the question is answered by them, at
    once and without the LLM. The answer names the findings that support it. Weights may be edited: copy words.json,
    change numbers, and pass it with --weights.
    """
    from medfed.core.errors import RunError
    from medfed.records.folder import RunFolder as Folder
    from medfed.records.schema import WordsFile

    if weights is None and not Folder(folder).exists(WordsFile.NAME):
        hint = "use a run of a study with [words], such as pictures-real"
        raise RunError("no findings are weighed in this run", where=folder, hint=hint)
    record = Folder(folder).read(WordsFile) if weights is None else _edited(weights)
    if icu is None and ecg is None:
        _print(record, task, as_json=as_json)
        return
    if task is None:
        raise RunError("whose question is it?", where=folder, hint="name the picture: --task kidney-failure")
    from medfed.ask.inputs import Kind, read_files
    from medfed.findings.patient import answer_patient, weights_for
    from medfed.records.schema import StudyFile
    from medfed.study.study import Study

    study = Study.model_validate(Folder(folder).read(StudyFile).settings)
    files: dict[Kind, Path | None] = {"icu": icu, "ecg": ecg}
    raw = read_files(study, {kind: path for kind, path in files.items() if path is not None})
    answer = answer_patient(study.words.findings if study.words else (), study.modality, weights_for(record, task), raw)
    if as_json:
        typer.echo(json.dumps(answer._asdict(), ensure_ascii=False))
        return
    output().print(f"{answer.question} {answer.probability:.3f}\n{answer.sentence}", highlight=False, markup=False)


def _edited(path: Path) -> WordsFile:
    """Read an edited ``words.json``. Raises RunError if it is none."""
    from pydantic import ValidationError

    from medfed.core.errors import RunError
    from medfed.records.folder import first_problem
    from medfed.records.schema import WordsFile

    try:
        return WordsFile.model_validate_json(path.read_bytes())
    except OSError as error:
        raise RunError("cannot read the weights", where=path, hint="copy words.json of a run") from error
    except ValidationError as error:
        raise RunError(first_problem(error), where=path, hint="correct it, or copy words.json again") from error


def _print(record: WordsFile, task: str | None, *, as_json: bool) -> None:
    from medfed.evaluation.controls import WORDS
    from medfed.findings.patient import weights_for

    if task is not None:
        given = weights_for(record, task)
        rows = [
            {"finding": name, "weight": f"{weight:.3f}", "usual": f"{given.scale[name].middle:g}"}
            for name, weight in given.weights.get(WORDS, {}).items()
        ]
        print_rows(rows, as_json=as_json)
        return
    if as_json:
        typer.echo(record.model_dump_json(indent=1))
        return
    bounds = [
        {
            "model": row.model if row.baseline is None else f"{row.model} − {row.baseline}",
            "mean AUROC": f"{row.value:.3f}" if row.baseline is None else f"{row.value:+.3f}",
            "95 % interval": "–" if row.ci_low is None else f"{row.ci_low:.3f} to {row.ci_high:.3f}",
            "pictures": row.num_tasks,
            "patients": row.num_patients,
        }
        for row in record.means
    ]
    if bounds:
        print_rows(bounds, as_json=False)
    named = [
        {"task": one.task, "findings": ", ".join(list(one.weights.get(WORDS, {}))[:MOST])} for one in record.pictures
    ]
    print_rows(named, as_json=False)
