"""The streams of :mod:`medfed.core.rng` for torch, and the one thread that lets sums have one order."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from threadpoolctl import threadpool_limits

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


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute in one thread inside the block, as a function of the input alone; the process's number comes back. Sums
    have another order, and other last bits, on another number of threads."""
    before = torch.get_num_threads()
    with threadpool_limits(1):
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(before)
