"""Letters between the server and its sites, whatever carries them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple, Protocol, runtime_checkable


class Envelope(NamedTuple):
    """One message: its ``kind`` ("hello", "train", …), a few ``facts`` and the ``payload``."""

    kind: str
    facts: Mapping[str, str]
    payload: bytes


class Lost(NamedTuple):
    """No answer, and why."""

    reason: str


@runtime_checkable
class Post(Protocol):
    """The server's way to its sites; it vouches for who answers."""

    def online(self) -> set[str]:
        """Return the sites that are there now."""
        ...

    def ask(self, letters: Mapping[str, Envelope], seconds: float) -> Iterator[tuple[str, Envelope | Lost]]:
        """Send every site its letter and yield the answers as they come, at most ``seconds`` long."""
        ...

    def late(self) -> list[tuple[str, str]]:
        """Return (site, kind) of answers that came after their time since the last call; they are refused."""
        ...
