"""How a round's broadcasts reach the clients and their updates come back.

The round loop sees one call: (round, client → broadcast) → iterator of (client, update or failure), in any order. In
one process, in workers or over a network: only this file's neighbours differ.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from medfed.core.errors import DiskError, MedfedError, StudyError
from medfed.core.types import Broadcast, Failure, Params, Update
from medfed.federated.client import STATE_GROUPS, Client, initial_client_state
from medfed.federated.compression import compressed
from medfed.federated.memory import ClientMemory, RamMemory
from medfed.federated.state import split, weights_of
from medfed.study.algorithms import AlgorithmSettings
from medfed.study.federation import ClientSettings, UploadDtype

Answer = tuple[str, Update | Failure]
SiteScores = Mapping[str, Mapping[str, float | None]]
"""Task → metric → value on a site's own test examples; their number stands under ``n``."""


@runtime_checkable
class Exchange(Protocol):
    """A way to the clients, as the round loop needs it."""

    def __call__(self, round: int, broadcasts: Mapping[str, Broadcast]) -> Iterator[Answer]:
        """Send every broadcast and yield the answers as they come; the exchange vouches for the client id."""


@runtime_checkable
class ClientExchange(Exchange, Protocol):
    """An exchange with the clients of a run, from the first round to the last."""

    @property
    def registered(self) -> Mapping[str, int]:
        """Client → training examples, sorted by client."""

    def client_state(self, client: str) -> Params:
        """Return what the algorithm keeps at ``client``; nothing, where that stays at a hospital."""

    def forget_after(self, round: int) -> None:
        """Let the clients forget what they kept after ``round``: the server goes on from there."""

    def close(self) -> None:
        """Release what the exchange holds: processes, connections."""


@runtime_checkable
class ScoringExchange(ClientExchange, Protocol):
    """An exchange whose clients have test examples of their own: a federation of sites."""

    def evaluate(self, broadcast: Broadcast) -> Mapping[str, SiteScores | Failure]:
        """Return client → its scores of the model deployed there, given the last global weights."""


class InProcessExchange:
    """All clients in this process, one after the other in the trainer's model instance.

    A client whose training fails gives a :class:`Failure` and keeps the state it had. A client whose update the gate
    refuses has moved on all the same, as a real hospital would.
    """

    def __init__(self, clients: Iterable[Client], trainer: Trainer) -> None:
        self._clients, self.trainer = by_id(clients), trainer

    @property
    def registered(self) -> dict[str, int]:
        """Client → training examples, sorted by client."""
        return {name: client.num_examples for name, client in self._clients.items()}

    def __call__(self, round: int, broadcasts: Mapping[str, Broadcast]) -> Iterator[Answer]:
        """Train the named clients in order of their ids."""
        for name in sorted(broadcasts):
            yield name, self.trainer.train(self._clients[name], broadcasts[name])

    def client_state(self, client: str) -> dict[str, Tensor]:
        """Return what the algorithm keeps at ``client``."""
        return self.trainer.client_state(client)

    def forget_after(self, round: int) -> None:
        """Drop what clients kept after ``round``."""
        self.trainer.memory.forget_after(round)

    def close(self) -> None:
        """Nothing is held."""


@dataclass(eq=False)
class Trainer:
    """Trains clients of one run in one model instance, whose weights at first are the ``initial`` ones."""

    model: nn.Module
    algorithm: AlgorithmSettings
    settings: ClientSettings
    seed: int
    memory: ClientMemory = field(default_factory=RamMemory)  # what clients keep between rounds
    upload_dtype: UploadDtype = "float32"

    def __post_init__(self) -> None:
        self.initial, self._hooks = weights_of(self.model), self.algorithm.build()

    def train(self, client: Client, broadcast: Broadcast) -> Update | Failure:
        """Train ``client`` on ``broadcast`` and keep its new state; a mistake in its data is a failure of it alone.

        Raises DiskError if the new state cannot be kept, so this client's part of the run cannot go on.
        """
        try:
            return self.update(client, broadcast)
        except DiskError:
            raise
        except MedfedError as error:
            return Failure(client.id, broadcast.round, "train", str(error))

    def update(self, client: Client, broadcast: Broadcast) -> Update:
        """Return the update as it travels, its state kept; raise MedfedError if the client cannot train or keep it."""
        state = self._kept(client.id, broadcast.round)
        update, kept = client.train(self.model, broadcast, self._hooks, state, self.settings, self.seed)
        self.memory.keep(client.id, broadcast.round, kept)
        return compressed(update, self.upload_dtype, self.seed)

    def client_state(self, client: str) -> dict[str, Tensor]:
        """Return what the algorithm keeps at ``client``."""
        return split(self._kept(client, sys.maxsize), STATE_GROUPS)["algorithm"]

    def _kept(self, client: str, round: int) -> dict[str, Tensor]:
        """Return what ``client`` starts ``round`` from."""
        state = self.memory.before(client, round)
        return initial_client_state(self._hooks, self.initial) if state is None else state


def by_id(clients: Iterable[Client]) -> dict[str, Client]:
    """Return the clients by id, sorted. Raises StudyError if two have the same id."""
    known: dict[str, Client] = {}
    for client in clients:
        if client.id in known:
            raise StudyError("two clients have this id", where=f"client {client.id!r}", hint="rename one of them")
        known[client.id] = client
    return dict(sorted(known.items()))
