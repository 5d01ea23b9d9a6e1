"""The federated model as named tensors: out of a module, into it, fingerprinted, checkpointed.

The *trainable* parameters and the persistent buffers (BatchNorm statistics) are federated. Frozen parameters never
travel.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from medfed.core.errors import RunError
from medfed.core.types import Params

__all__ = ["FederatedState", "Weights"]


class Weights(NamedTuple):
    """A model's named tensors."""

    params: Params
    buffers: Params


def trainable_params(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the live trainable parameters of ``model`` by name."""
    return {name: value for name, value in model.named_parameters() if value.requires_grad}


def persistent_buffers(model: nn.Module) -> dict[str, Tensor]:
    """Return the live buffers of ``model`` that belong to its state, by name."""
    buffers = dict(model.named_buffers())
    kept = model.state_dict(keep_vars=True) if buffers else {}
    return {name: value for name, value in buffers.items() if name in kept}


def weights_of(model: nn.Module) -> Weights:
    """Copy the federated tensors of ``model`` to the CPU."""
    return Weights(copied(trainable_params(model)), copied(persistent_buffers(model)))


def copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copy ``tensors`` to the CPU, detached."""
    return {name: value.detach().to("cpu", copy=True) for name, value in tensors.items()}


@torch.no_grad()
def load_weights(model: nn.Module, weights: Weights) -> None:
    """Copy ``weights`` into ``model`` in place; raise RunError if names or shapes are not the model's."""
    for kind, live, given in (
        ("parameter", trainable_params(model), weights.params),
        ("buffer", persistent_buffers(model), weights.buffers),
    ):
        hint = "use the checkpoint of this very model"
        for name in sorted(live.keys() ^ given.keys()):
            side = "is missing" if name in live else "is not in the model"
            raise RunError(f"{kind} {side}", where=f"tensor {name!r}", hint=hint)
        for name, value in live.items():
            if value.shape != given[name].shape:
                what = f"{kind} has shape {tuple(given[name].shape)}, the model's is {tuple(value.shape)}"
                raise RunError(what, where=f"tensor {name!r}", hint=hint)
            value.copy_(given[name])


def fingerprint(params: Params, buffers: Params) -> str:
    """Return the SHA-256 in hex of a model's names, dtypes, shapes and bytes, whatever the order of its names."""
    digest = hashlib.sha256()
    for kind, tensors in (("params", params), ("buffers", buffers)):
        for name in sorted(tensors):
            value = tensors[name].detach().cpu().contiguous()
            digest.update(f"{kind}\0{name}\0{value.dtype}\0{tuple(value.shape)}\0".encode())
            digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def num_bytes(*groups: Params) -> int:
    """Return the payload of some named tensors in bytes."""
    return sum(value.numel() * value.element_size() for tensors in groups for value in tensors.values())


@dataclass(frozen=True)
class FederatedState:
    """The server's side of a federation between two rounds."""

    round: int  # rounds completed; 0 at the start
    params: Params  # global trainable parameters
    buffers: Params = field(default_factory=dict)  # global buffers
    server_state: Params = field(default_factory=dict)  # the algorithm's own tensors

    @property
    def weights(self) -> Weights:
        """Parameters and buffers."""
        return Weights(self.params, self.buffers)

    def tensors(self) -> dict[str, Tensor]:
        """Flatten to named tensors for a checkpoint; :meth:`from_tensors` is the inverse."""
        return {"round": torch.tensor(self.round)} | join(
            {"params": self.params, "buffers": self.buffers, "server_state": self.server_state}
        )

    @classmethod
    def from_tensors(cls, tensors: Params) -> FederatedState:
        """Rebuild the state that :meth:`tensors` flattened."""
        rest = {name: value for name, value in tensors.items() if name != "round"}
        parts = split(rest, ("params", "buffers", "server_state"))
        return cls(int(tensors["round"]), parts["params"], parts["buffers"], parts["server_state"])


def join(groups: Mapping[str, Params]) -> dict[str, Tensor]:
    """Flatten groups of named tensors to ``group/name``."""
    return {f"{group}/{name}": value for group, tensors in groups.items() for name, value in tensors.items()}


def group(tensors: Params, name: str) -> dict[str, Tensor]:
    """Return the tensors that :func:`join` put under ``name``."""
    start = f"{name}/"
    return {key.removeprefix(start): value for key, value in tensors.items() if key.startswith(start)}


def split(tensors: Params, groups: tuple[str, ...]) -> dict[str, dict[str, Tensor]]:
    """Undo :func:`join`; all ``groups`` are in the result. Raises RunError if a tensor belongs to none."""
    parts: dict[str, dict[str, Tensor]] = {group: {} for group in groups}
    for full, value in tensors.items():
        group, _, name = full.partition("/")
        if group not in parts:
            what, hint = f"not one of the groups {', '.join(groups)}", "use a checkpoint written by this version"
            raise RunError(what, where=f"tensor {full!r}", hint=hint)
        parts[group][name] = value
    return parts
