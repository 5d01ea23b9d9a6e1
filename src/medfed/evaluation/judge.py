"""From a benchmark task's responses to the rows of ``scores.json``: pooled, per client, worst client, with intervals.

Every client is tested on its own share of the test patients with the model that is deployed there; pooled values are of
all clients' test examples together. Constants stand beside, judged alike. A model without a response to an example (a
local-only one, where no client trains) is judged on the others; its ``n`` says so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from medfed.evaluation.bootstrap import interval, resample_weights
from medfed.evaluation.evaluate import Row
from medfed.evaluation.kinds.base import Kind
from medfed.study.evaluation import EvaluationSettings
from medfed.tasks.base import Json

Record = Mapping[str, Any]
"""One test example: ``example``, ``patient`` (hashed), ``client``, ``truth``, ``responses`` by model that has one."""


def point_values(kind: Kind, truths: Sequence[Json], responses: Sequence[Json]) -> dict[str, float | None]:
    """Return every metric on all examples, each counted once; None where it is not defined."""
    if not truths:
        return {metric.name: None for metric in kind.metrics}
    values = kind.values(truths, responses, np.ones((1, len(truths))))
    return {name: float(found[0]) if math.isfinite(found[0]) else None for name, found in values.items()}


def judged(task: str, kind: Kind, records: Sequence[Record], seed: int, settings: EvaluationSettings) -> list[Row]:
    """Return one row per model and metric of ``task``; the resamples are the same for all models."""
    patients = [str(record["patient"]) for record in records]
    chunks = list(resample_weights(patients, settings.num_resamples, seed, task, "bootstrap"))
    models = dict.fromkeys(model for record in records for model in record["responses"])
    return [row for model in models for row in _rows(task, model, kind, records, chunks, settings)]


def _rows(
    task: str,
    model: str,
    kind: Kind,
    records: Sequence[Record],
    chunks: Sequence[Float[np.ndarray, "replicate example"]],
    settings: EvaluationSettings,
) -> list[Row]:
    """Return the model's row for every metric, on the examples it answers."""
    answered = np.array([model in record["responses"] for record in records])
    own = [record for record in records if model in record["responses"]]
    truths, said = [record["truth"] for record in own], [record["responses"][model] for record in own]
    found = point_values(kind, truths, said)
    parts = [kind.values(truths, said, weights[:, answered]) for weights in chunks]
    clients = _by_client(kind, own, model)
    num_patients = len({record["patient"] for record in own})
    rows: list[Row] = []
    for metric in kind.metrics:
        replicates = np.concatenate([part[metric.name] for part in parts])
        bounds = interval(replicates, num_patients, settings)
        defined = found[metric.name] is not None
        values = {client: numbers[metric.name] for client, numbers in clients.items()}
        rows.append(
            {
                "task": task,
                "model": model,
                "metric": metric.name,
                "title": metric.title,
                "higher_is_better": metric.higher_is_better,
                "primary": metric.name == kind.primary,
                "value": found[metric.name],
                "ci_low": bounds.low if defined else None,
                "ci_high": bounds.high if defined else None,
                "n": len(own),
                "num_patients": num_patients,
                "clients": values,
                **_worst(values, higher_is_better=metric.higher_is_better),
                "reason": bounds.reason if defined else "not defined on these examples",
            }
        )
    return rows


def _by_client(kind: Kind, records: Sequence[Record], model: str) -> dict[str, dict[str, float | None]]:
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(str(record["client"]), []).append(record)
    return {
        client: point_values(kind, [record["truth"] for record in own], [record["responses"][model] for record in own])
        for client, own in sorted(groups.items())
    }


def _worst(clients: Mapping[str, float | None], *, higher_is_better: bool) -> dict[str, Any]:
    """Return the worst defined client value and its client."""
    known = {client: value for client, value in clients.items() if value is not None}
    if not known:
        return {"worst": None, "worst_client": None}
    client = (min if higher_is_better else max)(known, key=lambda name: known[name])
    return {"worst": known[client], "worst_client": client}
