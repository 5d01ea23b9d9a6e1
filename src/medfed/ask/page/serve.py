"""Serve the page to this machine until Ctrl-C."""

from __future__ import annotations

import contextlib
import socket
import webbrowser

import typer
import uvicorn

from medfed.ask.page.app import Play
from medfed.core.errors import RunError
from medfed.runs.loaded import LoadedRun

LOOPBACK = "127.0.0.1"


def listen(port: int) -> socket.socket:
    """Take ``port`` of the loopback interface; 0 takes a free one.

    Raises:
        RunError: the port is taken.
    """
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((LOOPBACK, port))
        listening.listen()  # from here on a browser waits until the page is served, instead of being refused
    except OSError as error:
        listening.close()
        hint = "choose another --port; 0 takes a free one"
        raise RunError(f"port {port} cannot be used ({error.strerror})", hint=hint) from error
    return listening


def serve(run: LoadedRun, title: str, listening: socket.socket, *, open_page: bool = False) -> None:
    """Serve the page of ``run`` and print its address; Ctrl-C ends it without complaint.

    Args:
        run: the run that answers.
        title: the run's name.
        listening: see :func:`listen`.
        open_page: open the page in the browser.
    """
    port = listening.getsockname()[1]
    address = f"http://{LOOPBACK}:{port}/"
    config = uvicorn.Config(
        Play(run, title).app(port),
        log_config=None,  # nothing is logged: neither requests nor what a failure was about
        log_level="critical",
        access_log=False,
        server_header=False,
        ws="none",
        timeout_graceful_shutdown=5,
    )
    typer.echo(f"asking {title} on {address} (this machine only; Ctrl-C ends it)")
    if open_page:
        webbrowser.open(address)
    with contextlib.suppress(KeyboardInterrupt):  # not raised where the parent has Ctrl-C ignored
        uvicorn.Server(config).run(sockets=[listening])
    typer.echo("ended")
