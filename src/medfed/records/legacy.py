"""Run files of version 1, which carry no ``schema_version``, as files of today's.

Version 1 had two forms of ``scores.json`` and three of ``predictions/<task>.jsonl``. A field that it did not record,
and that the folder does not tell, stays at its default. No number is computed anew.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from medfed.records import schema
from medfed.records.schema import File, Line, Record

Json = dict[str, Any]
ABBREVIATIONS = ("auroc", "auprc", "f1", "mcc", "ece")
WORDS = ("balanced_accuracy", "accuracy", "precision", "recall", "brier", "exact_match")
TITLES = {"token_f1": "Token F1", "bleu1": "BLEU-1", "rouge_l": "ROUGE-L", "sacrebleu": "sacreBLEU"}
TITLES |= {name: name.upper() for name in ABBREVIATIONS}
TITLES |= {name: name.replace("_", " ").capitalize() for name in WORDS}
"""Titles of the metrics that rows of version 1 named without one."""
KINDS = {
    "macro_auroc": "multilabel",
    "dice": "segmentation",
    "mrr": "retrieval",
    "exact_match": "generation",
    "balanced_accuracy": "closed_vqa",
    "auroc": "classification",
    "token_f1": "questions",
}
"""Kind of a task by its primary metric."""


def upgraded_file(kind: type[File], value: object, folder: Path) -> object:
    """Return the content of a file as today's; what has a version, or is no object, comes back as it is.

    Other files of the run's ``folder`` tell what this one leaves out.
    """
    if not isinstance(value, Mapping) or "schema_version" in value:
        return value
    if kind is schema.ScoreFile:
        return _scores(value, folder)
    if kind in UPGRADES:
        return UPGRADES[kind](value)
    return dict(value) if kind.model_config.get("extra") == "allow" else _known(kind, value)


def upgraded_line(kind: type[Line], value: object) -> object:
    """Return a line as today's, without fields that it does not have today."""
    if not isinstance(value, Mapping):
        return value
    if kind is schema.Prediction and "truth" not in value:
        return _prediction(value)
    if kind is schema.Development and "values" not in value:
        head = {name: value[name] for name in ("round", "model", "task") if name in value}
        return {**head, "values": {name: number for name, number in value.items() if name not in head}}
    return _known(kind, value)


def _known(kind: type[Record], content: Mapping[str, Any]) -> Json:
    """Return the fields that the record has; version 1 wrote some that nobody read."""
    return {name: value for name, value in content.items() if name in kind.model_fields}


def _prediction(line: Mapping[str, Any]) -> Json:
    """Return a line of a closed task (``target``, ``scores``) or of an open one (``reference``, ``answers``)."""
    record: Json = {name: line[name] for name in ("example", "patient", "question") if name in line}
    scores = line.get("scores", {})
    if "reference" not in line:
        return {**record, "truth": line["target"], "responses": scores}
    truth = {name: line[name] for name in ("reference", "closed", "target")}
    texts = line.get("answers", {})
    responses = {model: {"text": text, "probabilities": scores.get(model)} for model, text in texts.items()}
    return {**record, "truth": truth, "responses": responses}


def _scores(content: Mapping[str, Any], folder: Path) -> Json:
    rows = [_score(schema.ScoreRow, row) for row in content.get("rows", ())]
    differences = [_score(schema.Difference, row) for row in content.get("differences", ())]
    titles = _content(folder / "provenance.json").get("titles", {})
    tasks: dict[str, Json] = {}
    for row in rows:
        facts = tasks.setdefault(row["task"], {"title": titles.get(row["task"], ""), "answers": []})
        facts |= {"role": row["role"]} | ({"kind": KINDS[row["metric"]]} if row["primary"] else {})
        if row["model"].startswith("always-") and row["model"][7:] not in facts["answers"]:
            facts["answers"].append(row["model"][7:])
    return {"tasks": tasks, "rows": rows, "differences": differences}


def _score(kind: type[schema.ScoreRow | schema.Difference], row: Mapping[str, Any]) -> Json:
    """Return a row of either form: rows of a benchmark have a title and no role."""
    metric = str(row.get("metric", ""))
    primary = metric == "auroc" if row.get("part") is None else (metric, row["part"]) == ("token_f1", "all")
    return _known(kind, {"role": "trained", "title": TITLES.get(metric, metric), "primary": primary, **row})


def _comparison(content: Mapping[str, Any]) -> Json:
    directions = {(row["metric"], row.get("part")): row.get("higher_is_better", True) for row in content["rows"]}
    rows = (
        {"higher_is_better": directions.get((row["metric"], row.get("part")), True), **row}
        for row in content["differences"]
    )
    differences = [_known(schema.ComparedDifference, row) for row in rows]
    return {**_known(schema.ComparisonFile, content), "differences": differences}


def _leaderboard(content: Mapping[str, Any]) -> Json:
    """Return the content with costs in a record of their own."""
    blocks = [
        block | {part: {name: _standing(entry) for name, entry in block[part].items()} for part in ("values", "bounds")}
        for block in content["blocks"]
    ]
    return {**_known(schema.LeaderboardFile, content), "blocks": blocks}


def _standing(entry: Mapping[str, Any]) -> Json:
    cost = _known(schema.Cost, entry)
    return {name: value for name, value in entry.items() if name not in cost} | ({"cost": cost} if cost else {})


def _content(path: Path) -> Json:
    """Return a file's content, or nothing where it cannot be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


UPGRADES: Mapping[type[File], Callable[[Mapping[str, Any]], Json]] = {
    schema.NormalisationFile: lambda content: {"moments": content},
    schema.GreetingFile: lambda content: {"sites": content},
    schema.ComparisonFile: _comparison,
    schema.LeaderboardFile: _leaderboard,
}
"""How a file's content becomes today's, where fields alone do not tell."""
