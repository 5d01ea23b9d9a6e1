"""Files as the page sends them, and their moment on disk.

WFDB is read from paths, so files lie in a folder of their own, readable by the user alone, which is removed before the
answer is sent. Of their names only what is safe is kept; a signal is written under the name its header asks for.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from pydantic import Base64Bytes, BaseModel, ConfigDict, Field

from medfed.ecg_files import is_plain, signal_names
from medfed.errors import DataError, MedfedError
from medfed.inputs import SUFFIXES, Kind, kind_of

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

    Raises:
        DataError: it cannot be told what a file is, there are two of a kind, or a header is another signal's.
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
    headers = [place for place, file in enumerate(dropped) if _suffix(file) == HEADER]
    signals = [place for place, file in enumerate(dropped) if _suffix(file) == SIGNAL]
    if len(headers) == len(signals) == 1:
        asked = _asked_for(dropped[headers[0]], dropped[signals[0]])
        if asked and is_plain(asked) and len(asked.encode()) <= MAX_NAME and asked not in names:
            names[signals[0]] = asked
    return names


def _asked_for(header: Dropped, signal: Dropped) -> str | None:
    """Return the name under which the header knows the signal; None if it knows none or several.

    Raises:
        DataError: the header names another file, and the two are not called alike: they may be of two patients.
    """
    asked = signal_names(header.data, header.name)
    if len(asked) != 1:
        return None
    alike = header.name[: -len(HEADER)].lower() == signal.name[: -len(SIGNAL)].lower()
    if not alike and asked[0].lower() != signal.name.lower():
        raise DataError(
            f"the header belongs to {asked[0]}, not to {signal.name}",
            where=header.name,
            hint="drop the two files of one ECG; if they are, give them one name",
        )
    return asked[0]


def _suffix(file: Dropped) -> str:
    """Return the suffix in small letters, empty if it is none of those known."""
    suffix = Path(file.name).suffix.lower()
    return suffix if suffix in SUFFIXES else ""
