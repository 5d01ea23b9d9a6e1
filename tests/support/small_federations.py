"""A federation of a few rounds over a cohort, and the scores of its model."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch

from medfed.data.cohort import Cohort
from medfed.evaluation.scorers import SCORERS
from medfed.federated.algorithm import Federation
from medfed.federated.client import Client
from medfed.federated.exchange import InProcessExchange, Trainer
from medfed.federated.rounds import initial_state, run_round
from medfed.federated.state import load_weights
from medfed.models.base import FederatedModel
from medfed.study.algorithms import FedAvg
from medfed.study.federation import ClientSettings, RoundSettings
from medfed.tasks.base import TaskSet, TrainableTask

M = TypeVar("M", bound=FederatedModel)


def train(
    make: Callable[[], M], task: str, cohort: Cohort, settings: ClientSettings, num_rounds: int
) -> tuple[M, list[float]]:
    """Return the global model after ``num_rounds`` of FedAvg, and the mean loss over clients of every round."""
    model = make()
    clients = [Client(client, tasks) for client, tasks in sorted(cohort.clients.items())]
    exchange = InProcessExchange(clients, Trainer(make(), FedAvg(), settings, 0))
    federation = Federation(exchange.registered, 0, model, cohort.public)
    state, losses = initial_state(model, FedAvg()), []
    for _ in range(num_rounds):
        result = run_round(state, exchange, FedAvg(), federation, RoundSettings(num_rounds=num_rounds))
        assert not result.failures
        losses.append(float(np.mean([record.metrics[f"loss.{task}"] for record in result.clients])))
        state = result.state
    load_weights(model, state.weights)
    return model.eval(), losses


def scores(task: TrainableTask, model: FederatedModel, examples: TaskSet) -> dict[str, float]:
    """Return the value of every metric of ``task``; NaN where it is not defined."""
    with torch.inference_mode():
        responses = task.respond(model, examples)
    values = SCORERS[task.metric_kind].scored(task.truths(examples), responses).values(np.ones((1, len(examples))))
    return {metric: float(value[0]) for metric, value in values.items()}
