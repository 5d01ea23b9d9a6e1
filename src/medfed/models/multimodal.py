"""The client's model: one encoder per modality shared by all tasks, mean fusion, one head per task (FedKIM Eq. 2)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from medfed.core.types import Batch
from medfed.models.base import Encoder, Encoders, FederatedModel, Modalities, Tasks
from medfed.tasks.base import Task, closed

Tokens = Float[Tensor, "batch tokens dim"]


class MultimodalModel(FederatedModel):
    """Encoders, fusion and heads. State names start with ``encoders.<modality>.`` or ``heads.<task>.``.

    An absent modality contributes nothing to the fused feature and its encoder gets no gradient from that example.
    """

    def __init__(self, encoders: Encoders, modalities: Modalities, tasks: Tasks) -> None:
        super().__init__()
        self.tasks = {task.name: closed(task) for task in tasks}
        used = sorted({name for task in tasks for name in task.modalities})
        self.encoders = nn.ModuleDict({name: encoders[name].build(modalities[name]) for name in used})
        widths = {task.name: sum(encoders[name].dim for name in task.modalities) for task in tasks}
        self.heads = nn.ModuleDict({name: task.head(widths[name]) for name, task in self.tasks.items()})

    def tokens(self, modality: str, samples: Float[Tensor, "batch *sample"]) -> Tokens:
        """Encode samples of one modality."""
        return cast(Tensor, self.encoders[modality](samples))

    def representations(self, task: Task, batch: Batch) -> dict[str, Float[Tensor, "batch dim"]]:
        """Return the mean token of every modality of ``task``; zeros where absent."""
        return {name: self._pooled(name, batch) for name in task.modalities}

    def forward(self, task: Task, batch: Batch) -> Float[Tensor, "batch *out"]:
        """Return the outputs of the task's head for the representations, side by side."""
        return cast(Tensor, self.heads[task.name](torch.cat(list(self.representations(task, batch).values()), -1)))

    def decode(self, task: Task, encoded: Mapping[str, Tokens], size: int) -> Float[Tensor, "batch *out"]:
        """Return the outputs of the task's head for the encoder tokens of ``size`` examples."""
        head = self.heads[task.name]
        device, pooled = next(head.parameters()).device, []
        for name in task.modalities:
            width = cast(Encoder, self.encoders[name]).dim
            pooled.append(encoded[name].mean(1) if name in encoded else torch.zeros(size, width, device=device))
        return cast(Tensor, head(torch.cat(pooled, -1)))

    def _pooled(self, modality: str, batch: Batch) -> Float[Tensor, "batch dim"]:
        samples, present = batch.inputs[modality], batch.present[modality]
        if bool(present.all()):
            return self.tokens(modality, samples).mean(1)
        pooled = samples.new_zeros(len(samples), cast(Encoder, self.encoders[modality]).dim)
        if bool(present.any()):
            pooled[present] = self.tokens(modality, samples[present]).mean(1)
        return pooled
