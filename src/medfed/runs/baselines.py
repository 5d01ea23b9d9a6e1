"""Models trained on the same data as the injected LLM: what injection has to beat.

- ``federated``: the study's federation, without injection.
- ``local``: every client alone for as many rounds; nothing is exchanged.
- ``centralised``: one party that holds all private data, for as many rounds; an upper bound that privacy rules out.
- ``lora``: the study with one LoRA of rank P·r in place of P routed experts of rank r. Its scale is that of experts
  with equal weights. It costs a second federation with injection, so a study asks for it by name.

``local`` and ``centralised`` have one party, so they are FedAvg over one client whatever the study's algorithm. Their
inputs are normalised by the moments pooled over all clients, which favours the local models a little. None but ``lora``
depends on the LLM or on injection. So each is trained once and shared by all runs that agree on its settings and data.
It lives in ``runs/federations/<kind>-<hash8>-seed<n>``. Two processes that want the same one do not collide: the second
waits, and goes on from the last checkpoint if the first dies.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from medfed.core.files import locked
from medfed.core.progress import Reporter
from medfed.data.cohort import Cohort
from medfed.data.split import partition_hash
from medfed.datasets.decoded import stacked
from medfed.evaluation.controls import LORA
from medfed.evaluation.responses import MEMBER
from medfed.records.folder import RunFolder
from medfed.runs.federation import Connect, FederationRun, Trainee, build_model, in_process
from medfed.study.algorithms import FedAvg
from medfed.study.federation import RoundSettings
from medfed.study.study import Study
from medfed.tasks.base import TaskSet

DATA_SETTINGS = ("train", "plugins", "split", "partition", "missing")
SHARED_SETTINGS = (*DATA_SETTINGS, "model", "modalities", "encoders", "algorithm", "rounds", "client")
"""The settings that decide a baseline's weights."""
LLM_SETTINGS = ("unseen", "federate", "foundation", "injection")
"""Those that decide an injected LLM's as well."""
Build = Callable[[Study, str], Trainee]
"""Makes what a baseline trains, of its study and name."""


def without_llm(study: Study, name: str) -> Trainee:
    """Return the clients' model alone."""
    return Trainee(name, build_model(study))


@dataclass(frozen=True)
class Baseline:
    """One shared training: its name in the scores, its folder, and who takes part on what terms."""

    model: str
    run: RunFolder
    study: Study
    cohort: Cohort
    title: str
    build: Build = without_llm

    @property
    def tasks(self) -> frozenset[str]:
        """The tasks that the model knows: the study's, or of a client alone those that it has."""
        client = self.model.partition(MEMBER)[2]
        return frozenset(self.cohort.clients[client] if client else self.study.train)

    def train(self, reporter: Reporter, connect: Connect) -> Trainee:
        """Train it, or load it; the caller holds the lock. One client alone is trained in this process."""
        connect = connect if self.model in ("federated", LORA) else in_process  # the others are one party
        trainee = self.build(self.study, self.model)
        federation = FederationRun(self.run, self.study, self.cohort, trainee, connect)
        federation.run(Reporter.silent() if self.run.done else reporter, self.title)
        if not self.run.done:
            self.run.finish()
        return trainee


def baselines_of(
    study: Study, cohort: Cohort, checksums: Mapping[str, str], runs: Path, build: Build = without_llm
) -> list[Baseline]:
    """Return the trainings that the study's baselines need, kept in ``runs/federations``; checksums are by dataset.

    ``build`` makes a trainee that injects, for the baseline ``lora``.
    """
    data = {task.dataset: checksums[task.dataset] for task in study.train_tasks}
    whole = study.model_copy(update={"federate": True})
    rounds = RoundSettings(num_rounds=study.rounds.num_rounds)
    alone = whole.model_copy(update={"algorithm": FedAvg(), "rounds": rounds})
    wanted = []
    if "federated" in study.baselines:
        wanted.append(("federated", whole, cohort, "federate, without injection"))
    if "centralised" in study.baselines:
        wanted.append(("centralised", alone, pooled(cohort), "train on all private data in one place"))
    if "local" in study.baselines:
        for client in sorted(cohort.clients):
            tests = {site: sets for site, sets in cohort.site_tests.items() if site == client}
            private = replace(cohort, clients={client: cohort.clients[client]}, site_tests=tests)
            wanted.append((f"local{MEMBER}{client}", alone, private, f"train {client} alone"))
    if LORA in study.baselines:
        wanted.append((LORA, one_lora(study), cohort, "federate and inject one LoRA of equal rank"))
    folders = runs / "federations"
    return [
        Baseline(
            model,
            RunFolder(folders / _name(model, settings, part, data)),
            settings,
            part,
            title,
            build if model == LORA else without_llm,
        )
        for model, settings, part, title in wanted
    ]


def one_lora(study: Study) -> Study:
    """Return the study with one LoRA of the experts' joint rank P·r and their scale at equal weights, (a/r)/P."""
    injection, count = study.injection, max(study.injection.num_experts, 1)
    one = {"num_experts": 1, "rank": count * injection.rank}
    return study.model_copy(update={"injection": injection.model_copy(update=one)})


def train_baselines(wanted: Sequence[Baseline], reporter: Reporter, connect: Connect) -> dict[str, Trainee]:
    """Train or load ``wanted`` and return them by name; those that another process is at come last."""
    models: dict[str, Trainee] = {}
    for waiting in (False, True):
        for baseline in (baseline for baseline in wanted if baseline.model not in models):
            root = baseline.run.root
            with locked(root.with_name(f".{root.name}.lock"), waiting=waiting) as mine:
                if mine:
                    models[baseline.model] = baseline.train(reporter, connect)
    return models


def pooled(cohort: Cohort) -> Cohort:
    """Return the cohort with one client, ``centralised``, that holds what all clients hold."""
    sets: dict[str, list[TaskSet]] = {}
    for tasks in cohort.clients.values():
        for name, examples in tasks.items():
            sets.setdefault(name, []).append(examples)
    return replace(cohort, clients={"centralised": {name: union(parts) for name, parts in sets.items()}})


def union(parts: Sequence[TaskSet]) -> TaskSet:
    """Return the examples of all ``parts``, which are of one task, as one set; sites have each their own data."""
    data = list({id(part.data): part.data for part in parts}.values())
    starts = np.cumsum([0, *(len(part.index) for part in data)])
    offsets = {id(part): int(start) for part, start in zip(data, starts, strict=False)}
    rows = np.sort(np.concatenate([part.rows + offsets[id(part.data)] for part in parts]))
    return parts[0].holding(rows) if len(data) == 1 else TaskSet(parts[0].task, stacked(data), rows)


def _name(model: str, study: Study, cohort: Cohort, data: Mapping[str, str]) -> str:
    kind = model.partition(MEMBER)[0]
    deciding = (*SHARED_SETTINGS, *(LLM_SETTINGS if model == LORA else ()))
    facts: dict[str, Any] = {name: value for name, value in study.resolved().items() if name in deciding}
    clients = cohort.clients.items()
    held = {client: {name: sets.examples for name, sets in tasks.items()} for client, tasks in clients}
    facts |= {"kind": kind, "data": dict(data), "clients": partition_hash(held)}
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:8]
    return f"{kind}-{digest}-seed{study.seed}"
