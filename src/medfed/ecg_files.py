"""ECG records as people hold them: a ``.hea`` header and the file of samples that it names, in any case of letters.

The library opens ``NAME.hea`` and the names written in it, in ASCII. Files that are called otherwise are read from a
copy under plain names, in a folder readable by the user alone that is removed at once.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from medfed.datasets.ptbxl import read_wfdb
from medfed.errors import DataError


class EcgFiles(NamedTuple):
    """A record's header, and by the names in it the files of samples."""

    header: Path
    signals: Mapping[str, Path]


def ecg_files(path: Path) -> EcgFiles:
    """Find the record of ``path``, which is its header or its file of samples.

    Raises:
        DataError: a file is not there, or the header names a file elsewhere or other records.
    """
    header = _beside(path.with_suffix(".hea"))
    if not header.is_file():
        raise DataError("the header is missing", where=header, hint="a record is a .hea and a .dat file: give both")
    signals = {}
    for name in signal_names(header.read_bytes(), header):
        if not is_plain(name):
            raise DataError(
                "the header names a file in another folder", where=header, hint="keep both files in one folder"
            )
        signals[name] = _beside(header.parent / name)
        if not signals[name].is_file():
            raise DataError(
                f"the header belongs to {name}, which is not beside it", where=header, hint="give both files"
            )
    return EcgFiles(header, signals)


def read_record(path: Path) -> Float[np.ndarray, "lead time"]:
    """Read a WFDB record by its header; a header that names files elsewhere is refused.

    Raises:
        DataError: a file is missing or damaged, or the record is not a 12-lead ECG at 100 Hz in mV.
    """
    header, signals = files = ecg_files(path)
    signal = next(iter(signals.values()), header.with_suffix(".dat"))
    if header.suffix == ".hea" and all(name.isascii() and file.name == name for name, file in signals.items()):
        return read_wfdb(header, signal)
    with TemporaryDirectory(prefix="medfed-ecg-") as folder:
        copy = _copy(files, Path(folder))
        try:
            return read_wfdb(copy, next(iter(copy.parent.glob("*.dat")), copy.with_suffix(".dat")))
        except DataError as error:
            where = header if error.where == copy else signal
            raise DataError(error.what.replace(f"{folder}/", ""), where=where, hint=error.hint) from error


def signal_names(header: bytes, where: str | Path) -> list[str]:
    """Return the names of the files with the samples, as the header's lines of signals give them.

    Raises:
        DataError: the header lists other records.
    """
    kept = [line.split() for line in header.decode("utf-8", errors="replace").splitlines() if _counts(line)]
    if kept and "/" in kept[0][0]:
        raise DataError("a record of several segments", where=where, hint="export it as one segment")
    return list(dict.fromkeys(words[0] for words in kept[1:]))


def is_plain(name: str) -> bool:
    """Tell whether ``name`` is that of a file and leads into no other folder."""
    return Path(name).name == name != ".." and not set(name) & set("\\:\0")


def _copy(files: EcgFiles, folder: Path) -> Path:
    """Copy the record under plain names; return the header."""
    plain = {name: f"signal{place}.dat" for place, name in enumerate(files.signals)}
    for name, file in files.signals.items():
        shutil.copyfile(file, folder / plain[name])
    lines = [line for line in files.header.read_text(encoding="utf-8", errors="replace").splitlines() if _counts(line)]
    words = [line.split(maxsplit=1) for line in lines]
    for line in words:
        line[0] = plain[line[0]] if line is not words[0] else "record"
    copy = folder / "record.hea"
    copy.write_text("".join(f"{' '.join(line)}\n" for line in words), encoding="utf-8")
    return copy


def _counts(line: str) -> bool:
    return bool(line.strip()) and not line.startswith("#")


def _beside(path: Path) -> Path:
    """Return ``path``; where it is not there, the one file beside it whose name differs in case alone."""
    if path.is_file():
        return path
    alike = [other for other in path.parent.iterdir() if other.name.lower() == path.name.lower()]
    return alike[0] if len(alike) == 1 else path
