"""A client's optimizer: its settings, how it is made, and its slots (moments, momentum) as named tensors.

FedKIM trains its clients with a learning rate of 1e-4. Slots are dropped after every round unless ``reset_optimizer``
is off; then they stay with the client and travel into checkpoints, never to the server.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from medfed.core.types import Params
from medfed.study.federation import ClientSettings


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
