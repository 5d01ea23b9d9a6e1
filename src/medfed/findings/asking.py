"""Put the findings of a study to LLMs, once for every question, and make predictors of the answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from medfed.core.progress import Reporter
from medfed.data.cohort import Cohort
from medfed.evaluation.controls import SIMILAR, WORDS
from medfed.findings.meaning import Odds, querier
from medfed.findings.predictors import Reader, Words, picture_of, reason_against
from medfed.findings.sentences import Sentences
from medfed.llm.foundation import Foundation
from medfed.llm.language_model import LanguageModel, open_language_model
from medfed.llm.obtain.sentences import sentence_folder
from medfed.study.study import Study
from medfed.study.words import WordsSettings
from medfed.tasks.base import Task


def words_of(study: Study, cohort: Cohort, foundation: Foundation, cache: Path, reporter: Reporter) -> Words:
    """Ask the study's LLM and the others of ``words.also``, and return the predictor of all unseen tasks.

    Raises StudyError if another LLM is not in the cache.
    """
    settings = study.words or WordsSettings(findings=())
    reader = Reader(settings.findings, cohort.public)
    tasks = [task for task in study.tasks if task.name not in study.train]
    tasks = [task for task in tasks if not reason_against(task, settings.findings)]
    odds: dict[str, Mapping[str, Odds]] = {}
    pictures = all_pictures(settings, tasks)
    with reporter.phase("ask what findings mean") as advance:
        odds[WORDS] = answers(LanguageModel(foundation, cache=cache), settings, pictures, advance)
    for name in settings.also:
        with reporter.phase(f"ask {name}") as advance:
            model = open_language_model(Path(name), cache)
            odds[f"{WORDS}/{name}"] = answers(model, settings, pictures, advance)
    if settings.sentences:
        names = [finding.name for finding in settings.findings]
        odds[SIMILAR] = Sentences(sentence_folder(cache)).similarities(names, pictures)
    sources = {model: given.__getitem__ for model, given in odds.items()}
    return Words(reader, settings, sources, tuple(tasks), study.seed)


def all_pictures(settings: WordsSettings, tasks: Sequence[Task]) -> list[str]:
    """Return every picture in the questions to an LLM, each once: those of ``tasks``, then the references."""
    return list(dict.fromkeys([*(picture_of(task) for task in tasks), *settings.references]))


def answers(
    model: LanguageModel, settings: WordsSettings, pictures: Sequence[str], advance: Callable[[int, int], None]
) -> dict[str, Odds]:
    """Return picture → the odds that ``model`` gives every finding."""
    ask = querier(model, [finding.name for finding in settings.findings], settings.wordings)
    made: dict[str, Odds] = {}
    for number, picture in enumerate(pictures, start=1):
        made[picture] = ask(picture)
        advance(number, len(pictures))
    return made
