"""The tiny foundation: a small Llama with its own tokenizer, pre-trained on the spot and kept in the cache.

It stands in for a medical LLM where none can be had. What it cost and what it learned is measured: perplexity before
and after on held-out text, and the accuracy of closed questions about known and about held-out findings.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer as BytePairTokenizer
from tokenizers import decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from medfed.injection.corpus import ClosedQuestion, closed_questions, load_domains, read_folder, teaching_text
from medfed.injection.foundation import Foundation, TinySettings
from medfed.rng import numpy_rng, torch_seeded

VERSION = 1
"""Raise it when the text or the training changes, so that cached models are made anew."""
LENGTH = 64
END = "<end>"
HELD_OUT_SHARE = 0.05
NUM_PROBES = 200


def load(settings: TinySettings, cache: Path, corpus: Path | None) -> Foundation:
    """Return the pre-trained tiny LLM from ``cache``, making it first if it is not there."""
    documents = teaching_text(settings.seed, settings.num_questions)
    documents += read_folder(corpus) if corpus else []
    digest = hashlib.sha256(json.dumps([VERSION, settings.model_dump(), documents]).encode()).hexdigest()[:12]
    folder = cache / "foundations" / f"tiny-{digest}"
    if not (folder / "info.json").is_file():
        _make(settings, documents, folder)
    text = BytePairTokenizer.from_file(str(folder / "tokenizer.json"))
    model = LlamaForCausalLM(_config(settings, text.get_vocab_size()))
    model.load_state_dict(load_file(folder / "model.safetensors"))
    info = json.loads((folder / "info.json").read_text(encoding="utf-8"))
    return Foundation(model, lambda words: list(text.encode(words).ids), info)


def _make(settings: TinySettings, documents: list[str], folder: Path) -> None:
    """Pre-train and write the model beside its place, then rename: a killed run leaves no half model."""
    started = time.monotonic()
    text = _train_tokenizer(settings, documents)
    with torch_seeded(settings.seed, "tiny", "weights"):
        model = LlamaForCausalLM(_config(settings, text.get_vocab_size()))
    kept = math.ceil(len(documents) * (1 - HELD_OUT_SHARE))
    train, held_out = _packed(text, documents[:kept]), _packed(text, documents[kept:])
    before = _perplexity(model, held_out)
    _pretrain(model, train, settings)
    info = {
        "kind": "tiny",
        "num_parameters": model.num_parameters(),
        "vocab_size": text.get_vocab_size(),
        "num_tokens": train.numel(),
        "perplexity_before": before,
        "perplexity_after": _perplexity(model, held_out),
        "closed_accuracy_known": _closed_accuracy(model, text, settings.seed, held_out=False),
        "closed_accuracy_held_out": _closed_accuracy(model, text, settings.seed, held_out=True),
        "seconds": round(time.monotonic() - started, 1),
    }
    _write(folder, model, text, info)


def _train_tokenizer(settings: TinySettings, documents: list[str]) -> BytePairTokenizer:
    text = BytePairTokenizer(models.BPE())
    text.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    text.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=settings.vocab_size, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    text.train_from_iterator(documents, trainer)
    return text


def _config(settings: TinySettings, vocab_size: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=settings.width,
        intermediate_size=3 * settings.width,
        num_hidden_layers=settings.num_layers,
        num_attention_heads=settings.num_heads,
        num_key_value_heads=settings.num_heads,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=0,
    )


def _packed(text: BytePairTokenizer, documents: list[str]) -> Int[Tensor, "sequence token"]:
    """Join all documents, an end token after each, and cut them into sequences of :data:`LENGTH`."""
    ids = np.concatenate([np.array([*encoding.ids, 0]) for encoding in text.encode_batch(documents)])
    count = max(1, len(ids) // LENGTH)
    return torch.from_numpy(np.resize(ids, (count, LENGTH)).astype(np.int64))


def _pretrain(model: LlamaForCausalLM, train: Int[Tensor, "sequence token"], settings: TinySettings) -> None:
    """AdamW with linear warm-up and cosine decay; next-token loss on everything."""
    optimizer = torch.optim.AdamW(model.parameters(), settings.lr, betas=(0.9, 0.95), weight_decay=0.01, fused=True)
    warm_up = max(1, settings.max_steps // 20)
    rng = numpy_rng(settings.seed, "tiny", "order")
    model.train()
    for step in range(settings.max_steps):
        rate = min(1.0, (step + 1) / warm_up) * (0.55 + 0.45 * math.cos(math.pi * step / settings.max_steps))
        optimizer.param_groups[0]["lr"] = settings.lr * rate
        batch = train[rng.integers(0, len(train), settings.batch_size)]
        optimizer.zero_grad()
        _next_token_loss(model, batch).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    model.eval()


def _next_token_loss(model: LlamaForCausalLM, batch: Int[Tensor, "sequence token"]) -> Tensor:
    logits = model(batch).logits
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), batch[:, 1:].flatten())


@torch.inference_mode()
def _perplexity(model: LlamaForCausalLM, held_out: Int[Tensor, "sequence token"]) -> float:
    model.eval()
    losses = [float(_next_token_loss(model, batch)) * len(batch) for batch in held_out.split(64)]
    return math.exp(sum(losses) / len(held_out))


@torch.inference_mode()
def _closed_accuracy(model: LlamaForCausalLM, text: BytePairTokenizer, seed: int, *, held_out: bool) -> float:
    """Share of closed questions answered right; 0.5 is chance, for half of the answers are yes."""
    rng = numpy_rng(seed, "tiny", "probes", str(held_out))
    domains = load_domains().values()
    probes = [item for domain in domains for item in closed_questions(domain, rng, NUM_PROBES, held_out=held_out)]
    return float(np.mean([_answers_yes(model, text, item) == item.answer for item in probes]))


def _answers_yes(model: LlamaForCausalLM, text: BytePairTokenizer, item: ClosedQuestion) -> bool:
    ids = text.encode(f"{item.line}. Question: {item.question} Answer:").ids
    logits = model(torch.tensor([[0, *ids]])).logits[0, -1]
    yes, no = (text.encode(answer).ids[0] for answer in ("yes", "no"))
    return bool(logits[yes] > logits[no])


def _write(folder: Path, model: LlamaForCausalLM, text: BytePairTokenizer, info: dict[str, Any]) -> None:
    partial = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, partial / "model.safetensors")
    text.save(str(partial / "tokenizer.json"))
    (partial / "info.json").write_text(json.dumps(info, indent=1) + "\n", encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
