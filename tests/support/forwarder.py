"""A TCP forwarder that stands between sites and server and can be paused or cut: a network that fails."""

from __future__ import annotations

import contextlib
import socket
import threading
from types import TracebackType
from typing import Self


class Forwarder:
    """Forwards a port of its own to ``target`` while it is whole.

    ``cut`` closes every connection and refuses new ones; ``pause`` keeps them and lets nothing through.
    """

    def __init__(self) -> None:
        self.target = 0
        self.stopped = threading.Event()
        self._whole, self._flowing = threading.Event(), threading.Event()
        self._whole.set()
        self._flowing.set()
        self._open: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stopped.set()
        self.mend()
        self._listener.close()
        self._close_all()

    def cut(self) -> None:
        """Close every connection; new ones are closed at once."""
        self._whole.clear()
        self._close_all()

    def pause(self) -> None:
        """Let nothing through; nobody is told."""
        self._flowing.clear()

    def mend(self) -> None:
        """Be whole again."""
        self._whole.set()
        self._flowing.set()

    def _accept(self) -> None:
        while not self.stopped.is_set():
            with contextlib.suppress(OSError):
                ours, _ = self._listener.accept()
                if not self._whole.is_set():
                    ours.close()
                    continue
                theirs = socket.create_connection(("127.0.0.1", self.target), 5)
                self._open |= {ours, theirs}
                self._start(self._pump, ours, theirs)
                self._start(self._pump, theirs, ours)

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                self._flowing.wait()
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _close_all(self) -> None:
        for end in self._open:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        self._open = set()

    def _start(self, target: object, *arguments: socket.socket) -> None:
        threading.Thread(target=target, args=arguments, daemon=True).start()  # type: ignore[arg-type]
