"""How much a process of its own grows while it does something: what torch's allocator does not see.

Every measurement forks from a server that has imported the benchmarks and done nothing else, so nothing that is free
from before is used again. The work is done once before it is measured, for what is imported on first use.
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def readable() -> bool:
    """Whether this system tells the peak of a process."""
    return STATUS.exists() and RESET.exists()


def growth(work: Callable[[], object]) -> int:
    """Return by how many bytes a fresh process is larger at the worst moment of ``work``, which must be picklable."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.loading"])
    with ProcessPoolExecutor(1, mp_context=context) as fresh:
        return fresh.submit(_growth, work).result()


def _growth(work: Callable[[], object]) -> int:
    work()
    gc.collect()
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)
    RESET.write_text("5", encoding="utf-8")
    before = _status_bytes("VmRSS")
    work()
    return max(0, _status_bytes("VmHWM") - before)


def _status_bytes(field: str) -> int:
    lines = STATUS.read_text(encoding="utf-8").splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(f"{field}:")).split()[1])
