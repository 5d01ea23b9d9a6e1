"""What is made once for a whole session, whatever the number of xdist's workers."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """Return the session's folder ``name``; the first that asks for it makes it, the others wait.

    What is made is read by tests of several workers at once: none may change it.
    """
    base = factory.getbasetemp()
    root = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder, done = root / f"once-{name}", root / f"once-{name}.done"
    with FileLock(root / f"once-{name}.lock"):
        if not done.exists():
            folder.mkdir()  # fails where an earlier try failed
            make(folder)
            done.touch()
    return folder
