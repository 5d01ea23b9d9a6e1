"""Federated rounds: sample clients, broadcast, gate, aggregate (McMahan et al. 2017, Alg. 1; FedKIM Eq. 3).

:func:`run_round` is the unit: a state in, a result with the next state out, nothing changed in place.
:func:`run_rounds` chains it. Code that changes the model between rounds, as injection does, calls :func:`run_round`
with the changed state.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

from torch import nn

from medfed.core.errors import RunError, TooFewSitesError, UpdateRejectedError
from medfed.core.rng import numpy_rng
from medfed.core.types import Broadcast, Failure, Update
from medfed.federated.aggregation import in_order
from medfed.federated.algorithm import Algorithm, Federation
from medfed.federated.compression import ERROR, UploadError, restored
from medfed.federated.exchange import Answer, Exchange
from medfed.federated.gate import Gate, Manifest, delta_dtype
from medfed.federated.state import FederatedState, fingerprint, num_bytes, weights_of
from medfed.study.algorithms import AlgorithmSettings
from medfed.study.federation import RoundSettings, UploadDtype


@dataclass(frozen=True)
class ClientRecord:
    """The log's record of one accepted update."""

    client: str
    metrics: Mapping[str, float]  # mean loss by task (`loss.cd`) and what else the client reports
    examples: Mapping[str, int]
    num_examples: int
    num_steps: int
    down_bytes: int  # payload of the broadcast
    up_bytes: int  # payload of the update
    seconds: float  # of training at the client, by its own clock; 0 if it does not say


@dataclass(frozen=True)
class RoundResult:
    """A round's outcome."""

    state: FederatedState  # the federation after the round; `state.round` is this round's number
    base: str  # fingerprint of the model the round started from
    sampled: tuple[str, ...]  # clients that took part
    clients: tuple[ClientRecord, ...]  # one record per accepted update, sorted by client
    failures: tuple[Failure, ...]  # clients that gave no usable update, and why
    upload_dtype: UploadDtype = "float32"  # how the clients sent the change of their weights
    # relative error of the mean update by its rounding, `UploadError`; 0 if exact, None if no weight was sent
    upload_error: float | None = 0.0

    @property
    def round(self) -> int:
        """1-based number of this round."""
        return self.state.round


def initial_state(model: nn.Module, algorithm: AlgorithmSettings) -> FederatedState:
    """Return the state before round 1, with the weights of ``model`` copied."""
    hooks = algorithm.build()
    weights = weights_of(model)
    return FederatedState(0, *weights, hooks.init_server(hooks.shared(weights).params))


def run_round(
    state: FederatedState,
    exchange: Exchange,
    algorithm: AlgorithmSettings,
    federation: Federation,
    settings: RoundSettings,
) -> RoundResult:
    """Run round ``state.round + 1``; ``state`` itself is not changed.

    Raises TooFewSitesError, listing the failures, if fewer than ``settings.min_clients`` updates are usable.
    """
    hooks, base = algorithm.build(), fingerprint(state.params, state.buffers)
    broadcast = hooks.broadcast(state, base)
    sampled = sample_clients(federation, settings, broadcast.round)
    shared = hooks.shared(state.weights)
    manifest = Manifest.of(*shared, hooks.upload_like(state, federation), settings.upload_dtype)
    gate = Gate(manifest, {name: federation.registered[name] for name in sampled}, broadcast.round, base)
    inbox = _Inbox(gate, hooks, broadcast)
    arrivals = inbox.passed(exchange(broadcast.round, dict.fromkeys(sampled, broadcast)))
    watch, dtypes = UploadError(), {name: delta_dtype(value.dtype) for name, value in shared.params.items()}
    updates = map(partial(restored, dtypes=dtypes), in_order(arrivals, sampled))
    exact = settings.upload_dtype == "float32"
    aggregate = hooks.aggregate(state, updates if exact else watch.watched(updates), federation)
    failures = inbox.all_failures(sampled)
    if len(inbox.records) < settings.min_clients:
        raise _too_few(broadcast.round, len(inbox.records), settings, failures)
    records = tuple(inbox.records[name] for name in sorted(inbox.records))
    error = 0.0 if exact else watch.relative()
    after = FederatedState(broadcast.round, *aggregate)
    return RoundResult(after, base, sampled, records, failures, settings.upload_dtype, error)


