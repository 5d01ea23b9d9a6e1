"""Checkpoints: whole or not at all; a damaged one is passed over, never trusted."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from medfed.core.errors import RunError
from medfed.runs.checkpoints import Checkpoints


def test_checkpoint_round_trip_keeps_the_previous_one_only(tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path)
    for step in range(4):
        kept.save(step, {"w": torch.full((3,), float(step))}, {"round": step})
    tensors, facts = kept.load() or ({}, {})
    assert facts["round"] == 3
    assert torch.equal(tensors["w"], torch.full((3,), 3.0))
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["000002", "000003"]


def test_a_flipped_byte_falls_back_to_the_previous_checkpoint(tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path)
    for step in (1, 2):
        kept.save(step, {"w": torch.full((3,), float(step))}, {"round": step})
    flip_last_byte(tmp_path / "checkpoints" / "000002" / "state.safetensors")
    tensors, facts = kept.load() or ({}, {})
    assert facts["round"] == 1
    assert torch.equal(tensors["w"], torch.ones(3))
    flip_last_byte(tmp_path / "checkpoints" / "000001" / "state.safetensors")
    with pytest.raises(RunError, match="checksum"):
        kept.load()


def test_a_half_written_checkpoint_is_not_seen(tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path)
    kept.save(1, {"w": torch.zeros(1)}, {})
    partial = tmp_path / "checkpoints" / ".000002.partial-1"
    partial.mkdir()
    (partial / "state.safetensors").write_bytes(b"half")
    assert (kept.load() or ({}, {}))[1]["step"] == 1


def flip_last_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
