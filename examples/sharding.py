"""Sharding an injected LLM over processes with accelerate's FSDP 2 (``deploy/fsdp.json``): base and experts.

Each process holds its part of every decoder layer, frozen weights and experts alike, and gathers one layer at a time.
Embedding table, router and projectors stay whole everywhere, because they serve outside the LLM's forward pass. FSDP
averages the gradients of the experts; those of router and projectors are averaged here.

    optimizer = shard(injected, accelerator, AdamW(expert_params(injected)))
    rest = AdamW(whole_params(injected))
    loss.backward()
    average_gradients(whole_params(injected), accelerator)

Every process sees its share of a batch: with shares of one size, a step is that of one process over the whole batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from medfed.core.errors import RunError
from medfed.injection.experts import RoutedLoraModel
from medfed.injection.model import InjectedModel


def expert_params(injected: InjectedModel) -> list[nn.Parameter]:
    """Return the experts' A and B, which are sharded."""
    return [value for value in injected.llm.parameters() if value.requires_grad]


def whole_params(injected: InjectedModel) -> list[nn.Parameter]:
    """Return the router's and the projectors' weights, which stay whole in every process."""
    inside = set(injected.llm.parameters())
    return [value for value in injected.parameters() if value.requires_grad and value not in inside]


def shard(injected: InjectedModel, accelerator: Accelerator, optimizer: Optimizer) -> Optimizer:
    """Shard base and experts, in place, and return ``optimizer`` over the shards.

    The foundation gives its unsharded weights up: from here on it reads the embedding table of the sharded LLM.

    Args:
        injected: an LLM with experts, equal in every process.
        accelerator: started with ``accelerate launch --config_file deploy/fsdp.json``.
        optimizer: over :func:`expert_params`, and over nothing else.

    Raises:
        RunError: accelerate does not use FSDP 2.
    """
    if not accelerator.is_fsdp2:
        raise RunError(
            f"accelerate runs {accelerator.distributed_type.value}, not FSDP version 2",
            where="accelerate",
            hint="start with `accelerate launch --config_file deploy/fsdp.json`; it shards on accelerators only",
        )
    llm: nn.Module = injected.llm
    table: nn.Module = llm.get_input_embeddings()  # type: ignore[operator]
    for whole in (table, injected.projectors, injected.routed and injected.routed.router):
        if whole is not None:
            whole.to(accelerator.device)
    accelerator.state.fsdp_plugin.ignored_modules = [table]
    # Or accelerate makes a unit of the table, which could not be called before the LLM.
    llm.get_input_embeddings = lambda: None  # type: ignore[assignment]
    try:
        _, prepared = accelerator.prepare(llm, optimizer)
    finally:
        del llm.get_input_embeddings
    injected.foundation.model = llm
    sharded: Optimizer = prepared
    return sharded


@torch.no_grad()
def average_gradients(params: Sequence[nn.Parameter], accelerator: Accelerator) -> None:
    """Average the gradients of ``params`` over all processes; a process without one counts as zero.

    Where no process has a gradient there is none afterwards, so that optimizers pass the parameter over.
    """
    grads = [torch.zeros_like(value) if value.grad is None else value.grad for value in params]
    there = torch.tensor([float(value.grad is not None) for value in params], device=accelerator.device)
    flat = accelerator.reduce(torch.cat([there, *(grad.flatten().float() for grad in grads)]), reduction="mean")
    present, *parts = flat.split([len(params), *(grad.numel() for grad in grads)])
    for value, some, mean in zip(params, present.tolist(), parts, strict=True):
        value.grad = mean.view_as(value).to(value.dtype) if some else None


def adapter_state(injected: InjectedModel) -> dict[str, Tensor]:
    """Gather the whole adapter, for ``save_experts(..., state=...)``; every process must call it."""
    tensors = {} if injected.adapted is None else injected.adapted.state_dict()
    return {
        name: value.full_tensor() if isinstance(value, DTensor) else value
        for name, value in tensors.items()
        if RoutedLoraModel.prefix in name or ".router." in name
    }