def run_rounds(
    state: FederatedState,
    exchange: Exchange,
    algorithm: AlgorithmSettings,
    federation: Federation,
    settings: RoundSettings,
) -> Iterator[RoundResult]:
    """Yield the results of the rounds after ``state`` up to ``settings.num_rounds``; see :func:`run_round`."""
    while state.round < settings.num_rounds:
        result = run_round(state, exchange, algorithm, federation, settings)
        yield result
        state = result.state


def sample_clients(federation: Federation, settings: RoundSettings, round: int) -> tuple[str, ...]:
    """Return the clients of ``round``, sorted: a draw without replacement that depends on the seed and the round only.

    Raises RunError if there are too few clients to reach ``settings.min_clients``.
    """
    registered = sorted(federation.registered)
    share = max(1, int(settings.participation * len(registered) + 0.5))
    count = share if settings.clients_per_round is None else settings.clients_per_round
    if not settings.min_clients <= count <= len(registered):
        what = f"{count} of {len(registered)} clients would be sampled and rounds.min_clients is {settings.min_clients}"
        hint = "change rounds.participation, rounds.clients_per_round or rounds.min_clients"
        raise RunError(what, where=f"round {round}", hint=hint)
    chosen = numpy_rng(federation.seed, round, "participation").choice(len(registered), count, replace=False)
    return tuple(registered[index] for index in sorted(chosen))


@dataclass
class _Inbox:
    """The answers of one round: gated and recorded."""

    gate: Gate
    algorithm: Algorithm
    broadcast: Broadcast
    records: dict[str, ClientRecord] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)

    def passed(self, answers: Iterator[Answer]) -> Iterator[Answer]:
        """Yield the first answer of every client: an update that passed the gate, or a failure."""
        answered: set[str] = set()
        for sender, answer in answers:
            checked = self._checked(sender, answer)
            if isinstance(checked, Failure):
                self.failures.append(checked)
            if sender not in answered:
                yield sender, checked
            answered.add(sender)
            del answer, checked  # before the next one comes: memory holds one

    def all_failures(self, sampled: tuple[str, ...]) -> tuple[Failure, ...]:
        """Return the failures, with clients that never answered, sorted by client."""
        silent = set(sampled) - self.records.keys() - {failure.client for failure in self.failures}
        missing = [Failure(name, self.broadcast.round, "exchange", "no answer") for name in silent]
        return tuple(sorted([*self.failures, *missing], key=lambda failure: failure.client))

    def _checked(self, sender: str, answer: Update | Failure) -> Update | Failure:
        if isinstance(answer, Failure):
            return answer
        try:
            self.gate.check(sender, answer)
            self.algorithm.check_upload(answer)
        except UpdateRejectedError as error:
            return Failure(sender, self.broadcast.round, "gate", str(error))
        metrics = {name: value for name, value in answer.metrics.items() if not name.startswith(ERROR)}
        seconds = metrics.pop("seconds", 0.0)
        down = num_bytes(self.broadcast.params, self.broadcast.buffers, self.broadcast.state)
        up = num_bytes(answer.delta, answer.scales, answer.buffers, answer.state)
        counts = (answer.examples, answer.num_examples, answer.num_steps)
        self.records[sender] = ClientRecord(answer.client, metrics, *counts, down, up, seconds)
        return answer


def _too_few(round: int, usable: int, settings: RoundSettings, failures: tuple[Failure, ...]) -> TooFewSitesError:
    listed = "\n".join(f"  {failure.client} ({failure.phase}): {failure.reason}" for failure in failures)
    what = f"{usable} usable updates, rounds.min_clients is {settings.min_clients}\n{listed}"
    return TooFewSitesError(what, where=f"round {round}", hint="correct the clients above, or lower rounds.min_clients")
