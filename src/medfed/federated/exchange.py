"""How a round's broadcasts reach the clients and their updates come back.

The round loop sees one call: (round, client → broadcast) → iterator of (client, update or failure), in any order. In
one process, in workers or over a network: only this file's neighbours differ.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from medfed.errors import MedfedError, StudyError
from medfed.federated.algorithms.base import Algorithm
from medfed.federated.client import STATE_GROUPS, Client, initial_client_state
from medfed.federated.optimizer import ClientSettings
from medfed.federated.state import split, weights_of
from medfed.types import Broadcast, Failure, Params, Update

Answer = tuple[str, Update | Failure]


@runtime_checkable
class Exchange(Protocol):
    """What the round loop needs; :meth:`states` and :meth:`restore` serve the checkpoint of a simulation."""

    def __call__(self, round: int, broadcasts: Mapping[str, Broadcast]) -> Iterator[Answer]:
        """Send every broadcast and yield the answers as they come; the exchange vouches for the client id."""
        ...

    def states(self) -> Mapping[str, Params]:
        """Return what every client that has trained keeps between rounds."""
        ...

    def restore(self, states: Mapping[str, Params]) -> None:
        """Give the clients what :meth:`states` returned; clients not named start anew."""
        ...


class InProcessExchange:
    """All clients in this process, one after the other in one shared model instance.

    A client whose training fails gives a :class:`Failure` and keeps the state it had. A client whose update the gate
    refuses has moved on all the same, as a real hospital would.
    """

    def __init__(
        self, clients: Iterable[Client], model: nn.Module, algorithm: Algorithm, settings: ClientSettings, seed: int
    ) -> None:
        self._clients: dict[str, Client] = {}
        for client in clients:
            if client.id in self._clients:
                raise StudyError("two clients have this id", where=f"client {client.id!r}", hint="rename one of them")
            self._clients[client.id] = client
        self._model, self._algorithm, self._settings, self._seed = model, algorithm, settings, seed
        self._initial = weights_of(model)
        self._states: dict[str, dict[str, Tensor]] = {}

    @property
    def registered(self) -> dict[str, int]:
        """Client → training examples, sorted by client."""
        return {name: self._clients[name].num_examples for name in sorted(self._clients)}

    def __call__(self, round: int, broadcasts: Mapping[str, Broadcast]) -> Iterator[Answer]:
        """Train the named clients in order of their ids."""
        for name in sorted(broadcasts):
            yield name, self._train(name, round, broadcasts[name])

    def states(self) -> dict[str, dict[str, Tensor]]:
        """Return what every client that has trained keeps between rounds."""
        return {name: dict(self._states[name]) for name in sorted(self._states)}

    def own(self, client: str) -> dict[str, Tensor]:
        """Return what the algorithm keeps at ``client``."""
        state = self._states.get(client) or initial_client_state(self._algorithm, self._initial)
        return split(state, STATE_GROUPS)["algorithm"]

    def restore(self, states: Mapping[str, Params]) -> None:
        """Give the clients what :meth:`states` returned; clients not named start anew."""
        self._states = {name: dict(state) for name, state in states.items()}

    def _train(self, name: str, round: int, broadcast: Broadcast) -> Update | Failure:
        client = self._clients[name]
        state = self._states.get(name) or initial_client_state(self._algorithm, self._initial)
        try:
            update, self._states[name] = client.train(
                self._model, broadcast, self._algorithm, state, self._settings, self._seed
            )
        except MedfedError as error:
            return Failure(name, round, "train", str(error))
        return update
