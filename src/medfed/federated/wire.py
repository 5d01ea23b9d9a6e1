"""An update as one file: tensors as safetensors, the rest as JSON in its header. No pickle."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from medfed.federated.state import join, split
from medfed.types import Update

GROUPS = ("delta", "buffers", "state")


def save_update(path: Path, update: Update) -> None:
    """Write ``update`` to ``path``."""
    tensors = join({"delta": update.delta, "buffers": update.buffers, "state": update.state})
    rest = {name: value for name, value in vars(update).items() if name not in GROUPS}
    # Copies, because safetensors refuses tensors that share memory.
    save_file(
        {name: value.detach().clone(memory_format=torch.contiguous_format) for name, value in tensors.items()},
        path,
        {"update": json.dumps(rest)},
    )


def load_update(path: Path) -> Update:
    """Read an update that :func:`save_update` wrote."""
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        rest = json.loads(file.metadata()["update"])
    parts = split(tensors, GROUPS)
    return Update(**rest, delta=parts["delta"], buffers=parts["buffers"], state=parts["state"])
