"""Sums over clients: in float64, one update at a time, in the order of client ids whatever the order of arrival.

McMahan et al. 2017, Alg. 1; FedKIM Eq. 3. A tensor's weight is the number of examples whose loss reached its component,
so a hospital without ECGs has no say in the ECG encoder. Memory holds one update and one float64 sum, however many
clients there are. Rounded changes need the restored update too, and a second sum for the error. Sums are made in place,
and every generator on an update's way lets go of it before it asks for the next. Casting to float64 in pieces keeps the
intermediate values in the processor's cache.

Deviation: FedKIM weighs every client's whole model alike; with hospitals that lack a modality that would average in
encoders that nobody trained.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from medfed.core.types import Failure, Params, Update, component
from medfed.federated.wire import update_bytes, update_of
from medfed.study.algorithms import Weighting

__all__ = ["Average", "Changes", "Sums"]

CHUNK = 1 << 16
"""Elements that are cast to float64 at once: 512 KB."""


def weight(update: Update, tensor: str, weighting: Weighting = "examples") -> int:
    """Return what ``update``'s version of ``tensor`` counts; 0 means it has no say."""
    examples = update.examples.get(component(tensor), 0) if update.examples else update.num_examples
    return examples if weighting == "examples" else min(examples, 1)


def moved(values: Params, steps: Params) -> dict[str, Tensor]:
    """Return ``values`` plus ``steps``, summed in float64, in the dtype of ``values``; without a step as they are."""
    return {name: (x.to(torch.float64) + steps[name]).to(x.dtype) if name in steps else x for name, x in values.items()}


class Average:
    """A streaming mean of named tensors, weighted as ``weighting`` says; of integer tensors (counters) the maximum."""

    def __init__(self, weighting: Weighting = "examples") -> None:
        self._weighting: Weighting = weighting
        self._sums: dict[str, Tensor] = {}
        self._weights: dict[str, int] = {}

    @torch.no_grad()
    def add(self, tensors: Params, update: Update) -> None:
        """Add ``tensors`` with the weights of ``update``."""
        for name, value in tensors.items():
            share = weight(update, name, self._weighting)
            if share == 0:
                continue
            if not value.is_floating_point():
                self._sums[name] = torch.maximum(self._sums.get(name, value), value)
            elif name in self._sums:
                _add(self._sums[name], value, share)
            else:
                first = value.to(torch.float64, copy=True, memory_format=torch.contiguous_format)
                self._sums[name] = first.mul_(share)
            self._weights[name] = self._weights.get(name, 0) + share

    def added_to(self, values: Params, eta: float = 1.0) -> dict[str, Tensor]:
        """Return ``values`` plus η times the mean, in the dtype of ``values``; without any weight as they are."""
        return {
            name: _stepped(value, self._sums[name], self._weights[name], eta) if name in self._sums else value
            for name, value in values.items()
        }

    def means(self) -> dict[str, Tensor]:
        """Return the mean of every tensor that someone has a say in; float64."""
        return {name: self._mean(name) for name in self._sums}

    def sums(self) -> dict[str, Tensor]:
        """Return the weighted sum of every tensor that someone has a say in; float64."""
        return dict(self._sums)

    def replacing(self, values: Params) -> dict[str, Tensor]:
        """Return the mean, in the dtype of ``values``; a tensor without any weight stays as it is."""
        return {name: self._mean(name).to(x.dtype) if name in self._sums else x for name, x in values.items()}

    def _mean(self, name: str) -> Tensor:
        total = self._sums[name]
        return total / self._weights[name] if total.is_floating_point() else total


def _add(total: Tensor, value: Tensor, share: int) -> None:
    """Add ``share`` times ``value`` to the float64 ``total``, in pieces."""
    there, given = total.view(-1), value.reshape(-1)
    for start in range(0, len(there), CHUNK):
        there[start : start + CHUNK].add_(given[start : start + CHUNK].to(torch.float64), alpha=share)


def _stepped(value: Tensor, total: Tensor, weight: int, eta: float) -> Tensor:
    """Return ``value`` + η ``total`` / ``weight``, computed in float64, in pieces."""
    result = torch.empty_like(value, memory_format=torch.contiguous_format)
    there, given, sums = result.view(-1), value.reshape(-1), total.view(-1)
    for start in range(0, len(there), CHUNK):
        part = slice(start, start + CHUNK)
        step = sums[part] / weight
        there[part] = (step if eta == 1 else step.mul_(eta)).add_(given[part].to(torch.float64))
    return result


@runtime_checkable
class Sums(Protocol):
    """The sum over the clients' changes, one update at a time; a robust sum is another class of this form."""

    def add(self, update: Update) -> None:
        """Count an update in."""

    def means(self) -> dict[str, Tensor]:
        """Return the mean change of every tensor that someone has a say in; float64."""

    def added_to(self, values: Params, eta: float = 1.0) -> dict[str, Tensor]:
        """Return ``values`` plus η times the mean change, in the dtype of ``values``."""


class Changes:
    """The mean of the clients' changes; ``average`` is an empty mean."""

    def __init__(self, average: Average) -> None:
        self._average, self.means, self.added_to = average, average.means, average.added_to

    def add(self, update: Update) -> None:
        """Count an update in."""
        self._average.add(update.delta, update)


def in_order(
    arrivals: Iterable[tuple[str, Update | Failure]], expected: Collection[str], folder: Path | None = None
) -> Iterator[Update]:
    """Yield updates sorted by client; one before its turn waits in ``folder``, so memory stays at one update.

    ``arrivals`` hold each of the ``expected`` clients at most once. A failure gives up its place in the line; a client
    that never comes holds others up until the end.
    """
    with tempfile.TemporaryDirectory(prefix="medfed-", dir=folder) as waiting:
        line = sorted(expected)
        place = {client: Path(waiting) / f"{turn}.safetensors" for turn, client in enumerate(line)}
        next_turn, failed = 0, set[str]()
        for client, answer in arrivals:
            if isinstance(answer, Failure):
                failed.add(client)
            elif client == line[next_turn]:
                yield answer
                next_turn += 1
            else:
                place[client].write_bytes(update_bytes(answer))
            del answer  # before the next one comes: memory holds one
            while next_turn < len(line) and (line[next_turn] in failed or place[line[next_turn]].exists()):
                yield from _taken(place[line[next_turn]])
                next_turn += 1
        for client in line[next_turn:]:
            yield from _taken(place[client])


def _taken(file: Path) -> Iterator[Update]:
    if file.exists():
        update = update_of(file.read_bytes())
        file.unlink()
        yield update
