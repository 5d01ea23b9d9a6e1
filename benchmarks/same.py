"""Whether two variants computed the same thing: tensors, arrays, words, sequences of them, or what gives them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch

Leaf = np.ndarray | str


class DifferentError(AssertionError):
    """Two variants that should compute the same do not, so their ratio means nothing."""


def require_same(one: str, outcome: object, other: str, wanted: object, tolerance: float) -> None:
    """Compare two outcomes.

    Raises:
        DifferentError: they differ in kind or shape, or by more than ``tolerance`` × the largest value.
    """
    left, right = list(_leaves(outcome)), list(_leaves(wanted))
    if len(left) != len(right):
        raise DifferentError(f"{one!r} returned {len(left)} values, {other!r} {len(right)}")
    for number, (a, b) in enumerate(zip(left, right, strict=True)):
        if isinstance(a, str) or isinstance(b, str):
            if not (isinstance(a, str) and isinstance(b, str) and a == b):
                raise DifferentError(f"value {number}: {one!r} says {a!r}, {other!r} says {b!r}")
        elif a.shape != b.shape:
            raise DifferentError(f"value {number}: {one!r} has shape {a.shape}, {other!r} {b.shape}")
        elif not _close(a, b, tolerance):
            gap = float(np.abs(a - b).max())
            raise DifferentError(f"value {number}: {one!r} and {other!r} differ by {gap:.2e}")


def _close(a: np.ndarray, b: np.ndarray, tolerance: float) -> bool:
    scale = float(np.nanmax(np.abs(b), initial=1e-12))
    return bool(np.allclose(a, b, rtol=0, atol=tolerance * scale, equal_nan=True))


def _leaves(value: object) -> Iterator[Leaf]:
    if isinstance(value, torch.Tensor):
        yield value.detach().to("cpu", torch.float64).numpy()
    elif isinstance(value, str):
        yield value
    elif callable(value):  # what is needed for the comparison alone is not timed
        yield from _leaves(value())
    elif isinstance(value, Mapping):
        for name in sorted(value):
            yield from _leaves(value[name])
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _leaves(part)
    else:
        yield np.asarray(value, np.float64)
