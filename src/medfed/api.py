"""Run a study in Python, load a run, and use what it learned; ``import medfed`` gives these names.

Nothing large is imported before a study runs or a model answers. A run computes in one thread, so that its numbers are
those of the command; the process's own number of threads comes back after it.
"""

from __future__ import annotations

import html
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
from rich.console import Console

from medfed.core.errors import StudyError
from medfed.core.plugins import load
from medfed.core.processes import warm_up
from medfed.core.progress import Reporter
from medfed.records.folder import RunFolder, find_run
from medfed.records.schema import Development, PartitionFile, ProvenanceFile, Score, ScoreFile, StudyFile
from medfed.study.study import Study, find_study, study_of
from medfed.study.sweep import load_plan

if TYPE_CHECKING:
    from medfed.ask.asking import Answer
    from medfed.llm.language_model import LanguageModel
    from medfed.runs.loaded import LoadedRun

__all__ = ["Report", "Run", "foundation", "load_run", "load_study", "run"]

PathLike = str | os.PathLike[str]


def run(  # noqa: PLR0913 (keyword-only options of the whole run)
    study: PathLike | Mapping[str, Any] | Study,
    *,
    overrides: Sequence[str] = (),
    quick: bool = False,
    plugins: Sequence[PathLike] = (),
    data_root: PathLike | None = None,
    runs: PathLike = "runs",
    cache: PathLike | None = None,
    foundation: PathLike | None = None,
    workers: int = 1,
    skip_bad: bool = False,
    quiet: bool = False,
) -> Run:
    """Run a study end to end, or go on where it stopped. A study that finished before is loaded.

    Raises MedfedError if an input is wrong. Finished steps are kept, and the same call goes on from there.

    Args:
        study: the name of a shipped study, a TOML file, settings as a dictionary, or a :class:`Study`.
        overrides: settings to change, as ``--set`` takes them: ``"rounds.num_rounds=3"``.
        quick: take the study's quick form.
        plugins: ``.py`` files or installed modules with parts of your own.
        data_root: folder of the datasets in native layout; None writes synthetic twins.
        runs: run folders go here.
        cache: twins, decoded data and the tiny LLM are kept here; by default in ``~/.cache/medfed``.
        foundation: folder of a Hugging Face causal LM, or the name of one that ``medfed foundation get`` brought.
        workers: processes that train clients. Their number changes no result.
        skip_bad: leave unreadable examples out.
        quiet: print nothing.
    """
    for plugin in plugins:
        load(os.fspath(plugin))
    chosen = _study(study, overrides, quick=quick)
    if workers > 1:
        warm_up("medfed.runs.pipeline")
    from medfed.runs.context import RunPaths
    from medfed.runs.pipeline import run_study

    places = (Path(runs), _cache(cache), _path(data_root))
    paths = RunPaths(*places, foundation=_path(foundation), skip_bad=skip_bad, workers=workers)
    folder = run_study(chosen, paths, Reporter.silent() if quiet else Reporter(Console()))
    return Run(folder, paths.cache, paths.foundation)


def load_study(study: PathLike, overrides: Sequence[str] = (), *, quick: bool = False) -> Study:
    """Read a study, the name of a shipped one or a TOML file; ``overrides`` and ``quick`` as in :func:`run`.

    Raises StudyError if there is none, a key or value is wrong, or it is a sweep of several.
    """
    file = find_study(study if isinstance(study, str) else Path(study))
    plan = load_plan(file, overrides, quick=quick)
    if len(plan.cells) * len(plan.seeds) > 1 or plan.cells[0].values:
        raise StudyError("a sweep of several studies", where=file, hint=f"run it with the command: medfed run {file}")
    return plan.cells[0].at(plan.seeds[0])


def load_run(
    run: PathLike = "latest",
    *,
    runs: PathLike = "runs",
    plugins: Sequence[PathLike] = (),
    cache: PathLike | None = None,
    foundation: PathLike | None = None,
) -> Run:
    """Load a finished run; what is not named here is as in :func:`run`.

    Raises RunError if there is no such run, it is not finished, or another version of medfed wrote it.
    Raises StudyError if ``foundation`` is another LLM than the run's. Without it, the run finds its LLM by itself.

    Args:
        run: its folder; ``latest``; or a study's name, for the latest run of that study.
        plugins: files or modules with parts of your own, where they are not where the run's were.
    """
    for plugin in plugins:
        load(os.fspath(plugin))
    folder = find_run(Path(run), Path(runs))
    RunFolder(folder).require_done()
    loaded = Run(folder, _cache(cache), _path(foundation))
    if foundation is not None:
        from medfed.llm.obtain.recorded import Places, check_given

        places = Places(_path(foundation), _cache(cache))
        check_given(loaded.study.foundation, loaded.provenance.foundation, places)
    return loaded


