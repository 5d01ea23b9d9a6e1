"""The server's own share of the federated training: encoders and heads learn the public labels, as at a client.

Deviation: FedKIM's server trains the encoders through the LLM. Measured (docs/results.md), the LLM's loss on few public
examples harms them, while the heads' loss helps both the federation and the LLM that learns from it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch

from medfed.errors import RunError
from medfed.federated.state import trainable_params
from medfed.models.multimodal import MultimodalModel
from medfed.rng import numpy_rng, torch_seeded
from medfed.tasks.base import TaskSet, closed

BATCH_SIZE = 8
"""Examples per task and step."""


def train_public(
    model: MultimodalModel,
    sets: Mapping[str, TaskSet],
    lr: float,
    device: str,
    seed: int,
    round_number: int,
    *,
    alone: bool = False,
) -> None:
    """Train ``model`` in place for one pass over the largest set; smaller ones repeat. Chance comes from the key.

    The clients' normalisation statistics stand, unless the server is ``alone``: its own come from few examples.

    Raises:
        RunError: a loss is not finite.
    """
    optimizer = torch.optim.Adam(trainable_params(model).values(), lr, fused=True)
    steps = max(-(-len(examples) // BATCH_SIZE) for examples in sets.values())
    orders = {
        name: _order(len(examples), steps * BATCH_SIZE, numpy_rng(seed, "public", round_number, name))
        for name, examples in sorted(sets.items())
    }
    statistics = {name: value.clone() for name, value in model.named_buffers()}
    model.train()
    with torch_seeded(seed, "public", round_number):
        for step in range(steps):
            losses = []
            for name, order in orders.items():
                task = closed(sets[name].task)
                batch = sets[name].batch(order[step * BATCH_SIZE : (step + 1) * BATCH_SIZE]).to(device)
                losses.append(task.loss(model(task, batch), batch))
            total = torch.stack(losses).sum()
            mean = total.item() / len(losses)
            if not math.isfinite(mean):
                raise RunError(
                    f"the loss is {mean}",
                    where=f"public pass of round {round_number}, step {step}",
                    hint="lower injection.public_lr",
                )
            total.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad()
    model.eval()
    if not alone:
        with torch.no_grad():
            for name, value in model.named_buffers():
                value.copy_(statistics[name])


def _order(size: int, wanted: int, rng: np.random.Generator) -> np.ndarray:
    """Return ``wanted`` positions in fresh permutations of ``size``."""
    rounds = -(-wanted // size)
    return np.concatenate([rng.permutation(size) for _ in range(rounds)])[:wanted]
