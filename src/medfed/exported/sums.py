"""Checksums of an exported folder, in the form that ``sha256sum -c`` reads."""

from __future__ import annotations

from pathlib import Path

from medfed.core.files import sha256_of
from medfed.errors import RunError

SUMS = "SHA256SUMS"


def check_sums(folder: Path) -> None:
    """Make sure that every file listed in ``SHA256SUMS`` is there and whole.

    Raises:
        RunError: one is not.
    """
    try:
        lines = (folder / SUMS).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise RunError("no checksums", where=folder / SUMS, hint="export the run again") from error
    for line in lines:
        digest, _, name = line.partition("  ")
        path = folder / name
        if not path.is_file():
            raise RunError("the file is missing", where=path, hint="copy the whole folder")
        if sha256_of(path) != digest:
            raise RunError("the file does not match its checksum", where=path, hint="copy it again, or export again")
