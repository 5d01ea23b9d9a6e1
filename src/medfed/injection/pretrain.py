"""Pre-training of the tiny LLM: a byte-pair tokenizer and a small Llama, on running text and closed questions.

Every number in the record is taken on text that was not trained on: perplexity before and after, and how many closed
questions are answered right, about findings that were taught (in new combinations) and about findings that never were.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from pydantic import BaseModel, ConfigDict, Field, model_validator
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from medfed.injection.cases import YES, Case, compose
from medfed.injection.prompt import ANSWER, CUE, QUESTION
from medfed.rng import numpy_rng, torch_seeded

PAD, START, END = 0, 1, 2
SPECIAL = ("<pad>", "<s>", "</s>")
HELD_OUT_EVERY = 10
NUM_CHECKED = 300
CHECK_BATCH = 50


class TinySettings(BaseModel):
    """A small Llama, pre-trained on the spot.

    Attributes:
        vocab_size: of the byte-pair tokenizer.
        width: hidden size.
        num_layers: decoder layers.
        num_heads: attention heads.
        num_steps: optimizer steps; 130 take about 20 s on one core.
        batch_size: texts per step.
        max_length: tokens per text; longer ones are cut into pieces.
        lr: peak learning rate of AdamW, warmed up and decayed by a cosine.
        case_share: share of closed questions among the texts.
        seed: of weights, texts and order.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["tiny"] = "tiny"
    vocab_size: int = Field(1500, ge=300)
    width: int = Field(128, gt=0)
    num_layers: int = Field(4, gt=0)
    num_heads: int = Field(4, gt=0)
    num_steps: int = Field(130, gt=0)
    batch_size: int = Field(24, gt=0)
    max_length: int = Field(96, ge=16)
    lr: float = Field(2e-3, gt=0)
    case_share: float = Field(0.7, ge=0, le=1)
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _heads_divide(self) -> TinySettings:
        if self.width % (2 * self.num_heads):
            raise ValueError(f"width={self.width} must be a multiple of 2·num_heads={2 * self.num_heads}")
        return self


class Pretrained(NamedTuple):
    """The outcome of pre-training."""

    model: Any
    tokenizer: Tokenizer
    info: dict[str, Any]


def pretrain(settings: TinySettings, documents: Sequence[str]) -> Pretrained:
    """Train tokenizer and model on ``documents`` and composed closed questions; a function of its arguments alone."""
    started = time.monotonic()
    taught = [text for number, text in enumerate(documents) if number % HELD_OUT_EVERY]
    kept = [text for number, text in enumerate(documents) if number % HELD_OUT_EVERY == 0]
    rng = numpy_rng(settings.seed, "tiny", "cases")
    cases = [compose(rng) for _ in range(math.ceil(settings.case_share * settings.num_steps * settings.batch_size))]
    tokenizer = train_tokenizer([*taught, *map(render, cases)], settings.vocab_size)
    with _one_thread(), torch_seeded(settings.seed, "tiny", "train"):
        model = _new_model(settings, tokenizer.get_vocab_size())
        held_out = _rows(tokenizer, [*kept, *map(render, unseen_cases(cases, settings.seed, held_out=False))], settings)
        before = perplexity(model, held_out)
        num_tokens = _fit(model, _rows(tokenizer, taught, settings), _rows(tokenizer, map(render, cases), settings), settings)
        info = {
            "kind": "tiny",
            "num_parameters": sum(parameter.numel() for parameter in model.parameters()),
            "num_steps": settings.num_steps,
            "num_tokens": num_tokens,
            "perplexity_before": before,
            "perplexity_after": perplexity(model, held_out),
            "closed_questions": {
                "taught_findings": check(model, tokenizer, unseen_cases(cases, settings.seed, held_out=False)),
                "held_out_findings": check(model, tokenizer, unseen_cases(cases, settings.seed, held_out=True)),
            },
            "seconds": time.monotonic() - started,
        }
    return Pretrained(model, tokenizer, info)


def render(case: Case) -> str:
    """Return a case as the LLM reads it: the line, the question, and the answer, laid out as every prompt is."""
    return f"{case.told}{QUESTION.format(question=case.question)}{CUE}{ANSWER.format(answer=case.answer)}"


def train_tokenizer(texts: Sequence[str], vocab_size: int) -> Tokenizer:
    """Train a byte-level byte-pair tokenizer: any text can be encoded."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=list(SPECIAL), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def unseen_cases(taught: Sequence[Case], seed: int, *, held_out: bool) -> list[Case]:
    """Draw the cases of the check: none whose line and question were taught, none answered by chance."""
    known = {(case.told, case.question) for case in taught}
    rng = numpy_rng(seed, "tiny", "check", int(held_out))
    drawn: list[Case] = []
    while len(drawn) < NUM_CHECKED:
        case = compose(rng, held_out=held_out, vague=False)
        if (case.told, case.question) not in known:
            drawn.append(case)
    return drawn


@torch.no_grad()
def perplexity(model: LlamaForCausalLM, rows: Sequence[Sequence[int]]) -> float:
    """Return exp of the mean loss per token of ``rows``."""
    total, count = 0.0, 0
    for start in range(0, len(rows), CHECK_BATCH):
        ids = _padded(rows[start : start + CHECK_BATCH])
        losses, _ = _losses(model, ids)
        total, count = total + float(losses.sum()), count + len(losses)
    return math.exp(total / count)


@torch.no_grad()
def check(model: LlamaForCausalLM, tokenizer: Tokenizer, cases: Sequence[Case]) -> dict[str, Any]:
    """Answer closed questions by the likelier of the two answers."""
    right = np.zeros(len(cases), bool)
    for number, case in enumerate(cases):
        stem = render(case).removesuffix(ANSWER.format(answer=case.answer))
        ids = torch.tensor([[START, *tokenizer.encode(stem).ids]])
        logits = model(input_ids=ids, logits_to_keep=1).logits[0, -1]
        right[number] = bool(logits[_yes(tokenizer)] > logits[_no(tokenizer)]) == (case.answer == YES)
    yes = np.array([case.answer == YES for case in cases])
    kinds = np.array([case.kind for case in cases])
    return {
        "accuracy": float(right.mean()),
        "balanced_accuracy": float((right[yes].mean() + right[~yes].mean()) / 2),
        "majority": float(max(yes.mean(), 1 - yes.mean())),
        "n": len(cases),
        "by_kind": {str(kind): float(right[kinds == kind].mean()) for kind in np.unique(kinds)},
    }
