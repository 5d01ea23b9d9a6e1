"""Who may talk to the page: this machine's browser, on the page's own address, and nobody through it.

Any website can make a browser send requests to 127.0.0.1, and with a name that it points there (DNS rebinding) even
read the answers. So the Host header must be the page's own address, and a POST must come from the page itself (Origin).
Every answer carries a policy under which the page can load nothing from elsewhere.
"""

from __future__ import annotations

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

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
    """Refuses requests to other hosts, and POSTs from other pages, before anything of them is read.

    Args:
        app: what is guarded.
        port: the one it is served on.
    """

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
            await (self._app if allowed else REFUSAL)(scope, receive, _sealed(send))


def _sealed(send: Send) -> Send:
    """Add :data:`HEADERS` to what is sent."""

    async def sealed(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message).update(HEADERS)
        await send(message)

    return sealed


REFUSAL = PlainTextResponse("This page answers the browser on its own machine only.\n", status_code=403)
