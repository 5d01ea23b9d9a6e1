"""P experts around one frozen model in every form that is compared: medfed's, PEFT's, and a loop.

All forms of one :class:`Experts` hold the same numbers, so with the same α they compute the same.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from peft import LoraConfig, PeftModel, XLoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.tuners.xlora.layer import XLoraLinearLayer
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.llama import sharing
from medfed.injection.experts import ADAPTER, add_experts
from medfed.study.injection import InjectionSettings

P, RANK, ALPHA = 12, 8, 16
SCALING = ALPHA / RANK
SETTINGS = InjectionSettings(num_experts=P, rank=RANK, alpha=ALPHA, dropout=0.0)


class Experts:
    """Random experts for every adapted projection of ``base``.

    Args:
        base: a frozen causal LM; every form is a module of its own over its weights.
        dtype: of the adapters; None leaves PEFT its way (float32, whatever the base).
    """

    def __init__(self, base: nn.Module, dtype: torch.dtype | None = None) -> None:
        self.base, self.dtype = base, dtype
        device = next(base.parameters()).device
        generator = torch.Generator().manual_seed(1)
        self.alpha = torch.rand(P, generator=generator).softmax(0).to(device)
        self.down: dict[str, Tensor] = {}
        self.up: dict[str, Tensor] = {}
        for name, layer in projections(base):
            self.down[name] = (torch.randn(P * RANK, layer.in_features, generator=generator) * 0.05).to(device)
            self.up[name] = (torch.randn(layer.out_features, P * RANK, generator=generator) * 0.05).to(device)
        self.targets = sorted({name.rpartition(".")[2] for name in self.down})

    def mixed(self, batch: int) -> Tensor:
        """Return an α for every example of a batch of several tasks."""
        generator = torch.Generator().manual_seed(2)
        return torch.rand(batch, P, generator=generator).softmax(-1).to(self.alpha.device)

    def fused(self) -> PeftModel:
        """Return medfed's form; run it inside :func:`using`."""
        model = add_experts(sharing(self.base), SETTINGS)
        for name, layer in lora_layers(model):
            _set(layer, ADAPTER, self.down[name], self.up[name])
        return model

    def lora(self, rank: int, *, alpha: Tensor | None = None) -> PeftModel:
        """Return PEFT's plain LoRA; with rank P·r it is the mixture by ``alpha``, which scales its B."""
        settings = LoraConfig(r=rank, lora_alpha=rank, target_modules=self.targets, lora_dropout=0.0, bias="none")
        model = get_peft_model(sharing(self.base), settings, autocast_adapter_dtype=self.dtype is None)
        scales = torch.ones(P * RANK) if alpha is None else alpha.repeat_interleave(RANK) * SCALING
        for name, layer in lora_layers(model):
            up = self.up[name] * scales.to(self.alpha.device)
            _set(layer, ADAPTER, self.down[name][:rank], up[:, :rank])
        return model

    def looped(self) -> Looped:
        """Return the loop over experts; run it inside :func:`using`."""
        model = Looped(sharing(self.base))
        for name, layer in projections(model.inner):
            parent, _, leaf = name.rpartition(".")
            experts = LoopedExperts(layer, self.down[name], self.up[name], model.mixture)
            setattr(model.inner.get_submodule(parent), leaf, experts)
        return model

    def x_lora(self) -> PeftModel:
        """Return PEFT's X-LoRA, whose classifier gives every token the same α."""
        with tempfile.TemporaryDirectory() as folder:
            places = {str(number): self._expert(number, Path(folder)) for number in range(P)}
            config = XLoraConfig(
                task_type="CAUSAL_LM",
                hidden_size=next(layer.in_features for _, layer in projections(self.base)),
                adapters=places,
                use_trainable_adapters=True,
                xlora_dropout_p=0.0,
            )
            model = get_peft_model(sharing(self.base), config)
        last = model.base_model.internal_xlora_classifier.layers[-1]
        with torch.no_grad():
            last.weight.zero_()
            last.bias.copy_(self.alpha.log())
        return model

    def x_lora_layer(self, x: Tensor) -> Callable[[Tensor], Tensor]:
        """Return X-LoRA's layer around the first projection, with α given for every token of ``x``.

        Without the classifier and the second forward pass that feeds it: those need a whole model.
        """
        name = next(iter(self.down))
        settings = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=[name.rpartition(".")[2]], bias="none")
        model = get_peft_model(sharing(self.base), settings, adapter_name="0")
        for number in range(1, P):
            model.add_adapter(str(number), settings)
        model.base_model.set_adapter([str(number) for number in range(P)])
        layer = dict(lora_layers(model))[name]
        for number in range(P):
            rows = slice(number * RANK, (number + 1) * RANK)
            _set(layer, str(number), self.down[name][rows], self.up[name][:, rows])
        scalings = self.alpha.expand(*x.shape[:2], 1, P)
        config = XLoraConfig(hidden_size=x.shape[-1], adapters={})
        form = XLoraLinearLayer(SimpleNamespace(disabled=False), layer, layer.forward, 0, config)

        def call(values: Tensor) -> Tensor:
            model.zero_grad(set_to_none=True)
            output: Tensor = form.forward(values, scalings=scalings)
            return output

        return call

    def _expert(self, number: int, folder: Path) -> str:
        """Write one expert as the adapter that X-LoRA loads."""
        settings = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=self.targets, bias="none", task_type="CAUSAL_LM")
        model = get_peft_model(sharing(self.base), settings)
        rows = slice(number * RANK, (number + 1) * RANK)
        for name, layer in lora_layers(model):
            _set(layer, ADAPTER, self.down[name][rows], self.up[name][:, rows])
        place = folder / str(number)
        model.save_pretrained(str(place), save_embedding_layers=False)
        return str(place)


