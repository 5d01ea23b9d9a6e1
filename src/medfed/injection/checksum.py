"""The checksum of a foundation's folder: which weights, which architecture, which tokenizer.

It is the SHA-256 over the sorted lines ``<SHA-256 of the file>  <file name>`` of the safetensors, the configuration and
the tokenizer's files, as ``sha256sum`` prints them::

    sha256sum *.safetensors config.json tokenizer* … | LC_ALL=C sort -k 2 | sha256sum

Other files (licence, model card, the index of the shards, generation defaults) change no number and are left out.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from medfed.errors import StudyError

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
        with path.open("rb") as file:
            digest.update(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {path.name}\n".encode())
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
