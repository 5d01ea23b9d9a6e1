"""The routed LoRA itself: ``result + (s ∘ (x Aᵀ)) Bᵀ`` as one function with its own gradient (FedKIM Eq. 5).

As written, automatic differentiation would keep the middle activations twice, plain and scaled, and copies of A and B
wherever their dtype is not the LLM's. Here a layer keeps what a plain LoRA of the same rank keeps: its input, which the
q, k and v projections share, and the middle activations. The sum is taken by the second matrix product itself (addmm).
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from medfed.errors import RunError

Gradients = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None]


def routed_lora(
    x: Float[Tensor, "*batch in"],
    result: Float[Tensor, "*batch out"],
    down: Float[Tensor, "middle in"],
    up: Float[Tensor, "out middle"],
    scales: Float[Tensor, "example middle"],
) -> Float[Tensor, "*batch out"]:
    """Return the frozen layer's ``result`` plus what the experts make of its input.

    Everything is computed in the dtype of ``result`` (with autocast: what autocast chose there), and gradients arrive
    in the dtype of what they belong to.

    Args:
        x: input of the layer, after dropout.
        result: output of the frozen layer; not changed.
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
    with torch.autocast(x.device.type, enabled=False):
        added: Tensor = _RoutedLora.apply(x, result, down, up, scales)
    return added


class _RoutedLora(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, result: Tensor, down: Tensor, up: Tensor, scales: Tensor) -> Tensor:
        dtype = result.dtype
        middle = x.to(dtype) @ down.to(dtype).T
        ctx.save_for_backward(x, middle, down, up, scales)
        scaled = _scaled(middle, scales)
        added = torch.addmm(result.flatten(0, -2), scaled.flatten(0, -2), up.to(dtype).T)
        return added.view_as(result)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> Gradients:
        x, middle, down, up, scales = ctx.saved_tensors  # type: ignore[attr-defined]
        needs_x, _, needs_down, needs_up, needs_scales = ctx.needs_input_grad  # type: ignore[attr-defined]
        dtype, rows = grad.dtype, grad.flatten(0, -2)
        grad_x = grad_down = grad_up = grad_scales = None
        if needs_up:
            grad_up = (rows.T @ _scaled(middle, scales).flatten(0, -2)).to(up.dtype)
        grad_scaled = grad @ up.to(dtype)
        if needs_scales:
            products = (grad_scaled * middle).float() if dtype.itemsize < 4 else grad_scaled * middle
            grad_scales = products.flatten(0, -2).sum(0, keepdim=True) if len(scales) == 1 else products.flatten(1, -2).sum(1)
            grad_scales = grad_scales.to(scales.dtype)
        grad_middle = _scaled(grad_scaled, scales)
        if needs_down:
            grad_down = (grad_middle.flatten(0, -2).T @ x.to(dtype).flatten(0, -2)).to(down.dtype)
        if needs_x:
            grad_x = (grad_middle @ down.to(dtype)).to(x.dtype)
        return grad_x, grad, grad_down, grad_up, grad_scales


def _scaled(middle: Float[Tensor, "*batch middle"], scales: Float[Tensor, "example middle"]) -> Float[Tensor, "*batch middle"]:
    rows = scales.to(middle.dtype)
    if len(rows) > 1:
        rows = rows.view(len(rows), *(1 for _ in middle.shape[1:-1]), rows.shape[-1])
    return middle * rows
