"""Updates and broadcasts as bytes: tensors as safetensors, the rest as JSON in its header. No pickle.

One array a message: a network's cost grows with the number of arrays more than with their bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from medfed.core.errors import RunError
from medfed.core.types import Broadcast, Params, Update
from medfed.federated.state import copied, join, split

UPDATE_GROUPS = ("delta", "scales", "buffers", "state")
BROADCAST_GROUPS = ("params", "buffers", "state")
Facts = Mapping[str, Any]
"""JSON values that travel with tensors."""


class _UpdateFacts(BaseModel, strict=True, extra="forbid"):
    """The fields of an update that are no tensors, of the right types; whether they are true the gate asks."""

    client: str
    round: int
    base: str
    num_examples: int
    num_steps: int
    examples: dict[str, int]
    metrics: dict[str, float]


class _BroadcastFacts(BaseModel, strict=True, extra="forbid"):
    round: int
    base: str


def update_bytes(update: Update) -> bytes:
    """Pack ``update``."""
    rest = {name: value for name, value in vars(update).items() if name not in UPDATE_GROUPS}
    return pack(join({name: getattr(update, name) for name in UPDATE_GROUPS}), rest)


def update_of(data: bytes) -> Update:
    """Unpack what :func:`update_bytes` packed, or raise RunError; whether it is a *good* update the gate says."""
    return Update(**_fields(data, UPDATE_GROUPS, _UpdateFacts))


def broadcast_bytes(broadcast: Broadcast) -> bytes:
    """Pack ``broadcast``."""
    tensors = join({name: getattr(broadcast, name) for name in BROADCAST_GROUPS})
    return pack(tensors, {"round": broadcast.round, "base": broadcast.base})


def broadcast_of(data: bytes) -> Broadcast:
    """Unpack what :func:`broadcast_bytes` packed. Raises RunError if it is no broadcast."""
    return Broadcast(**_fields(data, BROADCAST_GROUPS, _BroadcastFacts))


def pack(tensors: Params, facts: Facts) -> bytes:
    """Pack named tensors and JSON values."""
    copies = {name: value.contiguous() for name, value in copied(tensors).items()}  # safetensors wants own memory
    return save(copies, {"facts": json.dumps(facts)})


def unpack(data: bytes) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Undo :func:`pack`. Raises RunError if the bytes are not what :func:`pack` returns."""
    try:
        # Copies, because views into a message lie at any address; sorted, because they come in any order.
        tensors = copied(dict(sorted(load(data).items())))
        size = int.from_bytes(data[:8], "little")
        facts = json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["facts"])
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise RunError(f"unreadable: {error}", where="message", hint=_HINT) from error
    if not isinstance(facts, dict):
        raise RunError("unreadable: no facts", where="message", hint=_HINT)
    return tensors, facts


def _fields(data: bytes, groups: tuple[str, ...], facts: type[BaseModel]) -> dict[str, Any]:
    """Return the fields of a message: groups of tensors, and facts of the types that ``facts`` wants."""
    tensors, rest = unpack(data)
    try:
        checked = facts.model_validate(rest)
    except ValidationError as error:
        first = error.errors()[0]
        what = f"not what was expected: {'.'.join(map(str, first['loc']))}: {first['msg']}"
        raise RunError(what, where="message", hint=_HINT) from error
    return {**dict(checked), **split(tensors, groups)}


_HINT = "both sides must run the same version of medfed"
