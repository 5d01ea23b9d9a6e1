"""One federation from its first round to its last: with injection (FedKIM) or without (federated-only).

A checkpoint follows every phase of a round, so a killed run goes on where it was and ends with the same files.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from medfed.core.errors import StudyError
from medfed.core.progress import Reporter
from medfed.core.types import Broadcast
from medfed.data.cohort import Cohort
from medfed.evaluation.judge import point_values
from medfed.evaluation.kinds import KINDS
from medfed.federated.algorithm import Federation
from medfed.federated.client import Client
from medfed.federated.exchange import ClientExchange, InProcessExchange, ScoringExchange
from medfed.federated.memory import DiskMemory
from medfed.federated.rounds import RoundResult, initial_state, run_round
from medfed.federated.state import FederatedState, Weights, fingerprint, join, load_weights, split, weights_of
from medfed.federated.workers import Pool, Recipe, WorkerExchange
from medfed.injection.inject import Injector
from medfed.models.base import FederatedModel, initialised
from medfed.models.multimodal import MultimodalModel
from medfed.runs.folder import RunDir
from medfed.runs.predictors import HeadPredictor, InjectedPredictor, Predictor, responses, watch
from medfed.runs.sites import SITES, SitesHere, site_record
from medfed.study.study import Study
from medfed.tasks.base import TaskSet, trainable

FEDERATE_LOGS = ("rounds.jsonl", "timings.jsonl")
LOGS = (*FEDERATE_LOGS, "development.jsonl", "injection/steps.jsonl", "injection/routing.jsonl")
GROUPS = ("federated", "injector")
CLIENTS = "clients"
"""Folder, in the run's, of what clients keep between rounds."""
HEADS = "heads"
"""In scores: the injected federation's own aggregated heads."""
SPOOL = "spool"
"""Folder, in the run's, of the clients' data while worker processes train; a killed run may leave it behind."""
Connect = Callable[[Study, Cohort, RunDir], ClientExchange]
"""Opens the exchange of one federation, given its study, data and folder."""


def in_process(study: Study, cohort: Cohort, run: RunDir) -> ClientExchange:
    """Return the exchange with clients in this process; what they keep lies in the run's folder."""
    shutil.rmtree(run.root / SPOOL, ignore_errors=True)
    memory, clients = DiskMemory(run.root / CLIENTS), clients_of(study, cohort)
    model, dtype = build_model(study), study.rounds.upload_dtype
    exchange = InProcessExchange(clients, model, study.algorithm, study.client, study.seed, memory, dtype)
    return _scoring(exchange, study, cohort)


def in_workers(num_workers: int) -> Connect:
    """Return how to connect to clients in ``num_workers`` processes; the run's files are those of one process."""

    def connect(study: Study, cohort: Cohort, run: RunDir) -> ClientExchange:
        memory, log = run.root / CLIENTS, run.root / "workers.log"
        dtype = study.rounds.upload_dtype
        recipe = Recipe(builder(study), study.algorithm, study.client, study.seed, memory, log, dtype)
        exchange = WorkerExchange(clients_of(study, cohort), recipe, Pool(num_workers), run.root / SPOOL)
        return _scoring(exchange, study, cohort)

    return connect


def _scoring(exchange: ClientExchange, study: Study, cohort: Cohort) -> ClientExchange:
    """Let sites test on their own patients, where the cohort is one of sites."""
    return SitesHere(exchange, study, cohort.site_tests, build_model(study)) if cohort.site_tests else exchange


def clients_of(study: Study, cohort: Cohort) -> list[Client]:
    """Return the clients of the cohort, sorted by name."""
    public = cohort.public if study.algorithm.uses_public else {}
    return [Client(name, tasks, public) for name, tasks in sorted(cohort.clients.items())]


def build_model(study: Study) -> FederatedModel:
    """Return the clients' model with its initial weights, a function of the study alone."""
    return builder(study)()


