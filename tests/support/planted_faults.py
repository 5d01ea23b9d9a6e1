"""What goes wrong in a process, planted at the n-th call of a function.

``python -m support.planted_faults MODULE:NAME N -- ARGUMENTS`` is ``medfed ARGUMENTS`` killed at that call.
"""

from __future__ import annotations

import errno
import importlib
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

HELD_SECONDS = 600.0
"""No process is held longer, in seconds."""


class Fault(NamedTuple):
    """What goes wrong in a process: at the ``count``-th call of ``module:qualified.name``.

    ``act`` is "kill" (SIGKILL), "full" (the disk is full at this call and every one after it), "hold" (wait until the
    file given to :func:`plant` exists), "twice" (call it twice), "replay" (from this call on, return what the first
    call returned) or "tell" (print so at this call and every one after it).
    """

    target: str
    count: int
    act: str = "kill"


def plant(fault: Fault, released: Path | None = None) -> None:
    """Replace the fault's target in this process; what is held goes on when the file ``released`` exists.

    A function is replaced wherever medfed's modules have imported it to.
    """
    module_name, _, path = fault.target.partition(":")
    owner: Any = importlib.import_module(module_name)
    *parents, name = path.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    original = getattr(owner, name)
    faulty = _faulty(fault, original, released)
    setattr(owner, name, faulty)
    for module in [module for name, module in sys.modules.items() if name.startswith("medfed.")]:
        for held in [held for held, value in vars(module).items() if value is original]:
            setattr(module, held, faulty)


def _faulty(fault: Fault, original: Callable[..., Any], released: Path | None) -> Callable[..., Any]:
    calls, first = 0, None

    def faulty(*args: Any, **options: Any) -> Any:
        nonlocal calls, first
        calls += 1
        if calls == fault.count and fault.act == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if calls == fault.count and fault.act == "hold":
            assert released is not None
            _hold(fault.target, released)
        if calls >= fault.count and fault.act == "tell":
            print(f"called {fault.target}")
        if calls >= fault.count and fault.act == "full":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if calls >= fault.count and fault.act == "replay":
            return first
        if calls == fault.count and fault.act == "twice":
            original(*args, **options)
        result = original(*args, **options)
        first = result if calls == 1 else first
        return result

    return faulty


def _hold(target: str, released: Path) -> None:
    print(f"held at {target}")
    limit = time.monotonic() + HELD_SECONDS
    while not released.exists():
        assert time.monotonic() < limit, f"nobody released {target}"
        time.sleep(0.05)


if __name__ == "__main__":
    plant(Fault(sys.argv[1], int(sys.argv[2])))
    sys.argv = ["medfed", *sys.argv[4:]]
    from medfed.cli.app import main

    main()
