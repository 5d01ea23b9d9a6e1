"""Run files: whole or not at all; a damaged checkpoint is passed over, never trusted."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from medfed.core.errors import RunError
from medfed.runs.folder import RunDir


def test_checkpoint_round_trip_keeps_the_previous_one_only(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    for step in range(4):
        run.save_checkpoint(step, {"w": torch.full((3,), float(step))}, {"round": step})
    tensors, facts = run.load_checkpoint() or ({}, {})
    assert facts["round"] == 3
    assert torch.equal(tensors["w"], torch.full((3,), 3.0))
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["000002", "000003"]


def test_a_flipped_byte_falls_back_to_the_previous_checkpoint(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    for step in (1, 2):
        run.save_checkpoint(step, {"w": torch.full((3,), float(step))}, {"round": step})
    flip_last_byte(tmp_path / "checkpoints" / "000002" / "state.safetensors")
    tensors, facts = run.load_checkpoint() or ({}, {})
    assert facts["round"] == 1
    assert torch.equal(tensors["w"], torch.ones(3))
    flip_last_byte(tmp_path / "checkpoints" / "000001" / "state.safetensors")
    with pytest.raises(RunError, match="checksum"):
        run.load_checkpoint()


def test_a_half_written_checkpoint_is_not_seen(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.save_checkpoint(1, {"w": torch.zeros(1)}, {})
    (tmp_path / "checkpoints" / ".partial-000002").mkdir()
    (tmp_path / "checkpoints" / ".partial-000002" / "state.safetensors").write_bytes(b"half")
    assert (run.load_checkpoint() or ({}, {}))[1]["step"] == 1


def test_records_of_rounds_to_be_redone_are_forgotten(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.append_records("rounds.jsonl", [{"round": 1}, {"round": 2}])
    run.append_records("rounds.jsonl", [{"round": 3}])
    run.drop_records_after("rounds.jsonl", 2)
    assert run.read_records("rounds.jsonl") == [{"round": 1}, {"round": 2}]


def flip_last_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
