"""``medfed`` commands in processes of their own, with what goes wrong in them.

They are forked from a server that has imported medfed once, so each starts at once. Every wait is bounded.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Sequence
from multiprocessing import forkserver
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import NamedTuple

import psutil

from support.clocks import BOUND, put_forward, until
from support.planted_faults import Fault, plant

RELEASED = "released"
"""File beside a log: what a fault holds goes on."""
PRELOADED = ("medfed.cli.app", "medfed.runs.pipeline", "medfed.sites.server", "medfed.sites.client")


def start_warm() -> None:
    """Start the server that processes are forked from, unless it runs."""
    multiprocessing.set_forkserver_preload(list(PRELOADED))
    forkserver.ensure_running()


def clock_of(log: Path) -> Path:
    """Return the file that says how far the clock of a log's process is ahead, if its ``prepare`` reads it."""
    return log.with_suffix(".clock")


class Ran(NamedTuple):
    """A command's exit status, and what it said on both streams."""

    status: int
    text: str


def run(arguments: Sequence[str | Path], log: Path, *faults: Fault) -> Ran:
    """Run ``medfed ARGUMENTS`` to its end; −9 is SIGKILL."""
    process = Process(arguments, log, *faults)
    try:
        return Ran(process.wait(), process.text)
    finally:
        process.end()


class Process:
    """A running ``medfed`` command and its log.

    It leads a process group of its own, as a command at a terminal does, and runs in the folder of its log.

    Args:
        arguments: of the command.
        log: standard output and error go here.
        faults: what goes wrong in it.
        prepare: called in the process before the command.
    """

    def __init__(
        self, arguments: Sequence[str | Path], log: Path, *faults: Fault, prepare: Callable[[], None] | None = None
    ) -> None:
        self.log, self.arguments = log, list(map(str, arguments))
        self._started: list[psutil.Process] = []
        start_warm()
        order = (self.arguments, str(log), faults, prepare)
        context = multiprocessing.get_context("forkserver")
        self._process: ForkServerProcess = context.Process(target=_command, args=order, daemon=True)
        self._process.start()

    @property
    def status(self) -> int | None:
        """Its exit status, or None while it runs."""
        return self._process.exitcode

    @property
    def text(self) -> str:
        """What it has said so far."""
        return self.log.read_text(encoding="utf-8") if self.log.exists() else ""

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid or 0

    def wait(self, seconds: float = BOUND) -> int:
        """Wait for its end and return its exit status; −9 is SIGKILL."""
        self._process.join(seconds)
        code = self.status
        assert code is not None, f"medfed {' '.join(self.arguments)} did not end in {seconds} s:\n{self.text}"
        return code

    def wait_for(self, words: str, seconds: float = BOUND, times: int = 1) -> None:
        """Wait until it has said ``words`` (``times`` times)."""
        until(lambda: self.text.count(words) >= times or self.status is not None, seconds, self.told)
        assert self.text.count(words) >= times, f"never said {words!r}:\n{self.text}"

    def told(self) -> str:
        """Return what it said, for a failed assertion."""
        return f"medfed {' '.join(self.arguments)}:\n{self.text}"

    def hurry(self) -> None:
        """Let every deadline that it waits for pass now."""
        put_forward(clock_of(self.log))

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self._started = psutil.Process(self.pid).children(recursive=True)
        os.kill(self.pid, number)

    def send_group(self, number: signal.Signals) -> None:
        """Send it and its children a signal, as a terminal does."""
        self._started = psutil.Process(self.pid).children(recursive=True)
        os.killpg(self.pid, number)

    def left_behind(self) -> list[psutil.Process]:
        """Return the processes that it had started before :meth:`send` and that still run after a while."""
        return psutil.wait_procs(self._started, BOUND)[1]

    def end(self) -> None:
        """Kill it if it runs."""
        if self._process.is_alive():
            self._process.kill()
        self._process.join(BOUND)


def _command(arguments: list[str], log: str, faults: tuple[Fault, ...], prepare: Callable[[], None] | None) -> None:
    """Be ``medfed ARGUMENTS`` in this process."""
    os.setsid()
    os.chdir(Path(log).parent)
    multiprocessing.current_process().daemon = False  # it may start workers
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    os.environ["COLUMNS"] = "500"
    if prepare is not None:
        prepare()
    for fault in faults:
        plant(fault, Path(log).parent / RELEASED)
    from medfed.cli.app import main

    sys.argv = ["medfed", *arguments]
    main()
