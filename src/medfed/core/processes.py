"""Processes of our own on this machine: started fresh, not forked, ended in good order, none left behind."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Sequence
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import NamedTuple

GRACE_SECONDS = 5.0
"""How long a process may take to end before it is killed."""


class Started(NamedTuple):
    """A process, and our end of the pipe to it."""

    process: SpawnProcess
    pipe: Connection


def start(target: Callable[..., None], *args: object, name: str, daemon: bool = False) -> Started:
    """Start a process that calls ``target(*args, pipe)``; it ignores Ctrl-C, which is for this process to handle.

    Args:
        target: an importable function.
        args: its first arguments.
        name: of the process.
        daemon: end it when this process exits without having ended it; it may then start none of its own.
    """
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=target, args=(*args, theirs), name=name, daemon=daemon)
    # A process inherits which signals are ignored.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN) if _is_main_thread() else None
    try:
        process.start()
    finally:
        if before is not None:
            signal.signal(signal.SIGINT, before)
        theirs.close()
    return Started(process, ours)


def how_it_ended(process: SpawnProcess) -> str:
    """Say how ``process`` ended: ``was killed by SIGKILL``, ``ended with status 1``."""
    process.join()
    code = process.exitcode or 0
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"


def end(processes: Sequence[SpawnProcess]) -> None:
    """End ``processes``; those that do not within the grace are killed."""
    for process in processes:
        process.terminate()
    for process in processes:
        process.join(GRACE_SECONDS)
        if process.is_alive():
            process.kill()
            process.join()


def end_with_parent() -> None:
    """Let this process end as soon as the one that started it is gone."""
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _is_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
