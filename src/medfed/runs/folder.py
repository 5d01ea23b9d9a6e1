"""The run directory: the only reader and writer of run files.

A file appears whole or not at all (written beside, synced, renamed). Wall-clock facts live in ``timings.jsonl``,
``provenance.json`` and the report; every other file of a resumed run equals an uninterrupted run's bit for bit.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from medfed.core.errors import DiskError, RunError

Json = Any
"""A JSON value; readers check what they take from it."""


class RunDir:
    """One run's folder, ``runs/<study>/<hash8>-seed<n>``."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def done(self) -> bool:
        """Whether the run finished; the marker is written last."""
        return (self.root / "DONE").is_file()

    def finish(self) -> None:
        """Write the marker of a finished run."""
        self._write("DONE", b"")

    def exists(self, name: str) -> bool:
        """Whether the file ``name`` is there."""
        return (self.root / name).is_file()

    def write_json(self, name: str, value: Json) -> None:
        """Write ``value`` as ``name``."""
        self._write(name, (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode())

    def read_json(self, name: str) -> Json:
        """Read ``name``; raise :class:`RunError` if it is absent or not JSON."""
        try:
            return json.loads((self.root / name).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RunError(f"cannot read it: {error}", where=self.root / name, hint="start the run again") from error

    def write_text(self, name: str, text: str) -> None:
        """Write ``text`` as ``name``."""
        self._write(name, text.encode())

    def write_records(self, name: str, records: Iterable[Mapping[str, Json]]) -> None:
        """Write JSON lines."""
        self._write(name, _lines(records))

    def read_records(self, name: str) -> list[dict[str, Json]]:
        """Read JSON lines; an absent file has none."""
        path = self.root / name
        if not path.is_file():
            return []
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]

    def append_records(self, name: str, records: Iterable[Mapping[str, Json]]) -> None:
        """Add JSON lines to ``name``, whole or not at all."""
        path = self.root / name
        before = path.read_bytes() if path.is_file() else b""
        self._write(name, before + _lines(records))

    def drop_records_after(self, name: str, round_number: int) -> None:
        """Forget the records of rounds after ``round_number``: they are about to be computed again."""
        records = self.read_records(name)
        kept = [record for record in records if record["round"] <= round_number]
        if len(kept) < len(records):
            self.write_records(name, kept)

    def save_checkpoint(self, step: int, tensors: Mapping[str, Tensor], facts: Mapping[str, Json]) -> None:
        """Write checkpoint ``step`` whole or not at all; the one before is kept, older ones go.

        Raises:
            DiskError: the disk is full, say; the checkpoints before are intact.
        """
        folder = self.root / "checkpoints"
        partial, final = folder / f".partial-{step:06d}", folder / f"{step:06d}"
        with written_whole(final, sum(value.nbytes for value in tensors.values()), partial):
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            save_file(
                {name: tensor.detach().contiguous() for name, tensor in tensors.items()}, partial / "state.safetensors"
            )
            digest = _sha256(partial / "state.safetensors")
            manifest = {"step": step, "sha256": {"state.safetensors": digest}, **facts}
            (partial / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
            _sync(partial)
            shutil.rmtree(final, ignore_errors=True)
            partial.rename(final)
            _sync(folder)
        for old in self._checkpoints()[:-2]:
            shutil.rmtree(old)

    def load_checkpoint(self) -> tuple[dict[str, Tensor], dict[str, Json]] | None:
        """Return the newest whole checkpoint (tensors, facts), or None.

        A checkpoint whose payload does not match its checksum is passed over for the one before it.

        Raises:
            RunError: checkpoints are there, and none is whole.
        """
        folders = self._checkpoints()
        for folder in reversed(folders):
            try:
                manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
                if _sha256(folder / "state.safetensors") == manifest["sha256"]["state.safetensors"]:
                    return dict(sorted(load_file(folder / "state.safetensors").items())), manifest
            except (OSError, ValueError, KeyError):
                continue
        if folders:
            raise RunError(
                "no checkpoint here matches its checksum",
                where=self.root / "checkpoints",
                hint="remove the folder to start the run anew",
            )
        return None

    def checksums(self) -> dict[str, str]:
        """Return sha256 by relative path of every file whose bytes do not depend on the clock."""
        clocked = {"timings.jsonl", "provenance.json", "report.html"}
        files = sorted(path for path in self.root.rglob("*") if path.is_file())
        names = [str(path.relative_to(self.root)) for path in files]
        return {name: _sha256(self.root / name) for name in names if Path(name).name not in clocked}

    def _checkpoints(self) -> list[Path]:
        return sorted((self.root / "checkpoints").glob("[0-9]*"))

    def _write(self, name: str, data: bytes) -> None:
        path = self.root / name
        partial = path.with_name(f".{path.name}.partial")
        with written_whole(path, len(data), partial):
            path.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)


@contextmanager
def written_whole(path: Path, num_bytes: int, partial: Path) -> Iterator[None]:
    """Write ``path`` in this block, by way of ``partial``, which goes if the block fails.

    Raises:
        DiskError: the disk is full, say; the message names the file and the bytes needed.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        else:
            partial.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is None:  # a library's own, not the disk's
            raise
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise DiskError(
            f"cannot write it: {why}; {num_bytes:,} bytes are needed, {_free(path):,} are free",
            where=path,
            hint="make room on this disk and start again: what was there before is intact",
        ) from error


def _free(path: Path) -> int:
    """Return the bytes that are free where ``path`` is to lie."""
    there = next(parent for parent in path.absolute().parents if parent.is_dir())
    return shutil.disk_usage(there).free


def prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return ``tensors`` with ``prefix/`` before every name."""
    return {f"{prefix}/{name}": tensor for name, tensor in tensors.items()}


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors whose name starts with ``prefix/``, without it."""
    return {name.removeprefix(prefix + "/"): value for name, value in tensors.items() if name.startswith(prefix + "/")}


def _lines(records: Iterable[Mapping[str, Json]]) -> bytes:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(folder: Path) -> None:
    """Flush a folder and its files to disk, so that a rename never outlives its content."""
    for path in [*folder.iterdir(), folder]:
        if path.is_file() or path == folder:
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)
