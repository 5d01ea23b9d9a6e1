"""Shared settings of the tests: one thread, shapes checked in every test, and each test held to its tier."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from support import shapes
from support.once import made_once
from support.tiers import held_to_its_tier

if TYPE_CHECKING:
    from support.federation_trial import Trial
    from support.finished_runs import QuickRun

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported
shapes.install()

REAL_DATA = Path(__file__).parents[2] / "shared" / "data"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Let no unit test start a process or build an LLM."""
    with held_to_its_tier(item):
        return (yield)


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
