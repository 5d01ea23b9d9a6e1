"""One process a folder: two servers would write one run, two sites would answer with one key."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from medfed.errors import SiteError
from medfed.site.settings import PRIVATE

LOCK = ".lock"


@contextmanager
def only_one(root: Path) -> Iterator[None]:
    """Hold the folder ``root`` while the block runs; the system lets go of it when the process dies.

    Raises:
        SiteError: another process holds it.
    """
    file = os.open(root / LOCK, os.O_RDWR | os.O_CREAT, PRIVATE)
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise SiteError("another process runs on this folder", where=root, hint="stop that one first") from error
        yield
    finally:
        os.close(file)


def is_held(root: Path) -> bool:
    """Whether a process runs on the folder ``root``."""
    try:
        with only_one(root):
            return False
    except SiteError:
        return True
