"""The page of a run, served in this process on a free port of the loopback interface."""

from __future__ import annotations

import base64
import http.client
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import NamedTuple

import uvicorn

from medfed.ask.page.app import Play, listen
from medfed.runs.loaded import LoadedRun


class Reply(NamedTuple):
    """What the page answers."""

    status: int
    headers: Mapping[str, str]
    text: str


@contextmanager
def served(run: LoadedRun, title: str = "quick") -> Iterator[int]:
    """Serve; yield the port."""
    listening = listen(0)
    port = listening.getsockname()[1]
    config = uvicorn.Config(Play(run, title).app(port), log_config=None, log_level="critical")
    server = uvicorn.Server(config)
    thread = Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        yield port
    finally:
        server.should_exit = True
        thread.join(20)


def request(port: int, method: str, path: str, body: bytes | None = None, **headers: str) -> Reply:
    """Send one request with exactly these headers."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.putrequest(method, path, skip_host=True)
    for name, value in ({"Host": f"127.0.0.1:{port}"} | headers).items():
        connection.putheader(name, value)
    if body is not None:
        connection.putheader("Content-Length", str(len(body)))
    connection.endheaders(body)
    answer = connection.getresponse()
    reply = Reply(answer.status, dict(answer.headers), answer.read().decode("utf-8"))
    connection.close()
    return reply


def asked(files: Sequence[Path], **fields: str) -> bytes:
    """The body that the page sends."""
    sent = [{"name": file.name, "data": base64.b64encode(file.read_bytes()).decode()} for file in files]
    return json.dumps({"files": sent, **fields}).encode()
