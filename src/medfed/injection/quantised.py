"""4-bit weights of bitsandbytes: kept as they were loaded, and never merged into."""

from __future__ import annotations

from torch import Tensor, nn

from medfed.errors import RunError

REPACKING = "support_avx512bf16_for_cpu"
"""A layer's switch: on some CPUs bitsandbytes packs its weight anew at the first evaluation, with rounded scales."""


def keep_layout(model: nn.Module) -> None:
    """Keep bitsandbytes from packing weights anew: they would be others then, and no gradient passes them."""
    for module in model.modules():
        if hasattr(module, REPACKING):
            setattr(module, REPACKING, False)


def refuse_quantised(layer: nn.Module) -> None:
    """Make sure that the weight of a linear ``layer`` can be added to: rounding the sum would lose most of the update.

    Raises:
        RunError: it is quantised.
    """
    weight = getattr(layer, "weight", None)
    if not isinstance(weight, Tensor) or not weight.is_floating_point() or hasattr(weight, "quant_state"):
        raise RunError(
            f"an adapter cannot be merged into a quantised weight ({type(weight).__name__})",
            where=type(layer).__name__,
            hint="serve the adapter beside the LLM (export without --merge), or load the LLM unquantised",
        )
