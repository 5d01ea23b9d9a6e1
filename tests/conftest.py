"""Shared settings of the tests: one thread, shapes checked, each test in an empty folder and held to its tier."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from support import shapes
from support.guards import guarded
from support.once import made_once

if TYPE_CHECKING:
    from support.federation_trial import Trial
    from support.finished_runs import QuickRun

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported
shapes.install()

REAL_DATA = Path(__file__).parents[2] / "shared" / "data"


WORKING = pytest.StashKey[Path]()
"""The folder in which all tests run."""


def pytest_sessionstart(session: pytest.Session) -> None:
    """Keep the user's cache out of it, here and in processes that tests start."""
    base = session.config._tmp_path_factory.getbasetemp()  # type: ignore[attr-defined]
    os.environ["MEDFED_CACHE"] = str(base / "no-cache-given")
    session.config.stash[WORKING] = base / "working"
    session.config.stash[WORKING].mkdir()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Refuse what no test, or no unit test, may do."""
    with guarded(item, item.config.stash[WORKING]):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Iterator[None]:
    """Fail a test that leaves something in its working directory."""
    result = yield
    left = sorted(item.config.stash[WORKING].iterdir())
    for path in left:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert not left, f"left in the working directory: {[path.name for path in left]}"
    return result


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of small real extracts; tests that read it skip where it is absent."""
    if not REAL_DATA.is_dir():
        pytest.skip(f"no real extracts at {REAL_DATA}")
    return REAL_DATA


@pytest.fixture(scope="session")
def trial_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders of the small federation's server and sites: synthetic, written once for all workers, only read."""
    from support.federation_trial import STUDY, written_folders

    made = made_once(tmp_path_factory, "trial", lambda folder: written_folders(STUDY, folder / "data"))
    return made / "data"


@pytest.fixture(scope="session")
def quick(tmp_path_factory: pytest.TempPathFactory) -> QuickRun:
    """A tiny finished run and files to ask it about, made once for all workers, only read."""
    from support.finished_runs import QuickRun, quick_run

    return QuickRun.at(made_once(tmp_path_factory, "quick", quick_run))


@pytest.fixture
def open_trial(tmp_path: Path, trial_data: Path) -> Iterator[Callable[..., Trial]]:
    """Open a federation of processes in ``tmp_path``; they are ended with the test."""
    from support.federation_trial import Trial

    opened: list[Trial] = []

    def opens(data: Path | None = None, **options: Any) -> Trial:
        root = tmp_path / f"trial-{len(opened)}"
        root.mkdir()
        if data is not None and not data.exists():
            shutil.copytree(trial_data, data)  # a test's own, to spoil
        opened.append(Trial(root, data or trial_data, tmp_path / "cache", **options))
        return opened[-1]

    yield opens
    for trial in opened:
        trial.close()
