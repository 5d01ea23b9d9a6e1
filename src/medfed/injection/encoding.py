"""What the LLM is shown of an example: its encoders' tokens and, where the recipe says so, its heads' outputs.

Both come from the clients' model, which is no part of the LLM.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, cast

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from medfed.injection.sampling import Draw
from medfed.modalities.base import Encoder
from medfed.models.multimodal import MultimodalModel
from medfed.tasks.base import Task, TaskSet
from medfed.types import Batch

Encoded = Mapping[str, Float[Tensor, "batch tokens dim"]]
"""Encoder tokens by modality; rows of absent examples are ignored, and a modality that nobody has may be left out.
With :func:`with_heads` also one token for each head of the same modalities, by ``heads.<task>``."""

HEAD = "heads."


def shown_dims(model: MultimodalModel, *, head_tokens: bool) -> dict[str, int]:
    """Return the token width of everything that ``model`` can show: encoders and, with ``head_tokens``, heads."""
    dims = {name: cast(Encoder, encoder).dim for name, encoder in model.encoders.items()}
    heads = {f"{HEAD}{name}": len(task.answers) for name, task in model.tasks.items()}
    return {**dims, **heads} if head_tokens else dims


class Group(NamedTuple):
    """Examples of one task with what is shown of them."""

    task: Task
    encoded: Encoded
    batch: Batch


def by_question(group: Group) -> list[Group]:
    """Return a group per example where each brings its own question, else the group itself."""
    task, encoded, batch = group
    if not batch.questions:
        return [group]
    return [
        Group(
            task.model_copy(update={"question": question}),
            {name: tokens[row : row + 1] for name, tokens in encoded.items()},
            batch.row(row),
        )
        for row, question in enumerate(batch.questions)
    ]


def encode(model: MultimodalModel, examples: Sequence[tuple[Task, Batch]]) -> list[Encoded]:
    """Return the encoder tokens of every task's examples.

    Tasks share encoders, so each runs once, on the examples of all tasks that have its modality; absent ones get zeros.
    """
    found: list[dict[str, Float[Tensor, "batch tokens dim"]]] = [{} for _ in examples]
    for name in sorted({name for task, _ in examples for name in task.modalities}):
        places = [i for i, (task, _) in enumerate(examples) if name in task.modalities]
        batches = [examples[i][1] for i in places]
        samples = torch.cat([batch.inputs[name][batch.present[name]] for batch in batches])
        if not len(samples):
            continue
        tokens = model.tokens(name, samples)
        parts = torch.split(tokens, [int(batch.present[name].sum()) for batch in batches])
        for i, batch, part in zip(places, batches, parts, strict=True):
            found[i][name] = placed(part, batch.present[name])
    return list(found)


def encode_draws(
    model: MultimodalModel, sets: Mapping[str, TaskSet], draws: Sequence[Draw], *, device: str, frozen: bool
) -> list[Group]:
    """Encode the drawn examples, by task in alphabetical order; gradients reach encoders that are not ``frozen``."""
    examples = []
    for name in sorted({draw.task for draw in draws}):
        positions = np.array([draw.position for draw in draws if draw.task == name])
        examples.append((sets[name].task, sets[name].batch(positions).to(device)))
    with torch.set_grad_enabled(not frozen):
        encoded = encode(model, examples)
    return [Group(task, shown, batch) for (task, batch), shown in zip(examples, encoded, strict=True)]


def placed(
    tokens: Float[Tensor, "present tokens dim"], there: Bool[Tensor, " batch"]
) -> Float[Tensor, "batch tokens dim"]:
    """Return the tokens of examples that have a modality among those that have not; these get zeros."""
    if len(tokens) == len(there):
        return tokens
    rows = tokens.new_zeros(len(there), *tokens.shape[1:])
    rows[there] = tokens
    return rows


@torch.no_grad()
def with_heads(model: MultimodalModel, task: Task, encoded: Encoded, size: int) -> Encoded:
    """Add what the head of every trained task with the modalities of ``task`` says: centred logits, squashed to ±2."""
    said = {}
    for name, trained in model.tasks.items():
        if trained.modalities == task.modalities:
            logits = model.decode(trained, encoded, size)
            said[f"{HEAD}{name}"] = 2 * torch.tanh((logits - logits.mean(-1, keepdim=True)) / 2).unsqueeze(1)
    return {**encoded, **said}
