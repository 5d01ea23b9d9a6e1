"""FedAvg by hand (McMahan et al. 2017, Alg. 1), flat: no algorithm class, no exchange, no gate. It equals the library.

    python examples/fedavg_by_hand.py

Three hospitals hold chest thumbnails and train a linear model for four rounds. Below, the same with the library; the
largest difference of any weight is printed, and a test keeps it under 1e-6.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from medfed.core.catalog import TASKS
from medfed.core.rng import numpy_rng
from medfed.core.types import Batch
from medfed.federated.algorithm import Federation
from medfed.federated.client import Client
from medfed.federated.exchange import InProcessExchange, Trainer
from medfed.federated.rounds import initial_state, run_rounds
from medfed.study.algorithms import FedAvg
from medfed.study.federation import ClientSettings, RoundSettings
from medfed.tasks.base import TaskSet

PNEUMONIA = TASKS["pneumonia"]

SEED, ROUNDS, BATCH, LR = 0, 4, 8, 0.05
SIZES = {"north": 24, "south": 16, "west": 30}


def make_hospitals() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return hospital → (images [n, 1, 8, 8], targets [n]): bright blobs mean pneumonia, more often in the west."""
    hospitals = {}
    for number, (name, size) in enumerate(SIZES.items()):
        rng = np.random.default_rng(number)
        targets = (rng.random(size) < 0.3 + 0.2 * number).astype(np.int64)
        images = rng.normal(size=(size, 1, 8, 8)).astype(np.float32)
        images[:, 0, 2:5, 2:5] += targets[:, None, None]
        hospitals[name] = (images, targets)
    return hospitals


def new_weights() -> dict[str, torch.Tensor]:
    """Return the initial weights of a linear classifier."""
    generator = torch.Generator().manual_seed(SEED)
    return {"weight": torch.randn(2, 64, generator=generator) * 0.1, "bias": torch.zeros(2)}


def by_hand() -> dict[str, torch.Tensor]:
    """Run FedAvg without the library's federated part."""
    hospitals = make_hospitals()
    x = new_weights()
    for number in range(1, ROUNDS + 1):
        total = {name: torch.zeros_like(value, dtype=torch.float64) for name, value in x.items()}
        for hospital, (images, targets) in sorted(hospitals.items()):
            y = {name: value.clone().requires_grad_() for name, value in x.items()}
            # the order of examples is a function of (seed, client, round, epoch, task), as in the library
            order = numpy_rng(SEED, hospital, number, "train", 0, "pneumonia", "batches").permutation(len(targets))
            for start in range(0, len(order), BATCH):
                chosen = order[start : start + BATCH]
                logits = torch.from_numpy(images[chosen]).flatten(1) @ y["weight"].T + y["bias"]
                loss = F.cross_entropy(logits, torch.from_numpy(targets[chosen]))
                gradients = torch.autograd.grad(loss, list(y.values()))
                with torch.no_grad():
                    for value, gradient in zip(y.values(), gradients, strict=True):
                        value.sub_(LR * gradient)
            for name, value in y.items():
                total[name] += len(targets) * (value.detach() - x[name]).double()
        examples = sum(SIZES.values())
        x = {name: (value.double() + total[name] / examples).float() for name, value in x.items()}
    return x


class Linear(nn.Module):
    """The same classifier as a module of the library."""

    def __init__(self) -> None:
        super().__init__()
        weights = new_weights()
        self.weight, self.bias = nn.Parameter(weights["weight"]), nn.Parameter(weights["bias"])

    def forward(self, task: object, batch: Batch) -> torch.Tensor:
        """Return logits."""
        return batch.inputs["image"].flatten(1) @ self.weight.T + self.bias


def by_library() -> dict[str, torch.Tensor]:
    """Run the same with the library."""
    clients = [
        Client(name, {"pneumonia": TaskSet.from_arrays(PNEUMONIA, {"image": images}, targets, name)})
        for name, (images, targets) in make_hospitals().items()
    ]
    settings = ClientSettings(optimizer="sgd", lr=LR, batch_size=BATCH)
    model = Linear()
    exchange = InProcessExchange(clients, Trainer(model, FedAvg(), settings, SEED))
    federation = Federation(exchange.registered, SEED)
    start = initial_state(model, FedAvg())
    *_, last = run_rounds(start, exchange, FedAvg(), federation, RoundSettings(num_rounds=ROUNDS))
    return dict(last.state.params)


def largest_difference() -> float:
    """Return the largest absolute difference between the two final models."""
    one, other = by_hand(), by_library()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


if __name__ == "__main__":
    print(f"largest difference between FedAvg by hand and by library: {largest_difference():.1e}")
