"""One federation from its first round to its last: with injection (FedKIM) or without (federated-only).

A checkpoint follows every phase of a round, so a killed run goes on where it was and ends with the same files. The
injector is written when it changed: before its first injection it is a function of the study alone. An injection that
takes long has checkpoints of its own, and goes on at the step that the last one holds.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from medfed.core.errors import StudyError
from medfed.core.progress import Reporter
from medfed.core.types import Broadcast
from medfed.data.cohort import Cohort
from medfed.federated.algorithm import Federation
from medfed.federated.client import Client
from medfed.federated.exchange import ClientExchange, InProcessExchange, ScoringExchange, Trainer
from medfed.federated.memory import DiskMemory
from medfed.federated.rounds import RoundResult, initial_state, run_round
from medfed.federated.state import FederatedState, Weights, fingerprint, join, load_weights, split, weights_of
from medfed.federated.workers import Pool, Recipe, WorkerExchange
from medfed.models.base import FederatedModel, initialised
from medfed.models.multimodal import MultimodalModel
from medfed.records.folder import RunFolder
from medfed.records.schema import (
    ClientRound,
    Development,
    FailedClient,
    Retained,
    Round,
    Routing,
    SiteFile,
    Step,
    Timing,
)
from medfed.runs.checkpoints import Checkpoints
from medfed.runs.predictors import HEADS, InjectedPredictor, ModelPredictor, Predictor, watch
from medfed.runs.sites import scores_here, site_file
from medfed.study.study import Study

if TYPE_CHECKING:
    from medfed.injection.inject import Injector
    from medfed.injection.retention import Retention

GROUPS = ("federated", "injector")
CLIENTS = "clients"
"""Folder, in the run's, of what clients keep between rounds."""
CLIENT_STORE = "client-store"
"""Folder, in the run's, of the clients' data while worker processes train; a killed run may leave it behind."""
INJECTION = "unfinished-injection"
"""Folder, in the run's, of the checkpoints of an injection that is under way."""
SECONDS_UNSAVED = 120.0
"""Of an injection, after which a step is followed by a checkpoint; it changes no bit of a result."""
Connect = Callable[[Study, Cohort, RunFolder], ClientExchange]
"""Opens the exchange of one federation, given its study, data and folder."""


def in_process(study: Study, cohort: Cohort, run: RunFolder) -> ClientExchange:
    """Return the exchange with clients in this process; what they keep lies in the run's folder."""
    shutil.rmtree(run.root / CLIENT_STORE, ignore_errors=True)
    memory, dtype = DiskMemory(run.root / CLIENTS), study.rounds.upload_dtype
    trainer = Trainer(build_model(study), study.algorithm, study.client, study.seed, memory, dtype)
    return InProcessExchange(clients_of(study, cohort), trainer)


def in_workers(num_workers: int) -> Connect:
    """Return how to connect to clients in ``num_workers`` processes; the run's files are those of one process."""

    def connect(study: Study, cohort: Cohort, run: RunFolder) -> ClientExchange:
        memory, log, dtype = run.root / CLIENTS, run.root / "workers.log", study.rounds.upload_dtype
        recipe = Recipe(builder(study), study.algorithm, study.client, study.seed, memory, log, dtype)
        return WorkerExchange(clients_of(study, cohort), recipe, Pool(num_workers), run.root / CLIENT_STORE)

    return connect


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


@dataclass(frozen=True)
class Trainee:
    """The server's ``model``, which ends with the last global weights; ``injector`` injects after every round.

    ``name`` is the model's in scores. ``retention`` asks the LLM what it still knows.
    """

    name: str
    model: FederatedModel
    injector: Injector | None = None
    retention: Retention | None = None


