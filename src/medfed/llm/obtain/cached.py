"""LLMs by name: their folders in the cache, and the fingerprint that tells whether a folder is still what it was.

A fingerprint lies in the folder as ``fingerprint.json``. Sizes are compared whenever the folder is named, all content
before its weights are used.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from medfed.core.errors import StudyError
from medfed.core.files import sha256_of, write_whole
from medfed.llm.checkpoints import checksum_files, checksum_of
from medfed.llm.obtain.known import KNOWN, Sha256

FINGERPRINT = "fingerprint.json"
_FOLDERS = "foundations"


class FileFacts(BaseModel):
    """A file of the folder: its bytes and their SHA-256."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    num_bytes: int
    sha256: Sha256


class Origin(BaseModel):
    """The content that a converted LLM was made of.

    Attributes:
        name: by which it is known; None for one that is not.
        title: what it is.
        licence: as its makers or its file state it.
        source: where the content came from.
        gguf_sha256: of the GGUF file; None where it was none.
        dtype: of the weights.
        num_parameters: a tied output layer counted once.
        tied: the output layer is the embedding.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str | None = None
    title: str
    licence: str | None
    source: str
    gguf_sha256: Sha256 | None = None
    dtype: str
    num_parameters: int
    tied: bool


class Fingerprint(Origin):
    """The content of a folder, and how it was made.

    Attributes:
        sha256: the checksum that pins it in a study.
        files: facts of every file.
        versions: of the libraries that wrote it.
    """

    sha256: Sha256
    files: dict[str, FileFacts]
    versions: dict[str, str]


def users_cache() -> Path:
    """Return the folder that the environment names as medfed's cache, or the usual one."""
    return Path(os.environ.get("MEDFED_CACHE", "~/.cache/medfed")).expanduser()


def folder_of(name: str, cache: Path) -> Path:
    """Return where the cache has the LLM ``name``, or would have it."""
    return cache / _FOLDERS / name


def named_folder(given: Path | None, model: str | None, cache: Path) -> Path | None:
    """Return the folder that ``--foundation`` or ``foundation.model`` names; a known name's is in the cache.

    Args:
        given: ``--foundation``: a folder, or a known name.
        model: ``foundation.model``, which counts where nothing is given.
        cache: folder of the cache.

    Returns:
        None where only ``model`` is given, and it is no known name.

    Raises:
        StudyError: a known name that the cache lacks; nothing is fetched here.
    """
    name = known_name(given) if given is not None else model
    if name is None or name not in KNOWN:
        return given
    folder = folder_of(name, cache)
    if not (folder / FINGERPRINT).is_file():
        raise StudyError(f"the LLM {name!r} is not in the cache", where=cache, hint=_getting(name, cache))
    return folder


def known_name(given: Path) -> str | None:
    """Return the known name that ``given`` is; a folder of that name in the current one comes first."""
    return str(given) if str(given) in KNOWN and not given.exists() else None


def write_fingerprint(folder: Path, origin: Origin) -> Fingerprint:
    """Write what ``folder`` holds next to its files."""
    paths = sorted(path for path in folder.iterdir() if path.is_file() and path.name != FINGERPRINT)
    files = {path.name: FileFacts(num_bytes=path.stat().st_size, sha256=sha256_of(path)) for path in paths}
    sums = {path.name: files[path.name].sha256 for path in checksum_files(folder)}
    packages = ("medfed", "gguf", "safetensors", "tokenizers", "torch", "transformers")
    made = Fingerprint(
        **origin.model_dump(),
        sha256=checksum_of(sums),
        files=files,
        versions={package: version(package) for package in packages},
    )
    write_whole(folder / FINGERPRINT, made.model_dump_json(indent=1) + "\n")
    return made


def read_fingerprint(folder: Path) -> Fingerprint | None:
    """Return what ``folder`` should hold; None where nothing is recorded.

    Raises:
        StudyError: the record cannot be read.
    """
    path = folder / FINGERPRINT
    if not path.is_file():
        return None
    try:
        return Fingerprint.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = str(error).split("\n")[1].strip()
        raise StudyError(f"not a fingerprint: {first}", where=path, hint=_again(folder)) from error


def check_sizes(folder: Path) -> None:
    """Make sure that every recorded file of ``folder`` is there in its size, and none that counts was added.

    Raises:
        StudyError: the folder changed.
    """
    record = read_fingerprint(folder)
    if record is None:
        return
    added = {path.name for path in checksum_files(folder)} - record.files.keys()
    sizes = {name: _size(folder / name) for name in record.files}
    for name in sorted(added):
        raise _changed(folder, name, "was added")
    for name, facts in record.files.items():
        if sizes[name] is None:
            raise _changed(folder, name, "is gone")
        if sizes[name] != facts.num_bytes:
            raise _changed(folder, name, f"has {sizes[name]:,} bytes instead of {facts.num_bytes:,}")


def checked_sum(folder: Path) -> str:
    """Return the checksum of the foundation in ``folder``, in hex, after comparing all content with its fingerprint.

    Raises:
        StudyError: the folder changed.
    """
    check_sizes(folder)
    record = read_fingerprint(folder)
    counted = [path.name for path in checksum_files(folder)]
    sums = {name: sha256_of(folder / name) for name in dict.fromkeys([*counted, *(record.files if record else ())])}
    recorded: Mapping[str, FileFacts] = record.files if record else {}
    for name, facts in recorded.items():
        if sums[name] != facts.sha256:
            raise _changed(folder, name, "has other content")
    return checksum_of({name: sums[name] for name in counted})


def _getting(name: str, cache: Path) -> str:
    return f"medfed foundation get {name}" + ("" if cache == users_cache() else f" --cache {cache}")


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def _changed(folder: Path, name: str, how: str) -> StudyError:
    return StudyError(f"the LLM changed since it was written: {name} {how}", where=folder, hint=_again(folder))


def _again(folder: Path) -> str:
    if folder.name in KNOWN and folder.parent.name == _FOLDERS:
        return f"remove the folder, then {_getting(folder.name, folder.parent.parent)}"
    return "convert it again"
