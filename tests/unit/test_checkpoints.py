"""Checkpoints: whole or not at all; a damaged one is passed over, never trusted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from medfed.core.errors import RunError
from medfed.core.files import sha256_of
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


def test_an_injector_that_did_not_change_takes_no_room(tmp_path: Path) -> None:
    kept, injector = Checkpoints(tmp_path), {"injector/b": torch.arange(1000.0)}
    assert not kept.has_injector
    kept.save(1, {"federated/w": torch.zeros(1)}, {})
    assert not kept.has_injector, "nothing was injected yet"
    kept.save(2, {"federated/w": torch.ones(1), **injector}, {})
    for step in (3, 4):
        assert kept.has_injector
        kept.save(step, {"federated/w": torch.full((1,), float(step))}, {}, same_injector=True)
    files = [tmp_path / "checkpoints" / f"00000{step}" / "injector.safetensors" for step in (3, 4)]
    assert files[0].samefile(files[1])
    tensors, _ = Checkpoints(tmp_path).load() or ({}, {})
    assert sorted(tensors) == ["federated/w", "injector/b"]
    assert torch.equal(tensors["injector/b"], injector["injector/b"])
    kept.save(5, {"federated/w": torch.zeros(1), "injector/b": torch.zeros(3)}, {})
    assert torch.equal((Checkpoints(tmp_path).load() or ({}, {}))[0]["injector/b"], torch.zeros(3))


def test_the_injector_is_shared_with_the_checkpoint_that_was_loaded(tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path)
    for step in (1, 2):
        kept.save(step, {"injector/b": torch.full((3,), float(step))}, {"round": step})
    flip_last_byte(tmp_path / "checkpoints" / "000002" / "injector.safetensors")
    again = Checkpoints(tmp_path)
    assert (again.load() or ({}, {}))[1]["round"] == 1
    again.save(3, {}, {"round": 3}, same_injector=True)
    assert torch.equal((Checkpoints(tmp_path).load() or ({}, {}))[0]["injector/b"], torch.ones(3))


def test_where_the_disk_has_no_links_the_injector_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise OSError("no links here")

    kept = Checkpoints(tmp_path)
    kept.save(1, {"injector/b": torch.ones(3)}, {})
    monkeypatch.setattr(Path, "hardlink_to", refused)
    kept.save(2, {}, {"round": 2}, same_injector=True)
    tensors, facts = Checkpoints(tmp_path).load() or ({}, {})
    assert facts["round"] == 2
    assert torch.equal(tensors["injector/b"], torch.ones(3))


def test_a_checkpoint_in_one_file_is_read_as_before(tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path)
    kept.save(1, {"federated/w": torch.ones(1)}, {})
    place = tmp_path / "checkpoints" / "000001"
    whole = {"federated/w": torch.ones(1), "injector/b": torch.ones(2)}
    save_file(whole, place / "state.safetensors")
    manifest = {"step": 1, "sha256": {"state.safetensors": sha256_of(place / "state.safetensors")}}
    (place / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    again = Checkpoints(tmp_path)
    assert sorted((again.load() or ({}, {}))[0]) == sorted(whole)
    assert not again.has_injector, "it has no file of its own that could be shared"
