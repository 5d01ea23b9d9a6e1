"""A headless Chromium driven over a pair of pipes by its DevTools protocol: no driver program, no port, no package."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)
SECONDS = 60
DROP = """(() => {{
  const carried = new DataTransfer();
  for (const [name, data] of {files}) {{
    carried.items.add(new File([Uint8Array.from(atob(data), sign => sign.charCodeAt(0))], name));
  }}
  const event = new DragEvent("drop", {{ dataTransfer: carried, bubbles: true, cancelable: true }});
  document.querySelector({selector}).dispatchEvent(event);
}})()"""


def chromium() -> str | None:
    """Path of an installed Chromium, or None."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Browser:
    """One page of one Chromium; ``problems`` gathers what the page complained about."""

    def __init__(self, program: str, profile: Path) -> None:
        commands, self._to = os.pipe()
        self._from, answers = os.pipe()
        script = f'exec "$0" "$@" 3<&{commands} 4>&{answers}'
        arguments = ["bash", "-c", script, program, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        quiet = subprocess.DEVNULL
        self._process = subprocess.Popen(arguments, pass_fds=(commands, answers), stdout=quiet, stderr=quiet)
        os.close(commands)
        os.close(answers)
        self._rest, self._last, self._session, self._home = b"", 0, "", "file:"
        self.problems: list[str] = []
        targets = self._call("Target.getTargets")["targetInfos"]
        page = next(target["targetId"] for target in targets if target["type"] == "page")
        self._session = self._call("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        for domain in ("Page", "Log", "Runtime", "Network"):
            self._call(f"{domain}.enable")

    def __enter__(self) -> Browser:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.wait(SECONDS)
        os.close(self._to)
        os.close(self._from)

    def open(self, page: Path | str, width: int, *, dark: bool = False) -> None:
        """Load a local file, or an address, in a viewport of ``width`` CSS pixels and wait for its load event.

        Requests to anything but local files, or the address's own server, count as problems.
        """
        self.problems.clear()
        url = page if isinstance(page, str) else page.resolve().as_uri()
        self._home = url if isinstance(page, str) else "file:"
        self._call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", features=[scheme])
        self._call("Page.navigate", url=url)
        while self._message().get("method") != "Page.loadEventFired":
            pass

    def evaluate(self, expression: str) -> object:
        """Value of a JavaScript expression, evaluated beside the page's own policy."""
        found = self._call("Runtime.evaluate", expression=expression, returnByValue=True)
        if "exceptionDetails" in found:
            raise RuntimeError(found["exceptionDetails"]["text"])
        return found["result"].get("value")

    def wait_for(self, expression: str) -> None:
        """Wait until a JavaScript expression is true."""
        limit = time.monotonic() + SECONDS
        while not self.evaluate(f"!!({expression})"):
            if time.monotonic() > limit:
                raise TimeoutError(f"{expression} is still false after {SECONDS} s; problems: {self.problems}")
            time.sleep(0.05)

    def choose_files(self, selector: str, files: Sequence[Path]) -> None:
        """Put files into a file input, as its dialog would."""
        root = self._call("DOM.getDocument")["root"]["nodeId"]
        node = self._call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self._call("DOM.setFileInputFiles", nodeId=node, files=[str(file) for file in files])

    def drop_files(self, selector: str, files: Sequence[Path]) -> None:
        """Drop files on an element."""
        given = [[file.name, base64.b64encode(file.read_bytes()).decode()] for file in files]
        self.evaluate(DROP.format(selector=json.dumps(selector), files=json.dumps(given)))

    def screenshot(self) -> bytes:
        """The whole page as PNG."""
        found = self._call("Page.captureScreenshot", captureBeyondViewport=True)
        return base64.b64decode(found["data"])

    def pdf(self) -> bytes:
        """The page as it would be printed."""
        return base64.b64decode(self._call("Page.printToPDF", printBackground=True)["data"])

    def _call(self, method: str, **params: object) -> dict:
        self._last += 1
        message = {"id": self._last, "method": method, "params": params}
        message |= {"sessionId": self._session} if self._session else {}
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while (answer := self._message()).get("id") != self._last:
            pass
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']['message']}")
        return answer["result"]

    def _message(self) -> dict:
        while b"\0" not in self._rest:
            part = os.read(self._from, 1 << 20)
            if not part:
                raise RuntimeError("Chromium ended; does it start from a terminal?")
            self._rest += part
        text, _, self._rest = self._rest.partition(b"\0")
        message = json.loads(text)
        self._note(message.get("method"), message.get("params", {}))
        return message

    def _note(self, method: str | None, params: dict) -> None:
        if method == "Log.entryAdded" and params["entry"]["level"] in ("warning", "error"):
            self.problems.append(params["entry"]["text"])
        if method == "Runtime.exceptionThrown":
            self.problems.append(params["exceptionDetails"]["text"])
        if method == "Runtime.consoleAPICalled":
            self.problems.append(f"console.{params['type']}")
        if method == "Network.requestWillBeSent":
            url = params["request"]["url"]
            self.problems += [] if url.startswith((self._home, "data:image/png")) else [f"asked for {url}"]
