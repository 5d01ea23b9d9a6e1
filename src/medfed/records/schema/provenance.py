"""Facts of a run: the study's settings, code, machine, data and cost."""

from __future__ import annotations

from typing import Any

from medfed.records.schema.base import File, Json, Number, Record


class StudyFile(File, path="study.json", extra="allow"):
    """``study.json``: the resolved settings of the run, as :class:`medfed.study.study.Study` reads them."""

    name: str = ""
    description: str = ""
    seed: int = 0
    train: tuple[str, ...] = ()
    unseen: tuple[str, ...] = ()
    job: str = "inject"

    @property
    def settings(self) -> dict[str, Any]:
        """The settings alone, as a study file has them today."""
        return _as_named_today(self.model_dump(mode="json", exclude={"schema_version"}))


def _as_named_today(settings: dict[str, Any]) -> dict[str, Any]:
    """Return a run's settings with the recipe's name of today, and the weighting that older runs did not choose."""
    injection, algorithm = settings.get("injection"), settings.get("algorithm")
    if isinstance(injection, dict) and injection.get("recipe") == "default":
        settings = {**settings, "injection": {**injection, "recipe": "medfed"}}
    if isinstance(algorithm, dict) and algorithm.get("name") in ("fedavg", "fedprox") and "local" not in algorithm:
        settings = {**settings, "algorithm": {"weighting": "examples", **algorithm}}
    return settings


class Skipped(Record):
    """An example that could not be decoded."""

    example: str = ""
    where: str = ""
    what: str = ""


class DataFacts(Record):
    """A run's knowledge of one dataset."""

    title: str = ""
    version: str = ""
    licence: str = "unknown"
    access: str = ""
    citation: str = ""
    note: str = ""
    synthetic: bool = False
    num_examples: int = 0
    num_patients: int = 0
    skipped: tuple[Skipped, ...] = ()
    checksum: str = ""


class Cost(Record):
    """The cost of a federation.

    Attributes:
        bytes_up, bytes_down: over all rounds and clients.
        upload_error: median over rounds of the mean update's relative error; None if no weight travels.
        train_seconds: at the clients.
        round_seconds: of the rounds.
        peak_memory_bytes: of the process.
    """

    bytes_up: int | float = 0
    bytes_down: int | float = 0
    upload_error: Number = None
    train_seconds: float = 0.0
    round_seconds: float = 0.0
    peak_memory_bytes: int | float = 0


class PluginFacts(Record):
    """Code from outside the package whose parts a run uses; see :class:`medfed.core.plugins.Plugin`."""

    name: str
    sha256: str
    source: str = ""


class ProvenanceFile(File, path="provenance.json"):
    """``provenance.json``: code, versions, machine and data behind a run. Wall-clock facts stand here.

    Attributes:
        data: dataset → facts.
        cost: of the federation.
        federations: baseline model → its folder in ``runs/federations``.
        corpus: text that the tiny LLM was pre-trained on, in place of the package's own.
        titles: task → title.
        foundation: facts of the LLM, with its fingerprint before and after.
        plugins: code from outside the package; a part that a notebook or script defines has no source.
    """

    medfed: str = "unknown"
    commit: str | None = None
    dirty: bool | None = None
    python: str = "unknown"
    platform: str = "unknown"
    processor: str = "unknown"
    versions: dict[str, str | None] = {}
    device: str = "unknown"
    threads: int | None = None
    started: str | None = None
    finished: str | None = None
    command: str | tuple[str, ...] = ""
    data: dict[str, DataFacts] = {}
    cost: Cost | None = None
    federations: dict[str, str] = {}
    corpus: str | None = None
    titles: dict[str, str] = {}
    foundation: dict[str, Json] = {}
    plugins: tuple[PluginFacts, ...] = ()
