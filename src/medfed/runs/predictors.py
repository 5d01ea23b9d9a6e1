"""Probabilities of every answer, from the federated heads or from the injected LLM, in the order of the examples."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float

from medfed.evaluation.metrics import BY_NAME, score
from medfed.injection.inject import Injector
from medfed.models.base import FederatedModel
from medfed.tasks.base import Json, TaskSet, closed, trainable

BATCH_SIZE = 64
"""Examples per forward."""
WATCHED = ("auroc", "balanced_accuracy")
"""Metrics followed over the rounds on the development set."""


@runtime_checkable
class Predictor(Protocol):
    """Gives the probability of every answer of a task's examples."""

    def __call__(self, examples: TaskSet) -> Float[np.ndarray, "example answer"]:
        """Return probabilities in the order of ``examples``."""
        ...


class HeadPredictor:
    """The federated model's own heads."""

    def __init__(self, model: FederatedModel) -> None:
        self.model = model

    @torch.inference_mode()
    def __call__(self, examples: TaskSet) -> Float[np.ndarray, "example answer"]:
        """Return the head's class probabilities."""
        self.model.eval()
        return closed(examples.task).probabilities(self.model, examples).numpy()


class InjectedPredictor:
    """The injected LLM, by the likelihood of the answer strings."""

    def __init__(self, injector: Injector) -> None:
        self._injector = injector

    @torch.inference_mode()
    def __call__(self, examples: TaskSet) -> Float[np.ndarray, "example answer"]:
        """Return the answers' probabilities."""
        return self._injector.score_set(examples, BATCH_SIZE).double().numpy()

    @torch.inference_mode()
    def answer(self, examples: TaskSet, max_new_tokens: int) -> list[str]:
        """Return the decoded answers."""
        return self._injector.answer_set(examples, max_new_tokens, BATCH_SIZE)


@torch.inference_mode()
def responses(model: FederatedModel, examples: TaskSet) -> list[Json]:
    """Return what ``model`` says of every example, in order."""
    model.eval()
    return trainable(examples.task).respond(model, examples)


def watch(examples: TaskSet, predictor: Predictor) -> dict[str, float | None]:
    """Return the :data:`WATCHED` metrics; None where one is not defined."""
    probabilities = predictor(examples)
    return {name: score(BY_NAME[name], examples.targets.numpy(), probabilities).value for name in WATCHED}
