"""The streams of :mod:`medfed.core.rng` for torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from medfed.core.rng import Key, seed_of


def torch_rng(*key: Key) -> torch.Generator:
    """Return a CPU torch generator for ``key``."""
    return torch.Generator().manual_seed(seed_of(*key))


@contextmanager
def torch_seeded(*key: Key) -> Iterator[None]:
    """Seed torch's global generator from ``key`` inside the block (dropout, weight init); restore it afterwards."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed_of(*key))
        yield
