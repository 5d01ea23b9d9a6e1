"""The gate: every update is checked before it is summed, and what fails never touches the model.

One client with a NaN, a tensor of shape (1,) that broadcasts, a stale base or 10⁹ claimed examples is enough to spoil a
mean. The gate takes nothing on trust but the sender's identity, which the exchange vouches for. It does not stop a
client that lies within the rules.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from medfed.core.errors import UpdateRejectedError
from medfed.core.types import Broadcast, Params, Update, component
from medfed.federated.compression import ERROR, has_scales, largest_errors, reported_errors
from medfed.federated.state import Weights
from medfed.study.federation import UploadDtype

MOST_STEPS = 2**31
"""More steps than any round has; algorithms compute with the number."""
MOST_SCALE = torch.finfo(torch.float32).max / 2**7
"""The largest scale with which every int8 value stays finite in float32."""


class TensorSpec(NamedTuple):
    """Shape and dtype of a tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype


class Manifest(NamedTuple):
    """The form of an update as it travels, tensor by tensor."""

    delta: Mapping[str, TensorSpec]
    buffers: Mapping[str, TensorSpec]
    state: Mapping[str, TensorSpec]
    scales: Mapping[str, TensorSpec] = {}  # of the int8 tensors of `delta`
    errors: frozenset[str] = frozenset()  # components whose rounding error the client must tell

    @classmethod
    def of(cls, params: Params, buffers: Params, state: Params, upload_dtype: UploadDtype = "float32") -> Manifest:
        """Return the manifest for a model, and an algorithm whose uploads carry tensors like ``state``."""
        delta = {name: TensorSpec(tuple(value.shape), delta_dtype(value.dtype)) for name, value in params.items()}
        scales = {}
        if upload_dtype == "bfloat16":
            delta = {name: TensorSpec(spec.shape, torch.bfloat16) for name, spec in delta.items()}
        elif upload_dtype == "int8":
            by_row = {name: spec.shape for name, spec in delta.items() if has_scales(spec.shape)}
            delta |= {name: TensorSpec(shape, torch.int8) for name, shape in by_row.items()}
            scales = {name: TensorSpec(shape[:1], torch.float32) for name, shape in by_row.items()}
        errors = frozenset(map(component, delta)) if upload_dtype != "float32" else frozenset[str]()
        return cls(delta, _specs(buffers), _specs(state), scales, errors)


class Gate:
    """The gate of one round: ``registered`` are the examples of its sampled clients, ``base`` the model sent out."""

    def __init__(self, manifest: Manifest, registered: Mapping[str, int], round: int, base: str) -> None:
        self._manifest, self._registered, self._round, self._base = manifest, registered, round, base
        self._components = {component(name) for name in (*manifest.delta, *manifest.buffers)}
        self._seen: set[str] = set()

    def check(self, sender: str, update: Update) -> None:
        """Let ``update`` pass or raise; a client has one try a round, and the exchange vouches for ``sender``.

        Raises UpdateRejectedError, naming client, tensor or field, and reason.
        """
        self._check_sender(sender, update)
        self._check_counts(sender, update)
        for kind in ("delta", "scales", "buffers", "state"):
            specs = getattr(self._manifest, kind)
            _check_all(f"client {sender!r}", kind.removesuffix("s"), getattr(update, kind), specs)
        self._check_rounding(sender, update)

    def _check_sender(self, sender: str, update: Update) -> None:
        if sender not in self._registered:
            raise _rejected(sender, "this client was not sampled this round", hint="check the registered client ids")
        if update.client != sender:
            raise _rejected(sender, f"it answers for client {update.client!r}", hint="check the client's id")
        if sender in self._seen:
            raise _rejected(sender, f"it has already answered round {self._round}", hint="send one update a round")
        self._seen.add(sender)
        if update.round != self._round:
            what = f"it answers round {update.round}, this is round {self._round}"
            raise _rejected(sender, what, hint="answer the last broadcast")
        if update.base != self._base:
            what = f"it started from model {update.base[:12]!r}, this round's is {self._base[:12]!r}"
            raise _rejected(sender, what, hint="train from the broadcast weights")

    def _check_rounding(self, sender: str, update: Update) -> None:
        for name, scales in update.scales.items():
            low, high = map(float, scales.aminmax()) if scales.numel() else (0.0, 0.0)
            if not 0 <= low <= high <= MOST_SCALE:
                what = f"scale {name!r} is {low:.3g} to {high:.3g}, allowed is 0 to {MOST_SCALE:.3g}"
                raise _rejected(sender, what, hint="look at the client's training log")
        reported = reported_errors(update)
        if missing := sorted(self._manifest.errors - reported.keys()):
            hint = "both sides must run the same version of medfed"
            raise _rejected(sender, f"it does not tell the rounding error of {missing[0]!r}", hint=hint)
        most = largest_errors(update) if reported else {}
        for part, square in reported.items():
            if part not in self._manifest.errors or not 0 <= square <= most[part]:
                what = f"the rounding error of {part!r} is {square!r}, which no rounding here gives"
                raise _rejected(sender, what, hint="both sides must run the same study")

    def _check_counts(self, sender: str, update: Update) -> None:
        limit = self._registered[sender]
        hint = f"num_examples is the client's training examples, 1 to the registered {limit}"
        if not _is_count(update.num_examples, 1, limit):
            raise _rejected(sender, f"num_examples is {update.num_examples!r}, allowed is 1 to {limit}", hint=hint)
        if not _is_count(update.num_steps, 1, MOST_STEPS):
            what = f"num_steps is {str(update.num_steps)[:40]}, allowed is 1 to {MOST_STEPS}"
            raise _rejected(sender, what, hint="train first")
        for part, count in update.examples.items():
            if part not in self._components:
                raise _rejected(sender, f"examples for component {part!r}, which the model lacks", hint=hint)
            if not _is_count(count, 0, limit):
                raise _rejected(sender, f"examples of {part!r} is {count!r}, allowed is 0 to {limit}", hint=hint)
        for name, value in update.metrics.items():
            finite = isinstance(value, int | float) and math.isfinite(value)
            if not finite and not name.startswith(ERROR):  # those are looked at behind what they are of
                raise _rejected(sender, f"metric {name!r} is {value}", hint="look at the client's training log")


