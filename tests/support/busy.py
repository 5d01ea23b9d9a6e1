"""Run a command while a busy loop holds every core: ``python tests/support/busy.py COMMAND …``.

What depends on the machine's speed fails here (`make test-busy`).
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys

SPINS = 10_000_000


def spin() -> None:
    """Compute nothing while the parent lives."""
    parent = multiprocessing.parent_process()
    while parent is not None and parent.is_alive():
        sum(range(SPINS))


if __name__ == "__main__":
    loops = [multiprocessing.Process(target=spin) for _ in range(os.cpu_count() or 1)]
    for loop in loops:
        loop.start()
    status = subprocess.run(sys.argv[1:], check=False).returncode
    for loop in loops:
        loop.kill()
    sys.exit(status)
