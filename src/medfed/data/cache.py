"""Decoded arrays on disk: decoding PNG, DICOM, WFDB or NIfTI costs as much every run, reading arrays next to nothing.

An entry is a folder of ``.npy`` files and a list of them. Its name is a hash of dataset, root and settings of the
modalities. It is used only if all of this is unchanged:

- the index, which is read anew every time;
- size, times and number on disk of every file under the root, and of every file that the index names;
- the code that decodes, and the versions of the libraries it reads files with;
- the SHA-256 of every array.

Arrays are mapped into memory, not read. An entry appears whole, and takes the place of the one before, so there is one
for each root and settings. These are patients' data: folders are this user's only.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
from pydantic import BaseModel, ConfigDict, ValidationError

import medfed.data
import medfed.datasets
import medfed.modalities
from medfed.core.code import definition_of, source_file
from medfed.core.errors import DiskError
from medfed.core.files import sha256_of, written_whole
from medfed.datasets.base import Dataset, Problem
from medfed.modalities.base import Modality

LIST = "entry.json"
READERS = ("numpy", "pillow", "pydicom", "wfdb", "nibabel", "polars")
"""Libraries that read files."""
PACKAGES = tuple(Path(part.__path__[0]) for part in (medfed.data, medfed.datasets, medfed.modalities))
"""The code that decodes."""
SETTLED_SECONDS = 0.1
"""Clocks of file systems tick: a file that was written so shortly before may be written again with the same time."""


@dataclass(frozen=True)
class Source:
    """A dataset at its root, with the settings of its modalities and truths."""

    dataset: Dataset
    root: Path
    index: pl.DataFrame
    modalities: Mapping[str, Modality]


class Arrays(NamedTuple):
    """A decoded dataset, rows as in the index."""

    samples: Mapping[str, np.ndarray]
    """Modality, or truth, → ``[example, *sample]``; rows of unreadable examples hold anything."""
    present: Mapping[str, np.ndarray]
    """Modality, or truth, → ``[example]`` bool."""
    problems: Mapping[int, Problem]
    """Row → why it is unreadable."""


class Entry(NamedTuple):
    """An entry of a cache: its folder, the dataset and root behind it, and its size."""

    folder: Path
    dataset: str
    root: str
    num_examples: int
    num_bytes: int


class _List(BaseModel):
    """Content of ``entry.json``."""

    model_config = ConfigDict(extra="forbid")

    dataset: str
    root: str
    num_examples: int
    sources: str
    sha256: dict[str, str]
    skipped: dict[int, tuple[str, str, str]]


class DecodedCache:
    """The entries below ``cache/decoded``; ``say`` is given a line if one could not be written, for no run needs it."""

    def __init__(self, cache: Path, say: Callable[[str], None] = lambda line: None) -> None:
        self._folder, self._say = cache / "decoded", say

    def arrays(self, source: Source, fresh: Callable[[], Arrays], *, skip_bad: bool) -> Arrays:
        """Return the kept arrays of ``source``; else those of ``fresh``, and keep them unless a file changed meanwhile.

        With ``skip_bad`` arrays will do from which unreadable examples were left out.
        """
        folder, before = self._folder / _name_of(source), _state_of(source)
        kept = self._read(folder, before, skip_bad=skip_bad) if before else None
        if kept is not None:
            return kept
        arrays = fresh()
        if before and _state_of(source) == before:
            try:
                self._write(folder, source, before, arrays)
            except DiskError as error:
                self._say(f"the decoded data of {source.dataset.name} is not kept: {error}")
        return arrays

    def entries(self) -> list[Entry]:
        """Return the entries, sorted by dataset; folders that are no entries are left out."""
        entries = []
        for path in sorted(self._folder.glob(f"[!.]*/{LIST}")):
            try:
                listed = _List.model_validate_json(path.read_text(encoding="utf-8"))
            except (OSError, ValidationError):
                continue
            size = sum(file.stat().st_size for file in path.parent.iterdir())
            entries.append(Entry(path.parent, listed.dataset, listed.root, listed.num_examples, size))
        return entries

    def clear(self) -> None:
        """Remove every entry. Raises DiskError if one cannot be removed."""
        if self._folder.is_dir():
            try:
                shutil.rmtree(self._folder)
            except OSError as error:
                hint = "remove the folder by hand: it holds patients' data"
                raise DiskError(f"cannot remove it: {error.strerror}", where=self._folder, hint=hint) from error

    def _read(self, folder: Path, state: str, *, skip_bad: bool) -> Arrays | None:
        """Return the arrays in ``folder``, mapped; None if there are none of this ``state``, or they are damaged."""
        try:
            listed = _List.model_validate_json((folder / LIST).read_text(encoding="utf-8"))
            if listed.sources != state or (listed.skipped and not skip_bad):
                return None
            parts: dict[str, dict[str, np.ndarray]] = {"samples": {}, "present": {}}
            for name, digest in listed.sha256.items():
                if sha256_of(folder / name) != digest:
                    return None
                kind, modality = name.removesuffix(".npy").split(".", maxsplit=1)
                # Copy on write: an array is the caller's, as one that was decoded just now.
                parts[kind][modality] = np.asarray(np.load(folder / name, mmap_mode="c", allow_pickle=False))
        except (OSError, ValueError, KeyError):
            return None
        return Arrays(**parts, problems={row: Problem(*problem) for row, problem in listed.skipped.items()})

    def _write(self, folder: Path, source: Source, state: str, arrays: Arrays) -> None:
        """Write ``arrays`` to ``folder`` in the place of its entry. Raises DiskError if the disk is full, say."""
        parts = {"samples": arrays.samples, "present": arrays.present}
        named = {f"{kind}.{name}.npy": value for kind, part in parts.items() for name, value in part.items()}
        with written_whole(folder, sum(value.nbytes for value in named.values())) as partial:
            self._folder.chmod(0o700)
            partial.mkdir(mode=0o700)
            for name, value in named.items():
                np.save(partial / name, value, allow_pickle=False)
            listed = _List(
                dataset=source.dataset.name,
                root=str(source.root.resolve()),
                num_examples=len(source.index) - len(arrays.problems),
                sources=state,
                sha256={name: sha256_of(partial / name) for name in sorted(named)},
                skipped={row: tuple(problem) for row, problem in arrays.problems.items()},
            )
            (partial / LIST).write_text(listed.model_dump_json(indent=1) + "\n", encoding="utf-8")


def _name_of(source: Source) -> str:
    """Return the name of the entry for a dataset at its root under its settings."""
    modalities = sorted(source.modalities.items())
    settings = {name: [type(it).__qualname__, it.model_dump(mode="json")] for name, it in modalities}
    facts = [source.dataset.name, str(source.root.resolve()), settings]
    return f"{source.dataset.name}-{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]}"


def _state_of(source: Source) -> str | None:
    """Return a hash of files, index and decoding code; None if a file may change again without a trace.

    No data file is opened: its state is size, time of the last change of content and of anything, and number on the
    disk. The system sets the last two, so a copy with its old time kept counts as changed, too.
    """
    digest, newest = hashlib.sha256(source.index.write_json().encode()), 0
    named = source.index["files"].explode().drop_nulls().unique().to_list()
    for path in sorted({*_files_below(source.root), *(os.path.join(source.root, name) for name in named)}):
        facts = None
        if os.path.exists(path):
            state = os.stat(path)
            facts = (state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino)
            newest = max(newest, state.st_ctime_ns)
        digest.update(f"{path}:{facts}\n".encode(errors="surrogateescape"))
    settled = newest <= time.time_ns() - SETTLED_SECONDS * 1e9
    return f"{digest.hexdigest()} {_decoder_state(source)}" if settled else None


def _files_below(root: Path) -> list[str]:
    """Return every file below ``root``, behind links to folders too; a folder that is met twice counts once."""
    files, met = list[str](), set[tuple[int, int]]()
    for folder, folders, names in os.walk(root, followlinks=True):
        state = os.stat(folder)
        if (state.st_dev, state.st_ino) in met:
            folders.clear()
            continue
        met.add((state.st_dev, state.st_ino))
        files += [os.path.join(folder, name) for name in names]
    return files


def _decoder_state(source: Source) -> str:
    """Return a hash of the code that decodes ``source``, and of the versions of the libraries it reads files with."""
    classes = {type(part) for part in (source.dataset, *source.modalities.values())}
    files = {file for kind in classes if (file := source_file(kind)) is not None}
    code = [sha256_of(file) for file in sorted(files)] + [_code_of(folder) for folder in PACKAGES]
    code += sorted(definition_of(kind) for kind in classes if source_file(kind) is None)
    facts = [code, [version(name) for name in READERS]]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


@cache
def _code_of(folder: Path) -> str:
    """Return a hash of all source files of a folder."""
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in sorted(folder.rglob("*.py")))).hexdigest()
