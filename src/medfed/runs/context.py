"""The values that a run carries from step to step: its settings, its places, who takes part, and where it reports."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from medfed.core.errors import PluginError, StudyError
from medfed.core.progress import Reporter
from medfed.data.cache import DecodedCache
from medfed.data.cohort import Cohort, cohort_of
from medfed.data.decode import Reading
from medfed.data.sources import Sources, find_sources
from medfed.datasets.decoded import Decoded
from medfed.llm.obtain.cached import known_name, named_folder
from medfed.llm.obtain.known import KNOWN
from medfed.records.folder import RunFolder
from medfed.records.schema import Json
from medfed.runs.federation import Connect, in_process, in_workers
from medfed.study.foundation import HuggingFaceSettings
from medfed.study.study import Study

if TYPE_CHECKING:
    from medfed.llm.knowledge import Chosen


@dataclass(frozen=True)
class RunPaths:
    """Where a run finds and leaves things; none of it changes a number, or the run's hash says so.

    The ``cache`` keeps twins and the tiny LLM, and decoded data with ``keep_decoded``. ``data_root`` has datasets in
    native layout; None writes synthetic twins.
    """

    runs: Path
    cache: Path
    data_root: Path | None = None
    corpus: Path | None = None
    """Text to pre-train the tiny LLM on, in place of the package's own."""
    foundation: Path | None = None
    """Folder of a Hugging Face causal LM."""
    skip_bad: bool = False
    show_examples: bool = False
    """Write pictures and traces of a few test examples even of real data."""
    workers: int = 1
    """Processes that train clients; 1 trains them in the run's own."""
    keep_decoded: bool = True

    def reading(self, reporter: Reporter) -> Reading:
        """Return the way data is read: progress, unreadable examples, and the cache of decoded data, if it is kept."""
        return Reading(reporter, self.skip_bad, DecodedCache(self.cache, reporter.say) if self.keep_decoded else None)


@dataclass(frozen=True)
class RunContext:
    """One run: its settings, its places, its data's places, its folder and where it reports."""

    study: Study
    paths: RunPaths
    sources: Sources
    run: RunFolder
    reporter: Reporter
    trial: Mapping[str, Json] = field(default_factory=dict)
    """Facts of the trial that chose the LLM's dtype."""


@dataclass(frozen=True)
class Participants:
    """How a run finds the data that this process reads, divides it decoded, and connects to its clients.

    Of sites elsewhere the cohort knows their reports.
    """

    sources: Callable[[Study, RunPaths, Reporter], Sources]
    cohort: Callable[[RunContext, Mapping[str, Decoded]], Cohort]
    connect: Connect


def check_workers(study: Study, num_workers: int) -> None:
    """Raise PluginError for worker processes where a notebook or script defines a part: only this process knows it."""
    local = [plugin.name for plugin in study.extensions if not plugin.source]
    if num_workers > 1 and local:
        what = f"{', '.join(local)}: defined in a notebook or script, which worker processes cannot import"
        raise PluginError(what, hint="run with workers=1, or put the part into a file and pass plugins=[FILE]")


def here(num_workers: int = 1) -> Participants:
    """Return the participants of a run on one machine: all data is here, clients train in ``num_workers`` processes."""

    def sources(study: Study, paths: RunPaths, reporter: Reporter) -> Sources:
        return find_sources(study, paths.data_root, paths.cache, reporter)

    def cohort(context: RunContext, data: Mapping[str, Decoded]) -> Cohort:
        return cohort_of(context.study, context.sources, data, context.paths.reading(context.reporter))

    return Participants(sources, cohort, in_workers(num_workers) if num_workers > 1 else in_process)


def examinations(study: Study, paths: RunPaths) -> list[Chosen]:
    """Return the examinations, found below the data root and the study's own roots.

    Raises StudyError if a set is absent.
    """
    settings = study.evaluation.retention
    if study.job != "inject" or not settings.sets:
        return []
    from medfed.llm.knowledge import choose  # noqa: PLC0415 (a benchmark needs no LLM's libraries)

    return choose(settings.sets, _examination_roots(study, paths), settings.num_questions)


def settled(study: Study, paths: RunPaths) -> tuple[Study, Mapping[str, Json]]:
    """Return the study with its examinations found and the LLM's dtype decided, and the facts of the trial that did it.

    There are no facts where nothing was tried. The dtype stays as it is where the LLM is not here.
    Raises StudyError if ``--foundation`` or ``--corpus`` does not go with the study's LLM.
    """
    llm = study.foundation
    if study.job == "benchmark":
        return study, {}
    study = _with_found_sets(study, paths)
    from medfed.llm.foundation import check_flags  # noqa: PLC0415 (a benchmark needs no LLM's libraries)

    check_flags(llm, paths.corpus, paths.foundation)
    if not isinstance(llm, HuggingFaceSettings) or llm.dtype != "auto":
        return study, {}
    from medfed.llm.huggingface import locate  # noqa: PLC0415 (a benchmark needs no LLM's libraries)
    from medfed.llm.precision import chosen, decided  # noqa: PLC0415 (a benchmark needs no LLM's libraries)

    try:
        folder = locate(llm, named_folder(paths.foundation, llm.model, paths.cache))
    except StudyError:
        return study, {}
    device = "cuda" if llm.placed else study.injection.device
    made = decided(llm, folder, paths.cache, device)
    facts = {} if llm.load_in_4bit else {"dtype_trial": chosen(folder, paths.cache, device).model_dump(mode="json")}
    return study.model_copy(update={"foundation": made}), facts


def _with_found_sets(study: Study, paths: RunPaths) -> Study:
    """Return the study with the names of the examinations that are there in place of ``found``."""
    evaluation, wanted = study.evaluation, study.evaluation.retention.sets
    if "found" not in wanted:
        return study
    from medfed.llm.knowledge import choose  # noqa: PLC0415 (a benchmark needs no LLM's libraries)

    roots = _examination_roots(study, paths)
    present = [one.examination.name for one in choose([], roots, 1)] if roots else ["sample"]
    names = tuple(dict.fromkeys([*(name for name in wanted if name != "found"), *present]))
    retention = evaluation.retention.model_copy(update={"sets": names})
    return study.model_copy(update={"evaluation": evaluation.model_copy(update={"retention": retention})})


def _examination_roots(study: Study, paths: RunPaths) -> list[Path]:
    return [*([paths.data_root] if paths.data_root else []), *map(Path, study.evaluation.retention.roots)]


def folder_of(study: Study, paths: RunPaths, sources: Sources) -> Path:
    """Return the run's folder: its name is a hash of settings, data and foundation, so other input is another run."""
    facts = [f"{name}:{checksum}" for name, checksum in sorted(sources.checksums.items())]
    facts += [f"corpus:{paths.corpus.resolve()}"] if paths.corpus else []
    pinned = isinstance(study.foundation, HuggingFaceSettings) and study.foundation.sha256 is not None
    facts += [f"foundation:{_place_of(paths.foundation)}"] if paths.foundation and not pinned else []
    return paths.runs / study.name / f"{study.hash(*facts)}-seed{study.seed}"


def _place_of(foundation: Path) -> str:
    """Return the LLM's folder; of a known one its name and content, wherever the cache is."""
    name = known_name(foundation)
    return f"{name}:{KNOWN[name].sha256}" if name else str(foundation.resolve())
