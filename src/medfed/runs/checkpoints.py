"""Checkpoints of a run: tensors in safetensors and the facts of the step, whole or not at all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from medfed.core.errors import RunError
from medfed.core.files import sha256_of, written_whole

STATE, INJECTOR, MANIFEST = "state.safetensors", "injector.safetensors", "manifest.json"
INJECTED = "injector/"
"""Tensors of this beginning lie in a file of their own, which is written only when they changed."""


class Checkpoints:
    """The newest two checkpoints of a run, in its folder ``checkpoints``."""

    def __init__(self, run: Path) -> None:
        self._root = run / "checkpoints"
        self._newest: Path | None = None  # the folder last loaded or written, which is whole

    @property
    def has_injector(self) -> bool:
        """Whether the checkpoint last loaded or written has a file of the injector, which the next one may share."""
        return self._newest is not None and (self._newest / INJECTOR).is_file()

    def save(
        self, step: int, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], *, same_injector: bool = False
    ) -> None:
        """Write checkpoint ``step``; the one before is kept, older ones go.

        Raises DiskError if the disk is full, say; the checkpoints before are intact.

        Args:
            step: number of the checkpoint.
            tensors: all state; with ``same_injector`` without the injector's.
            facts: go into the manifest.
            same_injector: the injector's file is a link to that of the checkpoint last loaded or written.
        """
        place = self._root / f"{step:06d}"
        with written_whole(place, sum(value.nbytes for value in tensors.values())) as partial:
            partial.mkdir()
            sums = _write(tensors, partial)
            if same_injector and self._newest is not None:
                sums[INJECTOR] = _manifest(self._newest)["sha256"][INJECTOR]
                _link(self._newest / INJECTOR, partial / INJECTOR)
            manifest = {"step": step, "sha256": sums, **facts}
            (partial / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
        self._newest = place
        for old in self._folders()[:-2]:
            shutil.rmtree(old)

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Return the newest whole checkpoint (tensors, facts), or None.

        A checkpoint whose payload does not match its checksum is passed over for the one before it. Raises RunError if
        checkpoints are there, and none is whole.
        """
        folders = self._folders()
        for folder in reversed(folders):
            try:
                manifest = _manifest(folder)
                sums = manifest["sha256"]
                if all(sha256_of(folder / name) == sums[name] for name in {STATE, *sums}):
                    tensors = {name: value for file in sums for name, value in load_file(folder / file).items()}
                    self._newest = folder
                    return dict(sorted(tensors.items())), manifest
            except (OSError, ValueError, KeyError):
                continue
        if folders:
            hint = "remove the folder to start the run anew"
            raise RunError("no checkpoint here matches its checksum", where=self._root, hint=hint)
        return None

    def _folders(self) -> list[Path]:
        return sorted(self._root.glob("[0-9]*"))


def _write(tensors: Mapping[str, Tensor], folder: Path) -> dict[str, str]:
    """Write the files of a checkpoint; return their SHA-256."""
    parts: dict[str, dict[str, Tensor]] = {STATE: {}}
    for name, tensor in tensors.items():
        file = INJECTOR if name.startswith(INJECTED) else STATE
        parts.setdefault(file, {})[name] = tensor.detach().contiguous()
    for file, part in parts.items():
        save_file(part, folder / file)
    return {file: sha256_of(folder / file) for file in parts}


def _manifest(folder: Path) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    return manifest


def _link(source: Path, target: Path) -> None:
    """Give ``source`` a second name; where the disk knows no such links, copy it."""
    try:
        target.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, target)