def builder(study: Study) -> Callable[[], FederatedModel]:
    """Return :func:`build_model` of ``study`` as a value that a worker process can take without the study's code."""
    modalities = {name: study.modality(name) for name in study.modality_names}
    return partial(initialised, study.model, study.encoders, modalities, study.train_tasks, study.seed)


def build_multimodal(study: Study) -> MultimodalModel:
    """Return :func:`build_model`'s model for a study that injects: encoders, fusion, heads."""
    model = build_model(study)
    if not isinstance(model, MultimodalModel):
        raise StudyError(f"injection needs the model 'multimodal', not {study.model.name!r}", where="model")
    return model


class Arm:
    """A federation of the study's clients that can be stopped after any phase and resumed.

    With ``study.federate`` off no client is asked: every round is injection alone (FedKIM_pub).

    Attributes:
        model: the server's instance of the clients' model; after :meth:`run` it holds the last global weights.
        injector: injects after every round, or None for an arm without injection.
    """

    def __init__(
        self,
        run: RunDir,
        study: Study,
        cohort: Cohort,
        model: FederatedModel,
        injector: Injector | None,
        name: str = "fedkim",
        connect: Connect = in_process,
    ) -> None:
        self._run, self._study, self._cohort, self._name = run, study, cohort, name
        self.model, self.injector = model, injector
        self._exchange = connect(study, cohort, run)
        self._federation = Federation(self._exchange.registered, study.seed, model, cohort.public)

    def run(self, reporter: Reporter, title: str) -> None:
        """Run all rounds that are not done yet; ``model`` and ``injector`` end as the last round left them."""
        state, injected = self.resume()
        try:
            with reporter.phase(title) as advance:
                if not injected:
                    state = self._finish_round(state)
                for number in range(state.round + 1, self._study.rounds.num_rounds + 1):
                    advance(number - 1, self._study.rounds.num_rounds)
                    state = self._finish_round(self._federate(state))
                self._ask_sites(state)
        finally:
            self._exchange.close()
        load_weights(self.model, state.weights)

    def resume(self) -> tuple[FederatedState, bool]:
        """Load the newest checkpoint, or start; return the state and whether its round is finished."""
        checkpoint = self._run.load_checkpoint()
        if checkpoint is None:
            self._forget_after(0, finished=True)
            self._exchange.forget_after(0)
            return initial_state(self.model, self._study.algorithm), True
        tensors, facts = checkpoint
        parts = split(tensors, GROUPS)
        state = FederatedState.from_tensors(parts["federated"])
        self._exchange.forget_after(state.round)
        load_weights(self.model, state.weights)
        if self.injector is not None and parts["injector"]:
            self.injector.load_state(parts["injector"])
        self._forget_after(state.round, finished=facts["finished"])
        return state, bool(facts["finished"])

    def _federate(self, state: FederatedState) -> FederatedState:
        if not self._study.federate:
            silent = replace(state, round=state.round + 1)
            record = {"round": silent.round, "clients": [], "failures": [], "base": None}
            self._run.append_records("rounds.jsonl", [record])
            self._save(silent, finished=False)
            return silent
        started = time.monotonic()
        result = run_round(state, self._exchange, self._study.algorithm, self._federation, self._study.rounds)
        self._run.append_records("rounds.jsonl", [_round_record(result)])
        seconds = time.monotonic() - started
        timings = [{"round": result.round, "phase": "federate", "client": None, "seconds": seconds}]
        timings += [
            {"round": result.round, "phase": "train", "client": record.client, "seconds": record.seconds}
            for record in result.clients
        ]
        self._run.append_records("timings.jsonl", timings)
        self._save(result.state, finished=False)
        return result.state

    def _ask_sites(self, state: FederatedState) -> None:
        """Write what every site scores with the last model, where sites have test examples of their own."""
        if not isinstance(self._exchange, ScoringExchange) or self._run.exists(SITES):
            return
        shared = self._study.algorithm.build().shared(state.weights)
        last = Broadcast(state.round, fingerprint(state.params, state.buffers), *shared)
        name = self._name if self.injector is None else HEADS
        self._run.write_json(SITES, site_record(self._study, {name: self._exchange.evaluate(last)}))

    def _finish_round(self, state: FederatedState) -> FederatedState:
        """Inject (if this arm does), look at the development set, and close the round."""
        load_weights(self.model, state.weights)
        if self.injector is not None:
            with _Timed(self._run, state.round, "inject"):
                self._inject(self.injector, state.round)
            trained = weights_of(self.model)
            # Clients' statistics stand, if there are clients: the server's come from the public data only.
            buffers = state.buffers if self._study.federate else trained.buffers
            state = replace(state, params=trained.params, buffers=buffers)
        with _Timed(self._run, state.round, "evaluate"):
            self._run.append_records("development.jsonl", self._development(state.round))
        self._save(state, finished=True)
        return state

    def _inject(self, injector: Injector, number: int) -> None:
        steps = [{"round": number, **record.as_json()} for record in injector.inject(self._cohort.public, number)]
        self._run.append_records("injection/steps.jsonl", steps)
        self._run.append_records(
            "injection/routing.jsonl", [{"round": number, **injector.routing_record(self._study.tasks)}]
        )

    def _development(self, number: int) -> list[dict[str, Any]]:
        every = self._study.evaluation.watch_every
        if not every or number % every:
            return []
        if self._study.job == "benchmark":
            return [
                {"round": number, "model": self._name, "task": task, **self._watched(examples)}
                for task, examples in self._cohort.development.items()
            ]
        predictor: Predictor = HeadPredictor(self.model) if self.injector is None else InjectedPredictor(self.injector)
        return [
            {"round": number, "model": self._name, "task": task, **watch(examples, predictor)}
            for task, examples in self._cohort.development.items()
        ]

    def _watched(self, examples: TaskSet) -> dict[str, float | None]:
        """Return the primary metric of the server's model on the development set."""
        task = trainable(examples.task)
        kind = KINDS[task.metric_kind]
        return {kind.primary: point_values(kind, task.truths(examples), responses(self.model, examples))[kind.primary]}

    def deployed(self, client: str) -> Weights:
        """Return the model that predicts at ``client`` after :meth:`run`."""
        return self._study.algorithm.build().deployed(weights_of(self.model), self._exchange.own(client))

    def _save(self, state: FederatedState, *, finished: bool) -> None:
        injector = {} if self.injector is None else self.injector.state()
        tensors = join({"federated": state.tensors(), "injector": injector})
        self._run.save_checkpoint(2 * state.round + finished, tensors, {"round": state.round, "finished": finished})

    def _forget_after(self, number: int, *, finished: bool) -> None:
        """Drop the log lines of work that the checkpoint does not hold."""
        for name in LOGS:
            kept = finished or name in FEDERATE_LOGS
            self._run.drop_records_after(name, number if kept else number - 1)


class _Timed:
    """Writes how long a phase took."""

    def __init__(self, run: RunDir, number: int, phase: str) -> None:
        self._run, self._number, self._phase = run, number, phase

    def __enter__(self) -> None:
        self._started = time.monotonic()

    def __exit__(self, *error: object) -> None:
        if error[0] is None:
            facts = {"round": self._number, "phase": self._phase, "client": None}
            self._run.append_records("timings.jsonl", [{**facts, "seconds": time.monotonic() - self._started}])


def _round_record(result: RoundResult) -> Mapping[str, Any]:
    return {
        "round": result.round,
        "clients": [
            {
                "client": record.client,
                "losses": {name.removeprefix("loss."): value for name, value in record.metrics.items()},
                "num_examples": record.num_examples,
                "num_steps": record.num_steps,
                "bytes_up": record.up_bytes,
                "bytes_down": record.down_bytes,
            }
            for record in result.clients
        ],
        "failures": [
            {"client": failure.client, "phase": failure.phase, "reason": failure.reason} for failure in result.failures
        ],
        "base": result.base,
        "upload_dtype": result.upload_dtype,
        "upload_error": result.upload_error,
    }
