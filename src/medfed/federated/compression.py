"""Changes of the weights in fewer bytes: bfloat16, or int8 with a float32 scale per row; what is never sent is weights.

A client rounds y − x before it leaves, and the server restores it behind the gate. One process, workers and a network
do the same, so all give the same bits. Buffers and the algorithm's own tensors stay exact. SCAFFOLD's c must stay the
mean of its c_i, statistics replace and are no change, and counters are counts. In int8, tensors of one dimension
(biases, scales of a normalisation) stay exact too: a scale per row would outweigh its saving.

Rounding is stochastic, drawn from (seed, client, round, tensor): to one of the two neighbours, with the probability
that makes the expectation exact. So the errors e_i of the clients are independent with mean 0, entry by entry. In their
mean they average out, and an entry below half a step is not lost in every round:

    E‖Σ w_i e_i / W‖² = Σ w_i² E‖e_i‖² / W²    (the cross terms ⟨e_i, e_j⟩ are 0 in expectation).

Every client reports ‖e_i‖² of each component of the model. So the server knows the error of the mean
(:class:`UploadError`) and never sees an exact change. Rounding to nearest has about half the squared error at each
client and none of this.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from medfed.core.torch_rng import torch_rng
from medfed.core.types import Update, component
from medfed.federated.aggregation import Average, weight
from medfed.study.federation import UploadDtype

STEPS = 127
"""Steps of a row's scale from 0 to its largest entry."""
SLACK, TINY = 1.01, 1e-79
"""Room in a bound on errors: for rounding of the scales themselves, and for the square of what is next to zero."""
ERROR = "upload_error."
"""Prefix of the metric with a component's squared error."""


def compressed(update: Update, dtype: UploadDtype, seed: int) -> Update:
    """Return ``update`` with its change rounded to ``dtype``, and each component's squared error among its metrics."""
    if dtype == "float32":
        return update
    delta, scales = dict[str, Tensor](), dict[str, Tensor]()
    errors = dict.fromkeys(sorted({component(name) for name in update.delta}), 0.0)
    for name, value in update.delta.items():
        generator = torch_rng(seed, update.client, update.round, "upload", name)
        if dtype == "bfloat16":
            delta[name] = to_bfloat16(value, generator)
        elif has_scales(tuple(value.shape)):
            delta[name], scales[name] = to_int8(value, generator)
        else:
            delta[name] = value
        lost = restore(delta[name], scales.get(name), value.dtype).to(torch.float64) - value
        errors[component(name)] += float(lost.square().sum())
    reported = {f"{ERROR}{part}": error for part, error in errors.items()}
    return replace(update, delta=delta, scales=scales, metrics={**update.metrics, **reported})


def restored(update: Update, dtypes: Mapping[str, torch.dtype]) -> Update:
    """Return ``update`` with its change in ``dtypes``, one for every tensor; one that was not rounded as it is."""
    if not update.scales and all(value.dtype == dtypes[name] for name, value in update.delta.items()):
        return update
    delta = {name: restore(value, update.scales.get(name), dtypes[name]) for name, value in update.delta.items()}
    return replace(update, delta=delta, scales={})


def has_scales(shape: tuple[int, ...]) -> bool:
    """Whether a tensor of this shape travels in int8: it has rows, and of two entries at least."""
    return len(shape) > 1 and math.prod(shape) > 0 and math.prod(shape[1:]) > 1


def to_bfloat16(value: Float[Tensor, "*shape"], generator: torch.Generator) -> Float[Tensor, "*shape"]:
    """Round to one of the two bfloat16 neighbours: random bits are added below the mantissa, and cut off."""
    single = value.to(torch.float32)
    if not bool(torch.isfinite(single).all()):
        return single.to(torch.bfloat16)  # the gate will refuse it; adding to the bits of a NaN could hide it
    noise = torch.randint(0, 1 << 16, single.shape, generator=generator, dtype=torch.int32)
    bits = noise.add_(single.contiguous().view(torch.int32)).bitwise_and_(-1 << 16)
    return bits.view(torch.float32).to(torch.bfloat16)


def to_int8(value: Float[Tensor, "row ..."], generator: torch.Generator) -> tuple[Tensor, Float[Tensor, " row"]]:
    """Round every row to steps of its largest entry / :data:`STEPS`; return the steps and what one is worth."""
    rows = value.reshape(len(value), -1)
    scales = (rows.abs().amax(1) / STEPS).to(torch.float32)
    steps = rows / torch.where(scales == 0, 1, scales)[:, None].to(rows.dtype)
    steps += torch.rand(steps.shape, generator=generator, dtype=steps.dtype)
    return steps.floor_().clamp_(-STEPS, STEPS).to(torch.int8).reshape(value.shape), scales


def restore(value: Tensor, scales: Float[Tensor, " row"] | None, dtype: torch.dtype) -> Tensor:
    """Return a rounded tensor in ``dtype``; ``scales`` are those of an int8 tensor."""
    if scales is None:
        return value.to(dtype)
    return value.to(dtype) * scales.to(dtype).reshape(-1, *[1] * (value.ndim - 1))


class UploadError:
    """The error of a round's mean update, from what the clients report.

    The mean is that of Eq. 3, by examples and component, whatever the algorithm makes of the updates.
    """

    def __init__(self) -> None:
        self._mean = Average()
        self._squares: dict[str, float] = {}
        self._weights: dict[str, int] = {}

    def watched(self, updates: Iterator[Update]) -> Iterator[Update]:
        """Yield ``updates``, restored, and count them in."""
        for update in updates:
            self._mean.add(update.delta, update)
            for part, square in reported_errors(update).items():
                share = weight(update, part)
                self._squares[part] = self._squares.get(part, 0.0) + share**2 * square
                self._weights[part] = self._weights.get(part, 0) + share
            yield update
            del update  # before the next one comes: memory holds one

    def relative(self) -> float | None:
        """Return √(Σ w_i²‖e_i‖²/W²) / ‖mean update‖ over all components; None if nothing was sent or nothing moved."""
        squares = [total / self._weights[part] ** 2 for part, total in self._squares.items() if self._weights[part]]
        size = math.fsum(float(value.square().sum()) for value in self._mean.means().values())
        error = math.sqrt(math.fsum(squares) / size) if size > 0 else math.inf
        return error if math.isfinite(error) else None


def reported_errors(update: Update) -> dict[str, float]:
    """Return the squared errors that a client reports, by component."""
    return {name.removeprefix(ERROR): value for name, value in update.metrics.items() if name.startswith(ERROR)}


def largest_errors(update: Update) -> dict[str, float]:
    """Return what each component's squared error can be at most, given what travels: every entry off by one step."""
    most = dict.fromkeys(map(component, update.delta), 0.0)
    for name, value in update.delta.items():
        if name in update.scales:
            square = float(update.scales[name].to(torch.float64).square().sum()) * value[0].numel()
        elif value.dtype == torch.bfloat16:
            square = float(torch.linalg.vector_norm(value, dtype=torch.float64)) ** 2 * 2.0**-14
        else:
            continue
        most[component(name)] += SLACK * square + TINY * value.numel()
    return most
