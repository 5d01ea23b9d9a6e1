"""Shared settings of the tests: one thread, and shapes checked in every test."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from jaxtyping import install_import_hook

torch.set_num_threads(1)
install_import_hook("medfed", "beartype.beartype")

REAL_DATA = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of small real extracts; tests that read it skip where it is absent."""
    if not REAL_DATA.is_dir():
        pytest.skip(f"no real extracts at {REAL_DATA}")
    return REAL_DATA
