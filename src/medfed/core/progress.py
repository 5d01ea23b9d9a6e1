"""Progress a person can follow: bars on a terminal, one plain line per phase elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Advance = Callable[[int, int], None]
"""Called with (done, total)."""


class Reporter:
    """Where a run says what it is doing."""

    def __init__(self, console: Console) -> None:
        self.console = console

    @classmethod
    def silent(cls) -> Reporter:
        """Return one that prints nothing."""
        return cls(Console(quiet=True))

    def say(self, text: str) -> None:
        """Print one line as it is: a fingerprint's `:CD:` is no picture of a disk."""
        self.console.print(text, highlight=False, markup=False, emoji=False, soft_wrap=True)

    @contextmanager
    def phase(self, title: str) -> Iterator[Advance]:
        """Show ``title`` while the block runs; the block may tell how far it is."""
        started = time.monotonic()
        if self.console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
            times = (TimeElapsedColumn(), TimeRemainingColumn())
            with Progress(*columns, *times, console=self.console, transient=True, refresh_per_second=4) as bar:
                task = bar.add_task(title, total=None)
                yield lambda done, total: bar.update(task, completed=done, total=total)
        else:
            yield lambda done, total: None
        self.say(f"{title}: {time.monotonic() - started:.1f} s")
