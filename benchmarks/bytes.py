"""Bytes that a run keeps for its backward pass, and the most it holds at once; both exact, so there is no interval."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor


def saved_bytes(run: Callable[[], object], weights: Iterable[Tensor]) -> int:
    """Return the size of all storages that ``run`` saves for the backward pass, each once, ``weights`` left out."""
    known = {value.untyped_storage().data_ptr() for value in weights}
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage  # held, so that no later storage takes its address
        return value

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        held = run()
    total = sum(storage.nbytes() for storage in kept.values())
    del held
    return total


def peak_bytes(run: Callable[[], object]) -> int:
    """Return how much more memory than at its start torch's CPU allocator has given out at the worst moment of ``run``.

    Memory that was allocated before does not count; the result of ``run`` does.
    """
    with torch.autograd.profiler.profile(profile_memory=True) as profiler:
        run()
    held = peak = 0
    changes = [event for event in profiler.kineto_results.events() if event.name() == "[memory]"]
    for change in sorted(changes, key=lambda event: event.start_ns()):
        held += change.nbytes()
        peak = max(peak, held)
    return peak


def size(number: float) -> str:
    """Write bytes with a fitting unit."""
    for unit, bytes_per in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= bytes_per:
            return f"{number / bytes_per:.3g} {unit}"
    return f"{number:.0f} B"
