"""Shared settings of the tests: one thread, and shapes checked in every test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from jaxtyping import install_import_hook
from rich.console import Console

if TYPE_CHECKING:
    from federation_trial import Trial

torch.set_num_threads(1)
install_import_hook("medfed", "beartype.beartype")

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
    from federation_trial import STUDY
    from medfed.prepare import write_folders
    from medfed.progress import Reporter
    from medfed.study import load_study

    root = tmp_path_factory.mktemp("trial")
    (root / "study.toml").write_text(STUDY, encoding="utf-8")
    write_folders(load_study(root / "study.toml"), root / "data", Reporter(Console(quiet=True)))
    return root / "data"


@pytest.fixture
def open_trial(tmp_path: Path, trial_data: Path) -> Iterator[Callable[..., Trial]]:
    """Open a federation of processes in ``tmp_path``; they are ended with the test."""
    from federation_trial import Trial

    opened: list[Trial] = []

    def opens(**options: object) -> Trial:
        root = tmp_path / f"trial-{len(opened)}"
        root.mkdir()
        opened.append(Trial(root, trial_data, tmp_path / "cache", **options))  # type: ignore[arg-type]
        return opened[-1]

    yield opens
    for trial in opened:
        trial.close()
