"""Waiting for what must come, and clocks that a test puts forward: nothing depends on how fast the machine is."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

BOUND = 300.0
"""No wait of a test is longer, in seconds; nothing is faster or slower for it."""
DEADLINES_IN = ("medfed.sites.network", "medfed.sites.transport", "medfed.sites.server")
"""Modules that wait for sites, servers and answers."""
AHEAD_SECONDS = 1e6
"""Further than any deadline."""


class Clock:
    """Stands for the module ``time``; its ``monotonic`` is ``ahead()`` seconds ahead."""

    def __init__(self, ahead: Callable[[], float]) -> None:
        self._ahead = ahead

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)

    def monotonic(self) -> float:
        return time.monotonic() + self._ahead()


class Hurry:
    """In this process: when called, lets every deadline pass that runs now; ``times`` is how fast time runs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.times, self._ahead, self._last = 1.0, 0.0, time.monotonic()
        for module in [sys.modules[name] for name in DEADLINES_IN if name in sys.modules]:
            monkeypatch.setattr(module, "time", Clock(self._read))

    def __call__(self) -> None:
        self._ahead += AHEAD_SECONDS

    def _read(self) -> float:
        now = time.monotonic()
        self._ahead += (self.times - 1) * (now - self._last)
        self._last = now
        return self._ahead


def read_clock_from(path: Path) -> None:
    """Let the clock of this process be as far ahead as the file says, for whoever writes it."""
    for name in DEADLINES_IN:
        module = import_module(name)
        assert module.time is time
        module.time = Clock(lambda: float(path.read_text(encoding="utf-8")) if path.exists() else 0.0)  # type: ignore[attr-defined]


def put_forward(path: Path) -> None:
    """Let every deadline pass that runs now in the process that reads ``path``."""
    ahead = float(path.read_text(encoding="utf-8")) if path.exists() else 0.0
    part = path.with_suffix(".part")
    part.write_text(str(ahead + AHEAD_SECONDS), encoding="utf-8")
    part.replace(path)


def until(holds: Callable[[], bool], seconds: float = BOUND, told: Callable[[], str] = str) -> None:
    """Wait until ``holds()``; fail after ``seconds`` with ``told()``."""
    limit = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < limit, f"not within {seconds} s\n{told()}"
        time.sleep(0.05)
