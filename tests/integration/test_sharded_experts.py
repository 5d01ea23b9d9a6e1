"""Training sharded over two processes with ``deploy/fsdp.json`` is training in one, at half the memory."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from examples.sharding import expert_params, shard
from safetensors.torch import load_file

from medfed.core.errors import RunError
from support import sharded_trial

RANKS = ("rank0", "rank1")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders by the LLM's dtype, in each ``alone``, ``rank0``, ``rank1``: an adapter, projectors and facts."""
    folder = tmp_path_factory.mktemp("sharded")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = [sys.executable, "-m", sharded_trial.__name__, str(folder), str(port)]
    paths = {"PYTHONPATH": os.pathsep.join(sys.path)}
    ended = subprocess.run(script, env=os.environ | paths, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-2000:]
    return folder / "float32"


def facts(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "facts.json").read_text())
    return found


@pytest.mark.parametrize("rank", RANKS)
def test_losses_are_those_of_one_process(trained: Path, rank: str) -> None:
    alone = facts(trained / "alone")["losses"]
    assert facts(trained / rank)["losses"] == pytest.approx(alone, abs=1e-5)
    assert max(alone) - min(alone) > 0.1, "training must change the loss, or equal losses prove nothing"


@pytest.mark.parametrize("rank", RANKS)
def test_float32_experts_on_a_bfloat16_llm_train_sharded_too(trained: Path, rank: str) -> None:
    folder = trained.parent / "bfloat16"
    losses, alone = facts(folder / rank)["losses"], facts(folder / "alone")["losses"]
    assert losses[0] == pytest.approx(alone[0], abs=1e-5), "before a step, only the order of a mean differs"
    assert losses == pytest.approx(alone, abs=0.1)
    assert facts(folder / rank)["local"] == facts(trained / rank)["local"]


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("file", ["adapter_model.safetensors", "projectors.safetensors"])
def test_what_was_trained_is_what_one_process_trains(trained: Path, rank: str, file: str) -> None:
    alone, found = load_file(trained / "alone" / file), load_file(trained / rank / file)
    assert found.keys() == alone.keys()
    for name, value in alone.items():
        torch.testing.assert_close(found[name], value, atol=1e-5, rtol=1e-4, msg=name)


def test_experts_router_and_projectors_all_were_trained(trained: Path) -> None:
    before = sharded_trial.adapter_state(sharded_trial.fresh())
    after = load_file(trained / "rank0" / "adapter_model.safetensors")
    for name, value in before.items():
        if not name.endswith("mlp.2.bias"):
            assert not torch.equal(after[name.replace(".default", "")], value), name
    for name, value in sharded_trial.fresh().projectors.state_dict().items():
        assert not torch.equal(load_file(trained / "rank0" / "projectors.safetensors")[name], value), name


@pytest.mark.parametrize("part", ["lora_", "base_layer", "lm_head", "norm"])
def test_each_process_holds_half_of_base_and_experts(trained: Path, part: str) -> None:
    for rank in RANKS:
        whole, local = facts(trained / rank)["whole"], facts(trained / rank)["local"]
        names = [name for name in whole if part in name]
        held, all_of_it = sum(local[name] for name in names), sum(whole[name] for name in names)
        print(f"{rank}: {held} of {all_of_it} numbers of {part!r}")
        assert 0.4 < held / all_of_it < 0.6
        assert facts(trained / rank)["foundation_is_llm"], "else the unsharded weights stay in memory beside the shards"


def test_without_fsdp_nothing_pretends_to_be_sharded() -> None:
    model = sharded_trial.fresh()
    with pytest.raises(RunError, match=r"(?s)not FSDP version 2.*deploy/fsdp.json"):
        shard(model, Accelerator(cpu=True), torch.optim.SGD(expert_params(model), lr=0.1))
