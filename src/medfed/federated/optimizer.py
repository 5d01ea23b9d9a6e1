"""A client's optimizer: its settings, how it is made, and its slots (moments, momentum) as named tensors.

FedKIM trains its clients with a learning rate of 1e-4. Slots are dropped after every round unless ``reset_optimizer``
is off; then they stay with the client and travel into checkpoints, never to the server.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from medfed.types import Params


class ClientSettings(BaseModel):
    """How every client trains.

    Attributes:
        optimizer: ``adam``, ``adamw`` (decoupled decay) or ``sgd``.
        lr: learning rate.
        momentum: of ``sgd`` only.
        weight_decay: L2 for ``adam`` and ``sgd``, decoupled for ``adamw``.
        batch_size: examples per task and step.
        local_epochs: passes over the largest task's examples; smaller tasks repeat.
        local_steps: optimizer steps a round, in place of ``local_epochs``.
        max_grad_norm: gradients are scaled down to this norm; null for no limit.
        reset_optimizer: start every round with fresh slots.
        precision: ``bfloat16`` runs forward and loss under autocast. Weights, gradients and what travels stay in
            float32, and bfloat16 has float32's range, so no loss is scaled and no algorithm sees scaled gradients.
        device: where training runs.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    lr: float = Field(default=1e-4, gt=0)
    momentum: float = Field(default=0.0, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0)
    batch_size: int = Field(default=32, gt=0)
    local_epochs: int = Field(default=1, gt=0)
    local_steps: int | None = Field(default=None, gt=0)
    max_grad_norm: float | None = Field(default=None, gt=0)
    reset_optimizer: bool = True
    precision: Literal["float32", "bfloat16"] = "float32"
    device: str = "cpu"

    @model_validator(mode="after")
    def _check_momentum(self) -> ClientSettings:
        if self.momentum and self.optimizer != "sgd":
            raise ValueError(f"momentum={self.momentum} is for optimizer='sgd'; {self.optimizer} has its own moments")
        return self


def autocast(settings: ClientSettings) -> torch.autocast:
    """Return the context of a forward pass in the client's precision."""
    device = torch.device(settings.device).type
    return torch.autocast(device, torch.bfloat16, enabled=settings.precision == "bfloat16")


def make_optimizer(params: list[nn.Parameter], settings: ClientSettings) -> Optimizer:
    """Return the optimizer over ``params``, in the fused form: one kernel a step instead of several per tensor."""
    if settings.optimizer == "sgd":
        return SGD(params, settings.lr, settings.momentum, weight_decay=settings.weight_decay, fused=True)
    adam = Adam if settings.optimizer == "adam" else AdamW
    return adam(params, settings.lr, weight_decay=settings.weight_decay, fused=True)


def slots_of(optimizer: Optimizer, params: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """Copy the optimizer's slots to the CPU as ``slot/parameter``."""
    return {
        f"{slot}/{name}": value.detach().to("cpu", copy=True)
        for name, param in params.items()
        for slot, value in optimizer.state.get(param, {}).items()
        if isinstance(value, Tensor)
    }


def load_slots(optimizer: Optimizer, params: Mapping[str, nn.Parameter], slots: Params) -> None:
    """Give the optimizer the slots that :func:`slots_of` copied; parameters without any start fresh."""
    for full, value in slots.items():
        slot, _, name = full.partition("/")
        if name in params:
            device = params[name].device
            optimizer.state[params[name]][slot] = value.detach().to(device, copy=True)


def clip(params: list[nn.Parameter], settings: ClientSettings) -> None:
    """Scale the gradients down to ``max_grad_norm``, if there is one."""
    if settings.max_grad_norm is not None:
        torch.nn.utils.clip_grad_norm_(params, settings.max_grad_norm)
