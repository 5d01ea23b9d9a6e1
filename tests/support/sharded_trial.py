"""Trains a toy injected LLM in one process, and sharded over two: ``python -m support.sharded_trial FOLDER``.

accelerate 1.15 takes FSDP up on accelerators only, so the two CPU processes say by hand that this is FSDP; all that
follows (its plugin from ``deploy/fsdp.json``, ``prepare``, its optimizer) is accelerate's own.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
from pathlib import Path

import torch
from accelerate import Accelerator, PartialState
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_multi_gpu_env
from examples.sharding import adapter_state, average_gradients, expert_params, shard, whole_params
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor

from medfed.core.torch_rng import torch_seeded
from medfed.injection.encode import encode
from medfed.injection.experts import save_experts
from medfed.injection.model import InjectedModel
from support.llm_toys import BOTH, IMAGE, examples, federated_model, foundation, settings

CONFIG = Path(__file__).parents[2] / "deploy" / "fsdp.json"
STEPS, SHARE = 4, 4
WORLD = 2
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
"""Of the frozen LLM; experts are float32 on both."""


def fresh(dtype: str = "float32") -> InjectedModel:
    """A model whose experts already do something, the same at every call."""
    base = foundation()
    base.model.to(DTYPES[dtype])
    with torch_seeded("sharded", "model"):
        model = InjectedModel(base, {"image": 5, "sound": 7}, settings(dropout=0.0)).eval()
        for value in expert_params(model):
            torch.nn.init.normal_(value, std=0.1)
    return model


def loss_of(model: InjectedModel, step: int, ranks: range) -> Tensor:
    """The mean loss over the shares of ``ranks``: every share holds both tasks."""
    federated = federated_model()
    parts = []
    for task in (IMAGE, BOTH):
        chosen = [position for rank in ranks for position in range(*_share(step, rank))]
        batch = examples(task, STEPS * WORLD * SHARE).batch(torch.tensor(chosen).numpy())
        with torch.no_grad():
            parts.append((encode(federated, [(task, batch)])[0], batch))
    alpha = model.alpha([IMAGE, BOTH])
    rows = torch.arange(2).repeat_interleave(len(parts[0][1]))
    with model.mixing(alpha[rows]):
        found = torch.cat(model([group for group, _ in parts]))
        wanted = torch.cat([batch.target for _, batch in parts]).long()
        loss = -found.gather(1, wanted.unsqueeze(1)).mean()
        loss.backward()
    return loss.detach()


def _share(step: int, rank: int) -> tuple[int, int]:
    start = (step * WORLD + rank) * SHARE
    return start, start + SHARE


def alone(folder: Path, dtype: str) -> None:
    """Train in one process, on the whole batches."""
    model = fresh(dtype)
    optimizer = torch.optim.SGD([*expert_params(model), *whole_params(model)], lr=0.1, momentum=0.9)
    losses = []
    for step in range(STEPS):
        losses.append(loss_of(model, step, range(WORLD)).item())
        optimizer.step()
        optimizer.zero_grad()
    _write(folder / "alone", model, adapter_state(model), {"losses": losses})


def sharded(folder: Path, rank: int) -> None:
    """Train in one of two processes, on its share, one LLM after the other."""
    args, _, _ = _validate_launch_command(launch_command_parser().parse_args(["--config_file", str(CONFIG), "none"]))
    os.environ.update(prepare_multi_gpu_env(args))
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(WORLD), LOCAL_WORLD_SIZE=str(WORLD))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=sys.argv[2])
    accelerator = Accelerator(cpu=True)
    for dtype in DTYPES:
        _train_share(folder / dtype, rank, fresh(dtype), accelerator)
    PartialState().destroy_process_group()


def _train_share(folder: Path, rank: int, model: InjectedModel, accelerator: Accelerator) -> None:
    accelerator.state.distributed_type = DistributedType.FSDP  # accelerate's optimizer sets it back on a CPU
    accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin()
    whole = {name: value.numel() for name, value in model.llm.named_parameters()}
    experts = shard(model, accelerator, torch.optim.SGD(expert_params(model), lr=0.1, momentum=0.9))
    rest = torch.optim.SGD(whole_params(model), lr=0.1, momentum=0.9)
    losses = []
    for step in range(STEPS):
        loss = loss_of(model, step, range(rank, rank + 1))
        average_gradients(whole_params(model), accelerator)
        losses.append(accelerator.reduce(loss, reduction="mean").item())
        for optimizer in (experts, rest):
            optimizer.step()
            optimizer.zero_grad()
    local = {
        name: (value.to_local() if isinstance(value, DTensor) else value).numel()
        for name, value in model.llm.named_parameters()
    }
    facts = {"losses": losses, "whole": whole, "local": local, "foundation_is_llm": model.foundation.model is model.llm}
    _write(folder / f"rank{rank}", model, adapter_state(model), facts)


def _write(folder: Path, model: InjectedModel, state: dict[str, Tensor], facts: dict[str, object]) -> None:
    folder.mkdir(parents=True)
    assert model.adapted is not None
    save_experts(model.adapted, folder, "toy", state)
    projectors = {name: value.contiguous() for name, value in model.projectors.state_dict().items()}
    save_file(projectors, folder / "projectors.safetensors")
    (folder / "facts.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    torch.set_num_threads(1)
    target = Path(sys.argv[1])
    context = multiprocessing.get_context("fork")  # nothing has run yet, so children inherit the imports alone
    children = [context.Process(target=sharded, args=(target, rank)) for rank in range(WORLD)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    if any(child.exitcode for child in children):
        sys.exit("a sharded process failed")
    for name in DTYPES:
        alone(target / name, name)