class Mixture:
    """Where looped experts find α."""

    alpha: Tensor


class Looped(nn.Module):
    """A model whose projections loop over their experts."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.mixture = inner, Mixture()

    def forward(self, **inputs: Any) -> Any:
        """Run the model."""
        return self.inner(**inputs)


class LoopedExperts(nn.Module):
    """W x + Σ_p α_p (a/r) B_p A_p x, expert by expert."""

    def __init__(self, base_layer: nn.Module, down: Tensor, up: Tensor, mixture: Mixture) -> None:
        super().__init__()
        self.base_layer, self.mixture = base_layer, mixture
        self.down = nn.ParameterList(part.clone() for part in torch.split(down, RANK))
        self.up = nn.ParameterList(part.clone() for part in torch.split(up, RANK, dim=1))

    def forward(self, x: Tensor) -> Tensor:
        """Add the experts one after the other."""
        result: Tensor = self.base_layer(x)
        weights = self.mixture.alpha.to(x.dtype).unsqueeze(1)
        for number, (down, up) in enumerate(zip(self.down, self.up, strict=True)):
            output = F.linear(F.linear(x, down.to(x.dtype)), up.to(x.dtype))
            result = result + weights[..., number : number + 1] * (output * SCALING)
        return result


@contextmanager
def using(model: PeftModel | Looped, alpha: Tensor) -> Iterator[None]:
    """Open the block in which ``model`` mixes its experts by ``alpha`` ``[batch or 1, expert]``."""
    if isinstance(model, Looped):
        model.mixture.alpha = alpha
        yield
    else:
        with model.base_model.routing.using(alpha):
            yield


def projections(model: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    """Yield the linear maps of the decoder layers."""
    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    yield from ((name, layer) for name, layer in layers if ".layers." in name)


def lora_layers(model: nn.Module) -> Iterator[tuple[str, LoraLayer]]:
    """Yield PEFT's layers under the names they had in the model they wrap."""
    for name, layer in model.named_modules():
        if isinstance(layer, LoraLayer):
            yield name.removeprefix("base_model.model."), layer


@torch.no_grad()
def _set(layer: LoraLayer, adapter: str, down: Tensor, up: Tensor) -> None:
    layer.lora_A[adapter].weight.copy_(down)
    layer.lora_B[adapter].weight.copy_(up)
