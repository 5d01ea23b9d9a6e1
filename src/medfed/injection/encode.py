"""Examples as the LLM reads them: the tokens of the clients' encoders and, by setting, of the clients' heads.

Encoders run as rarely as possible. While the LLM's loss leaves them alone (``encoder_lr = 0``), a round encodes all
examples of its steps once, before the first step (:func:`encode_ahead`). In scoring, tasks that read the same rows of a
dataset share the encoders' tokens (:class:`TokenCache`).

Neither changes a number. A round's batches follow from the draws alone; their tokens are either all kept or, above
:data:`LIMIT_BYTES`, all encoded step by step. A scored batch is encoded as it would be without a cache, and kept whole.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
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
"""Tokens by modality; rows of absent examples are ignored, and a modality that nobody has may be left out. With
:func:`with_head_tokens` also one token for each head of the same modalities, by ``heads.<task>``."""

HEAD = "heads."
"""Prefix of the names of head tokens."""

LIMIT_BYTES = 2**29
"""Memory for the tokens of a round, and for those of scored sets: 512 MiB each."""

_CHUNK = 64
"""Examples per forward of an encoder that encodes ahead."""


class Group(NamedTuple):
    """Examples of one task with their tokens."""

    task: Task
    encoded: Encoded
    batch: Batch


def token_dims(model: MultimodalModel, *, head_tokens: bool) -> dict[str, int]:
    """Return the width of every encoder's tokens and, with ``head_tokens``, of every head's."""
    heads = {f"{HEAD}{name}": len(task.answers) for name, task in model.tasks.items()} if head_tokens else {}
    return {name: cast(Encoder, encoder).dim for name, encoder in model.encoders.items()} | heads


def by_question(group: Group) -> list[Group]:
    """Return a group per example where each brings its own question, else the group itself."""
    parts = []
    for row, question in enumerate(group.batch.questions):
        encoded = {name: tokens[row : row + 1] for name, tokens in group.encoded.items()}
        parts.append(Group(group.task.model_copy(update={"question": question}), encoded, group.batch.row(row)))
    return parts or [group]


@torch.no_grad()
def with_head_tokens(model: MultimodalModel, group: Group) -> Group:
    """Add a token for every trained head with the same modalities: its centred logits, squashed to ±2."""
    heads = {}
    for name, trained in model.tasks.items():
        if trained.modalities == group.task.modalities:
            logits = model.decode(trained, group.encoded, len(group.batch))
            heads[f"{HEAD}{name}"] = 2 * torch.tanh((logits - logits.mean(-1, keepdim=True)) / 2).unsqueeze(1)
    return group._replace(encoded={**group.encoded, **heads})


def encode(model: MultimodalModel, examples: Sequence[tuple[Task, Batch]]) -> list[Group]:
    """Encode every task's examples; gradients reach the encoders.

    Tasks share encoders, so each runs once, on the examples of all tasks that have its modality. Absent ones get zeros.
    """
    encoded: list[dict[str, Float[Tensor, "batch tokens dim"]]] = [{} for _ in examples]
    for name in sorted({name for task, _ in examples for name in task.modalities}):
        places = [i for i, (task, _) in enumerate(examples) if name in task.modalities]
        present = [examples[i][1].present[name] for i in places]
        samples = torch.cat([examples[i][1].inputs[name][there] for i, there in zip(places, present, strict=True)])
        if not len(samples):
            continue
        parts = torch.split(model.tokens(name, samples), [int(there.sum()) for there in present])
        for i, there, part in zip(places, present, parts, strict=True):
            encoded[i][name] = _scattered(part, there)
    return [Group(task, tokens, batch) for (task, batch), tokens in zip(examples, encoded, strict=True)]


def _scattered(
    tokens: Float[Tensor, "present tokens dim"], there: Bool[Tensor, " batch"]
) -> Float[Tensor, "batch tokens dim"]:
    """Return the tokens of the examples that have a modality in the rows of all; the others get zeros."""
    if len(tokens) == len(there):
        return tokens
    rows = tokens.new_zeros(len(there), *tokens.shape[1:])
    rows[there] = tokens
    return rows


def encode_draws(
    model: MultimodalModel, sets: Mapping[str, TaskSet], draws: Sequence[Draw], *, device: str, frozen: bool
) -> list[Group]:
    """Encode the drawn examples, by task in alphabetical order; gradients reach encoders that are not ``frozen``."""
    examples = [(sets[name].task, sets[name].batch(at).to(device)) for name, at in _positions(draws).items()]
    with torch.set_grad_enabled(not frozen):
        return encode(model, examples)


def _positions(draws: Sequence[Draw]) -> dict[str, Int[np.ndarray, " draw"]]:
    """Return the drawn positions by task, tasks in alphabetical order."""
    by_task = ((name, [draw.position for draw in draws if draw.task == name]) for name in {draw.task for draw in draws})
    return {name: np.array(positions) for name, positions in sorted(by_task)}


@torch.no_grad()
def encode_ahead(
    model: MultimodalModel,
    sets: Mapping[str, TaskSet],
    draws: Sequence[Draw],
    device: str,
    limit_bytes: int = LIMIT_BYTES,
) -> Callable[[Sequence[Draw]], list[Group]] | None:
    """Encode all examples that ``draws`` name, each once, and return a function that does as :func:`encode_draws`.

    The encoders are on ``device``, in eval mode. Where the tokens need more than ``limit_bytes``, the result is None.
    """
    encoded: dict[tuple[int, str], tuple[Int[Tensor, " row"], Float[Tensor, "encoded tokens dim"]]] = {}
    for (key, modality), (data, rows) in _drawn_rows(sets, draws).items():
        tokens: list[Tensor] = []
        for start in range(0, len(rows), _CHUNK):
            samples = data.samples[modality][rows[start : start + _CHUNK]]
            tokens.append(model.tokens(modality, torch.from_numpy(samples).to(device)))
            if start == 0 and (limit_bytes := limit_bytes - tokens[0][0].nbytes * len(rows)) < 0:
                return None
        place = torch.zeros(len(data.index), dtype=torch.long, device=device)
        place[torch.from_numpy(rows).to(device)] = torch.arange(len(rows), device=device)
        encoded[key, modality] = (place, torch.cat(tokens))

    def tokens_of(data: Decoded, modality: str, rows: Int[np.ndarray, " row"]) -> Tensor:
        place, tokens = encoded[id(data), modality]
        return tokens[place[torch.from_numpy(rows).to(device)]]

    return lambda some: [_group(sets[name], at, device, tokens_of) for name, at in _positions(some).items()]


def _drawn_rows(
    sets: Mapping[str, TaskSet], draws: Sequence[Draw]
) -> dict[tuple[int, str], tuple[Decoded, Int[np.ndarray, " row"]]]:
    """Return the drawn rows of every dataset and modality that have it, each once; none where there are none."""
    drawn: dict[tuple[int, str], tuple[Decoded, list[np.ndarray]]] = {}
    for name, positions in _positions(draws).items():
        data = sets[name].data
        for modality in sets[name].task.modalities:
            drawn.setdefault((id(data), modality), (data, []))[1].append(sets[name].rows[positions])
    rows = {key: (data, np.unique(np.concatenate(parts))) for key, (data, parts) in drawn.items()}
    present = {key: (data, some[data.present[key[1]][some]]) for key, (data, some) in rows.items()}
    return {key: (data, some) for key, (data, some) in present.items() if len(some)}


def _group(
    examples: TaskSet,
    positions: Int[np.ndarray, " batch"],
    device: str,
    tokens_of: Callable[[Decoded, str, Int[np.ndarray, " row"]], Float[Tensor, "row tokens dim"]],
) -> Group:
    """Return the examples at ``positions`` without samples, with the tokens of those rows that have a modality."""
    rows, labels, data = examples.rows[positions], examples.labels, examples.data
    present, encoded = {}, {}
    for name in examples.task.modalities:
        there = data.present[name][rows]
        present[name] = torch.from_numpy(there).to(device)
        if there.any():
            encoded[name] = _scattered(tokens_of(data, name, rows[there]), present[name])
    questions = tuple(labels.questions[row] for row in rows) if labels.questions else ()
    batch = Batch({}, present, torch.from_numpy(labels.targets[rows]).to(device), questions=questions)
    return Group(examples.task, encoded, batch)


class TokenCache:
    """Tokens of batches of a dataset's rows, by the encoders of ``model``, until the encoders' checksum changes.

    Above ``limit_bytes``, the least recently used go first.
    """

    def __init__(self, model: MultimodalModel, limit_bytes: int = LIMIT_BYTES) -> None:
        self._model, self._limit, self._encoders, self._bytes = model, limit_bytes, "", 0
        self._kept: OrderedDict[tuple[int, str, bytes], tuple[Decoded, Tensor]] = OrderedDict()

    def groups(self, examples: TaskSet, size: int, device: str) -> Iterator[Group]:
        """Yield all examples in order, in batches of at most ``size``, with their tokens.

        The encoders must be in eval mode, and must not change until the last batch.
        """
        before, self._encoders = self._encoders, fingerprint(self._model.encoders.state_dict(), {})
        if before != self._encoders:
            self.clear()
        for start in range(0, len(examples), size):
            positions = np.arange(start, min(start + size, len(examples)))
            yield _group(examples, positions, device, partial(self._tokens, device))

    def clear(self) -> None:
        """Free all tokens."""
        self._kept.clear()
        self._bytes = 0

    def _tokens(self, device: str, data: Decoded, modality: str, rows: Int[np.ndarray, " row"]) -> Tensor:
        key = (id(data), modality, rows.tobytes())
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key][1]
        tokens = self._model.tokens(modality, torch.from_numpy(data.samples[modality][rows]).to(device))
        self._kept[key] = (data, tokens)
        self._bytes += tokens.nbytes
        while self._bytes > self._limit:
            self._bytes -= self._kept.popitem(last=False)[1][1].nbytes
        return tokens
