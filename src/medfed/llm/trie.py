"""Many texts in few forwards: what they share at the beginning is computed once.

The texts form a tree of tokens. A pack is a part of the tree with all its ancestors, laid out in one sequence. A token
attends to its ancestors and to itself. Its position is its depth. So a pack has no padding, and its logits are
those of every text by itself. The layout depends on the texts alone, in whatever order they come.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

Ids = tuple[int, ...]


class Continuation(NamedTuple):
    """A text whose likelihood is wanted, behind a prompt: token ids of both, neither empty."""

    prompt: Ids
    text: Ids


@dataclass(frozen=True)
class Pack:
    """A part of the tree, in an order in which every token follows its parent.

    Attributes:
        tokens: ids.
        parents: place of every token's parent in the pack; -1 for a first token.
        read: (place, next token) pairs whose log-probability is wanted, in order.
        continuations: each wanted continuation → the numbers of its pairs in ``read``.
    """

    tokens: Ids
    parents: tuple[int, ...]
    read: tuple[tuple[int, int], ...]
    continuations: Mapping[Continuation, tuple[int, ...]]

    @property
    def positions(self) -> Int[Tensor, "1 token"]:
        """The depth of every token."""
        depth = [0] * len(self.tokens)
        for place, parent in enumerate(self.parents):
            depth[place] = 0 if parent < 0 else depth[parent] + 1
        return torch.tensor([depth])

    @property
    def allowed(self) -> Bool[Tensor, "1 token token"]:
        """Whether a token may attend to another: its ancestors and itself."""
        allowed = np.eye(len(self.tokens), dtype=bool)
        for place, parent in enumerate(self.parents):
            if parent >= 0:
                allowed[place] |= allowed[parent]
        return torch.from_numpy(allowed).unsqueeze(0)

    @property
    def key(self) -> str:
        """Fingerprint of all that its numbers depend on, the LLM aside."""
        content = repr((self.tokens, self.parents, self.read)).encode()
        return hashlib.sha256(content).hexdigest()


def packs(continuations: Sequence[Continuation], most_tokens: int) -> Iterator[Pack]:
    """Divide the tree of ``continuations`` into packs of at most ``most_tokens`` tokens; a longer text has its own."""
    held: list[Continuation] = []
    size = 0
    last: Ids = ()
    for one in sorted(set(continuations)):
        path = _path(one)
        fresh = len(path) - _shared(last, path)
        if held and size + fresh > most_tokens:
            yield _pack(held)
            held, size, fresh = [], 0, len(path)
        held.append(one)
        size, last = size + fresh, path
    if held:
        yield _pack(held)


def _path(one: Continuation) -> Ids:
    """Return the tokens that are read: nothing follows the last one."""
    return one.prompt + one.text[:-1]


def _shared(a: Ids, b: Ids) -> int:
    return next((place for place, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _pack(held: Sequence[Continuation]) -> Pack:
    tokens: list[int] = []
    parents: list[int] = []
    read: dict[tuple[int, int], int] = {}
    numbers: dict[Continuation, tuple[int, ...]] = {}
    places: list[int] = []
    last: Ids = ()
    for one in held:
        path = _path(one)
        del places[_shared(last, path) :]
        for token in path[len(places) :]:
            tokens.append(token)
            parents.append(places[-1] if places else -1)
            places.append(len(tokens) - 1)
        ends = places[len(one.prompt) - 1 :]
        numbers[one] = tuple(read.setdefault(pair, len(read)) for pair in zip(ends, one.text, strict=True))
        last = path
    return Pack(tuple(tokens), tuple(parents), tuple(read), numbers)