def delta_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype in which the change of a parameter travels: at least float32."""
    return torch.promote_types(dtype, torch.float32)


def _specs(tensors: Params) -> dict[str, TensorSpec]:
    return {name: TensorSpec(tuple(value.shape), value.dtype) for name, value in tensors.items()}


def _is_count(value: object, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def check_broadcast(broadcast: Broadcast, local: Weights) -> None:
    """Let a broadcast pass whose weights are finite, with the names, shapes and dtypes of those of one's own model.

    Raises UpdateRejectedError, naming the tensor.
    """
    _check_all("the server", "parameter", broadcast.params, _specs(local.params))
    _check_all("the server", "buffer", broadcast.buffers, _specs(local.buffers))
    _check_all("the server", "state", broadcast.state, _specs(broadcast.state))


def _check_all(who: str, kind: str, tensors: Params, specs: Mapping[str, TensorSpec]) -> None:
    if missing := sorted(specs.keys() - tensors.keys()):
        raise _refused(who, f"{kind} {missing[0]!r} is missing ({len(missing)} in all)", hint=_SAME_MODEL)
    if extra := sorted(tensors.keys() - specs.keys()):
        raise _refused(who, f"{kind} {extra[0]!r} is not in the manifest ({len(extra)} in all)", hint=_SAME_MODEL)
    for name, spec in specs.items():
        _check_tensor(who, f"{kind} {name!r}", tensors[name], spec)


def _check_tensor(who: str, what: str, value: Tensor, spec: TensorSpec) -> None:
    if tuple(value.shape) != spec.shape:
        raise _refused(who, f"{what} has shape {tuple(value.shape)}, wanted {spec.shape}", hint=_SAME_MODEL)
    if value.dtype != spec.dtype or value.layout != torch.strided:
        what += f" is {value.dtype}, {value.layout}, wanted {spec.dtype}, torch.strided"
        raise _refused(who, what, hint=_SAME_MODEL)
    # A sum with a value that is not finite is never finite, and costs one pass; one that overflows is looked at again.
    if not bool(torch.isfinite(value.sum())) and not bool(torch.isfinite(value).all()):
        what += f" has {int((~torch.isfinite(value)).sum())} of {value.numel()} values that are not finite"
        raise _refused(who, what, hint="lower the learning rate or set client.max_grad_norm")


def _rejected(sender: str, what: str, hint: str) -> UpdateRejectedError:
    return _refused(f"client {sender!r}", what, hint)


def _refused(who: str, what: str, hint: str) -> UpdateRejectedError:
    return UpdateRejectedError(what, where=who, hint=hint)


_SAME_MODEL = "client and server must build the same model from the same study"
