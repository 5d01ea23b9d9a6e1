"""Shared settings of the tests: one thread, and shapes checked in every test."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from support import shapes

if TYPE_CHECKING:
    from support.federation_trial import Trial
    from support.finished_runs import QuickRun

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported
shapes.install()

REAL_DATA = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of small real extracts; tests that read it skip where it is absent."""
    if not REAL_DATA.is_dir():
        pytest.skip(f"no real extracts at {REAL_DATA}")
    return REAL_DATA


@pytest.fixture(scope="session")
def trial_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders of the small federation's server and sites: synthetic, written once."""
    from support.federation_trial import STUDY, written_folders

    return written_folders(STUDY, tmp_path_factory.mktemp("trial") / "data")


@pytest.fixture(scope="session")
def quick(tmp_path_factory: pytest.TempPathFactory) -> QuickRun:
    """A tiny finished run and files to ask it about, made once."""
    from support.finished_runs import quick_run

    return quick_run(tmp_path_factory.mktemp("quick"))


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
