"""A model's representations and contrasts between them, for MOON (Li et al. 2021) and CreamFL (Yu et al. 2023).

A row of all tensors of a call is the same example. Rows whose ``has`` is false (the modality is absent) count nowhere.

CreamFL's parties send each other representations of the public examples, by task and modality. Rows are sorted by the
number of the example's id, so both sides can align them. Every party sees a public example in the same view
(:func:`view`). As named tensors, ``examples/<task>`` are these numbers and ``representations/<task>/<modality>`` the
vectors. ``sent/<task>/<modality>`` tells which rows count: a client without a modality or a task sends zeros.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.func import functional_call

from medfed.core.errors import DataError, StudyError
from medfed.core.rng import numpy_rng, seed_of
from medfed.core.types import Batch, Params
from medfed.federated.local import autocast
from medfed.federated.state import Weights, join, split
from medfed.models.base import FederatedModel
from medfed.study.federation import ClientSettings
from medfed.tasks.base import Task, TaskSet, trainable


class _Representing(nn.Module):
    """Makes ``representations`` the forward of a module, because ``functional_call`` knows no other method."""

    def __init__(self, model: FederatedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, task: Task, batch: Batch) -> dict[str, Tensor]:
        return self.model.representations(task, batch)


def federated(model: nn.Module | None) -> FederatedModel:
    """Return ``model`` as one that gives representations. Raises StudyError if it gives none."""
    if not isinstance(model, FederatedModel):
        what = f"{type(model).__name__} gives no representations, which this algorithm contrasts"
        hint = "choose a model of the registry, or an algorithm that does without (fedavg)"
        raise StudyError(what, where="algorithm", hint=hint)
    return model


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put ``model`` in eval mode inside the block: no dropout, and normalisation statistics stay as they are."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def representations_at(
    model: nn.Module, weights: Weights, task: Task, batch: Batch, settings: ClientSettings
) -> dict[str, Float[Tensor, "batch dim"]]:
    """Return the representations of ``batch`` at other ``weights``, in the model's present mode, at least in float32.

    Buffers are copied first, so a model in training mode changes neither its own statistics nor those given.
    """
    buffers = {name: value.clone() for name, value in weights.buffers.items()}
    tensors = {f"model.{name}": value for part in (weights.params, buffers) for name, value in part.items()}
    with autocast(settings):
        outputs = functional_call(_Representing(federated(model)), tensors, (task, batch))
    return {name: _wide(value) for name, value in cast(dict[str, Tensor], outputs).items()}


def unit_representations(
    model: nn.Module, task: Task, batch: Batch, settings: ClientSettings
) -> dict[str, Float[Tensor, "batch dim"]]:
    """Return the representations of ``batch`` under the model's own weights, as unit vectors; zeros where absent."""
    with autocast(settings):
        outputs = federated(model).representations(task, batch)
    return {name: F.normalize(_wide(value), dim=-1) for name, value in outputs.items()}


def ids_of(examples: tuple[str, ...] | list[str]) -> Int[Tensor, " example"]:
    """Return example ids as whole numbers, by which two parties align their public examples."""
    return torch.tensor([seed_of("example", example) for example in examples], dtype=torch.int64)


def aligned(examples: TaskSet) -> tuple[Int[np.ndarray, " example"], Int[Tensor, " example"]]:
    """Return the positions of public examples in the order of :func:`ids_of`, the same at every party, and the ids."""
    ids, order = ids_of(examples.examples).sort()
    return order.numpy(), ids


def view(examples: TaskSet, positions: Int[np.ndarray, " batch"]) -> Batch:
    """Return public examples as every party sees them: augmented (cropped, say) as drawn from their ids."""
    batch, task = examples.batch(positions), trainable(examples.task)
    rows = [task.augment(batch.row(i), numpy_rng("public view", example)) for i, example in enumerate(batch.examples)]
    return Batch(
        {name: torch.cat([row.inputs[name] for row in rows]) for name in batch.inputs},
        {name: torch.cat([row.present[name] for row in rows]) for name in batch.present},
        torch.cat([row.target for row in rows]),
        batch.examples,
        batch.questions,
    )


@torch.no_grad()
def represented(
    model: nn.Module, examples: TaskSet, order: Int[np.ndarray, " example"], settings: ClientSettings
) -> dict[str, Rows]:
    """Return, by modality, the representations of ``examples`` in ``order``, in eval mode, float32, on the CPU."""
    vectors: dict[str, list[Tensor]] = {}
    present: dict[str, list[Tensor]] = {}
    device = next(model.parameters()).device
    with evaluating(model):
        for first in range(0, len(order), settings.batch_size):
            batch = view(examples, order[first : first + settings.batch_size])
            for name, value in unit_representations(model, examples.task, batch.to(device), settings).items():
                vectors.setdefault(name, []).append(value.float().cpu())
                present.setdefault(name, []).append(batch.present[name])
    return {name: Rows(torch.cat(parts), torch.cat(present[name])) for name, parts in vectors.items()}


def _wide(value: Tensor) -> Tensor:
    return value.to(torch.promote_types(value.dtype, torch.float32))


ROWS_AT_ONCE = 1024
"""Rows of a similarity matrix that are held in memory at a time."""


class Rows(NamedTuple):
    """Representations of a set of examples in one modality."""

    vectors: Float[Tensor, "example dim"]  # unit vectors; zeros where the modality is absent
    has: Bool[Tensor, " example"]  # whether the example has one


