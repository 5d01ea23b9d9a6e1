"""One task's experts as others run them: what ``medfed export`` writes, in stock PEFT and stock transformers."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from benchmarks.adapters import RANK, P
from benchmarks.llama import sharing
from benchmarks.patients import server
from benchmarks.rows import Row, Target
from benchmarks.timing import Bench, Versus
from medfed.export.export import merged_weights
from medfed.export.lowrank import folded, save_plain_lora
from medfed.injection.experts import ADAPTER
from medfed.injection.model import InjectedModel
from medfed.tasks.base import Task

FUSED, EXPORTED, PLAIN = "experts", "exported adapter", f"a plain LoRA of rank {P * RANK}"
MERGED, BASE, EQUAL = "merged model", "frozen model", Target("=", 1.0)
Open = Callable[[], AbstractContextManager[None]]


def exported_rows(bench: Bench) -> Iterator[Row]:
    """A Llama of six layers, forward; the three forms of the experts give the same logits."""
    width, layers, tokens = (64, 2, 8) if bench.quick else (512, 6, 128)
    here = server(width, layers, 2000)
    injected, task = here.injector.injected, here.tasks[0]
    base, x = injected.foundation.model, torch.randn(4, tokens, width)
    alpha = injected.alpha([task]).detach()
    variants = {
        FUSED: _logits(injected.llm, x, lambda: injected.mixing(alpha)),
        EXPORTED: _logits(_exported(injected, task), x),
        PLAIN: _logits(_plain(injected), x),
        MERGED: _logits(_merged(injected, task), x),
        BASE: _logits(_stored(base), x),
    }
    pairs = [
        Versus(EXPORTED, PLAIN, EQUAL),
        Versus(MERGED, BASE, EQUAL),
        Versus(FUSED, EXPORTED, same=True),
        Versus(FUSED, MERGED, same=True),
    ]
    setting = f"Llama {width}×{layers} float32, {4 * tokens} tokens, forward"
    yield from bench.race("exported", setting, variants, pairs, seconds=40.0, turns=25)  # "=" needs a narrow interval


def _exported(injected: InjectedModel, task: Task) -> nn.Module:
    """Return the adapter of ``task``, written as medfed exports it and loaded by stock PEFT."""
    with tempfile.TemporaryDirectory() as folder:
        assert injected.adapted is not None  # noqa: S101
        save_plain_lora(folded(injected, task), Path(folder), injected.adapted.peft_config[ADAPTER], "random", None)
        loaded: nn.Module = PeftModel.from_pretrained(sharing(injected.foundation.model), folder)
    return loaded


def _plain(injected: InjectedModel) -> nn.Module:
    """Return a LoRA that never was a mixture, around the same projections."""
    assert injected.adapted is not None  # noqa: S101
    targets = injected.adapted.peft_config[ADAPTER].target_modules
    settings = LoraConfig(r=P * RANK, lora_alpha=P * RANK, target_modules=targets, bias="none", task_type="CAUSAL_LM")
    model: nn.Module = get_peft_model(sharing(injected.foundation.model), settings)
    return model


def _merged(injected: InjectedModel, task: Task) -> nn.Module:
    """Return the merged model, written as medfed exports it and loaded by stock transformers."""
    base = injected.foundation.model
    return _stored(base, merged_weights(base, folded(injected, task)))


def _stored(base: nn.Module, weights: Mapping[str, Tensor] | None = None) -> nn.Module:
    """Return a model written and loaded again: weights mapped from a file are not as fast as ones made in memory."""
    with tempfile.TemporaryDirectory() as folder:
        base.save_pretrained(folder, state_dict=weights)  # type: ignore[operator]
        model: nn.Module = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    return model


def _logits(model: nn.Module, x: Tensor, opened: Open = nullcontext) -> Callable[[], Tensor]:
    model.eval()

    def call() -> Tensor:
        with torch.no_grad(), opened():
            logits: Tensor = model(inputs_embeds=x, logits_to_keep=1, use_cache=False).logits
        return logits

    return call
