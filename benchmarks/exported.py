"""One task's experts as others run them: a plain LoRA that stock PEFT loads, and merged into the model."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from peft import PeftModel
from torch import Tensor, nn

from benchmarks.adapters import RANK, Experts, P, using
from benchmarks.llama import llama, sharing
from benchmarks.rows import Row, Target
from benchmarks.timing import Bench, Versus

FUSED, EXPORTED, PLAIN = "experts", "exported adapter", f"a plain LoRA of rank {P * RANK}"
MERGED, BASE, EQUAL = "merged model", "frozen model", Target("=", 1.0)


def exported_rows(bench: Bench) -> Iterator[Row]:
    """A Llama of six layers, forward; the three forms of the experts give the same logits."""
    width, layers, tokens = (64, 2, 8) if bench.quick else (512, 6, 128)
    base = llama(width, layers)
    experts, x = Experts(base), torch.randn(4, tokens, width)
    fused = experts.fused()
    variants = {
        FUSED: _under(fused, experts.alpha, x),
        EXPORTED: _logits(_loaded(experts), x),
        PLAIN: _logits(experts.lora(P * RANK), x),
        MERGED: _logits(_merged(experts), x),
        BASE: _logits(base, x),
    }
    pairs = [
        Versus(EXPORTED, PLAIN, EQUAL),
        Versus(MERGED, BASE, EQUAL),
        Versus(FUSED, EXPORTED, same=True),
        Versus(FUSED, MERGED, same=True),
    ]
    setting = f"Llama {width}×{layers} float32, {4 * tokens} tokens, forward"
    yield from bench.race("exported", setting, variants, pairs, seconds=25)


def _loaded(experts: Experts) -> nn.Module:
    """Return the adapter of one task, written to a folder and loaded by stock PEFT."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "adapter"
        experts.lora(P * RANK, alpha=experts.alpha).save_pretrained(str(place), save_embedding_layers=False)
        loaded: nn.Module = PeftModel.from_pretrained(sharing(experts.base), str(place))
    return loaded


def _merged(experts: Experts) -> nn.Module:
    """Return a model of its own weights with the experts of one task added to them."""
    own = Experts(copy.deepcopy(experts.base))
    fused = own.fused()
    with using(fused, own.alpha.unsqueeze(0)):
        merged: nn.Module = fused.merge_and_unload()
    return merged


def _under(model: nn.Module, alpha: Tensor, x: Tensor) -> Callable[[], Tensor]:
    inner = _logits(model, x)

    def call() -> Tensor:
        with using(model, alpha.unsqueeze(0)):
            return inner()

    return call


def _logits(model: nn.Module, x: Tensor) -> Callable[[], Tensor]:
    model.eval()

    def call() -> Tensor:
        with torch.no_grad():
            logits: Tensor = model(inputs_embeds=x, logits_to_keep=1, use_cache=False).logits
        return logits

    return call
