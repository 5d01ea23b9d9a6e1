"""The routed LoRA itself: ``result + (s ∘ (x Aᵀ)) Bᵀ`` as one function with its own gradient (FedKIM Eq. 5).

As written, automatic differentiation would keep the middle activations twice, plain and scaled, and copies of A and B
wherever their dtype is not the LLM's. Here a layer keeps what a plain LoRA of the same rank keeps: its input, which the
q, k and v projections share, and the middle activations. The sum is taken by the second matrix product itself (addmm).
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from medfed.errors import RunError

Gradients = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None, None]


def routed_lora(
    x: Float[Tensor, "*batch in"],
    result: Float[Tensor, "*batch out"],
    down: Float[Tensor, "middle in"],
    up: Float[Tensor, "out middle"],
    scales: Float[Tensor, "example middle"],
) -> Float[Tensor, "*batch out"]:
    """Add what the experts make of a frozen layer's input to its ``result``, and return the sum.

    Everything is computed in the dtype of ``result`` (with autocast: what autocast chose there), and gradients arrive
    in the dtype of what they belong to.

    Args:
        x: input of the layer, after dropout.
        result: output of the frozen layer, which must not need it for its own gradient; overwritten by the sum unless
            it is a view, a leaf that takes a gradient, or not contiguous.
        down: A of all experts.
        up: B of all experts.
        scales: α·a/r of every direction; one row for all of ``x``, or a row for each of its first axis.

    Raises:
        RunError: ``scales`` has several rows, and the first axis of ``x`` is not that of the examples.
    """
    if len(scales) > 1 and (x.dim() < 3 or len(x) != len(scales)):
        raise RunError(
            f"{len(scales)} rows of α for an input of shape {list(x.shape)}: whose row is whose is lost",
            where="experts",
            hint="layers that flatten examples and tokens (mixtures of experts) take one task per batch",
        )
    in_place = result.is_contiguous() and not (result._is_view() or (result.is_leaf and result.requires_grad))
    plainly: AbstractContextManager[object] = nullcontext()
    if torch.amp.is_autocast_available(x.device.type):  # not for shapes alone, on "meta"
        plainly = torch.autocast(x.device.type, enabled=False)
    with plainly:
        added: Tensor = _RoutedLora.apply(x, result, down, up, scales, in_place)  # type: ignore[no-untyped-call]
    return added


class _RoutedLora(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, x: Tensor, result: Tensor, down: Tensor, up: Tensor, scales: Tensor, in_place: bool
    ) -> Tensor:
        dtype = result.dtype
        middle = x.to(dtype) @ down.to(dtype).T
        ctx.save_for_backward(x, middle, down, up, scales)
        scaled = _flat(_scaled(middle, scales))
        if in_place:
            ctx.mark_dirty(result)
            _flat(result).addmm_(scaled, up.to(dtype).T)
            return result
        return torch.addmm(_flat(result), scaled, up.to(dtype).T).view_as(result)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> Gradients:
        x, middle, down, up, scales = ctx.saved_tensors  # type: ignore[attr-defined]
        needs_x, _, needs_down, needs_up, needs_scales, _ = ctx.needs_input_grad  # type: ignore[attr-defined]
        grad_x = grad_down = grad_up = grad_scales = None
        grad_scaled = grad @ up.to(grad.dtype)
        if needs_up or needs_scales:
            grad_up, grad_scales = _up_and_scales(grad, grad_scaled, middle, up, scales)
        grad_middle = _scaled(grad_scaled, scales)
        if needs_down:
            grad_down = (_flat(grad_middle).T @ _flat(x).to(grad.dtype)).to(down.dtype)
        if needs_x:
            grad_x = (grad_middle @ down.to(grad.dtype)).to(x.dtype)
        return grad_x, grad, grad_down, grad_up, grad_scales, None


def _up_and_scales(
    grad: Float[Tensor, "*batch out"],
    grad_scaled: Float[Tensor, "*batch middle"],
    middle: Float[Tensor, "*batch middle"],
    up: Float[Tensor, "out middle"],
    scales: Float[Tensor, "example middle"],
) -> tuple[Float[Tensor, "out middle"], Float[Tensor, "example middle"]]:
    """Return the gradients of B and of the scales; with one row both come from one product over all tokens."""
    if len(scales) == 1:
        product = (_flat(grad).T @ _flat(middle)).to(up.dtype)
        return product * scales.to(up.dtype), (product * up).sum(0, keepdim=True).to(scales.dtype)
    grad_up = _flat(grad).T @ _flat(_scaled(middle, scales))
    products = (grad_scaled * middle).to(scales.dtype)
    return grad_up.to(up.dtype), products.flatten(1, -2).sum(1)


def _scaled(
    middle: Float[Tensor, "*batch middle"], scales: Float[Tensor, "example middle"]
) -> Float[Tensor, "*batch middle"]:
    rows = scales.to(middle.dtype)
    if len(rows) == 1:
        return middle * rows
    return middle * rows.view(len(rows), *(1 for _ in middle.shape[1:-1]), rows.shape[-1])


def _flat(values: Float[Tensor, "*batch width"]) -> Float[Tensor, "row width"]:
    return values.flatten(0, -2)
