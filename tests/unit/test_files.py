"""Files appear whole or not at all, with the rights asked for; what a killed writer left is removed."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

import pytest

from medfed.core import files
from medfed.core.errors import DiskError
from medfed.core.files import PRIVATE, locked, sha256_of, write_whole, written_whole


def test_a_file_is_replaced_whole_with_the_rights_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "new" / "key"
    write_whole(path, "first")
    write_whole(path, b"second", PRIVATE)
    assert path.read_bytes() == b"second"
    assert stat.S_IMODE(path.stat().st_mode) == PRIVATE
    assert [found.name for found in path.parent.iterdir()] == ["key"]
    assert sha256_of(path) == hashlib.sha256(b"second").hexdigest()


def test_the_rights_are_those_of_the_umask_where_none_are_asked_for(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_whole(tmp_path / "shared", "x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "shared").stat().st_mode) == 0o640


def test_no_byte_of_a_private_file_is_ever_readable_by_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    replace = Path.replace

    def watched(partial: Path, path: Path) -> Path:
        seen.append(stat.S_IMODE(partial.stat().st_mode))
        return replace(partial, path)

    monkeypatch.setattr(Path, "replace", watched)
    monkeypatch.setattr(Path, "chmod", lambda path, mode: seen.append(stat.S_IMODE(path.stat().st_mode)))
    write_whole(tmp_path / "key", "secret", PRIVATE)
    assert seen == [PRIVATE, PRIVATE], "before the rights are set, and before it takes its place"


def test_a_folder_is_replaced_whole(tmp_path: Path) -> None:
    for content in ("old", "new"):
        with written_whole(tmp_path / "folder", 3) as partial:
            partial.mkdir()
            (partial / content).write_text(content)
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["new"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("a bug"), OSError(28, "No space left on device")])
def test_what_was_there_stays_when_the_block_fails(tmp_path: Path, error: BaseException) -> None:
    def fail() -> None:
        with written_whole(tmp_path / "file", 3) as partial:
            partial.write_text("new")
            raise error

    write_whole(tmp_path / "file", "old")
    with pytest.raises(DiskError if isinstance(error, OSError) else type(error)):
        fail()
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"file": "old"}


def test_what_a_killed_writer_left_goes_and_what_a_living_one_writes_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone, running = 11, 12
    monkeypatch.setattr(files.psutil, "pid_exists", lambda process: process == running)
    left, writing = (tmp_path / f".file.partial-{process}" for process in (gone, running))
    left.write_text("half")
    writing.mkdir()
    write_whole(tmp_path / "other", "x")
    assert not left.exists()
    assert writing.exists()


def test_a_lock_is_refused_while_it_is_held_in_this_process_too(tmp_path: Path) -> None:
    path = tmp_path / "new" / ".lock"
    with locked(path) as first, locked(path, waiting=False) as second:
        assert (first, second) == (True, False)
    with locked(path, waiting=False) as again:
        assert again
    assert stat.S_IMODE(path.stat().st_mode) == PRIVATE
