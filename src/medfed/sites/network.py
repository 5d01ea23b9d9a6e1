"""Messages over a network that fails: bounded waiting, repeated requests, sites and servers that are started again.

:class:`NetworkServer` is the :class:`~medfed.sites.remote.Transport` of a server; :class:`NetworkSite` is a site's end.
Nothing here knows what a message says, and only ``transport`` knows Flower.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from cryptography.hazmat.primitives.asymmetric import ec

from medfed.core.errors import RunError
from medfed.sites import transport
from medfed.sites.credentials import Certificates
from medfed.sites.remote import Message, NoAnswer
from medfed.sites.transport import FAILURES, POLL_SECONDS, SLOWEST_POLL_SECONDS, UNAVAILABLE, Connection, GoneError

Report = Callable[[str], None]
REFUSED_SECONDS = 30.0
"""A key is free again after two missed beats; one refused for longer is not known."""
DOWN = (502, 503, 504)
"""HTTP statuses of a gateway whose server is away."""
LATE_SECONDS = 24 * 3600.0
"""An answer that comes after its deadline is still reported for so long."""


@dataclass
class _Sent:
    """A message that waits for its answer ``seconds`` long, and the last time it was sent."""

    site: str
    message: Message
    seconds: float
    message_id: str = ""
    connection: str = ""
    reply_id: str = ""  # once an answer is announced


class NetworkServer(transport.Listener):
    """The server's end: it sends messages, and waits a bounded time for the answers."""

    def __init__(self, host: str, port: int, files: Certificates, keys: Mapping[str, bytes], log: Path) -> None:
        super().__init__(host, port, files, keys, log)
        self._late: list[_Sent] = []

    def ask(self, messages: Mapping[str, Message], seconds: float) -> Iterator[tuple[str, Message | NoAnswer]]:
        """Send every site its message and yield the answers as they come, at most ``seconds`` long. A site that is gone
        has one heartbeat's time to come back; when it does, it gets its message again. An answer that comes after its
        time belongs to nobody: :meth:`late` reports it, and its content is dropped. A message that was not fetched in
        time is taken back."""
        waiting = {site: _Sent(site, message, seconds) for site, message in sorted(messages.items())}
        for sent in waiting.values():
            self._send(sent)
        limit, pause = time.monotonic() + seconds, POLL_SECONDS
        while waiting and time.monotonic() < limit:
            answers = {site: answer for site, sent in waiting.items() if (answer := self._look(sent))}
            for site, answer in answers.items():
                self._close(waiting.pop(site), answer)
                yield site, answer
            pause = POLL_SECONDS if answers else min(pause * 1.5, SLOWEST_POLL_SECONDS)
            time.sleep(min(pause, max(0.0, limit - time.monotonic())))
        none = NoAnswer(f"no answer within {seconds:g} s; an answer that comes later is refused")
        for site, sent in waiting.items():
            self._close(sent, none)
            yield site, none

    def late(self) -> list[tuple[str, str]]:
        """Return (site, kind) of answers that came after their time since the last call; they are refused."""
        answers = [(sent, self._answer(sent)) for sent in self._late]
        self._late = [sent for sent, answer in answers if answer is None]
        return [(sent.site, sent.message.kind) for sent, answer in answers if isinstance(answer, Message)]

    def _send(self, sent: _Sent) -> None:
        sent.connection, sent.reply_id = self.presence(sent.site).connection, ""
        sent.message_id = self.send(sent.site, sent.message, sent.seconds + LATE_SECONDS)

    def _look(self, sent: _Sent) -> Message | NoAnswer | None:
        """Return the answer if there is one, or that the site is gone; if it is back, send the message again."""
        site = self.presence(sent.site)
        if not site.online:
            return UNAVAILABLE if site.overdue_seconds > transport.HEARTBEAT_SECONDS else None
        answer = self._answer(sent)
        if isinstance(answer, Message) or site.connection == sent.connection:
            return answer
        # An answer that broke off when the site went away does not count: the site gets its message anew.
        self.take_back(sent.site, sent.message_id)
        self._send(sent)
        return None

    def _answer(self, sent: _Sent) -> Message | NoAnswer | None:
        """Return the answer, or None while it is not there whole; nothing waits for one site alone."""
        reply = sent.reply_id or self.reply_to(sent.message_id)
        answer = self.content(reply) if isinstance(reply, str) else reply
        sent.reply_id = reply if isinstance(reply, str) else ""
        if answer is not None:
            self.forget(sent.message_id)
        return answer

    def _close(self, sent: _Sent, answer: Message | NoAnswer) -> None:
        """Expect no more of a site; what it still answers is refused, and reported if it had not answered in time."""
        if self.take_back(sent.site, sent.message_id) and not isinstance(answer, Message):
            self._late.append(sent)


