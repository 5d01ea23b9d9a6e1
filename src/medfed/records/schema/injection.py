"""Files of injection: the server's steps, the router's weights, the LLM's answers to examinations."""

from __future__ import annotations

from medfed.records.schema.base import File, Json, Line, Number


class Step(Line, path="injection/steps.jsonl"):
    """A line of ``injection/steps.jsonl``: one step of the server's optimizer.

    Attributes:
        round: from 1.
        epoch, step: from 0, within the round.
        loss: mean over the batch.
        losses: mean by task.
        rehearsal: mean negative log-likelihood (``nll``) and KL (``kl``) of the rehearsed tokens, and of the answers in
            words (``words``), where they count.
        grad_norm: before clipping.
    """

    round: int
    epoch: int = 0
    step: int
    loss: Number = None
    losses: dict[str, Number] = {}
    rehearsal: dict[str, Number] = {}
    grad_norm: Number = None


class Retained(Line, path="injection/retention.jsonl"):
    """A line of ``injection/retention.jsonl``: the responses to one examination without patients, in one form.

    Attributes:
        round: after which the LLM answered; 0 is before the first injection.
        examination: the set.
        form: in which the questions were put.
        responses: a probability per answer, or the text's negative log-likelihood per token, question by question.
    """

    round: int
    examination: str
    form: str
    responses: tuple[Json, ...]


class Routing(Line, path="injection/routing.jsonl"):
    """A line of ``injection/routing.jsonl``: the router's weights by task, and how far tasks lie apart."""

    round: int
    alpha: dict[str, tuple[float, ...]] = {}
    entropy: dict[str, Number] = {}
    total_variation: Number = None


class InjectionFile(File, path="injection/injection.json"):
    """``injection/injection.json``: the LLM, how it was injected into, and what calibration adds to its answers."""

    foundation: str = ""
    settings: dict[str, Json] = {}
    offsets: dict[str, tuple[float, ...]]