def foundation(name: PathLike, *, cache: PathLike | None = None, dtype: str | None = None) -> LanguageModel:
    """Open an LLM, for questions without patients: ``foundation("smollm2-135m").log_odds("Is pus normal?")``.

    Its ``likelihood``, ``log_odds`` and ``answer`` use the form that the LLM was taught. Likelihoods are kept on disk.
    Raises StudyError if there is no such LLM, or it changed since it was converted.

    Args:
        name: a name of ``medfed foundation list``, or the folder of a Hugging Face causal LM.
        cache: where LLMs and likelihoods are, as in :func:`run`.
        dtype: of the weights; by default that of the folder.
    """
    from medfed.llm.language_model import open_language_model

    return open_language_model(Path(name), _cache(cache), dtype)


@dataclass(frozen=True)
class Report:
    """A run's report, the HTML file ``path``; a notebook shows the page itself."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    __fspath__ = __str__

    def _repr_html_(self) -> str:
        page = html.escape(self.path.read_text(encoding="utf-8"), quote=True)
        return f'<iframe srcdoc="{page}" width="100%" height="800" style="border: 0"></iframe>'


class Run:
    """A finished run, in the folder ``path``."""

    def __init__(self, path: Path, cache: Path, foundation: Path | None = None) -> None:
        self.path = path
        self._folder, self._cache, self._foundation = RunFolder(path), cache, foundation

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    @cached_property
    def study(self) -> Study:
        """The study; plugins that it was made with are loaded."""
        from medfed.runs.provenance import load_plugins_of

        load_plugins_of(self._folder)
        return study_of(self._folder.read(StudyFile).settings, self.path / StudyFile.NAME)

    @cached_property
    def scores(self) -> pl.DataFrame:
        """Every model's value of every metric on every task, with its interval; one row each."""
        return _score_frame(self._score_file.rows)

    @cached_property
    def differences(self) -> pl.DataFrame:
        """Differences between two models on the same patients, with their intervals."""
        return _score_frame(self._score_file.differences)

    @cached_property
    def curves(self) -> pl.DataFrame:
        """Metrics on the development set over the rounds: round, model, task, metric, value."""
        schema = {"round": pl.Int64, "model": pl.String, "task": pl.String, "metric": pl.String, "value": pl.Float64}
        rows = [
            (line.round, line.model, line.task, metric, value)
            for name in (Development.NAME, f"federated-only/{Development.NAME}")
            for line in self._folder.lines(Development, name)
            for metric, value in line.values.items()
        ]
        return pl.DataFrame(rows, schema, orient="row")

    @property
    def partition(self) -> PartitionFile:
        """The examples of every client and of the server."""
        return self._folder.read(PartitionFile)

    @property
    def provenance(self) -> ProvenanceFile:
        """Code, versions, machine and data behind the run."""
        return self._folder.read(ProvenanceFile)

    def predictions(self, task: str) -> pl.DataFrame:
        """Return what every model answers on every test example of a task; one row each.

        Columns: ``example``, ``patient``, ``client``, ``question``, ``model``, ``truth``, ``response``. Of a question
        with a few answers, ``truth`` and ``response`` are answers, and ``P(answer)`` is the probability of each. Of an
        answer in words, ``cut`` says whether it was still running at its limit; empty where nobody noted it.
        Raises StudyError if the run has no such task.
        """
        facts = self._score_file.tasks.get(task)
        if facts is None:
            raise StudyError(f"the run has no task {task!r}", where=self.path, hint=", ".join(self._score_file.tasks))
        read = (
            partial(_choice, facts.answers) if facts.kind in ("classification", "closed_vqa", "examination") else _open
        )
        head = ("example", "patient", "client", "question")
        rows = [
            {name: getattr(line, name) for name in head} | {"model": model} | read(line.truth, response)
            for line in self._folder.predictions(task)
            for model, response in line.responses.items()
        ]
        return pl.DataFrame(rows, infer_schema_length=None)

    def ask(
        self,
        question: str | None = None,
        *,
        image: PathLike | None = None,
        ecg: PathLike | None = None,
        icu: PathLike | None = None,
        task: str | None = None,
        answers: Sequence[str] = (),
    ) -> Answer:
        """Ask the injected LLM about files of one patient, as ``medfed predict`` does.

        Raises MedfedError if a file or the question is not what it should be, or the run has no LLM.

        Args:
            question: None asks the task's own question.
            image: a picture: PNG, JPEG or DICOM.
            ecg: a 12-lead WFDB header, with its samples next to it.
            icu: CSV or parquet, a row per hour, a column per variable.
            task: a task that reads the files; by default it is chosen by the question.
            answers: answers to compare.
        """
        from medfed.ask.asking import Request, ask

        files = {"image": image, "ecg": ecg, "icu": icu}
        given = {kind: Path(path) for kind, path in files.items() if path is not None}
        return ask(self._model, Request(given, task, question, tuple(answers)))  # type: ignore[arg-type]

    def report(self) -> Report:
        """Return the run's report; it is written anew if it is gone."""
        path = self.path / "report.html"
        if not path.is_file():
            from medfed.report.page import write_report

            write_report(self.path, path)
        return Report(path)

    def export(
        self, out: PathLike, *, task: str | Sequence[str] = (), rank: int | None = None, merge: bool = False
    ) -> list[Path]:
        """Write the run's adapter for others; return the folders.

        Raises MedfedError if ``out`` exists, the task is unknown, or there is nothing to export.

        Args:
            out: a new folder.
            task: write an ordinary LoRA of this task; of several, a folder each. None writes the routed adapter.
            rank: cut the LoRA to this rank.
            merge: write a whole model with the task's LoRA in it.
        """
        from medfed.core.torch_rng import one_thread
        from medfed.export.export import Form, export_run

        form = Form((task,) if isinstance(task, str) else tuple(task), rank, merge)
        with one_thread():
            made = export_run(self.path, Path(out), self._cache, self._foundation, form)
        return [exported.folder for exported in made]

    @cached_property
    def _score_file(self) -> ScoreFile:
        return self._folder.read(ScoreFile)

    @cached_property
    def _model(self) -> LoadedRun:
        from medfed.runs.loaded import LoadedRun

        loaded = LoadedRun(self.path, self._cache, self._foundation)
        if loaded.note:
            warnings.warn(loaded.note, stacklevel=2)
        return loaded

    def _repr_html_(self) -> str:
        columns = ("task", "model", "metric", "value", "ci_low", "ci_high")
        with pl.Config(tbl_rows=-1):
            table = self.scores.filter("primary").select(columns)._repr_html_()
        return f"<p>{html.escape(str(self.path))}</p>{table}"