class NetworkSite:
    """A site's end: it calls out to the server at ``host:port``, proves its key, and answers messages one by one.
    ``ca`` is the server's certificate authority, PEM; ``log`` is a file for the network's own lines."""

    def __init__(self, address: str, ca: bytes, private_key: ec.EllipticCurvePrivateKey, log: Path) -> None:
        transport.log_to(log)
        self._address, self._ca, self._private_key = address, ca, private_key
        self._stopped = threading.Event()
        self._report: Report = print
        self._patience_seconds = self._heard = 0.0
        self._outages = 0

    def stop(self) -> None:
        """Let :meth:`serve` return after the message it is at."""
        self._stopped.set()

    def serve(self, answer: Callable[[Message], Message], report: Report, *, patience_seconds: float) -> None:
        """Answer messages until :meth:`stop`; a lost connection is tried again for ``patience_seconds``. Raises
        RunError if the server cannot be reached, or its certificate or this site's key is refused. ``answer`` must not
        raise; ``report`` is given lines for a person: connected, lost, trying again."""
        self._report, self._patience_seconds = report, patience_seconds
        self._heard, pause = time.monotonic(), POLL_SECONDS
        while not self._stopped.is_set():
            try:
                with Connection(self._address, self._ca, self._private_key, self._repeat) as connection:
                    report(f"connected to {self._address}")
                    self._heard, pause = time.monotonic(), POLL_SECONDS
                    self._answer_all(connection, answer)
            except FAILURES as error:
                self._give_up(error, time.monotonic() - self._heard)
                # A key that a process held which died is free before the server takes the site for gone: be there then.
                refused = isinstance(error, transport.RefusedError)
                pause = min(pause * 2, transport.HEARTBEAT_SECONDS / (4 if refused else 1))
                report(f"{_why(error)}; trying again in {pause:g} s")
                self._stopped.wait(pause)

    def _answer_all(self, connection: Connection, answer: Callable[[Message], Message]) -> None:
        pause, outages = POLL_SECONDS, self._outages
        while not self._stopped.is_set():
            if connection.lost.is_set():
                raise GoneError("the server does not hear this site's heartbeats")
            received = connection.receive()
            if received is not None:
                pause, (envelope, message) = POLL_SECONDS, received
                connection.reply(envelope, answer(message))
                outages = self._outages
            elif self._outages > outages:  # connect anew: the server sends again what was lost on its way
                outages = self._outages
                connection.deactivate()
                connection.activate()
            else:
                pause = min(pause * 1.5, SLOWEST_POLL_SECONDS)
                self._stopped.wait(pause)

    def _give_up(self, error: Exception, silent: float) -> None:
        """Raise if trying again is in vain, after ``silent`` seconds without contact."""
        if _is_tls(error):
            what = f"its certificate is refused: {_why(error)}"
            hint = "compare the fingerprint of its certificate authority with the server's people; nothing was sent"
        elif isinstance(error, transport.RefusedError) and silent > REFUSED_SECONDS:
            what = "it does not know this site's key, or the key is in use"
            hint = "let the server's people register this site's public key; run one process per key"
        elif silent > self._patience_seconds:
            what = f"no contact for {silent:.0f} s: {_why(error)}"
            hint = "ask whether the server runs; run `medfed site doctor` here"
        else:
            return
        raise RunError(what, where=f"server {self._address}", hint=hint) from error

    def _repeat(self, call: transport.Call, request: Any, seconds: float | None) -> Any:
        """Return the answer of ``call``, repeated with back-off while the network fails. It is repeated for ``seconds``
        in silence; or, if None, as long as the patience lasts, with reports."""
        started, pause, quiet = time.monotonic(), POLL_SECONDS, seconds is not None
        limit = started + (self._patience_seconds if seconds is None else seconds)
        while True:
            try:
                answer = call(request)
                break
            except httpx.HTTPError as error:
                # The same request would fail again where the server, or an impostor, has answered.
                answered = isinstance(error, httpx.HTTPStatusError) and error.response.status_code not in DOWN
                if answered or _is_tls(error) or time.monotonic() > limit:
                    raise
                if pause == POLL_SECONDS and not quiet:
                    self._report(f"{_why(error)}; trying again")
                if self._stopped.wait(pause):
                    raise
                pause = min(2 * pause, transport.HEARTBEAT_SECONDS)
        if not quiet:
            self._heard = time.monotonic()
            if pause > POLL_SECONDS:
                self._outages += 1
                self._report(f"the network is back after {self._heard - started:.0f} s")
        return answer


def _why(error: Exception) -> str:
    if isinstance(error, httpx.HTTPStatusError):
        return f"the server answered {error.response.status_code}"
    return str(error) or type(error).__name__


def _is_tls(error: Exception) -> bool:
    """Whether this is not the server that the certificate authority vouches for; a cut in the handshake is not that."""
    text = str(error).lower()
    return isinstance(error, httpx.ConnectError) and "eof" not in text and ("certificate" in text or "ssl" in text)
