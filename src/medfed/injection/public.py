"""The server's own share of the federated training: encoders and heads learn the public labels, as at a client.

Deviation: FedKIM's server trains the encoders through the LLM. Measured (docs/results.md), the LLM's loss on few public
examples harms them, while the heads' loss helps both the federation and the LLM that learns from it.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from medfed.federated.state import trainable
from medfed.models.multimodal import MultimodalModel
from medfed.rng import numpy_rng, torch_seeded
from medfed.tasks.base import TaskSet, closed

BATCH_SIZE = 8
"""Examples per task and step."""


def train_public(
    model: MultimodalModel, sets: Mapping[str, TaskSet], lr: float, device: str, seed: int, round_number: int
) -> None:
    """Train ``model`` in place for one pass over the largest set; smaller ones repeat. Chance comes from the key."""
    optimizer = torch.optim.Adam(trainable(model).values(), lr, fused=True)
    steps = max(-(-len(examples) // BATCH_SIZE) for examples in sets.values())
    orders = {
        name: _order(len(examples), steps * BATCH_SIZE, numpy_rng(seed, "public", round_number, name))
        for name, examples in sorted(sets.items())
    }
    model.train()
    with torch_seeded(seed, "public", round_number):
        for step in range(steps):
            losses = []
            for name, order in orders.items():
                task = closed(sets[name].task)
                batch = sets[name].batch(order[step * BATCH_SIZE : (step + 1) * BATCH_SIZE]).to(device)
                losses.append(task.loss(model(task, batch), batch))
            torch.stack(losses).sum().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad()
    model.eval()


def _order(size: int, wanted: int, rng: np.random.Generator) -> np.ndarray:
    """Return ``wanted`` positions in fresh permutations of ``size``."""
    rounds = -(-wanted // size)
    return np.concatenate([rng.permutation(size) for _ in range(rounds)])[:wanted]
