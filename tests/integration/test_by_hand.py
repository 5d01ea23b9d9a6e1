"""The flat examples give the library's numbers."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


# Adam divides by the gradient's size: where a gradient passes near 0, rounding shows in one weight of FedKIM's encoder
@pytest.mark.parametrize(("name", "most"), [("fedavg_by_hand", 1e-6), ("fedkim_by_hand", 5e-6)])
def test_by_hand_equals_library_and_is_short(name: str, most: float) -> None:
    path = EXAMPLES / f"{name}.py"
    assert len(path.read_text(encoding="utf-8").splitlines()) < 150
    assert runpy.run_path(str(path))["largest_difference"]() < most
