"""The checksum of a foundation's folder: which weights, which architecture, which tokenizer.

It is the SHA-256 over the sorted lines ``<SHA-256 of the file>  <file name>`` of the safetensors, the configuration and
the tokenizer's files, as ``sha256sum`` prints them::

    sha256sum *.safetensors config.json tokenizer* … | LC_ALL=C sort -k 2 | sha256sum

Other files (licence, model card, the index of the shards, generation defaults) change no number and are left out.

The tensors of a checkpoint folder, read one at a time from one or several safetensors files.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from medfed.core.errors import StudyError
from medfed.core.files import sha256_of

DESCRIBING = (
    "added_tokens.json",
    "config.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
)
"""Files beside the weights that decide what the LLM says."""


def checksum_files(folder: Path) -> list[Path]:
    """Return the files that the checksum covers, sorted by name."""
    weights = folder.glob("*.safetensors")
    described = (folder / name for name in DESCRIBING)
    return sorted([*weights, *(path for path in described if path.is_file())], key=lambda path: path.name)


def foundation_checksum(folder: Path) -> str:
    """Return the checksum of the foundation in ``folder``, in hex."""
    digest = hashlib.sha256()
    for path in checksum_files(folder):
        digest.update(f"{sha256_of(path)}  {path.name}\n".encode())
    return digest.hexdigest()


def check_foundation(folder: Path, expected: str) -> None:
    """Make sure that the foundation in ``folder`` is the one that the study names.

    Raises:
        StudyError: it is another.
    """
    if (found := foundation_checksum(folder)) != expected:
        names = ", ".join(path.name for path in checksum_files(folder))
        raise StudyError(
            f"the study pins the LLM with foundation.sha256 = {expected}, but {names} together have {found}",
            where=folder,
            hint="fetch the revision that the study names, or pin the new sum if the change is wanted",
        )


INDEX = "model.safetensors.index.json"


class Shards:
    """Where each tensor of a folder lies.

    Args:
        folder: holds ``*.safetensors``, with or without an index.

    Raises:
        StudyError: no safetensors, a damaged file, a tensor that stands twice, or an index that is not of these files.
    """

    def __init__(self, folder: Path) -> None:
        held_by = [(name, path) for path in safetensors_in(folder) for name in _names(path)]
        self._places = dict(held_by)
        if twice := [name for name, count in Counter(name for name, _ in held_by).items() if count > 1]:
            raise StudyError("stands in two files", where=f"tensor {twice[0]!r}", hint="remove the wrong file")
        _check_index(folder / INDEX, self._places)

    @property
    def names(self) -> frozenset[str]:
        """All tensors."""
        return frozenset(self._places)

    @property
    def dtype(self) -> str:
        """The dtype of the weights: that of the first tensor, by its name in torch."""
        return str(self.read(min(self._places)).dtype).removeprefix("torch.")

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape without reading it."""
        with safe_open(self._places[name], "pt") as file:
            return tuple(file.get_slice(name).get_shape())

    def read(self, name: str) -> Tensor:
        """Return a tensor."""
        with safe_open(self._places[name], "pt") as file:
            tensor: Tensor = file.get_tensor(name)
        return tensor


def safetensors_in(folder: Path) -> list[Path]:
    """Return the safetensors files of a checkpoint, sorted.

    Raises:
        StudyError: there is none.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        held = "only pickled weights (*.bin)" if any(folder.glob("*.bin")) else "no weights"
        raise StudyError(
            f"the folder holds {held}; pickles run code when opened, so *.safetensors are needed",
            where=folder,
            hint="use a revision with safetensors, or convert the weights on a machine you can spare",
        )
    return files


def _names(path: Path) -> list[str]:
    try:
        with safe_open(path, "pt") as file:
            return list(file.keys())
    except (SafetensorError, OSError) as error:
        raise StudyError(f"not a whole safetensors file: {error}", where=path, hint="fetch it again") from error


def _check_index(path: Path, places: dict[str, Path]) -> None:
    if not path.is_file():
        return
    for name, file in json.loads(path.read_text(encoding="utf-8"))["weight_map"].items():
        if name not in places or places[name].name != file:
            raise StudyError(
                f"{path.name} says that it lies in {file}, which does not hold it",
                where=f"tensor {name!r}",
                hint="fetch the checkpoint again, index included",
            )
