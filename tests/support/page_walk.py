"""Follow the commands of docs/deployment.md: who runs which block stands in a comment before it.

``run: server``, ``run: site`` (every site, all at once), ``run: server, for every site`` are run in turn; what ``goes
on`` stays in the background, and ``when it is over`` waits for it. The walker is the post between server and hospitals.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol

from typer.testing import CliRunner

from support.clocks import until
from support.processes import Process

PAGE = Path(__file__).parents[2] / "docs" / "deployment.md"
FINGERPRINT = r"(?:[0-9A-F]{2}:){31}[0-9A-F]{2}"
OVER_SECONDS = 600.0


class Block(NamedTuple):
    """A block of commands and what stands before it: ``run: server`` → ``server``; ``not run: …`` as it is."""

    who: str
    text: str


class Said(NamedTuple):
    """What commands printed, and their exit status."""

    status: int
    output: str


class Shell(Protocol):
    """A way to run a block."""

    def __call__(self, block: str, folder: Path, env: Mapping[str, str]) -> Said: ...


def blocks(page: str) -> list[Block]:
    """Return the page's blocks in their order."""
    found = re.findall(r"^<!-- (?:run: )?([^>]+) -->\n```bash\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    return [Block(who, text) for who, text in found]


def bash(block: str, folder: Path, env: Mapping[str, str]) -> Said:
    """Run a block as a person would."""
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block],
        cwd=folder,
        env=dict(env),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=OVER_SECONDS,
    )
    return Said(done.returncode, done.stdout)


def in_this_process(block: str, folder: Path, env: Mapping[str, str]) -> Said:
    """Run a block's medfed commands without starting an interpreter for each, and other lines by bash."""
    from medfed.cli.app import app

    outputs, here = [], Path.cwd()
    for line in block.replace("\\\n", " ").splitlines():
        if line.startswith("medfed "):
            os.chdir(folder)
            try:
                ran = CliRunner().invoke(app, words_of(line, env), env=dict(env))
            finally:
                os.chdir(here)
            said = Said(ran.exit_code, f"{ran.output}{ran.exception or ''}\n")
        else:
            said = bash(line, folder, env)
        outputs.append(said.output)
        if said.status:
            return Said(said.status, "".join(outputs))
    return Said(0, "".join(outputs))


def words_of(line: str, env: Mapping[str, str]) -> list[str]:
    """Return the arguments of a line that starts with ``medfed``."""
    first, *words = shlex.split(re.sub(r"\$(\w+)", lambda name: env[name[1]], line.replace("\\\n", " ")))
    assert first == "medfed"
    return words


class Walk:
    """The folders of one server and its hospitals, and what goes on in them.

    Args:
        root: an empty folder.
        data: holds ``server`` and a folder for every site.
        sites: names of the hospitals.
        variables: the page's, at the server.
        shell: runs the blocks that end.
    """

    def __init__(
        self, root: Path, data: Path, sites: Sequence[str], variables: Mapping[str, str], shell: Shell
    ) -> None:
        self.server, self.sites = root / "server", {site: root / site for site in sites}
        for folder in (self.server, *self.sites.values()):
            folder.mkdir(parents=True)
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self._env = {**os.environ, "PATH": path, "HOME": str(root)}
        self.variables, self._data, self._shell = {**variables, "DATA": str(data / "server")}, data, shell
        self.fingerprint = ""
        self._going: dict[Path, Going] = {}

    def at_server(self, text: str, **more: str) -> Said:
        """Run a block at the server; the post then brings the invitation to the hospitals."""
        said = self._shell(text, self.server, self.server_env() | more)
        if printed := re.search(rf"CA fingerprint.*\n  ({FINGERPRINT})\n", said.output):
            self.fingerprint = self.fingerprint or printed[1]
        for folder in self.sites.values():
            if (invitation := self.server / "federation" / "invitation").exists():
                shutil.copytree(invitation, folder / "invitation", dirs_exist_ok=True)
        return said

    def at_sites(self, text: str) -> dict[str, Said]:
        """Run a block at every hospital; the post then brings the public keys to the server."""
        with ThreadPoolExecutor(1 if self._shell is in_this_process else len(self.sites)) as pool:
            said = list(pool.map(lambda site: self._shell(text, self.sites[site], self.site_env(site)), self.sites))
        for site, folder in self.sites.items():
            if (key := folder / "hospital" / "node.pub").exists():
                shutil.copyfile(key, self.server / f"{site}.pub")
        return dict(zip(self.sites, said, strict=True))

    def server_env(self) -> dict[str, str]:
        """Return the variables of the server."""
        return {**self._env, **self.variables}

    def site_env(self, site: str) -> dict[str, str]:
        """Return the variables of a hospital."""
        own = {"SITE": site, "DATA": str(self._data / site), "FINGERPRINT": self.fingerprint}
        return {**self._env, **own}

    def go_on(self, text: str, folder: Path, env: Mapping[str, str] | None = None) -> None:
        """Start a block that stays."""
        kind = Forked if self._shell is in_this_process else Started
        self._going[folder] = kind(text, folder, dict(env or self.server_env()))

    def wait_until(self, words: str, folder: Path) -> None:
        """Wait until what stays in ``folder`` has printed ``words``."""
        going = self._going[folder]
        until(lambda: words in going.text or not going.is_running, OVER_SECONDS, lambda: going.text)
        assert words in going.text, going.text

    def over(self) -> dict[str, Said]:
        """Wait until everything that stays has ended."""
        ended = {folder.name: going.wait() for folder, going in self._going.items()}
        return {name: Said(status, (self.server.parent / name / "log").read_text()) for name, status in ended.items()}

    def end(self) -> None:
        """Stop what is still running."""
        for going in self._going.values():
            going.end()


class Going(Protocol):
    """A command that stays."""

    @property
    def text(self) -> str: ...

    @property
    def is_running(self) -> bool: ...

    def wait(self) -> int: ...

    def end(self) -> None: ...


class Started:
    """A command that stays, as a person starts it."""

    def __init__(self, text: str, folder: Path, env: Mapping[str, str]) -> None:
        self._log = folder / "log"
        with self._log.open("wb") as log:
            command = ["bash", "-c", f"exec {text}"]
            self._process = subprocess.Popen(command, cwd=folder, env=env, stdout=log, stderr=subprocess.STDOUT)

    @property
    def text(self) -> str:
        return self._log.read_text()

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    def wait(self) -> int:
        return self._process.wait(OVER_SECONDS)

    def end(self) -> None:
        self._process.kill()
        self._process.wait()


def _set_environment(env: dict[str, str]) -> None:
    os.environ.update(env)


class Forked(Process):
    """A medfed command that stays, without an interpreter of its own."""

    def __init__(self, text: str, folder: Path, env: Mapping[str, str]) -> None:
        super().__init__(words_of(text, env), folder / "log", prepare=partial(_set_environment, env))

    @property
    def is_running(self) -> bool:
        return self.status is None
