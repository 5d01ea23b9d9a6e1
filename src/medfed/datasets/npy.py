"""Rows of ``.npy`` arrays that are too large for memory, checked before a number is believed.

Every array is memory-mapped and never unpickled. A file that is shorter than its header says, holds Python objects or
has another shape is refused when it is opened, not at the row that happens to be missing.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
from jaxtyping import Shaped

from medfed.errors import DataError

AGAIN = "download the file again and compare its size with the dataset's page"


def open_npy(path: Path, shape: tuple[int | None, ...], kinds: str) -> Shaped[np.ndarray, "..."]:
    """Map an array into memory, read-only.

    Args:
        path: the ``.npy`` file.
        shape: wanted shape; None where any size above 0 is right.
        kinds: NumPy kinds that are right, e.g. ``"f"`` for floats or ``"iu"`` for whole numbers.

    Raises:
        DataError: the file is missing, truncated, pickled, or of another shape or type.
    """
    try:
        stat = path.stat()
    except OSError as error:
        raise DataError("the file is missing", where=path, hint="download the complete dataset") from error
    array = _mapped(path, stat.st_size, stat.st_mtime_ns)
    if array.dtype.kind not in kinds:
        raise DataError(f"holds {array.dtype} values, which is not what belongs here", where=path, hint=AGAIN)
    fits = len(array.shape) == len(shape) and all(
        size == wanted if wanted is not None else size > 0 for size, wanted in zip(array.shape, shape, strict=True)
    )
    if not fits:
        wanted_text = " × ".join("any" if size is None else str(size) for size in shape)
        raise DataError(f"has shape {array.shape}; {wanted_text} is needed", where=path, hint=AGAIN)
    return array


@lru_cache(maxsize=32)
def _mapped(path: Path, size_bytes: int, modified_ns: int) -> Shaped[np.ndarray, "..."]:
    """Map the file; kept while it stays the same, as every row of it is asked for in turn."""
    try:
        mapped: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        reason = "it holds Python objects, which are never unpickled" if "object" in str(error).lower() else str(error)
        raise DataError(f"not a whole .npy array ({reason})", where=path, hint=AGAIN) from error
    if not isinstance(mapped, np.ndarray):
        mapped.close()
        raise DataError("a .npz archive, not a .npy array", where=path, hint=AGAIN)
    return mapped
