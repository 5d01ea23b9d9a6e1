"""How α reaches the experts of all layers, and how one layer applies its experts.

PEFT's LoRA layer holds a :class:`RoutedVariant` where it would otherwise compute a plain LoRA; all variants of a model
share one :class:`Routing`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from jaxtyping import Float
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import LoraVariant
from torch import Tensor, nn

from medfed.errors import RunError
from medfed.injection.quantised import refuse_quantised
from medfed.injection.routed_lora import routed_lora


class Routing:
    """Where the experts of all layers find α.

    Keep the block open through the backward pass: gradient checkpointing runs the layers again there.

    Args:
        rank: r, directions per expert.
        scaling: a/r.
        layers: the LLM's layers that can be checkpointed.
    """

    def __init__(self, rank: int, scaling: float, layers: Iterable[nn.Module] = ()) -> None:
        self._rank, self._scaling, self._layers = rank, scaling, tuple(layers)
        self._scales: Float[Tensor, "batch middle"] | None = None

    @contextmanager
    def using(self, alpha: Float[Tensor, "batch expert"]) -> Iterator[None]:
        """Scale the experts by ``alpha`` inside the block; one row serves a whole batch.

        Raises:
            RunError: α is to be trained through reentrant checkpoints.
        """
        if alpha.requires_grad:
            self._refuse_reentrant()
        if len(alpha) > 1 and alpha.stride(0) == 0:  # one row, expanded
            alpha = alpha[:1]
        before, self._scales = self._scales, alpha.repeat_interleave(self._rank, dim=-1) * self._scaling
        try:
            yield
        finally:
            self._scales = before

    @property
    def scales(self) -> Float[Tensor, "batch middle"]:
        """α·a/r, repeated over the directions of every expert."""
        if self._scales is None:
            raise RunError("the experts have no weights", where="router", hint="run the model inside routing.using(α)")
        return self._scales

    def _refuse_reentrant(self) -> None:
        """A reentrant checkpoint goes backward layer by layer, and α's graph is gone after the first."""
        for layer in self._layers:
            if not getattr(layer, "gradient_checkpointing", False):
                continue
            options = getattr(layer._gradient_checkpointing_func, "keywords", {})
            if options.get("use_reentrant", True):
                raise RunError(
                    "α cannot be trained through reentrant gradient checkpoints",
                    where="gradient_checkpointing_kwargs",
                    hint='call gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})',
                )


class RoutedVariant(LoraVariant):  # type: ignore[misc] # PEFT is untyped
    """How one layer applies its experts; held by PEFT's LoRA layer."""

    def __init__(self, routing: Routing) -> None:
        self._routing = routing

    def supports_lora_conversion(self) -> bool:
        """A routed layer is no plain LoRA."""
        return False

    def forward(self, module: LoraLayer, active_adapter: str, x: Tensor, result: Tensor, **_: object) -> Tensor:
        """Add the experts' output to the frozen layer's ``result``, in its dtype; A and B keep their own."""
        down, up = module.lora_A[active_adapter].weight, module.lora_B[active_adapter].weight
        return routed_lora(module.lora_dropout[active_adapter](x), result, down, up, self._routing.scales)

    def merge_safe(self, module: LoraLayer, active_adapter: str, orig_weight: Tensor) -> Tensor:
        """Return W + scaling Σ α_p B_p A_p for the one α in use."""
        return self._sum(module, active_adapter, orig_weight, 1)

    def merge_unsafe(self, module: LoraLayer, active_adapter: str, orig_weight: Tensor) -> None:
        """Add the experts to the weight in place."""
        orig_weight.data.copy_(self._sum(module, active_adapter, orig_weight, 1))

    def unmerge(self, module: LoraLayer, active_adapter: str, orig_weight: Tensor) -> Tensor:
        """Take the experts out again; the same α must be in use."""
        return self._sum(module, active_adapter, orig_weight, -1)

    def _sum(self, module: LoraLayer, adapter: str, weight: Tensor, sign: int) -> Tensor:
        """Return the weight with the experts added, or taken off, in float64, then rounded once."""
        refuse_quantised(module.get_base_layer())
        scales = self._routing.scales
        if len(scales) != 1:
            raise RunError(f"{len(scales)} tasks cannot be merged into one weight", where="router", hint="merge one α")
        up = (module.lora_B[adapter].weight * scales).double()
        summed: Tensor = weight.double() + sign * up @ module.lora_A[adapter].weight.double()
        return summed.to(weight.dtype)