class FederationRun:
    """A federation of the study's clients that can be stopped after any phase and resumed.

    With ``study.federate`` off no client trains: every round is injection alone (FedKIM_pub).
    """

    def __init__(
        self, run: RunFolder, study: Study, cohort: Cohort, trainee: Trainee, connect: Connect = in_process
    ) -> None:
        self._run, self._study, self._cohort = run, study, cohort
        self._name, self.model, self._injector = trainee.name, trainee.model, trainee.injector
        self._retention = trainee.retention
        self._checkpoints = Checkpoints(run.root)
        self._injected = self._saved = False  # the injector learned something; a checkpoint holds it as it is now
        self._exchange = connect(study, cohort, run)
        self._federation = Federation(self._exchange.registered, study.seed, self.model, cohort.public)

    def run(self, reporter: Reporter, title: str) -> None:
        """Run all rounds that are not done yet; model and injector end as the last round left them."""
        state, injected = self.resume()
        if self._retention is not None and self._retention.due(0, 0) and not self._run.exists(Retained.NAME):
            with reporter.phase("what the LLM knows") as advance:
                self._run.append(Retained, self._retention.look(0, advance))
        try:
            with reporter.phase(title) as advance:
                if not injected:
                    state = self._finish_round(state)
                for number in range(state.round + 1, self._study.rounds.num_rounds + 1):
                    advance(number - 1, self._study.rounds.num_rounds)
                    state = self._finish_round(self._federate(state))
                self._score_at_sites(state)
        finally:
            self._exchange.close()
        load_weights(self.model, state.weights)

    def resume(self) -> tuple[FederatedState, bool]:
        """Load the newest checkpoint, or start; return the state and whether its round is finished."""
        checkpoint = self._checkpoints.load()
        if checkpoint is None:
            self._forget_after(0, finished=True)
            self._exchange.forget_after(0)
            return initial_state(self.model, self._study.algorithm), True
        tensors, facts = checkpoint
        parts = split(tensors, GROUPS)
        state = FederatedState.from_tensors(parts["federated"])
        self._exchange.forget_after(state.round)
        load_weights(self.model, state.weights)
        if self._injector is not None and parts["injector"]:
            self._injector.load_state(parts["injector"])
            self._injected, self._saved = True, self._checkpoints.has_injector
        self._forget_after(state.round, finished=facts["finished"])
        return state, bool(facts["finished"])

    def deployed(self, client: str | None) -> Weights:
        """Return the model that predicts at ``client`` after :meth:`run`; the server's where it does not train."""
        weights = weights_of(self.model)
        if client is None or client not in self._cohort.clients:
            return weights
        return self._study.algorithm.build().deployed(weights, self._exchange.client_state(client))

    def _federate(self, state: FederatedState) -> FederatedState:
        if not self._study.federate:
            silent = replace(state, round=state.round + 1)
            self._run.append(Round, [Round(round=silent.round, clients=(), failures=(), base=None)])
            self._save(silent, finished=False)
            return silent
        started = time.monotonic()
        result = run_round(state, self._exchange, self._study.algorithm, self._federation, self._study.rounds)
        self._time(result.round, "federate", started, {record.client: record.seconds for record in result.clients})
        self._run.append(Round, [_round(result)])
        self._save(result.state, finished=False)
        return result.state

    def _score_at_sites(self, state: FederatedState) -> None:
        """Write what every site scores with the last model, where sites have test examples of their own."""
        tested = self._cohort.site_tests or isinstance(self._exchange, ScoringExchange)
        if not tested or self._run.exists(SiteFile.NAME):
            return
        shared = self._study.algorithm.build().shared(state.weights)
        last = Broadcast(state.round, fingerprint(state.params, state.buffers), *shared)
        name = self._name if self._injector is None else HEADS
        if isinstance(self._exchange, ScoringExchange):
            scores = self._exchange.evaluate(last)
        else:
            scores = scores_here(self._study, build_model(self._study), self._cohort, last, self._exchange)
        self._run.write(site_file(self._study, {name: scores}))

    def _finish_round(self, state: FederatedState) -> FederatedState:
        """Inject, if there is an injector; look at the development set; close the round."""
        load_weights(self.model, state.weights)
        if self._injector is not None and self._injects(state.round):
            state = self._inject(state, self._injector)
        started = time.monotonic()
        self._run.append(Development, self._development(state.round))
        self._time(state.round, "evaluate", started)
        self._save(state, finished=True)
        shutil.rmtree(self._run.root / INJECTION, ignore_errors=True)
        return state

    def _injects(self, number: int) -> bool:
        """Whether the round ``number`` ends with an injection."""
        return self._study.injection.schedule == "every" or number == self._study.rounds.num_rounds

    def _inject(self, state: FederatedState, injector: Injector) -> FederatedState:
        """Inject, and return the state with the encoders and heads as the server left them."""
        started = time.monotonic()
        self._run.append(Step, self._steps(state, injector))
        self._run.append(Routing, [Routing(round=state.round, **injector.routing_record(self._study.tasks))])
        self._time(state.round, "inject", started)
        self._look(state.round)
        self._injected, self._saved = True, False
        trained = weights_of(self.model)
        # Clients' statistics stand, if there are clients: the server's come from the public data only.
        buffers = state.buffers if self._study.federate else trained.buffers
        return replace(state, params=trained.params, buffers=buffers)

    def _steps(self, state: FederatedState, injector: Injector) -> list[Step]:
        """Take all steps of an injection, from the last checkpoint on, and return their records."""
        checkpoints, saved = Checkpoints(self._run.root / INJECTION), time.monotonic()
        steps: list[Step] = []
        tensors, facts = checkpoints.load() or ({}, {"round": None})
        if facts["round"] == state.round:
            parts = split(tensors, GROUPS)
            load_weights(self.model, FederatedState.from_tensors(parts["federated"]).weights)
            injector.load_state(parts["injector"])
            steps = [Step.model_validate(step) for step in facts["steps"]]
        rounds = self._study.rounds.num_rounds if self._study.injection.schedule == "every" else 1
        for step in injector.inject(self._cohort.public, state.round, rounds, len(steps)):
            steps.append(step)
            if time.monotonic() - saved > SECONDS_UNSAVED:
                trained = weights_of(self.model)
                now = replace(state, params=trained.params, buffers=trained.buffers).tensors()
                facts = {
                    "round": state.round,
                    "steps": [one.model_dump(mode="json", exclude_unset=True) for one in steps],
                }
                checkpoints.save(len(steps), join({"federated": now, "injector": injector.state()}), facts)
                saved = time.monotonic()
        return steps

    def _look(self, number: int) -> None:
        """Ask the LLM what it still knows, where that is due."""
        if self._retention is not None and self._retention.due(number, self._study.rounds.num_rounds):
            started = time.monotonic()
            self._run.append(Retained, self._retention.look(number))
            self._time(number, "retention", started)

    def _development(self, number: int) -> list[Development]:
        settings = self._study.evaluation
        if not settings.watch_every or number % settings.watch_every:
            return []
        name = self._name if self._injector is None or self._injected else HEADS
        predictor: Predictor = ModelPredictor(name, self.model, self._study.train)
        if self._injector is not None and self._injected:
            predictor = InjectedPredictor(self._injector, settings.max_new_tokens, self._name)
        return [
            Development(round=number, model=name, task=task, values=watch(self._study, examples, predictor))
            for task, examples in self._cohort.development.items()
        ]

    def _save(self, state: FederatedState, *, finished: bool) -> None:
        groups = {"federated": state.tensors()}
        if self._injector is not None and self._injected and not self._saved:
            groups["injector"] = self._injector.state()
        facts = {"round": state.round, "finished": finished}
        self._checkpoints.save(2 * state.round + finished, join(groups), facts, same_injector=self._saved)
        self._saved = self._injected

    def _forget_after(self, number: int, *, finished: bool) -> None:
        """Drop the log lines of work that the checkpoint does not hold."""
        for kind in (Round, Timing, Development, Step, Routing, Retained):
            kept = finished or kind in (Round, Timing)
            self._run.drop_after(kind, number if kept else number - 1)

    def _time(self, number: int, phase: str, started: float, clients: Mapping[str, float] | None = None) -> None:
        """Log the seconds since ``started``, and those that ``clients`` trained."""
        lines = [Timing(round=number, phase=phase, client=None, seconds=time.monotonic() - started)]
        lines += [Timing(round=number, phase="train", client=name, seconds=it) for name, it in (clients or {}).items()]
        self._run.append(Timing, lines)


def _round(result: RoundResult) -> Round:
    return Round(
        round=result.round,
        clients=tuple(
            ClientRound(
                client=record.client,
                losses={name.removeprefix("loss."): value for name, value in record.metrics.items()},
                num_examples=record.num_examples,
                num_steps=record.num_steps,
                bytes_up=record.up_bytes,
                bytes_down=record.down_bytes,
            )
            for record in result.clients
        ),
        failures=tuple(FailedClient(client=it.client, phase=it.phase, reason=it.reason) for it in result.failures),
        base=result.base,
        upload_dtype=result.upload_dtype,
        upload_error=result.upload_error,
    )
