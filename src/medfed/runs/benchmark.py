"""The benchmark job: one algorithm on one study, the bounds beside it, scores per client (Med-MMFL).

The federation is the same that FedKIM uses, without injection. Beside it stand ``centralised``
(all private data in one place), ``local`` (every client alone) and constant predictors.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from medfed.core.errors import RunError
from medfed.core.progress import Reporter
from medfed.data.cohort import Cohort
from medfed.data.prepare import Sources
from medfed.datasets.decoded import Decoded
from medfed.evaluation.evaluate import MEMBER, hash_id, id_salt
from medfed.evaluation.judge import judged
from medfed.evaluation.kinds import KINDS
from medfed.federated.state import load_weights, weights_of
from medfed.models.base import FederatedModel
from medfed.runs.baselines import federations, train_baselines
from medfed.runs.federation import Arm, Connect, build_model, in_process
from medfed.runs.folder import RunDir
from medfed.runs.predictors import responses
from medfed.runs.provenance import data_facts, now, provenance
from medfed.runs.sites import put_beside
from medfed.study.study import Study
from medfed.tasks.base import TaskSet, trainable

DEPLOYED = "federated"
"""The study's algorithm in scores: every client's deployed model."""


def benchmark(
    study: Study,
    cohort: Cohort,
    data: Mapping[str, Decoded],
    sources: Sources,
    runs: Path,
    run: RunDir,
    reporter: Reporter,
    connect: Connect = in_process,
) -> None:
    """Train, ask and score; a run that was stopped goes on.

    Raises:
        RunError: no client has a test example.
    """
    facts = provenance()
    run.write_json("study.json", study.resolved())
    run.write_json("partition.json", cohort.partition)
    shared = federations(study, cohort, dict(sources.checksums), runs)
    bounds = {name: predictor.model for name, predictor in train_baselines(shared, reporter, connect).items()}
    arm = Arm(run, study, cohort, build_model(study), None, DEPLOYED, connect)
    arm.run(reporter, f"federate: {study.algorithm.label}")
    rows = []
    with reporter.phase("evaluate") as advance:
        for number, name in enumerate(study.train):
            if not run.exists(f"predictions/{name}.jsonl"):
                run.write_records(f"predictions/{name}.jsonl", _records(name, study, cohort, arm, bounds))
            records = run.read_records(f"predictions/{name}.jsonl")
            kind = KINDS[trainable(cohort.test[name].task).metric_kind]
            rows += judged(name, kind, records, study.seed, study.evaluation)
            advance(number + 1, len(study.train))
    run.write_json("scores.json", {"rows": rows, "differences": []})
    put_beside(study, run, [federation.run for federation in shared])
    facts |= {"data": data_facts(data, sources.checksums), "finished": now(), "cost": _cost(run)}
    facts |= {"federations": {federation.model: federation.run.root.name for federation in shared}}
    facts |= {"titles": {task.name: task.title for task in study.tasks}}
    run.write_json("provenance.json", facts)


def _records(
    name: str, study: Study, cohort: Cohort, arm: Arm, bounds: Mapping[str, FederatedModel]
) -> list[dict[str, Any]]:
    """Return what every model says of every client's test examples of one task, and what would be right."""
    found: list[dict[str, Any]] = []
    model, salt = build_model(study), None
    for client in sorted(cohort.client_tests):
        examples = cohort.client_tests[client].get(name)
        if examples is None:
            continue
        load_weights(model, arm.deployed(client) if client in cohort.clients else weights_of(arm.model))
        said = {DEPLOYED: responses(model, examples)}
        if "centralised" in bounds:
            said["centralised"] = responses(bounds["centralised"], examples)
        if alone := bounds.get(f"local{MEMBER}{client}"):
            said["local"] = responses(alone, examples)
        salt = id_salt(examples.data.index) if salt is None else salt
        found += _rows(client, examples, said, salt)
    if not found:
        raise RunError(
            "no client has a test example",
            where=f"task {name!r}",
            hint="raise split.ratios' last number, or give more data",
        )
    return found


def _rows(client: str, examples: TaskSet, said: Mapping[str, list[Any]], salt: str) -> list[dict[str, Any]]:
    task = trainable(examples.task)
    everything = {**said, **task.constants(examples)}
    return [
        {
            "example": hash_id(salt, example),
            "patient": hash_id(salt, patient),
            "client": client,
            "truth": truth,
            "responses": {model: values[number] for model, values in everything.items()},
        }
        for number, (example, patient, truth) in enumerate(
            zip(examples.examples, examples.patients, task.truths(examples), strict=True)
        )
    ]


def _cost(run: RunDir) -> dict[str, int | float | None]:
    """Return bytes up and down over all rounds, seconds of training and of rounds, and the process's peak memory.

    ``upload_error`` is the median over rounds of the mean update's relative error; None if no weight travels.
    """
    rounds = run.read_records("rounds.jsonl")
    lines = [client for record in rounds for client in record["clients"]]
    errors = [record["upload_error"] for record in rounds if record["upload_error"] is not None]
    seconds = {"federate": 0.0, "train": 0.0}
    for timing in run.read_records("timings.jsonl"):
        if timing["phase"] in seconds:
            seconds[timing["phase"]] += timing["seconds"]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {
        "bytes_up": sum(line["bytes_up"] for line in lines),
        "bytes_down": sum(line["bytes_down"] for line in lines),
        "upload_error": median(errors) if errors else None,
        "train_seconds": seconds["train"],
        "round_seconds": seconds["federate"],
        "peak_memory_bytes": peak,
    }