def _study(given: PathLike | Mapping[str, Any] | Study, overrides: Sequence[str], *, quick: bool) -> Study:
    if not isinstance(given, Study | Mapping):
        return load_study(given, overrides, quick=quick)
    if quick:
        raise StudyError("only a study file has a quick form", hint="leave quick out, or pass the file")
    if isinstance(given, Study):
        return study_of(given.resolved(), f"study {given.name!r}", overrides) if overrides else given
    tree = {key: dict(value) if isinstance(value, Mapping) else value for key, value in given.items()}
    return study_of(tree, "the study's settings", overrides)


def _cache(given: PathLike | None) -> Path:
    return Path(given if given is not None else os.environ.get("MEDFED_CACHE", "~/.cache/medfed")).expanduser()


def _path(given: PathLike | None) -> Path | None:
    return None if given is None else Path(given)


def _score_frame(rows: Sequence[Score]) -> pl.DataFrame:
    """Return rows of scores as a data frame, whose columns are the same however many rows there are."""
    schema = {
        **dict.fromkeys(("task", "role", "model", "baseline", "part", "metric"), pl.String),
        **dict.fromkeys(("value", "ci_low", "ci_high"), pl.Float64),
        **dict.fromkeys(("n", "num_patients", "num_positive"), pl.Int64),
        **dict.fromkeys(("primary", "higher_is_better", "single_class"), pl.Boolean),
        **dict.fromkeys(("worst",), pl.Float64),
        **dict.fromkeys(("worst_client", "reason"), pl.String),
    }
    names = [name for name in schema if not rows or name in type(rows[0]).model_fields]
    values = [[getattr(row, name, None) for name in names] for row in rows]
    return pl.DataFrame(values, {name: schema[name] for name in names}, orient="row")


def _choice(answers: Sequence[str], truth: int, response: Sequence[float]) -> dict[str, Any]:
    """Return truth and likeliest answer as text, and the probability of every answer."""
    likeliest = answers[max(range(len(answers)), key=response.__getitem__)]
    probabilities = {f"P({answer})": value for answer, value in zip(answers, response, strict=True)}
    return {"truth": answers[truth], "response": likeliest, **probabilities}


def _open(truth: Any, response: Any) -> dict[str, Any]:
    """Return truth and response; of an answer in words the text alone."""
    reference = truth["reference"] if isinstance(truth, Mapping) and "reference" in truth else truth
    text = response["text"] if isinstance(response, Mapping) and "text" in response else response
    cut = response.get("cut") if isinstance(response, Mapping) else None
    return {"truth": reference, "response": text, "cut": cut}
