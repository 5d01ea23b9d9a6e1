"""Decoded data is kept from run to run: the same arrays, never those of other files, never damaged ones, never half."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import numpy as np
import polars as pl
import psutil
import pytest
from typer.testing import CliRunner

from medfed.cli.app import app
from medfed.core.errors import DataError
from medfed.data import cache as decoded_cache
from medfed.data.cache import DecodedCache
from medfed.data.decode import decode
from medfed.datasets.base import Dataset, Record
from medfed.datasets.decoded import Decoded
from medfed.modalities.base import Modality
from medfed.modalities.image import ImageModality
from medfed.study.data import TwinSpec
from support.federated_toys import CARD

NUM_EXAMPLES = 6


class Pictures(Dataset):
    """Arrays of grey values, one file each, a mask beside, and a table that the index does not name."""

    name: ClassVar[str] = "pictures"
    card = CARD
    modalities: ClassVar[tuple[str, ...]] = ("image",)
    truths: ClassVar[tuple[str, ...]] = ("mask",)
    targets: ClassVar[tuple[str, ...]] = ()
    marker: ClassVar[str] = "gain.csv"
    during: Callable[[], None] = staticmethod(lambda: None)
    """What happens to the files while they are read."""

    def __init__(self) -> None:
        self.loads = 0

    def index(self, root: Path) -> pl.DataFrame:
        names = sorted(path.stem for path in root.glob("*.npy"))
        facts = {
            "example": names,
            "patient": names,
            "site": None,
            "split": None,
            "files": [[f"{n}.npy"] for n in names],
        }
        return pl.DataFrame(facts, schema_overrides={"site": pl.Utf8, "split": pl.Utf8})

    def load(self, root: Path, record: Record) -> dict[str, np.ndarray]:
        self.loads += 1
        self.during()
        path = root / record["files"][0]
        try:
            grey = np.load(path)
        except ValueError as error:
            raise DataError("not an array", where=path, hint="download it again") from error
        folder = root / "tables" if (root / "tables").is_dir() else root
        grey = grey * np.float32((folder / "gain.csv").read_text())
        return {"mask": grey} if record["example"] == "p3" else {"image": grey, "mask": grey}

    def synthesize(self, root: Path, spec: TwinSpec) -> None:
        for number in range(NUM_EXAMPLES):
            np.save(root / f"p{number}.npy", np.full((16, 16), (number + 1) / 10, np.float32))
        (root / "gain.csv").write_text("1.0")


def settings(size: int = 8) -> dict[str, Modality]:
    return {"image": ImageModality(size=size), "mask": ImageModality(name="mask", size=size)}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(decoded_cache, "SETTLED_SECONDS", 0)
    made = tmp_path / "data"
    made.mkdir()
    Pictures().synthesize(made, TwinSpec())
    return made


@pytest.fixture
def cache(tmp_path: Path) -> DecodedCache:
    return DecodedCache(tmp_path / "cache")


def read(root: Path, cache: DecodedCache | None, size: int = 8, **options: bool) -> tuple[Decoded, int]:
    """Return the decoded data, and how many examples were decoded for it."""
    dataset = Pictures()
    return decode(dataset, root, settings(size), cache=cache, **options), dataset.loads


def same(one: Decoded, other: Decoded) -> bool:
    arrays = [(getattr(one, kind), getattr(other, kind)) for kind in ("samples", "present", "truths")]
    return (
        one.index.equals(other.index)
        and one.skipped == other.skipped
        and all(a.keys() == b.keys() for a, b in arrays)
        and all(a[n].dtype == b[n].dtype and a[n].tobytes() == b[n].tobytes() for a, b in arrays for n in a)
    )


def test_the_second_run_decodes_nothing_and_has_the_same_arrays(root: Path, cache: DecodedCache) -> None:
    plain, first = read(root, None)
    filled, second = read(root, cache)
    kept, third = read(root, cache)
    assert (first, second, third) == (NUM_EXAMPLES, NUM_EXAMPLES, 0)
    assert same(plain, filled)
    assert same(plain, kept)
    assert kept.present["image"].tolist() == [True, True, True, False, True, True]
    assert type(kept.samples["image"]) is np.ndarray


def test_arrays_are_the_callers_own(root: Path, cache: DecodedCache) -> None:
    read(root, cache)
    found, _ = read(root, cache)
    before = found.samples["image"].copy()
    found.samples["image"][:] = 7
    again, loads = read(root, cache)
    assert loads == 0
    assert np.array_equal(again.samples["image"], before)


def rewritten(root: Path) -> None:
    """Other content, same size, the old time put back."""
    path = root / "p2.npy"
    old = path.stat()
    np.save(path, np.full((16, 16), 0.9, np.float32))
    os.utime(path, ns=(old.st_atime_ns, old.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (old.st_size, old.st_mtime_ns)


CHANGES: dict[str, Callable[[Path], object]] = {
    "rewritten": rewritten,
    "added": lambda root: np.save(root / "p9.npy", np.zeros((16, 16), np.float32)),
    "removed": lambda root: (root / "p2.npy").unlink(),
    "a table the index does not name": lambda root: (root / "gain.csv").write_text("0.5"),
    "swapped": lambda root: (root / "p1.npy").rename(root / "p4.npy"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_file_is_decoded_anew(name: str, root: Path, cache: DecodedCache) -> None:
    before, _ = read(root, cache)
    CHANGES[name](root)
    plain, wanted = read(root, None)
    found, loads = read(root, cache)
    assert loads == wanted
    assert same(found, plain)
    assert not same(found, before), "the change changed nothing: a void test"
    assert read(root, cache)[1] == 0
    assert len(cache.entries()) == 1, "the old entry is left behind"


def test_other_settings_have_an_entry_of_their_own(root: Path, cache: DecodedCache) -> None:
    read(root, cache)
    large, loads = read(root, cache, size=16)
    assert (loads, large.samples["image"].shape[-1]) == (NUM_EXAMPLES, 16)
    assert read(root, cache)[1] == 0
    assert len(cache.entries()) == 2


@pytest.mark.parametrize("what", ["_code_of", "version"])
def test_other_code_or_libraries_void_an_entry_and_take_its_place(
    what: str, root: Path, cache: DecodedCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    read(root, cache)
    monkeypatch.setattr(decoded_cache, what, lambda name: "a newer one")
    assert read(root, cache)[1] == NUM_EXAMPLES
    assert read(root, cache)[1] == 0
    assert len(cache.entries()) == 1


def test_a_table_behind_a_linked_folder_is_looked_at(root: Path, cache: DecodedCache, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (root / "gain.csv").rename(elsewhere / "gain.csv")
    (root / "tables").symlink_to(elsewhere)
    (elsewhere / "round").symlink_to(root)  # a circle
    before, _ = read(root, cache)
    assert read(root, cache)[1] == 0
    (elsewhere / "gain.csv").write_text("0.5")
    found, loads = read(root, cache)
    assert loads == NUM_EXAMPLES
    assert not same(found, before)


@pytest.mark.parametrize("file", ["samples.image.npy", "present.image.npy", "entry.json"])
@pytest.mark.parametrize("damage", ["flipped", "cut", "gone"])
def test_a_damaged_entry_is_not_used(file: str, damage: str, root: Path, cache: DecodedCache) -> None:
    plain, _ = read(root, cache)
    path = cache.entries()[0].folder / file
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.unlink()
    if damage != "gone":
        path.write_bytes(data if damage == "flipped" else data[:-9])
    found, loads = read(root, cache)
    assert loads == NUM_EXAMPLES
    assert same(found, plain)


def test_what_was_left_out_stays_left_out_and_is_told(root: Path, cache: DecodedCache) -> None:
    (root / "p1.npy").write_bytes(b"no array")
    plain, _ = read(root, None, skip_bad=True)
    read(root, cache, skip_bad=True)
    found, loads = read(root, cache, skip_bad=True)
    assert loads == 0
    assert same(found, plain)
    assert [problem.example for problem in found.skipped] == ["p1"]
    assert cache.entries()[0].num_examples == NUM_EXAMPLES - 1
    with pytest.raises(DataError, match=r"p1\.npy"):
        read(root, cache)


def test_an_entry_without_bad_files_serves_both(root: Path, cache: DecodedCache) -> None:
    read(root, cache)
    assert read(root, cache, skip_bad=True)[1] == 0


def test_files_that_change_while_they_are_read_are_not_kept(
    root: Path, cache: DecodedCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Pictures, "during", staticmethod(lambda: (root / "gain.csv").write_text("1.0")))
    read(root, cache)
    assert not cache.entries()


def test_files_written_this_moment_are_not_kept(
    root: Path, cache: DecodedCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoded_cache, "SETTLED_SECONDS", 1000)
    read(root, cache)
    assert not cache.entries()


def test_a_full_disk_costs_the_entry_and_no_more(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []

    def full(path: Path, value: np.ndarray, **options: bool) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(decoded_cache.np, "save", full)
    cache = DecodedCache(tmp_path / "cache", lines.append)
    assert same(read(root, cache)[0], read(root, None)[0])
    assert "No space left" in lines[0]
    assert "pictures" in lines[0]
    assert not list((tmp_path / "cache" / "decoded").iterdir()), "half an entry is left behind"


def test_what_a_killed_run_left_half_goes_with_the_next_entry(root: Path, cache: DecodedCache, tmp_path: Path) -> None:
    gone = next(pid for pid in range(4_000_000, 1, -1) if not psutil.pid_exists(pid))
    half, other = (tmp_path / "cache" / "decoded" / f".pictures-0.partial-{pid}" for pid in (gone, os.getppid()))
    for folder in (half, other):
        folder.mkdir(parents=True)
        (folder / "entry.json").write_text("{}")
    read(root, cache)
    assert not half.exists()
    assert other.exists(), "its process runs: it is at work"
    assert len(cache.entries()) == 1


def test_only_the_user_may_look(root: Path, cache: DecodedCache) -> None:
    read(root, cache)
    folder = cache.entries()[0].folder
    assert [stat.S_IMODE(path.stat().st_mode) for path in (folder, folder.parent)] == [0o700, 0o700]


def test_the_command_lists_and_removes(root: Path, tmp_path: Path) -> None:
    read(root, DecodedCache(tmp_path / "cache"))
    args = ["data", "cache", "--cache", str(tmp_path / "cache")]
    listed = CliRunner().invoke(app, args, env={"COLUMNS": "300"})
    assert "pictures" in listed.output
    assert str(NUM_EXAMPLES) in listed.output
    assert "no decoded data" in CliRunner().invoke(app, [*args, "--clear"]).output
    assert not (tmp_path / "cache" / "decoded").exists()
