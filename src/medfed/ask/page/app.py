"""The page's few addresses: the page with its script and style, ``/look`` to show files, ``/ask`` to ask about them.

A request carries its files; nothing is kept between two. The page is served to this machine alone, until Ctrl-C.
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
import webbrowser
from pathlib import Path
from threading import Lock
from typing import Any

import typer
import uvicorn
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request as HttpRequest
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from medfed.ask.asking import Request, ask
from medfed.ask.inputs import KINDS, read_files
from medfed.ask.page.pictures import answer_bars, expert_bars, look
from medfed.ask.page.uploads import Dropped, Guard, on_disk
from medfed.ask.task_selection import askable, parse_answers
from medfed.core.errors import DataError, MedfedError, RunError
from medfed.report.page import TEMPLATES
from medfed.report.text import number
from medfed.runs.loaded import LoadedRun

LOOPBACK = "127.0.0.1"
HERE = Path(__file__).parent
FILES = {
    "/report.css": (TEMPLATES / "style.css", "text/css"),
    "/page.css": (HERE / "page.css", "text/css"),
    "/theme.js": (TEMPLATES / "theme.js", "text/javascript"),
    "/page.js": (HERE / "page.js", "text/javascript"),
}

MAX_BYTES = 64 * 2**20
"""Of a request, files in base64."""
MAX_FILES = 8


class Question(BaseModel):
    """A question as the page sends it."""

    model_config = ConfigDict(extra="forbid")

    files: list[Dropped] = Field(max_length=MAX_FILES)
    task: str = Field(default="", max_length=100)
    question: str = Field(default="", max_length=2000)
    answers: str = Field(default="", max_length=2000)


class Play:
    """The page of one run, which answers one request at a time."""

    def __init__(self, run: LoadedRun, title: str) -> None:
        self._run, self._title, self._lock = run, title, Lock()
        options: dict[str, Any] = {"undefined": StrictUndefined, "trim_blocks": True, "lstrip_blocks": True}
        self._templates = Environment(loader=FileSystemLoader(HERE), autoescape=True, **options)

    def app(self, port: int) -> Guard:
        """Return the ASGI application, to be served on ``port``."""
        routes = [Route("/", self._page), Route("/favicon.ico", _no_icon), *(Route(path, self._file) for path in FILES)]
        routes += [Route(path, self._reply, methods=["POST"]) for path in ("/look", "/ask")]
        return Guard(Starlette(routes=routes), port)

    def look(self, question: Question) -> dict[str, str]:
        """Show the files, and the questions that suit them."""
        with on_disk(question.files) as files:
            samples = read_files(self._run.study, files)
        tasks = [task for task in askable(self._run.study, list(files)) if task.question]
        seen = self._fragment("look", seen=look(self._run.study, samples))
        return {"look": seen, "questions": self._fragment("questions", tasks=tasks)}

    def ask(self, question: Question) -> dict[str, str]:
        """Answer the question about the files."""
        answers = parse_answers(question.answers)
        with on_disk(question.files) as files:
            answer = ask(self._run, Request(files, question.task or None, question.question or None, answers))
        bars = answer_bars(answer.probabilities) if answer.probabilities else None
        parts = {"probability": None if answer.probability is None else number(answer.probability, 2), "bars": bars}
        return {"answer": self._fragment("answer", answer=answer, experts=expert_bars(answer.experts), **parts)}

    async def _page(self, request: HttpRequest) -> Response:
        study = self._run.study
        tasks = [task for task in study.tasks if task.question]
        return HTMLResponse(self._fragment("page", title=self._title, study=study, tasks=tasks))

    async def _file(self, request: HttpRequest) -> Response:
        path, kind = FILES[request.url.path]
        return Response(path.read_bytes(), media_type=kind)

    async def _reply(self, request: HttpRequest) -> Response:
        try:
            question = Question.model_validate_json(await _body(request))
            return JSONResponse(await run_in_threadpool(self._answered, request.url.path, question))
        except ValidationError:
            return _sorry(400, "The request cannot be read", "load the page again")
        except _TooLargeError:
            return _sorry(413, f"More than {MAX_BYTES // 2**20} MB", "use medfed predict for large files")
        except MedfedError as error:
            place = f"{error.where}: " if error.where else ""
            return _sorry(422, _plain(place + error.what), _plain(error.hint))
        except Exception as error:
            return _sorry(500, f"This did not work ({type(error).__name__})", "try another file or question")

    def _answered(self, path: str, question: Question) -> dict[str, str]:
        if not question.files:
            raise DataError("nothing to look at", hint="drop a picture, an ECG or an ICU table")
        with self._lock:
            return self.ask(question) if path == "/ask" else self.look(question)

    def _fragment(self, name: str, **content: object) -> str:
        return self._templates.get_template(f"{name}.html").render(**content)


def listen(port: int) -> socket.socket:
    """Take ``port`` of the loopback interface, 0 a free one; raise RunError if it is taken."""
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
    """Serve the page of ``run`` and print its address; Ctrl-C ends it without complaint."""
    port = listening.getsockname()[1]
    address = f"http://{LOOPBACK}:{port}/"
    # nothing is logged: neither requests nor what a failure was about
    quiet: dict[str, Any] = {"log_config": None, "log_level": "critical", "access_log": False, "server_header": False}
    config = uvicorn.Config(Play(run, title).app(port), **quiet, ws="none", timeout_graceful_shutdown=5)
    typer.echo(f"asking {title} on {address} (this machine only; Ctrl-C ends it)")
    if open_page:
        webbrowser.open(address)
    with contextlib.suppress(KeyboardInterrupt):  # not raised where the parent has Ctrl-C ignored
        uvicorn.Server(config).run(sockets=[listening])
    typer.echo("ended")


async def _no_icon(request: HttpRequest) -> Response:
    return Response(status_code=204)


class _TooLargeError(Exception):
    """A request over :data:`MAX_BYTES`."""


async def _body(request: HttpRequest) -> bytes:
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > MAX_BYTES:
            raise _TooLargeError
    return bytes(body)


def _plain(text: str | None) -> str:
    """Say it without a command's dashes."""
    return re.sub(rf"--({'|'.join((*KINDS, 'task', 'question', 'answers'))})\b", r"\1", text or "")


def _sorry(status: int, what: str, hint: str) -> Response:
    return Response(json.dumps({"what": what, "hint": hint}), status, media_type="application/json")
