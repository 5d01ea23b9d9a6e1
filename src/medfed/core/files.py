"""Files that appear whole or not at all, locks between processes, and checksums: the only place for each of the three.

A file or folder is written under another name in the same folder, synced to disk, and renamed. A process that is killed
leaves a partial file, which the next writer in that folder removes. No torch, and no call that Windows lacks.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from filelock import FileLock, Timeout
from safetensors import SafetensorError

from medfed.core.errors import DiskError

PRIVATE, PUBLIC = 0o600, 0o644
"""Rights of a file: its owner alone, or everybody reads it."""


def write_whole(path: Path, data: bytes | str, mode: int | None = None) -> None:
    """Write ``data``, text as UTF-8, to ``path``, whole or not at all; its folder is made if it is absent. Its rights
    ``mode`` hold from the first byte on; None leaves them to the umask. Raises DiskError if the disk is full, say."""
    content = data.encode() if isinstance(data, str) else data
    with written_whole(path, len(content)) as partial:
        rights = 0o666 if mode is None else mode
        with open(partial, "xb", opener=lambda name, flags: os.open(name, flags, rights)) as file:
            file.write(content)
        if mode is not None:
            partial.chmod(mode)


@contextmanager
def written_whole(path: Path, num_bytes: int) -> Iterator[Path]:
    """Yield the place to write what shall be at ``path``, a file or a folder. It takes the place of what is there when
    the block ends well. It needs about ``num_bytes``. Raises DiskError if the disk is full, say."""
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(path.parent)
        _remove(partial)
        yield partial
        _put(partial, path)
    except BaseException as error:
        _remove(partial)
        if not isinstance(error, OSError | SafetensorError) or getattr(error, "errno", 0) is None:
            raise  # an OSError without a number is a library's own, not the disk's
        why = error.strerror if isinstance(error, OSError) else str(error)
        there = next(parent for parent in path.absolute().parents if parent.is_dir())
        free = shutil.disk_usage(there).free
        what = f"cannot write it: {why}; {num_bytes:,} bytes are needed, {free:,} are free"
        hint = "make room on this disk and start again: what was there before is intact"
        raise DiskError(what, where=path, hint=hint) from error


@contextmanager
def locked(path: Path, *, waiting: bool = True) -> Iterator[bool]:
    """Hold the lock file ``path`` while the block runs, and yield whether this process holds it. The system frees the
    lock of a process that died. The file stays; it is empty and its owner's alone. Unless ``waiting``, a lock that
    another process holds is not waited for."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, mode=PRIVATE, blocking=waiting)
    try:
        lock.acquire()
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Flush a file, or the entries of a folder, to disk."""
    windows = os.name == "nt"
    if windows and path.is_dir():
        return  # it has no such call for folders
    descriptor = os.open(path, os.O_RDWR if windows else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _put(partial: Path, path: Path) -> None:
    """Sync what was written and let it take its place; a rename never outlives its content."""
    folder = partial.is_dir()
    for part in [*partial.rglob("*"), partial] if folder else [partial]:
        sync(part)
    if folder:
        shutil.rmtree(path, ignore_errors=True)
    partial.replace(path)
    if folder:
        sync(path.parent)


def _remove_leftovers(folder: Path) -> None:
    """Remove what writers in ``folder`` left that were killed."""
    for left in folder.glob(".*.partial-*"):
        process = left.name.rpartition("-")[2]
        if process.isdecimal() and not psutil.pid_exists(int(process)):
            _remove(left)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
