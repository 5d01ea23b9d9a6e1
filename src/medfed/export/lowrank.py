"""The experts of one task as an ordinary LoRA, and its best approximation of a smaller rank.

α does not depend on the token and is folded into B: Σ_p α_p (a/r) B_p A_p = (B · diag(s)) A with s = α·a/r, repeated
over each expert's directions. This is a plain LoRA of rank P·r with scaling 1.

An update of ``W [out, in]`` is ``up @ down``. Its singular value decomposition comes from the QR decompositions of the
two factors and the SVD of a matrix as small as the rank (Eckart & Young 1936 for the truncation). The dense update is
never formed. Everything is computed in float64.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import save_file
from torch import Tensor

from medfed.injection.experts import ADAPTER, order_config
from medfed.injection.model import InjectedModel
from medfed.tasks.base import Task


class Factors(NamedTuple):
    """An update ``up @ down`` of one layer's weight."""

    down: Float[Tensor, "rank in"]
    up: Float[Tensor, "out rank"]


class Loss(NamedTuple):
    """The loss of a truncation: squared Frobenius norms of the part cut off and of the whole update."""

    cut: float
    whole: float

    @property
    def relative_error(self) -> float:
        """Frobenius norm of the difference over that of the update; 0 for an update that is zero."""
        return math.sqrt(self.cut / self.whole) if self.whole else 0.0

    @property
    def energy_kept(self) -> float:
        """Share of the squared norm that is left."""
        return 1 - self.cut / self.whole if self.whole else 1.0


class Truncation(NamedTuple):
    """Layers cut to one rank: their factors and losses by name."""

    rank: int
    factors: dict[str, Factors]
    losses: dict[str, Loss]

    @property
    def overall(self) -> Loss:
        """The loss of all layers together."""
        return Loss(sum(loss.cut for loss in self.losses.values()), sum(loss.whole for loss in self.losses.values()))

    @property
    def worst(self) -> str:
        """The layer with the largest relative error."""
        return max(self.losses, key=lambda layer: self.losses[layer].relative_error)


@torch.no_grad()
def folded(injected: InjectedModel, task: Task) -> dict[str, Factors]:
    """Return the update of every adapted layer for ``task``, trained or not, by the layer's name in the LLM."""
    settings = injected.settings
    alpha: Float[Tensor, " expert"] = injected.alpha([task])[0]
    scales = alpha.repeat_interleave(settings.rank) * (settings.alpha / settings.rank)
    factors = {}
    for name, layer in _layers(injected):
        down, up = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight * scales
        factors[name] = Factors(down.detach().cpu().float().clone(), up.detach().cpu().float().contiguous())
    return factors


def changes_nothing(injected: InjectedModel) -> bool:
    """Return whether the experts' update of every layer is zero, for all tasks: B starts so."""
    return injected.adapted is not None and not any(bool(b.lora_B[ADAPTER].weight.any()) for _, b in _layers(injected))


def _layers(injected: InjectedModel) -> Iterator[tuple[str, LoraLayer]]:
    """Yield every adapted layer with its name in the LLM."""
    return ((name, layer) for name, layer in injected.llm.named_modules() if isinstance(layer, LoraLayer))


def truncated(layers: Mapping[str, Factors], rank: int) -> Truncation:
    """Return the nearest updates of at most ``rank``, layer by layer; a rank that holds everything changes nothing."""
    full = max(len(factors.down) for factors in layers.values())
    cut = {name: _cut(factors, min(rank, full)) for name, factors in layers.items()}
    kept = dict(layers) if rank >= full else {name: factors for name, (factors, _) in cut.items()}
    return Truncation(min(rank, full), kept, {name: loss for name, (_, loss) in cut.items()})


def _cut(factors: Factors, rank: int) -> tuple[Factors, Loss]:
    """Return the factors of ``rank``, from ``up @ down = Q_up (R_up R_downᵀ) Q_downᵀ``."""
    left, up = torch.linalg.qr(factors.up.double())
    right, down = torch.linalg.qr(factors.down.double().T)
    U, values, Vh = torch.linalg.svd(up @ down.T, full_matrices=False)
    root = values[:rank].sqrt()  # half to each side, so that neither overflows a half-precision server
    up, down = left @ (U[:, :rank] * root), (Vh[:rank] * root.unsqueeze(1)) @ right.T
    missing = rank - len(root)  # a layer narrower than the rank: zeros, so that all layers have one rank
    up, down = torch.nn.functional.pad(up, (0, missing)), torch.nn.functional.pad(down, (0, 0, 0, missing))
    squares = values.square()
    loss = Loss(float(squares[rank:].sum()), float(squares.sum()))
    return Factors(down.to(factors.down.dtype).contiguous(), up.to(factors.up.dtype).contiguous()), loss


def save_plain_lora(
    layers: Mapping[str, Factors], folder: Path, like: LoraConfig, base: str, revision: str | None
) -> None:
    """Write ``layers`` to an existing folder as a LoRA directory of PEFT: plain, scaling 1, one rank.

    Target modules and dropout are those of ``like``, the settings of the experts. The LLM is ``base``, a folder or a
    name on the Hub.
    """
    rank = len(next(iter(layers.values())).down)
    llm = {"task_type": "CAUSAL_LM", "base_model_name_or_path": base, "revision": revision, "inference_mode": True}
    same = {name: getattr(like, name) for name in ("lora_dropout", "target_modules")}
    LoraConfig(r=rank, lora_alpha=rank, bias="none", **same, **llm).save_pretrained(str(folder))
    order_config(folder)
    tensors = {}
    for name, factors in sorted(layers.items()):
        tensors[f"base_model.model.{name}.lora_A.weight"] = factors.down
        tensors[f"base_model.model.{name}.lora_B.weight"] = factors.up
    save_file(tensors, folder / SAFETENSORS_WEIGHTS_NAME, metadata={"format": "pt"})
