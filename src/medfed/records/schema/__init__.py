"""The files of a run: one frozen record for every JSON file and for every kind of line in a JSON-lines file.

Writers construct these records and readers get them back, through :class:`medfed.records.folder.RunFolder` alone.
A :class:`File` carries ``schema_version``; the lines of a run belong to the version of its ``study.json``.
The JSON Schema of all records is published in ``docs/schema``.
"""

from __future__ import annotations

from typing import Any

from medfed.records.schema.base import SCHEMA_VERSION, File, Json, Line, Number, Record, Role, Stored, finite
from medfed.records.schema.cards import CardFile, ExampleCard, ExpertWeight, View
from medfed.records.schema.comparison import (
    Block,
    Compared,
    ComparedAnswers,
    ComparedDifference,
    ComparedRow,
    ComparisonFile,
    LeaderboardFile,
    Rank,
    Standing,
)
from medfed.records.schema.controls import AnswerCheck, ControlFile, Reuse
from medfed.records.schema.federation import (
    ClientRound,
    Counts,
    Development,
    FailedClient,
    GreetingFile,
    Ids,
    ModalityMoments,
    NormalisationFile,
    PartitionFile,
    Round,
    Timing,
)
from medfed.records.schema.injection import InjectionFile, Retained, Routing, Step
from medfed.records.schema.provenance import Cost, DataFacts, PluginFacts, ProvenanceFile, Skipped, StudyFile
from medfed.records.schema.scores import (
    Difference,
    Prediction,
    Score,
    ScoreFile,
    ScoreRow,
    SiteFile,
    SiteRow,
    TaskFacts,
)
from medfed.records.schema.words import FindingScale, PictureMean, PictureWeights, WordsFile

__all__ = [
    "FILES",
    "LINES",
    "SCHEMA_VERSION",
    "AnswerCheck",
    "Block",
    "CardFile",
    "ClientRound",
    "Compared",
    "ComparedAnswers",
    "ComparedDifference",
    "ComparedRow",
    "ComparisonFile",
    "ControlFile",
    "Cost",
    "Counts",
    "DataFacts",
    "Development",
    "Difference",
    "ExampleCard",
    "ExpertWeight",
    "FailedClient",
    "File",
    "FindingScale",
    "GreetingFile",
    "Ids",
    "InjectionFile",
    "Json",
    "LeaderboardFile",
    "Line",
    "ModalityMoments",
    "NormalisationFile",
    "Number",
    "PartitionFile",
    "PictureMean",
    "PictureWeights",
    "PluginFacts",
    "Prediction",
    "ProvenanceFile",
    "Rank",
    "Record",
    "Retained",
    "Reuse",
    "Role",
    "Round",
    "Routing",
    "Score",
    "ScoreFile",
    "ScoreRow",
    "SiteFile",
    "SiteRow",
    "Skipped",
    "Standing",
    "Step",
    "Stored",
    "StudyFile",
    "TaskFacts",
    "Timing",
    "View",
    "WordsFile",
    "finite",
    "json_schemas",
]

FILES: tuple[type[File], ...] = (
    StudyFile,
    PartitionFile,
    NormalisationFile,
    ScoreFile,
    ControlFile,
    WordsFile,
    CardFile,
    SiteFile,
    ProvenanceFile,
    InjectionFile,
    GreetingFile,
    ComparisonFile,
    LeaderboardFile,
)
"""Every JSON file, in the order of the page on the run folder."""
LINES: tuple[type[Line], ...] = (
    Round,
    Timing,
    Development,
    Step,
    Retained,
    Routing,
    Prediction,
)


def json_schemas() -> dict[str, dict[str, Any]]:
    """Return the JSON Schema of every file, and of every line of a JSON-lines file, by its name in the folder."""
    return {kind.NAME: kind.model_json_schema(mode="serialization") for kind in (*FILES, *LINES)}
