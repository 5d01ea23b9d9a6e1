"""How a server's or a site's process ends, as its exit status and ``status.json`` tell.

======  =====================================================================
status  meaning
======  =====================================================================
0       done
1       an error; the message says which
3       too few sites came or stayed
130     interrupted (Ctrl-C); the same command goes on from the last checkpoint
143     SIGTERM; likewise
======  =====================================================================
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from medfed.errors import MedfedError, SiteError, TooFewSitesError
from medfed.site.settings import write_file
from medfed.site.status import STATUS, State, Status, read_status

TERMINATED = 143


@contextmanager
def stopped_by_sigterm() -> Iterator[None]:
    """Let SIGTERM leave the block as an exception, so that what is open is closed, with exit status 143."""

    def leave(number: int, frame: FrameType | None) -> None:
        sys.exit(TERMINATED)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def noted(root: Path) -> Iterator[None]:
    """Write into ``status.json`` how the block ended."""
    try:
        yield
    except TooFewSitesError as error:
        _note(root, "too few sites", str(error))
        raise
    except MedfedError as error:
        _note(root, "failed", str(error))
        raise
    except (KeyboardInterrupt, SystemExit):
        _note(root, "stopped", "the same command goes on from the last checkpoint")
        raise
    except BaseException as error:
        _note(root, "failed", repr(error))
        raise
    _note(root, "done", "")


def _note(root: Path, state: State, reason: str) -> None:
    try:
        before = read_status(root)
    except SiteError:
        before = Status()
    after = before.model_copy(update={"state": state, "reason": reason})
    with suppress(OSError):  # a full disk, say: the error that ends the process must be told, not this one
        write_file(root / STATUS, after.model_dump_json(indent=1).encode() + b"\n")
