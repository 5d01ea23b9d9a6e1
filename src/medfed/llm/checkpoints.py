"""The folder of an LLM: its checksum, and its tensors from one or several safetensors files.

The checksum is the SHA-256 over the sorted lines ``<SHA-256 of the file>  <file name>`` of the safetensors, the
configuration and the tokenizer's files, as ``sha256sum`` prints them::

    sha256sum *.safetensors config.json tokenizer* … | LC_ALL=C sort -k 2 | sha256sum

Other files (licence, model card, the index of the shards, generation defaults) change no number and are left out.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError, safe_open

from medfed.core.errors import StudyError
from medfed.core.files import sha256_of
from medfed.llm.obtain.known import KNOWN

INDEX = "model.safetensors.index.json"

_TOKENIZER = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json")
_DESCRIBING = ("config.json", *_TOKENIZER, "added_tokens.json", "merges.txt", "vocab.json")
"""Files next to the weights that decide the LLM's answers."""


def checksum_files(folder: Path) -> list[Path]:
    """Return the files that the checksum covers, sorted by name."""
    described = filter(Path.is_file, map(folder.joinpath, _DESCRIBING))
    return sorted([*folder.glob("*.safetensors"), *described], key=lambda path: path.name)


def foundation_checksum(folder: Path) -> str:
    """Return the checksum of the foundation in ``folder``, in hex."""
    return checksum_of({path.name: sha256_of(path) for path in checksum_files(folder)})


def checksum_of(sums: Mapping[str, str]) -> str:
    """Return the checksum of files whose names and SHA-256 are given, sorted by name, in hex."""
    lines = [f"{sha256}  {name}\n" for name, sha256 in sums.items()]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def check_foundation(folder: Path, expected: str, actual: str | None = None) -> None:
    """Raise StudyError if the foundation in ``folder`` is another than the one that the study pins.

    ``actual`` is its checksum, if that is known already.
    """
    actual = foundation_checksum(folder) if actual is None else actual
    if actual != expected:
        names = ", ".join(path.name for path in checksum_files(folder))
        what = f"the study pins the LLM with foundation.sha256 = {expected}, but {names} together have {actual}"
        hint = "fetch the revision that the study names, or pin the new sum if the change is wanted"
        raise StudyError(what, where=folder, hint=hint)


class Recorded(NamedTuple):
    """The LLM that a run was made with: its name, and the checksum of its folder."""

    name: str
    sha256: str

    @property
    def next_step(self) -> str:
        """How to get it."""
        return f"medfed foundation get {self.name}" if self.name in KNOWN else "pass --foundation FOLDER of that LLM"

    def check(self, folder: Path, actual: str) -> None:
        """Raise StudyError if the LLM in ``folder``, whose checksum is ``actual``, is another."""
        if actual != self.sha256:
            what = "this is another LLM than the run's"
            what += f": the run was made with {self.name} ({self.sha256[:12]}…), and this one has {actual[:12]}…"
            raise StudyError(what, where=folder, hint=self.next_step)


def safetensors_in(folder: Path) -> list[Path]:
    """Return the safetensors files of a checkpoint, sorted; raise StudyError if there is none."""
    if files := sorted(folder.glob("*.safetensors")):
        return files
    weights = "only pickled weights (*.bin)" if any(folder.glob("*.bin")) else "no weights"
    what = f"the folder holds {weights}; pickles run code when opened, so *.safetensors are needed"
    hint = "use a revision with safetensors, or convert the weights on a machine you can spare"
    raise StudyError(what, where=folder, hint=hint)


def tensor_files(folder: Path) -> dict[str, Path]:
    """Return tensor → safetensors file of a checkpoint, with or without an index.

    Raises StudyError for no safetensors, a damaged file, a tensor in two files, or an index that does not fit them.
    """
    files: dict[str, Path] = {}
    for path in safetensors_in(folder):
        try:
            with safe_open(path, "pt") as file:
                names = list(file.keys())
        except (SafetensorError, OSError) as error:
            raise StudyError(f"not a whole safetensors file: {error}", where=path, hint="fetch it again") from error
        if twice := sorted(files.keys() & names):
            raise StudyError("it is in two files", where=f"tensor {twice[0]!r}", hint="remove the wrong file")
        files |= dict.fromkeys(names, path)
    index = folder / INDEX
    places = json.loads(index.read_text(encoding="utf-8"))["weight_map"] if index.is_file() else {}
    for name, place in places.items():
        if files.get(name) != folder / place:
            what = f"{INDEX} places it in {place}, which does not hold it"
            raise StudyError(what, where=f"tensor {name!r}", hint="fetch the checkpoint again, index included")
    return files
