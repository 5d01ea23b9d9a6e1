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

STATE, MANIFEST = "state.safetensors", "manifest.json"


class Checkpoints:
    """The newest two checkpoints of a run, in its folder ``checkpoints``."""

    def __init__(self, run: Path) -> None:
        self._root = run / "checkpoints"

    def save(self, step: int, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Write checkpoint ``step``; the one before is kept, older ones go.

        Raises DiskError if the disk is full, say; the checkpoints before are intact.
        """
        place = self._root / f"{step:06d}"
        with written_whole(place, sum(value.nbytes for value in tensors.values())) as partial:
            partial.mkdir()
            save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, partial / STATE)
            manifest = {"step": step, "sha256": {STATE: sha256_of(partial / STATE)}, **facts}
            (partial / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
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
                manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
                if sha256_of(folder / STATE) == manifest["sha256"][STATE]:
                    return dict(sorted(load_file(folder / STATE).items())), manifest
            except (OSError, ValueError, KeyError):
                continue
        if folders:
            hint = "remove the folder to start the run anew"
            raise RunError("no checkpoint here matches its checksum", where=self._root, hint=hint)
        return None

    def _folders(self) -> list[Path]:
        return sorted(self._root.glob("[0-9]*"))
