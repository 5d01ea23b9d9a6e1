"""Randomness from a key such as (seed, client, round, epoch, purpose), never from global state.

A key always gives the same stream, whatever ran before it, so a resumed run draws what an uninterrupted one draws.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

Key = int | str


def seed_of(*key: Key) -> int:
    """Hash ``key`` to a seed in [0, 2⁶³)."""
    digest = hashlib.blake2b(json.dumps(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def numpy_rng(*key: Key) -> np.random.Generator:
    """Return a NumPy generator for ``key``."""
    return np.random.default_rng(seed_of(*key))


def torch_rng(*key: Key) -> torch.Generator:
    """Return a CPU torch generator for ``key``."""
    return torch.Generator().manual_seed(seed_of(*key))


@contextmanager
def torch_seeded(*key: Key) -> Iterator[None]:
    """Seed torch's global generator from ``key`` inside the block (dropout, weight init); restore it afterwards."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed_of(*key))
        yield
