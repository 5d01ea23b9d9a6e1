"""Log-likelihoods of answers to many questions, from an LLM alone.

Prompts that begin alike share that part (:mod:`medfed.llm.trie`). Results are kept on disk by pack: its key is that of
the LLM's weights, its dtype, device and library, and of the pack's tokens. A pack with equal tokens has equal bits.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn

from medfed.llm.forward import Windows, run
from medfed.llm.prompt import PromptBatch
from medfed.llm.trie import Continuation, Pack, packs

TOKENS_AT_ONCE = 512
"""Tokens of one pack; larger ones are no faster on a CPU."""
_PAIRS_AT_ONCE = 64
"""Rows of logits that are normalised at once, in float32."""


@torch.inference_mode()
def log_likelihoods(
    llm: nn.Module,
    windows: Windows,
    continuations: Sequence[Continuation],
    store: Store | None = None,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> Float64[np.ndarray, " continuation"]:
    """Return the summed log-probability of the tokens of every continuation.

    Args:
        llm: a causal LM in evaluation mode.
        windows: of its layers.
        continuations: prompts with what follows them.
        store: results of earlier calls; None computes all.
        advance: is given the packs done and their number.
    """
    parts = list(packs(continuations, TOKENS_AT_ONCE))
    totals: dict[Continuation, float] = {}
    for number, pack in enumerate(parts, start=1):
        values = store.get(pack) if store else None
        if values is None:
            values = _log_probabilities(llm, windows, pack)
            if store:
                store.put(pack, values)
        totals |= {one: float(values[list(read)].sum()) for one, read in pack.continuations.items()}
        advance(number, len(parts))
    return np.array([totals[one] for one in continuations])


def _log_probabilities(llm: nn.Module, windows: Windows, pack: Pack) -> Float64[np.ndarray, " read"]:
    """Return the log-probability of every wanted next token of the pack."""
    table: Tensor = llm.get_input_embeddings().weight  # type: ignore[operator]
    embeddings = llm.get_input_embeddings()(torch.tensor([pack.tokens], device=table.device))  # type: ignore[operator]
    allowed, positions = pack.allowed.to(table.device), pack.positions.to(table.device)
    places = sorted({place for place, _ in pack.read})
    with heads_at(llm, places):
        logits = run(llm, windows, PromptBatch(embeddings, allowed, positions, 0))[0]
    row_of = {place: row for row, place in enumerate(places)}
    values: list[float] = []
    for start in range(0, len(pack.read), _PAIRS_AT_ONCE):
        some = pack.read[start : start + _PAIRS_AT_ONCE]
        rows, tokens = [row_of[place] for place, _ in some], [token for _, token in some]
        values += logits[rows].float().log_softmax(-1)[range(len(some)), tokens].tolist()
    return np.array(values)


@contextmanager
def heads_at(llm: nn.Module, places: Sequence[int]) -> Iterator[None]:
    """Let the output layer see the hidden states at ``places`` of a batch of one alone, contiguous in memory."""

    def pick(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Float[Tensor, "1 place width"]]:
        hidden: Tensor = inputs[0]
        return (hidden[:, list(places)].contiguous(),)

    handle = llm.get_output_embeddings().register_forward_pre_hook(pick)  # type: ignore[operator]
    try:
        yield
    finally:
        handle.remove()


class Store:
    """Results on disk, safe with several processes; one table per file.

    Args:
        path: a file, made if absent.
        facts: what the numbers depend on, the pack aside: weights, dtype, device, library.
    """

    def __init__(self, path: Path, facts: Mapping[str, str]) -> None:
        self._path = path
        self._scope = hashlib.sha256(repr(sorted(facts.items())).encode()).hexdigest()
        path.parent.mkdir(parents=True, exist_ok=True)
        with closing(self._open()) as base:
            base.execute("CREATE TABLE IF NOT EXISTS packs (key TEXT PRIMARY KEY, number BLOB NOT NULL)")
            base.commit()

    def get(self, pack: Pack) -> Float64[np.ndarray, " read"] | None:
        """Return the values that :meth:`put` was given for an equal pack; None if there are none, or not as many."""
        with closing(self._open()) as base:
            row = base.execute("SELECT number FROM packs WHERE key = ?", (self._scope + pack.key,)).fetchone()
        values = None if row is None else np.frombuffer(row[0], "<f8")
        return values if values is not None and len(values) == len(pack.read) else None

    def put(self, pack: Pack, values: Float64[np.ndarray, " read"]) -> None:
        """Keep the values of ``pack``."""
        with closing(self._open()) as base:
            base.execute(
                "INSERT OR REPLACE INTO packs VALUES (?, ?)", (self._scope + pack.key, values.astype("<f8").tobytes())
            )
            base.commit()

    def _open(self) -> sqlite3.Connection:
        return sqlite3.connect(self._path, timeout=60)
