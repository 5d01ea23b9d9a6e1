"""Decoded arrays on disk: decoding PNG, DICOM, WFDB or NIfTI costs as much every run, reading arrays next to nothing.

An entry is a folder of ``.npy`` files and a list of them. It is found by dataset, root and settings of the
modalities, and used only if all of this fits:

- the index, which is read anew every time, is what it was, and so are size, time of change and number of every file
  under the root and of every file the index names: one that is touched, replaced, added or gone makes the entry void;
- so are the code that decodes, and the versions of the libraries it reads files with;
- every array has the SHA-256 it was written with.

Arrays are mapped into memory, not read. An entry is written beside its place and renamed, and takes the place of the
one before, so there is one for each root and settings. These are patients' data: folders are this user's only.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

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

FOLDER = "decoded"
LIST = "entry.json"
READERS = ("numpy", "pillow", "pydicom", "wfdb", "nibabel", "polars")
"""Libraries that decide what is read from a file."""
SETTLED_SECONDS = 0.1
"""Clocks of file systems tick: a file that was written so shortly before may be written again with the same time."""


class Arrays(NamedTuple):
    """What decoding gives, rows as in the index.

    Attributes:
        samples: modality, or truth, → ``[example, *sample]``; rows of unreadable examples hold anything.
        present: modality, or truth, → ``[example]`` bool.
        problems: row → why it is unreadable.
    """

    samples: Mapping[str, np.ndarray]
    present: Mapping[str, np.ndarray]
    problems: Mapping[int, Problem]


class Entry(NamedTuple):
    """An entry of a cache: its folder, what it is of, and its size."""

    folder: Path
    dataset: str
    root: str
    num_examples: int
    num_bytes: int


class _List(BaseModel):
    """What ``entry.json`` says."""

    model_config = ConfigDict(extra="forbid")

    dataset: str
    root: str
    num_examples: int
    sources: str
    sha256: dict[str, str]
    skipped: dict[int, tuple[str, str, str]]


class DecodedCache:
    """The entries below ``cache/decoded``.

    Args:
        cache: the user's cache folder.
        tell: is given a line where an entry could not be written; the run needs none.
    """

    def __init__(self, cache: Path, tell: Callable[[str], None] = lambda line: None) -> None:
        self._folder, self._tell = cache / FOLDER, tell

    def arrays(
        self,
        dataset: Dataset,
        root: Path,
        index: pl.DataFrame,
        modalities: Mapping[str, Modality],
        fresh: Callable[[], Arrays],
        *,
        skip_bad: bool,
    ) -> Arrays:
        """Return what is kept of ``dataset``; else decode it, and keep that unless a file changed meanwhile.

        Args:
            dataset: what to decode.
            root: where it lies.
            index: of ``root``.
            modalities: settings by modality name.
            fresh: decodes.
            skip_bad: whether arrays will do from which unreadable examples were left out.
        """
        place, before = self.place(dataset, root, modalities), _sources(dataset, root, index, modalities)
        found = self.read(place, before, skip_bad=skip_bad) if before else None
        if found is not None:
            return found
        arrays = fresh()
        if before and _sources(dataset, root, index, modalities) == before:
            self.write(place, dataset, root, before, arrays)
        return arrays

    def place(self, dataset: Dataset, root: Path, modalities: Mapping[str, Modality]) -> Path:
        """Return the folder of the entry for ``dataset`` at ``root`` under these settings."""
        settings = {
            name: [type(modality).__qualname__, modality.model_dump(mode="json")]
            for name, modality in sorted(modalities.items())
            if name in (*dataset.modalities, *dataset.truths)
        }
        facts = [dataset.name, str(root.resolve()), settings]
        digest = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]
        return self._folder / f"{dataset.name}-{digest}"

    def read(self, place: Path, sources: str, *, skip_bad: bool) -> Arrays | None:
        """Return the arrays at ``place``, mapped; None if there are none of these ``sources``, or they are damaged.

        Args:
            place: see :meth:`place`.
            sources: see :func:`state_of`.
            skip_bad: whether arrays will do from which unreadable examples were left out.
        """
        try:
            found = _List.model_validate_json((place / LIST).read_text(encoding="utf-8"))
            if found.sources != sources or (found.skipped and not skip_bad):
                return None
            if any(sha256_of(place / name) != digest for name, digest in found.sha256.items()):
                return None
            arrays = {name.removesuffix(".npy"): _mapped(place / name) for name in found.sha256}
        except (OSError, ValueError, ValidationError):
            return None
        samples, present = (_part(arrays, kind) for kind in ("samples", "present"))
        return Arrays(samples, present, {row: Problem(*told) for row, told in found.skipped.items()})

    def write(self, place: Path, dataset: Dataset, root: Path, sources: str, arrays: Arrays) -> None:
        """File ``arrays`` at ``place``; what lay there goes. If the disk is full, say, nothing is filed."""
        try:
            self._write(place, dataset, root, sources, arrays)
        except DiskError as error:
            self._tell(f"the decoded data of {dataset.name} is not kept: {error}")

    def _write(self, place: Path, dataset: Dataset, root: Path, sources: str, arrays: Arrays) -> None:
        named = {f"samples.{name}.npy": value for name, value in arrays.samples.items()}
        named |= {f"present.{name}.npy": value for name, value in arrays.present.items()}
        with written_whole(place, sum(value.nbytes for value in named.values())) as partial:
            self._folder.chmod(0o700)
            partial.mkdir(mode=0o700)
            for name, value in named.items():
                np.save(partial / name, value, allow_pickle=False)
            told = _List(
                dataset=dataset.name,
                root=str(root.resolve()),
                num_examples=len(next(iter(named.values()))) - len(arrays.problems),
                sources=sources,
                sha256={name: sha256_of(partial / name) for name in sorted(named)},
                skipped={row: tuple(problem) for row, problem in arrays.problems.items()},
            )
            (partial / LIST).write_text(told.model_dump_json(indent=1) + "\n", encoding="utf-8")

    def entries(self) -> list[Entry]:
        """Return what lies here, sorted by dataset; folders that are no entries are left out."""
        found = []
        for path in sorted(self._folder.glob(f"[!.]*/{LIST}")):
            try:
                told = _List.model_validate_json(path.read_text(encoding="utf-8"))
            except (OSError, ValidationError):
                continue
            size = sum(file.stat().st_size for file in path.parent.iterdir())
            found.append(Entry(path.parent, told.dataset, told.root, told.num_examples, size))
        return found

    def clear(self) -> None:
        """Remove every entry.

        Raises:
            DiskError: one cannot be removed.
        """
        if self._folder.is_dir():
            try:
                shutil.rmtree(self._folder)
            except OSError as error:
                hint = "remove the folder by hand: it holds patients' data"
                raise DiskError(f"cannot remove it: {error.strerror}", where=self._folder, hint=hint) from error


PACKAGES = tuple(Path(part.__path__[0]) for part in (medfed.data, medfed.datasets, medfed.modalities))
"""The code that decodes."""


@cache
def _code(folder: Path) -> str:
    """Return a hash of all source files of a folder."""
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in sorted(folder.rglob("*.py")))).hexdigest()


def _mapped(path: Path) -> np.ndarray:
    # Copy on write: an array is the caller's own, as one that was decoded just now.
    return np.asarray(np.load(path, mmap_mode="c", allow_pickle=False))


def _sources(dataset: Dataset, root: Path, index: pl.DataFrame, modalities: Mapping[str, Modality]) -> str | None:
    """Return a hash of all that decides what is decoded; None if a file may change again without a trace."""
    state = state_of(index, root)
    return None if state is None else f"{state} {decoder_of(dataset, modalities)}"


def decoder_of(dataset: Dataset, modalities: Mapping[str, Modality]) -> str:
    """Return a hash of the code that decodes ``dataset``, and of the versions of what it reads files with."""
    classes = {type(part) for part in (dataset, *modalities.values())}
    files = {file for kind in classes if (file := source_file(kind)) is not None}
    code = [sha256_of(file) for file in sorted(files)] + [_code(folder) for folder in PACKAGES]
    code += sorted(definition_of(kind) for kind in classes if source_file(kind) is None)
    facts = [code, [version(name) for name in READERS]]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def state_of(index: pl.DataFrame, root: Path) -> str | None:
    """Return a hash of the index and of the state of every file; None if one may change again without a trace.

    No file is opened: state is size, time of the last change of content and of anything, and number on the disk. The
    system sets the last two, so a copy with its old time kept counts as changed, too.
    """
    digest, newest = hashlib.sha256(index.write_json().encode()), 0
    for path in sorted({*_files(root), *(os.path.join(root, name) for name in _named(index))}):
        facts = None
        if os.path.exists(path):
            state = os.stat(path)
            facts = (state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino)
            newest = max(newest, state.st_ctime_ns)
        digest.update(f"{path}:{facts}\n".encode(errors="surrogateescape"))
    return None if newest > time.time_ns() - SETTLED_SECONDS * 1e9 else digest.hexdigest()


def _named(index: pl.DataFrame) -> Sequence[str]:
    return index["files"].explode().drop_nulls().unique().to_list()


def _files(root: Path) -> list[str]:
    """Return every file below ``root``, behind links to folders too; a folder that is met twice counts once."""
    found, met = list[str](), set[tuple[int, int]]()
    for folder, folders, names in os.walk(root, followlinks=True):
        state = os.stat(folder)
        if (state.st_dev, state.st_ino) in met:
            folders.clear()
            continue
        met.add((state.st_dev, state.st_ino))
        found += [os.path.join(folder, name) for name in names]
    return found


def _part(arrays: Mapping[str, Any], kind: str) -> dict[str, np.ndarray]:
    start = f"{kind}."
    return {name.removeprefix(start): value for name, value in arrays.items() if name.startswith(start)}
