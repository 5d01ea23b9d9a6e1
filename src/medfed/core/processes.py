"""Processes of our own on this machine: started warm, ended in good order, none left behind.

A fresh interpreter pays seconds of imports before it works. So processes are forked from a server that has imported
already. It is Python's own fork server, which :func:`warm_up` forks from this process while it has one thread. Where
that cannot be (a notebook's threads, another Python), the server starts as Python starts it. It then imports the same
modules once. Windows has no fork: there every process starts fresh.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from importlib import import_module
from multiprocessing import get_all_start_methods, get_context, parent_process, process, set_forkserver_preload
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from medfed.core.plugins import Loaded, load_again, loaded

GRACE_SECONDS = 5.0
"""How long a process may take to end before it is killed."""


class Started(NamedTuple):
    """A process, and our end of the pipe to it."""

    process: process.BaseProcess
    pipe: Connection


def context() -> BaseContext:
    """Return the way processes are started here: from the fork server, or fresh where there is no fork."""
    return get_context("forkserver" if "forkserver" in get_all_start_methods() else "spawn")


def pool(size: int) -> ProcessPoolExecutor:
    """Return processes for jobs, with this one's plugins; give them jobs inside :func:`without_main`."""
    return ProcessPoolExecutor(size, mp_context=context(), initializer=load_again, initargs=(loaded(),))


@contextmanager
def without_main() -> Iterator[None]:
    """Start processes that do not import this one's main script: a script would run again in each of them. Definitions
    of the script or a notebook are therefore unknown there; a plugin's file is known."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def start(target: Callable[..., None], *args: object, name: str, daemon: bool = False) -> Started:
    """Start a process that calls the importable ``target(*args, pipe)``; it ignores Ctrl-C, which is for this one. It
    loads this process's plugins first, so ``args`` may be of their classes. A ``daemon`` ends when this process exits
    without having ended it; it may start none of its own."""
    made_by: Any = context()
    ours, theirs = made_by.Pipe()
    order = (Loaded(loaded()), target, *args, theirs)
    started = made_by.Process(target=_carry_out, args=order, name=name, daemon=daemon)
    # A process inherits which signals are ignored.
    is_main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGINT, signal.SIG_IGN) if is_main else None
    try:
        with without_main():
            started.start()
    finally:
        if before is not None:
            signal.signal(signal.SIGINT, before)
        theirs.close()
    return Started(started, ours)


def _carry_out(plugins: Loaded, target: Callable[..., None], *args: object) -> None:
    target(*args)


def warm_up(*modules: str) -> None:
    """Import ``modules`` here, and let every process that is started later begin with them."""
    for name in modules:
        import_module(name)
    if "forkserver" not in get_all_start_methods():
        return
    set_forkserver_preload(list(modules))
    tasks = Path("/proc/self/task")  # the threads that the system counts, where it does
    alone = threading.active_count() == 1 and tasks.is_dir() and len(list(tasks.iterdir())) == 1
    if sys.version_info < (3, 14) and alone:
        _fork_server()


def _fork_server() -> None:
    """Fork Python's fork server from this process, which has imported; what follows is the server's own protocol."""
    from multiprocessing import connection, forkserver, resource_tracker  # noqa: PLC0415 (POSIX)

    server: Any = forkserver._forkserver
    if server._forkserver_pid is not None:
        return
    resource_tracker.ensure_running()
    address = connection.arbitrary_address("AF_UNIX")  # type: ignore[attr-defined]
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        os.chmod(address, 0o600)
        listener.listen()
        alive, held = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(held)
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            try:
                forkserver.main(listener.fileno(), alive, [])
            finally:
                os._exit(0)
        os.close(alive)
    server._forkserver_address, server._forkserver_alive_fd, server._forkserver_pid = address, held, pid


def how_it_ended(ended: process.BaseProcess) -> str:
    """Say how ``ended`` came to its end: ``was killed by SIGKILL``, ``ended with status 1``."""
    ended.join()
    code = ended.exitcode or 0
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"


def end(processes: Sequence[process.BaseProcess]) -> None:
    """End ``processes``; those that do not within the grace are killed."""
    for one in processes:
        one.terminate()
    for one in processes:
        one.join(GRACE_SECONDS)
        if one.is_alive():
            one.kill()
            one.join()


def end_with_parent() -> None:
    """Let this process end as soon as the one that started it is gone."""

    def wait() -> None:
        if (parent := parent_process()) is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
