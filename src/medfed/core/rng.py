"""Randomness from a key such as (seed, client, round, epoch, purpose), never from global state.

A key always gives the same stream, whatever ran before it, so a resumed run draws what an uninterrupted one draws.
"""

from __future__ import annotations

import hashlib
import json

import numpy as np

Key = int | str


def seed_of(*key: Key) -> int:
    """Hash ``key`` to a seed in [0, 2⁶³)."""
    digest = hashlib.blake2b(json.dumps(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def numpy_rng(*key: Key) -> np.random.Generator:
    """Return a NumPy generator for ``key``."""
    return np.random.default_rng(seed_of(*key))
