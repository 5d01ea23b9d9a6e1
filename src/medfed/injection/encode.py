"""What the LLM is shown of an example: its encoders' tokens and, where the recipe says so, its heads' outputs.

Both come from the clients' model, which is no part of the LLM.

Encoder outputs of whole sets of examples, computed once where the encoders do not change.

While the LLM's loss leaves the encoders alone (``encoder_lr = 0``), a round's injection encodes what it will draw once,
before the first step (:func:`encode_drawn`). Between rounds, tasks that read the same rows of a dataset share what the
encoders make of them (:class:`TokenCache`).

What is kept can change no number. Drawn examples are encoded in batches that follow from the draws alone, and are
either all kept or, where they would take more than :data:`LIMIT_BYTES`, all encoded step by step. A scored batch is
encoded as it would be without a cache, and kept whole.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, cast

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from medfed.core.types import Batch
from medfed.datasets.decoded import Decoded
from medfed.federated.state import fingerprint
from medfed.injection.batching import Draw
from medfed.models.base import Encoder
from medfed.models.multimodal import MultimodalModel
from medfed.tasks.base import Task, TaskSet

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


LIMIT_BYTES = 2**29
"""Memory for the encoder outputs of a round, or of the sets that are scored between rounds: 512 MiB."""
BATCH_SIZE = 64
"""Examples per forward of an encoder that encodes ahead."""


def without_samples(examples: TaskSet, positions: Int[np.ndarray, " batch"], device: str) -> Batch:
    """Return the examples at ``positions`` without what encoders read, on ``device``."""
    rows, labels = examples.rows[positions], examples.labels
    present = {
        name: torch.from_numpy(examples.data.present[name][rows]).to(device) for name in examples.task.modalities
    }
    questions = tuple(labels.questions[row] for row in rows) if labels.questions else ()
    return Batch({}, present, torch.from_numpy(labels.targets[rows]).to(device), questions=questions)


class EncodedRows:
    """Encoder tokens of some rows of a dataset in one modality."""

    def __init__(self, num_rows: int, rows: Int[np.ndarray, " row"], tokens: Float[Tensor, "row tokens dim"]) -> None:
        self._tokens = tokens
        self._place = torch.zeros(num_rows, dtype=torch.long, device=tokens.device)
        self._place[torch.from_numpy(rows).to(tokens.device)] = torch.arange(len(rows), device=tokens.device)

    def at(self, rows: Int[Tensor, " batch"]) -> Float[Tensor, "batch tokens dim"]:
        """Return the tokens of ``rows``, which must be among those that were encoded."""
        found: Tensor = self._tokens[self._place[rows]]
        return found


class EncodedSets:
    """Examples of a round with their encoder tokens.

    Args:
        sets: examples by task.
        kept: tokens by dataset and modality; where nobody has the modality there are none.
        device: where batches go.
    """

    def __init__(self, sets: Mapping[str, TaskSet], kept: Mapping[tuple[int, str], EncodedRows], device: str) -> None:
        self._sets, self._kept, self._device = sets, kept, device

    def groups(self, draws: Sequence[Draw]) -> list[Group]:
        """Return the drawn examples by task, tasks in alphabetical order."""
        found = []
        for name in sorted({draw.task for draw in draws}):
            examples = self._sets[name]
            positions = np.array([draw.position for draw in draws if draw.task == name])
            batch = without_samples(examples, positions, self._device)
            rows = torch.from_numpy(examples.rows[positions]).to(self._device)
            encoded = {}
            for modality in examples.task.modalities:
                kept, there = self._kept.get((id(examples.data), modality)), batch.present[modality]
                if kept is not None and bool(there.any()):
                    encoded[modality] = placed(kept.at(rows[there]), there)
            found.append(Group(examples.task, encoded, batch))
        return found


@torch.no_grad()
def encode_drawn(
    model: MultimodalModel,
    sets: Mapping[str, TaskSet],
    draws: Sequence[Draw],
    device: str,
    limit_bytes: int = LIMIT_BYTES,
) -> EncodedSets | None:
    """Encode all examples that ``draws`` name, each once; None where the result would not fit into ``limit_bytes``.

    Args:
        model: its encoders, in eval mode.
        sets: examples by task.
        draws: all that a round will draw.
        device: where the encoders are.
        limit_bytes: what the tokens may take.
    """
    wanted: dict[tuple[int, str], tuple[Decoded, list[np.ndarray]]] = {}
    for name, examples in sets.items():
        rows = examples.rows[np.unique([draw.position for draw in draws if draw.task == name]).astype(np.int64)]
        for modality in examples.task.modalities:
            wanted.setdefault((id(examples.data), modality), (examples.data, []))[1].append(rows)
    kept: dict[tuple[int, str], EncodedRows] = {}
    left = limit_bytes
    for (key, modality), (data, parts) in wanted.items():
        rows = np.unique(np.concatenate(parts))
        rows = rows[data.present[modality][rows]]
        if not len(rows):
            continue
        tokens: list[Tensor] = []
        for chunk in _chunks(rows):
            tokens.append(model.tokens(modality, torch.from_numpy(data.samples[modality][chunk]).to(device)))
            if len(tokens) == 1:
                left -= tokens[0][0].nbytes * len(rows)
                if left < 0:
                    return None
        kept[key, modality] = EncodedRows(len(data.index), rows, torch.cat(tokens))
    return EncodedSets(sets, kept, device)


def _chunks(rows: Int[np.ndarray, " row"]) -> list[np.ndarray]:
    return [rows[start : start + BATCH_SIZE] for start in range(0, len(rows), BATCH_SIZE)]


class TokenCache:
    """What the encoders made of batches of a dataset's rows, while they stay as they are; least recently used go first.

    Args:
        model: its encoders are watched by their checksum.
        limit_bytes: what the tokens may take.
    """

    def __init__(self, model: MultimodalModel, limit_bytes: int = LIMIT_BYTES) -> None:
        self._model, self._limit = model, limit_bytes
        self._made_by = ""
        self._bytes = 0
        self._kept: OrderedDict[tuple[int, str, bytes], tuple[Decoded, Tensor]] = OrderedDict()

    def groups(self, examples: TaskSet, size: int, device: str) -> Iterator[Group]:
        """Yield all examples in order, in batches of at most ``size``, with their encoder tokens.

        The encoders must be in eval mode, and must not change until the last batch.
        """
        encoders = fingerprint(self._model.encoders.state_dict(), {})
        if encoders != self._made_by:
            self.forget()
            self._made_by = encoders
        for start in range(0, len(examples), size):
            positions = np.arange(start, min(start + size, len(examples)))
            batch = without_samples(examples, positions, device)
            encoded: Encoded = {
                name: placed(self._tokens(examples.data, name, examples.rows[positions], device), there)
                for name, there in batch.present.items()
                if bool(there.any())
            }
            yield Group(examples.task, encoded, batch)

    def forget(self) -> None:
        """Free what is kept."""
        self._kept.clear()
        self._bytes = 0

    def _tokens(self, data: Decoded, modality: str, rows: Int[np.ndarray, " row"], device: str) -> Tensor:
        """Return the tokens of those of ``rows`` that have the modality."""
        key = (id(data), modality, rows.tobytes())
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key][1]
        there = rows[data.present[modality][rows]]
        tokens = self._model.tokens(modality, torch.from_numpy(data.samples[modality][there]).to(device))
        self._kept[key] = (data, tokens)
        self._bytes += tokens.nbytes
        while self._bytes > self._limit:
            self._bytes -= self._kept.popitem(last=False)[1][1].nbytes
        return tokens