def pull_push(
    near: Float[Tensor, " batch"], far: Float[Tensor, " batch"], temperature: float
) -> Float[Tensor, " batch"]:
    """Return −log(eⁿ/(eⁿ + eᶠ)) with n = near/τ and f = far/τ: low when ``near`` is the larger similarity."""
    return F.softplus((far - near) / temperature)


def matching_loss(
    live: Float[Tensor, "batch dim"], rows: Int[Tensor, " batch"], others: Sequence[Rows], temperature: float
) -> Float[Tensor, " batch"]:
    """Return −log(exp(zᵀg_k/τ) / Σ_j exp(zᵀg_j/τ)), the mean over ``others`` that have example k; inter-modal.

    z are the batch's representations ``live``, g the global ones in ``others``, and k is each one's row of them.
    """
    total, count = live.new_zeros(len(live)), live.new_zeros(len(live))
    for vectors, has in others:
        logits = (live @ vectors.T / temperature).masked_fill(~has, -torch.inf)
        known = has[rows]
        # An unknown pair would be ∞; its row is replaced before the logarithm so that no gradient becomes NaN.
        safe = torch.where(known.unsqueeze(1), logits, torch.zeros_like(logits))
        total = total + F.cross_entropy(safe, rows, reduction="none") * known
        count = count + known
    return total / count.clamp(min=1)


def matching_score(live: Float[Tensor, "example dim"], others: Sequence[Rows]) -> Float[Tensor, " example"]:
    """Return s_k = log(exp(z_kᵀg_k) / Σ_{j≠k} exp(z_kᵀg_j)), the mean over ``others`` that have example k; else 0.

    This is the score of global-local contrastive aggregation. Vectors are unit vectors, so it lies in
    ±2 − log(examples − 1) and its exponential can be taken as it is.
    """
    total, count = live.new_zeros(len(live)), live.new_zeros(len(live))
    for vectors, has in others:
        for first in range(0, len(live), ROWS_AT_ONCE):
            rows = torch.arange(first, min(first + ROWS_AT_ONCE, len(live)), device=live.device)
            logits = live[rows] @ vectors.T
            paired = logits.gather(1, rows.unsqueeze(1)).squeeze(1)
            rest = logits.masked_fill(~has, -torch.inf).scatter(1, rows.unsqueeze(1), -torch.inf).logsumexp(1)
            known = has[rows] & rest.isfinite()
            total[rows] += torch.where(known, paired - rest, torch.zeros_like(rest))
            count[rows] += known
    return total / count.clamp(min=1)


class Ensemble:
    """A streaming mean of the clients' representations of one modality, each row weighted by the softmax of its score.

    The score is taken against ``others``. Float64; memory holds one sum, however many clients there are.
    """

    def __init__(self, others: Sequence[Rows]) -> None:
        self._others = [Rows(vectors.double(), has) for vectors, has in others]
        shape = self._others[0].vectors.shape
        self._sums = torch.zeros(shape, dtype=torch.float64)
        self._weights = torch.zeros(shape[0], dtype=torch.float64)

    def add(self, vectors: Float[Tensor, "example dim"], sent: Bool[Tensor, " example"]) -> None:
        """Add a client's representations of the examples ``sent``; they are scaled to unit length, whatever it sent."""
        unit = F.normalize(vectors.double(), dim=-1)
        weights = matching_score(unit, self._others).exp() * sent
        self._weights += weights
        self._sums += weights.unsqueeze(1) * unit

    def mean(self) -> Rows:
        """Return Σ_c softmax_c(s) z_c of every example, and which of them any client sent."""
        has = self._weights > 0
        return Rows((self._sums / self._weights.where(has, 1.0).unsqueeze(1)).float(), has)


GROUPS = ("examples", "representations", "sent")


class Exchanged(NamedTuple):
    """Representations of the public examples."""

    ids: Mapping[str, Int[Tensor, " example"]]  # task → number of every example's id, ascending
    rows: Mapping[str, Mapping[str, Rows]]  # task → modality → representations in that order

    def tensors(self) -> dict[str, Tensor]:
        """Flatten to named tensors; :meth:`from_tensors` is the inverse."""
        named = {f"{task}/{name}": rows for task, parts in self.rows.items() for name, rows in parts.items()}
        vectors, sent = ({name: rows[part] for name, rows in named.items()} for part in (0, 1))
        return join({"examples": self.ids, "representations": vectors, "sent": sent})

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
        rows = self.rows[task][modality]
        width = rows.vectors.shape[1]
        others = [other for name, other in self.rows[task].items() if name != modality]
        return [other for other in others if other.vectors.shape[1] == width] or [rows]

    def find(self, task: str, examples: tuple[str, ...]) -> Int[Tensor, " batch"]:
        """Return the rows of ``examples``. Raises DataError if one of them is not among them."""
        known = self.ids[task]
        wanted = ids_of(examples).to(known.device)
        rows = torch.searchsorted(known, wanted).clamp(max=len(known) - 1)
        if bool((known[rows] != wanted).any()):
            hint = "give every client the server's public examples"
            raise DataError("a public example here is unknown to the server", where=f"task {task!r}", hint=hint)
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
        outputs = represented(model, examples, order if held.get(name) else order[:1], settings)
        rows[name] = {
            modality: part if modality in held.get(name, ()) else _blank(part, len(order))
            for modality, part in sorted(outputs.items())
        }
    return Exchanged(ids, rows)


def _blank(rows: Rows, size: int) -> Rows:
    return Rows(rows.vectors.new_zeros(size, rows.vectors.shape[1]), torch.zeros(size, dtype=torch.bool))
