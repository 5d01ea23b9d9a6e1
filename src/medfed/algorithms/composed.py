"""Sharing × the local step × the server's step, chained into one algorithm.

Parts know nothing of each other. Their tensors are kept in three places: at a client, at the server, in an upload. A
place where several parts keep some has them by slot. A place where one part does has them under that part's names.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from torch import Tensor

from medfed.algorithms.parts import ClientRound, LocalPart, ServerPart, SharingPart, laid_over
from medfed.core.types import Broadcast, Params, Update
from medfed.federated.algorithm import Aggregate, Algorithm, Federation
from medfed.federated.local import LocalStep, Trained, Upload
from medfed.federated.state import FederatedState, Weights, join, split
from medfed.study.algorithms import SLOTS, Composition


class Composed(Algorithm, Composition):
    """An algorithm of three parts."""

    sharing: SharingPart
    local: LocalPart
    server: ServerPart

    @property
    def corrects(self) -> bool:
        """Whether the local step corrects gradients."""
        return _overrides(self.local, LocalPart, "correct")

    @property
    def sends_state(self) -> bool:
        """Whether a part sends tensors of its own."""
        return bool(self._in_upload.slots)

    def private(self, params: Params, buffers: Params) -> frozenset[str]:
        """Return the names of tensors that stay at the clients."""
        return self.sharing.private(params, buffers)

    def init_server(self, params: Params) -> Params:
        """Return the parts' tensors at the server before round 1."""
        return self._at_server.joined(local=self.local.init_server(params), server=self.server.init(params))

    def init_client(self, initial: Weights) -> Params:
        """Return the private tensors, and what the local step keeps."""
        local = self.local.init_client(self.shared(initial))
        return self._at_client.joined(sharing=self.sharing.kept(initial), local=local)

    def broadcast(self, state: FederatedState, base: str) -> Broadcast:
        """Return what travels, and what the local step sends its clients."""
        local = self._at_server.parted(state.server_state)["local"]
        return replace(super().broadcast(state, base), state=self.local.broadcast(local))

    def start(self, broadcast: Broadcast, client_state: Params) -> Weights:
        """Return the broadcast with the client's private tensors."""
        return self._here(broadcast, client_state).start

    def penalty(self, step: LocalStep, broadcast: Broadcast, client_state: Params) -> Tensor | None:
        """Return the local step's term."""
        return self.local.penalty(step, self._here(broadcast, client_state))

    def correct(self, gradients: Params, step: LocalStep, broadcast: Broadcast, client_state: Params) -> Params | None:
        """Return the local step's gradients."""
        return self.local.correct(gradients, step, self._here(broadcast, client_state))

    def personal(self, broadcast: Broadcast, client_state: Params) -> Weights | None:
        """Return the start of the local step's second model."""
        return self.local.personal(self._here(broadcast, client_state))

    def upload(self, trained: Trained, broadcast: Broadcast, client_state: Params) -> Upload:
        """Send the change of what travels and what the parts add; keep the private tensors."""
        local = self.local.finish(trained, self._here(broadcast, client_state))
        measured = self.server.measured(trained, self.local.pull)
        return Upload(
            trained.delta,
            trained.shared_buffers(broadcast),
            self._in_upload.joined(local=local.sent, server=measured),
            self._at_client.joined(sharing=self.sharing.kept(trained.weights), local=local.kept),
        )

    def upload_like(self, state: FederatedState, federation: Federation) -> Params:
        """Return tensors like those the parts send."""
        local = self._at_server.parted(state.server_state)["local"]
        return self._in_upload.joined(local=self.local.upload_like(local), server=self.server.upload_like())

    def check_upload(self, update: Update) -> None:
        """Let the server's step refuse what it is sent."""
        self.server.check_upload(replace(update, state=self._in_upload.parted(update.state)["server"]))

    def aggregate(self, state: FederatedState, updates: Iterator[Update], federation: Federation) -> Aggregate:
        """Sum the changes, average the buffers, renew what the local step keeps, and take the server's step."""
        kept = self._at_server.parted(state.server_state)
        changes, buffers = self.server.sums(), self.server.average()
        renewal = self.local.renewal(kept["local"], federation)
        for update in updates:
            sent = self._in_upload.parted(update.state)
            changes.add(replace(update, state=sent["server"]))
            buffers.add(update.buffers, update)
            renewal.add(replace(update, state=sent["local"]))
            del update, sent  # before the next one comes: memory holds one
        params, stepped = self.server.step(state.params, changes, kept["server"])
        after = self._at_server.joined(local=renewal.result(), server=stepped)
        return Aggregate(params, buffers.replacing(state.buffers), after)

    def deployed(self, weights: Weights, client_state: Params) -> Weights:
        """Return the local step's model, with the client's private tensors."""
        kept = self._at_client.parted(client_state)
        return self.local.deployed(laid_over(weights, kept["sharing"]), kept["local"])

    def _here(self, broadcast: Broadcast, client_state: Params) -> ClientRound:
        kept = self._at_client.parted(client_state)
        start = laid_over(Weights(broadcast.params, broadcast.buffers), kept["sharing"])
        return ClientRound(broadcast, start, kept["local"])

    @property
    def _at_client(self) -> _Slots:
        return self._keeping(sharing=["private"], local=["init_client", "finish"])

    @property
    def _at_server(self) -> _Slots:
        return self._keeping(local=["init_server"], server=["init"])

    @property
    def _in_upload(self) -> _Slots:
        return self._keeping(local=["upload_like"], server=["upload_like"])

    def _keeping(self, **hooks: list[str]) -> _Slots:
        """Return the slots whose part overrides one of the ``hooks``, by slot: it keeps tensors there."""
        slots = zip(SLOTS, self.parts, (SharingPart, LocalPart, ServerPart), strict=True)
        return _Slots(tuple(slot for slot, part, base in slots if _overrides(part, base, *hooks.get(slot, ()))))


class _Slots(NamedTuple):
    """The parts that keep tensors in a place."""

    slots: tuple[str, ...]

    def joined(self, **tensors: Params) -> Params:
        """Return the tensors of all parts: as they are where one part keeps some, else by slot."""
        kept = {slot: tensors[slot] for slot in self.slots}
        return join(kept) if len(kept) > 1 else next(iter(kept.values()), {})

    def parted(self, tensors: Params) -> dict[str, Params]:
        """Undo :meth:`joined`; every slot is in the result."""
        kept = split(tensors, self.slots) if len(self.slots) > 1 else dict.fromkeys(self.slots, tensors)
        return {slot: kept.get(slot, {}) for slot in SLOTS}


def _overrides(part: object, base: type, *hooks: str) -> bool:
    return any(getattr(type(part), hook) is not getattr(base, hook) for hook in hooks)
