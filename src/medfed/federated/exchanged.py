"""What CreamFL's parties send each other: representations of the public examples, by task and modality.

Rows are sorted by the number of the example's id, so both sides can align them, and every party sees a public example
in the same view (:func:`medfed.federated.represent.view`). As named tensors, ``examples/<task>`` are these numbers,
``representations/<task>/<modality>`` the vectors and ``sent/<task>/<modality>`` tells which rows count: a client that
lacks a modality or a task sends rows of zeros that do not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor, nn

from medfed.errors import DataError
from medfed.federated.contrast import Rows
from medfed.federated.optimizer import ClientSettings
from medfed.federated.represent import aligned, ids_of, represented
from medfed.federated.state import join, split
from medfed.tasks.base import TaskSet
from medfed.types import Params

GROUPS = ("examples", "representations", "sent")


class Exchanged(NamedTuple):
    """Representations of the public examples.

    Attributes:
        ids: task → number of every example's id, ascending.
        rows: task → modality → representations in that order.
    """

    ids: Mapping[str, Int[Tensor, " example"]]
    rows: Mapping[str, Mapping[str, Rows]]

    def tensors(self) -> dict[str, Tensor]:
        """Flatten to named tensors; :meth:`from_tensors` is the inverse."""
        named = {f"{task}/{name}": rows for task, parts in self.rows.items() for name, rows in parts.items()}
        vectors = {name: rows.vectors for name, rows in named.items()}
        return join(
            {"examples": self.ids, "representations": vectors, "sent": {name: rows.has for name, rows in named.items()}}
        )

    @classmethod
    def from_tensors(cls, tensors: Params) -> Exchanged:
        """Rebuild what :meth:`tensors` flattened, sorted by name: sums over modalities depend on their order."""
        parts = split(tensors, GROUPS)
        rows: dict[str, dict[str, Rows]] = {task: {} for task in sorted(parts["examples"])}
        for name, vectors in sorted(parts["representations"].items()):
            task, _, modality = name.partition("/")
            rows[task][modality] = Rows(vectors, parts["sent"][name])
        return cls(parts["examples"], rows)

    def partners(self, task: str, modality: str) -> list[Rows]:
        """Return the other modalities of ``task`` that ``modality`` can be compared with; itself if there is none."""
        own = self.rows[task][modality]
        width = own.vectors.shape[1]
        others = [rows for name, rows in self.rows[task].items() if name != modality]
        return [rows for rows in others if rows.vectors.shape[1] == width] or [own]

    def find(self, task: str, examples: tuple[str, ...]) -> Int[Tensor, " batch"]:
        """Return the rows of ``examples``.

        Raises:
            DataError: one of them is not among them.
        """
        known = self.ids[task]
        wanted = ids_of(examples).to(known.device)
        rows = torch.searchsorted(known, wanted).clamp(max=len(known) - 1)
        if bool((known[rows] != wanted).any()):
            raise DataError(
                "a public example here is unknown to the server",
                where=f"task {task!r}",
                hint="give every client the server's public examples",
            )
        return rows


def held_modalities(tasks: Mapping[str, TaskSet]) -> dict[str, tuple[str, ...]]:
    """Return, by task, the modalities of which ``tasks`` have an example."""
    return {
        name: tuple(
            modality for modality in examples.task.modalities if examples.data.present[modality][examples.rows].any()
        )
        for name, examples in tasks.items()
    }


def represent_public(
    model: nn.Module, public: Mapping[str, TaskSet], held: Mapping[str, tuple[str, ...]], settings: ClientSettings
) -> Exchanged:
    """Return the representations of ``public`` under ``model`` in the modalities ``held``; of all others blank rows."""
    ids, rows = {}, {}
    for name, examples in sorted(public.items()):
        order, ids[name] = aligned(examples)
        # One example tells the widths of a task that is not represented.
        found = represented(model, examples, order if held.get(name) else order[:1], settings)
        rows[name] = {
            modality: part if modality in held.get(name, ()) else _blank(part, len(order))
            for modality, part in sorted(found.items())
        }
    return Exchanged(ids, rows)


def _blank(rows: Rows, size: int) -> Rows:
    return Rows(rows.vectors.new_zeros(size, rows.vectors.shape[1]), torch.zeros(size, dtype=torch.bool))
