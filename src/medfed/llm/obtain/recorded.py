"""The LLM of a finished run: found by what the run recorded, and refused where it is another."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from medfed.core.errors import StudyError
from medfed.llm.checkpoints import Recorded
from medfed.llm.foundation import Foundation, load_foundation
from medfed.llm.huggingface import locate
from medfed.llm.obtain.cached import FINGERPRINT, checked_sum, folder_of, named_folder
from medfed.llm.obtain.known import KNOWN
from medfed.records.schema import Json
from medfed.study.foundation import FoundationSettings, HuggingFaceSettings, TinySettings

_UNKNOWN = "this run is older than the record of its LLM, so nobody can tell whether this is the one it was made with"


class Places(NamedTuple):
    """Where to look: ``--foundation`` (a folder or a known name), the cache, and the tiny LLM's corpus."""

    given: Path | None
    cache: Path
    corpus: Path | None = None


class RecordedLLM(NamedTuple):
    """A run's LLM, and a sentence where it could not be compared with what the run was made with."""

    foundation: Foundation
    note: str | None


def load_recorded(settings: FoundationSettings, facts: Mapping[str, Json], places: Places) -> RecordedLLM:
    """Load the LLM that a run was made with.

    Args:
        settings: the study's.
        facts: what the run recorded of its LLM; empty for an old run.
        places: where to look.

    Raises:
        StudyError: it is not here, or what is here is another LLM.
    """
    given, cache, corpus = places
    if isinstance(settings, HuggingFaceSettings):
        given = _place(settings, facts, places)
    recorded = _recorded(facts)
    foundation = load_foundation(settings, cache=cache, corpus=corpus, path=given, recorded=recorded)
    before = facts.get("fingerprint_before")
    if recorded is None and before is not None and foundation.fingerprint() != before:
        what = f"this is another LLM than the run's: the weights of {foundation.name} are not those it was made with"
        raise StudyError(what, where=foundation.source, hint=_next(settings, facts))
    return RecordedLLM(foundation, None if recorded or before else _UNKNOWN)


def check_given(settings: FoundationSettings, facts: Mapping[str, Json], places: Places) -> None:
    """Raise StudyError if the LLM that is given is not the run's; its weights are read, and not loaded."""
    recorded = _recorded(facts)
    if isinstance(settings, HuggingFaceSettings) and recorded is not None:
        folder = locate(settings, named_folder(places.given, settings.model, places.cache))
        recorded.check(folder, checked_sum(folder))


def _recorded(facts: Mapping[str, Json]) -> Recorded | None:
    checksum = facts.get("sha256")
    return Recorded(str(facts.get("name", "")), str(checksum)) if checksum else None


def _place(settings: HuggingFaceSettings, facts: Mapping[str, Json], places: Places) -> Path | None:
    """Return the folder: what is given, a known name in the cache, or where the run had it; None for the hub's cache.

    Raises StudyError if it is in none of them.
    """
    if places.given is not None:
        return places.given
    named = [name for name in (settings.model, facts.get("name")) if isinstance(name, str) and name in KNOWN]
    cached = [folder for name in named if ((folder := folder_of(name, places.cache)) / FINGERPRINT).is_file()]
    before = [Path(str(facts["folder"]))] if facts.get("folder") else []
    there = [*cached, *(folder for folder in before if (folder / "config.json").is_file())]
    if there or settings.model is not None:
        return there[0] if there else named_folder(None, settings.model, places.cache)
    where = f"; it was in {before[0]}" if before else ""
    what = f"the run's LLM {facts.get('name') or 'has no recorded name, and'} is not here{where}"
    raise StudyError(what, where="foundation", hint=_next(settings, facts))


def _next(settings: FoundationSettings, facts: Mapping[str, Json]) -> str:
    if isinstance(settings, TinySettings):
        return "pass --cache with the cache of the machine that made the run: the tiny LLM is in its folder tiny"
    return Recorded(str(facts.get("name", "")), "").next_step
