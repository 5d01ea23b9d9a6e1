"""The verbs that ask an LLM alone, without patients: ``medfed ask`` and ``medfed foundation examine``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from medfed.cli.options import DEFAULT_CACHE, AsJson, Cache, output, print_rows
from medfed.core.progress import Reporter

if TYPE_CHECKING:
    from medfed.llm.language_model import LanguageModel

Llm = Annotated[Path, typer.Option("--llm", help="A name of `medfed foundation list`, or a Hugging Face folder")]
Examined = Annotated[
    Path, typer.Argument(help="A name of `medfed foundation list`, a Hugging Face folder, or the folder of a run")
]
Dtype = Annotated[str | None, typer.Option("--dtype", help="Of the weights; by default that of the folder")]
WORDS = 'Compare these answers, separated by commas: "Yes,No"; without them the LLM answers in words'
SETS = "Sets, separated by commas; by default all that are found, and the package's sample"


def ask(
    llm: Llm,
    question: Annotated[str | None, typer.Argument(help="The question")] = None,
    answers: Annotated[str | None, typer.Option(help=WORDS)] = None,
    file: Annotated[Path | None, typer.Option(help="Many questions, one a line")] = None,
    most: Annotated[int, typer.Option("--max-new-tokens", min=1, help="Longest answer in words")] = 64,
    dtype: Dtype = None,
    cache: Cache = DEFAULT_CACHE,
    as_json: AsJson = False,
) -> None:
    """Ask an LLM alone, without patients, in the form that it was taught.

    With --answers: log-likelihood of every answer, and its log-odds against the others. They are kept in the cache, and
    what questions share at the beginning is computed once. Without: the likeliest words, decoded greedily.
    """
    from medfed.ask.task_selection import parse_answers

    questions, compared = _questions(question, file), parse_answers(answers)
    from medfed.core.torch_rng import one_thread
    from medfed.llm.language_model import open_language_model

    reporter = Reporter(Console(stderr=True))
    with one_thread():
        model = open_language_model(llm, cache.expanduser(), dtype)
        if compared:
            _compare(model, questions, compared, reporter, as_json=as_json)
        else:
            _words(model, questions, most, reporter, as_json=as_json)


def _questions(question: str | None, file: Path | None) -> list[str]:
    from medfed.core.errors import StudyError

    if (question is None) == (file is None):
        raise StudyError("one question, or a file of them", hint='medfed ask --llm NAME "QUESTION", or --file FILE')
    if file is None:
        return [question or ""]
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise StudyError(f"cannot read the questions: {error}", where=file, hint="a text file in UTF-8") from error
    if not (questions := [line.strip() for line in lines if line.strip()]):
        raise StudyError("no question in the file", where=file, hint="write one a line")
    return questions


def _compare(
    model: LanguageModel, questions: Sequence[str], answers: Sequence[str], reporter: Reporter, *, as_json: bool
) -> None:
    from medfed.llm.language_model import odds_of

    with reporter.phase("asking") as advance:
        values = model.likelihood(questions, answers, advance)
    odds = odds_of(values)
    if as_json:
        rows = [
            {
                "question": question,
                "log_likelihood": dict(zip(answers, row.tolist(), strict=True)),
                "log_odds": dict(zip(answers, against.tolist(), strict=True)),
            }
            for question, row, against in zip(questions, values, odds, strict=True)
        ]
        typer.echo(json.dumps(rows, ensure_ascii=False, indent=1))
        return
    table = [
        {"question": question}
        | {f"log P({answer})": f"{value:.3f}" for answer, value in zip(answers, row, strict=True)}
        | {f"log-odds {answer}": f"{value:+.3f}" for answer, value in zip(answers, against, strict=True)}
        for question, row, against in zip(questions, values, odds, strict=True)
    ]
    print_rows(table, as_json=False)


def _words(model: LanguageModel, questions: Sequence[str], most: int, reporter: Reporter, *, as_json: bool) -> None:
    answered = []
    with reporter.phase("asking") as advance:
        for number, question in enumerate(questions, start=1):
            answered.append(model.answer(question, most))
            advance(number, len(questions))
    rows = [{"question": text, **words._asdict()} for text, words in zip(questions, answered, strict=True)]
    if as_json:
        typer.echo(json.dumps(rows, ensure_ascii=False, indent=1))
        return
    for row in rows:
        ending = f" … (cut after {most} tokens: --max-new-tokens)" if row["cut"] else ""
        output().print(*[row["question"]] * (len(rows) > 1), f"{row['text']}{ending}", sep="\n", markup=False)


def examine(
    name: Examined,
    roots: Annotated[list[Path] | None, typer.Option("--data-root", help="Folder of the sets; may be repeated")] = None,
    num_questions: Annotated[int, typer.Option("--num-questions", min=2, help="Of every set")] = 150,
    sets: Annotated[str | None, typer.Option("--sets", help=SETS)] = None,
    dtype: Dtype = None,
    cache: Cache = DEFAULT_CACHE,
    as_json: AsJson = False,
) -> None:
    """Put the questions of public examinations to an LLM, without patients, and score it with intervals.

    The LLM of a finished run answers before and after its injections, and the paired difference is printed.

    An option is chosen by the likelihood of A, B, C or D, yes or no by that of the word. A text counts by the mean
    negative log-likelihood of its tokens. Questions are always the same ones. Likelihoods are kept in the cache.
    """
    from medfed.core.errors import StudyError
    from medfed.llm.knowledge import choose

    wanted = [part.strip() for part in (sets or "").split(",") if part.strip()]
    chosen = choose(wanted, roots or [], num_questions)
    cache, reporter = cache.expanduser(), Reporter(Console(stderr=True))
    from medfed.records.folder import RunFolder
    from medfed.records.schema import StudyFile
    from medfed.report import retention

    if RunFolder(name).exists(StudyFile.NAME):
        if dtype is not None:
            raise StudyError("a run keeps its dtype", where="--dtype", hint="leave it out")
        from medfed.runs.loaded import examine_run

        scores = examine_run(name, chosen, cache, reporter)
        heads, lines = retention.lines_of(scores)
        rows = [dict(zip([head or "verdict" for head in heads], line, strict=True)) for line in lines]
    else:
        from medfed.core.torch_rng import one_thread
        from medfed.llm.knowledge import zero_shot
        from medfed.llm.language_model import open_language_model

        with one_thread():
            scores = zero_shot(open_language_model(name, cache, dtype), chosen, reporter)
        rows = retention.zero_shot_rows(scores)
    if as_json:
        typer.echo(scores.model_dump_json(indent=1))
    else:
        print_rows(rows, as_json=False)
