"""Files as the page sends them, and their moment on disk.

WFDB is read from paths, so files lie in a folder of their own, which the user alone can read. It is removed before the
answer is sent. Of their names only what is safe is kept; a signal is written under the name its header asks for.

Only this machine's browser, on the page's own address, may use the page. Any website can make a browser send requests
to 127.0.0.1, and with a name that it points there (DNS rebinding) even read the answers. So the Host header must be the
page's own address, and a POST must come from the page itself (Origin). Every answer carries a policy under which the
page can load nothing from elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from pydantic import Base64Bytes, BaseModel, ConfigDict, Field
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from medfed.ask.inputs import SUFFIXES, Kind, is_plain, kind_of, signal_names
from medfed.core.errors import DataError, MedfedError

SAFE_NAME = re.compile(r"\w[\w .()+-]*")
MAX_NAME = 255
"""Bytes of a file's name in UTF-8, on the usual file systems."""
HEADER, SIGNAL = ".hea", ".dat"


class Dropped(BaseModel):
    """A file as the page sends it."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(max_length=500)
    data: Base64Bytes


@contextmanager
def on_disk(dropped: Sequence[Dropped]) -> Iterator[dict[Kind, Path]]:
    """Write files into a folder of their own for the time of the block; yield one path by kind, of an ECG its header.

    Raises DataError if the kind of a file is unclear, there are two of a kind, or a header is another signal's.
    """
    with TemporaryDirectory(prefix="medfed-play-") as folder:
        try:
            yield _written(dropped, Path(folder))
        except MedfedError as error:
            where = str(error.where).replace(f"{folder}/", "") if error.where else None
            raise type(error)(error.what, where=where, hint=error.hint) from error


def _written(dropped: Sequence[Dropped], folder: Path) -> dict[Kind, Path]:
    files: dict[Kind, Path] = {}
    seen: set[str] = set()
    for name, file in zip(_names(dropped), dropped, strict=True):
        path = folder / name
        path.write_bytes(file.data)
        suffix = _suffix(file)
        kind = SUFFIXES.get(suffix) or kind_of(path)
        role = suffix if kind == "ecg" else kind
        if role in seen:
            raise DataError(f"two files of the kind {kind}", hint="drop one, and of an ECG its .hea and .dat")
        seen.add(role)
        if suffix != SIGNAL or kind not in files:
            files[kind] = path
    return files


def _names(dropped: Sequence[Dropped]) -> list[str]:
    """Return a safe name for every file; those of one stem keep one stem."""
    stems: dict[str, str] = {}
    names = []
    for file in dropped:
        suffix = _suffix(file)
        stem = file.name[: -len(suffix)] if suffix else file.name
        safe = SAFE_NAME.fullmatch(stem) and len(f"{stem}{suffix}".encode()) <= MAX_NAME
        names.append(stems.setdefault(stem, stem if safe else f"file-{len(stems)}") + suffix)
    suffixes = list(map(_suffix, dropped))
    headers, signals = ([n for n, one in enumerate(suffixes) if one == suffix] for suffix in (HEADER, SIGNAL))
    if len(headers) == len(signals) == 1:
        name = _signal_name(dropped[headers[0]], dropped[signals[0]])
        if name and is_plain(name) and len(name.encode()) <= MAX_NAME and name not in names:
            names[signals[0]] = name
    return names


def _signal_name(header: Dropped, signal: Dropped) -> str | None:
    """Return the name under which the header knows the signal; None if it knows none or several.

    Raises DataError if the header names another file and the two are not called alike: they may be of two patients.
    """
    listed = signal_names(header.data, header.name)
    if len(listed) != 1:
        return None
    alike = header.name[: -len(HEADER)].lower() == signal.name[: -len(SIGNAL)].lower()
    if not alike and listed[0].lower() != signal.name.lower():
        what = f"the header belongs to {listed[0]}, not to {signal.name}"
        hint = "drop the two files of one ECG; if they are, give them one name"
        raise DataError(what, where=header.name, hint=hint)
    return listed[0]


def _suffix(file: Dropped) -> str:
    """Return the suffix in small letters, empty if it is none of those known."""
    suffix = Path(file.name).suffix.lower()
    return suffix if suffix in SUFFIXES else ""


NAMES = ("127.0.0.1", "localhost")
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)

HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Guard:
    """Refuses requests to other hosts than this ``port``'s, and POSTs from other pages, before anything is read."""

    def __init__(self, app: ASGIApp, port: int) -> None:
        self._app = app
        self._hosts = {f"{name}:{port}" for name in NAMES} | (set(NAMES) if port == 80 else set())
        self._origins = {f"http://{host}" for host in self._hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or refuse."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            headers = Headers(scope=scope)
            own_page = scope["method"] in ("GET", "HEAD") or headers.get("origin") in self._origins
            allowed = headers.get("host") in self._hosts and own_page

            async def sealed(message: Message) -> None:
                if message["type"] == "http.response.start":
                    MutableHeaders(scope=message).update(HEADERS)
                await send(message)

            await (self._app if allowed else REFUSAL)(scope, receive, sealed)


REFUSAL = PlainTextResponse("This page answers the browser on its own machine only.\n", status_code=403)
