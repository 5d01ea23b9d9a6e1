"""The flat examples give the library's numbers."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize("name", ["fedavg_by_hand", "fedkim_by_hand"])
def test_by_hand_equals_library_and_is_short(name: str) -> None:
    path = EXAMPLES / f"{name}.py"
    assert len(path.read_text(encoding="utf-8").splitlines()) < 150
    assert runpy.run_path(str(path))["largest_difference"]() < 1e-6
