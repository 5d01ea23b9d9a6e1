"""The router: which experts serve a task, computed from the descriptions of the task and its modalities (FedKIM Eq. 4).

α = softmax(MLP(Pool(β))), β = softmax(QKᵀ/√d_k)V. Queries come from the modality description, keys and values from the
task description. Both are embedded by the LLM's frozen table. A task has one α, shared by all layers and tokens.

Eq. 4 prints no softmax around QKᵀ/√d_k and no normalisation: that is ``recipe = "paper"`` (``attention="linear"``,
``normalise_embeddings=False``). The released code has the softmax, and one linear layer in place of the MLP.

Deviation: the default has the softmax, as the released code, and RMS-normalises the embeddings first. Token embeddings
are small: without it β is near zero at first, and α starts uniform. Padding is masked in attention and pooling.
Deviation: training can reward the mutual information between task and expert (Chen et al. 2023, Mod-Squad).
Descriptions share most words, and without the reward α hardly differs between tasks. Off by default: docs/results.md.
"""

from __future__ import annotations

import math
from typing import NamedTuple, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from medfed.study.injection import RouterSettings


class Description(NamedTuple):
    """Embedded descriptions of some tasks, padded to one length."""

    embeddings: Float[Tensor, "task length width"]
    mask: Bool[Tensor, "task length"]


class Router(nn.Module):
    """Expert weights of tasks, for an LLM of the hidden size ``width``."""

    def __init__(self, width: int, num_experts: int, settings: RouterSettings) -> None:
        super().__init__()
        self.settings, key_dim = settings, settings.key_dim or width
        self.query, self.key, self.value = (nn.Linear(width, key_dim, bias=False) for _ in range(3))
        hidden = [nn.Linear(key_dim, settings.hidden_dim), nn.GELU()] if settings.hidden_dim else []
        self.mlp = nn.Sequential(*hidden, nn.Linear(settings.hidden_dim or key_dim, num_experts))

    def forward(self, task: Description, modality: Description) -> Float[Tensor, "task expert"]:
        """Return α; every row sums to 1."""
        source = modality if self.settings.use_modality_description else task
        target = task if self.settings.use_task_description else modality
        queries, keys = self._normalised(source.embeddings), self._normalised(target.embeddings)
        scores = self.query(queries) @ self.key(keys).transpose(1, 2) / math.sqrt(self.query.out_features)
        beta = self._attention(scores, target.mask) @ self.value(keys)
        valid = source.mask.unsqueeze(-1)
        pooled = (beta * valid).sum(1) / valid.sum(1)
        return cast(Tensor, self.mlp(pooled).softmax(-1))

    def _normalised(self, embeddings: Float[Tensor, "task length width"]) -> Float[Tensor, "task length width"]:
        values = embeddings.float()
        return F.rms_norm(values, values.shape[-1:], eps=1e-12) if self.settings.normalise_embeddings else values

    def _attention(
        self, scores: Float[Tensor, "task query key"], mask: Bool[Tensor, "task key"]
    ) -> Float[Tensor, "task query key"]:
        linear, padding = self.settings.attention == "linear", ~mask.unsqueeze(1)
        return scores.masked_fill(padding, 0.0) if linear else scores.masked_fill(padding, -torch.inf).softmax(-1)


def entropy(alpha: Float[Tensor, "task expert"]) -> Float[Tensor, " task"]:
    """Return the entropy of every task's expert weights in nats: ln P when uniform, 0 for a single expert."""
    return cast(Tensor, torch.special.entr(alpha.clamp(min=1e-12)).sum(-1))  # at 0 itself the gradient is infinite


def mutual_information(alpha: Float[Tensor, "task expert"]) -> Float[Tensor, ""]:
    """Return the mutual information of task and expert in nats, tasks being equally likely: 0 for equal rows."""
    return entropy(alpha.mean(0, keepdim=True)).squeeze(0) - entropy(alpha).mean()


def total_variation(alpha: Float[Tensor, "task expert"]) -> float | None:
    """Return the mean total-variation distance over all pairs of tasks: 0 for equal rows, None for a single task."""
    if len(alpha) < 2:
        return None
    rows, columns = torch.triu_indices(len(alpha), len(alpha), offset=1)
    return (alpha[rows] - alpha[columns]).abs().sum(-1).mean().item() / 2
