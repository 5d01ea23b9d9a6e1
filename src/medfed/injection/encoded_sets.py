"""Encoder outputs of whole sets of examples, computed once where the encoders do not change.

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

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from medfed.datasets.decode import Decoded
from medfed.federated.state import fingerprint
from medfed.injection.encoding import Encoded, Group, placed
from medfed.injection.sampling import Draw
from medfed.models.multimodal import MultimodalModel
from medfed.tasks.base import TaskSet
from medfed.types import Batch

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
