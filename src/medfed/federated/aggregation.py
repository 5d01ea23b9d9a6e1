"""Sums over clients: in float64, one update at a time, in the order of client ids whatever the order of arrival.

McMahan et al. 2017, Alg. 1; FedKIM Eq. 3. A tensor's weight is the number of examples whose loss reached its component,
so a hospital without ECGs has no say in the ECG encoder. Memory holds one update and one float64 sum, however many
clients there are.

Deviation: FedKIM weighs every client's whole model alike; with hospitals that lack a modality that would average in
encoders that nobody trained.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from medfed.federated.wire import load_update, save_update
from medfed.types import Failure, Params, Update, component

Weighting = Literal["examples", "clients"]
"""Whether a client counts by its examples (McMahan et al. 2017), or as one if it has any (Karimireddy et al. 2020)."""


def weight(update: Update, tensor: str, weighting: Weighting = "examples") -> int:
    """Return what ``update``'s version of ``tensor`` counts; 0 means it has no say."""
    examples = update.examples.get(component(tensor), 0) if update.examples else update.num_examples
    return examples if weighting == "examples" else min(examples, 1)


def moved(values: Params, steps: Params) -> dict[str, Tensor]:
    """Return ``values`` plus ``steps``, summed in float64, in the dtype of ``values``; without a step as they are."""
    return {
        name: (value.to(torch.float64) + steps[name]).to(value.dtype) if name in steps else value
        for name, value in values.items()
    }


class Average:
    """A streaming mean of named tensors; of integer tensors (step counters) the maximum.

    Args:
        weighting: what a client counts.
    """

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
                self._sums[name].add_(value, alpha=share)
            else:
                self._sums[name] = value.to(torch.float64).mul(share)
            self._weights[name] = self._weights.get(name, 0) + share

    def added_to(self, values: Params) -> dict[str, Tensor]:
        """Return ``values`` plus the mean, in the dtype of ``values``; a tensor without any weight stays as it is."""
        return moved(values, self.means())

    def means(self) -> dict[str, Tensor]:
        """Return the mean of every tensor that someone has a say in; float64."""
        return {name: self._mean(name) for name in self._sums}

    def sums(self) -> dict[str, Tensor]:
        """Return the weighted sum of every tensor that someone has a say in; float64."""
        return dict(self._sums)

    def replacing(self, values: Params) -> dict[str, Tensor]:
        """Return the mean, in the dtype of ``values``; a tensor without any weight stays as it is."""
        return {
            name: self._mean(name).to(value.dtype) if name in self._sums else value for name, value in values.items()
        }

    def _mean(self, name: str) -> Tensor:
        total = self._sums[name]
        return total / self._weights[name] if total.is_floating_point() else total


def in_order(
    arrivals: Iterable[tuple[str, Update | Failure]], expected: Collection[str], folder: Path | None = None
) -> Iterator[Update]:
    """Yield updates sorted by client; one that comes before its turn waits on disk, so memory stays at one update.

    Args:
        arrivals: (client, update or failure), each client at most once, in any order.
        expected: the clients asked. A failure gives up its place in the line; who never comes holds others up until the
            end.
        folder: where early updates wait; by default the system's temporary folder.
    """
    with tempfile.TemporaryDirectory(prefix="medfed-", dir=folder) as spool:
        line = sorted(expected)
        place = {client: Path(spool) / f"{turn}.safetensors" for turn, client in enumerate(line)}
        next_turn, failed = 0, set[str]()
        for client, answer in arrivals:
            if isinstance(answer, Failure):
                failed.add(client)
            elif client == line[next_turn]:
                yield answer
                next_turn += 1
            else:
                save_update(place[client], answer)
            while next_turn < len(line) and (line[next_turn] in failed or place[line[next_turn]].exists()):
                yield from _taken(place[line[next_turn]])
                next_turn += 1
        for client in line[next_turn:]:
            yield from _taken(place[client])


def _taken(file: Path) -> Iterator[Update]:
    if file.exists():
        update = load_update(file)
        file.unlink()
        yield update
