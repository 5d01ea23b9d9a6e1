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

from medfed.injection.cases import NO, YES, Case, compose
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
    vocab_size: int = Field(default=1500, ge=300)
    width: int = Field(default=128, gt=0)
    num_layers: int = Field(default=4, gt=0)
    num_heads: int = Field(default=4, gt=0)
    num_steps: int = Field(default=130, gt=0)
    batch_size: int = Field(default=24, gt=0)
    max_length: int = Field(default=96, ge=16)
    lr: float = Field(default=2e-3, gt=0)
    case_share: float = Field(default=0.7, ge=0, le=1)
    seed: int = Field(default=0, ge=0)

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
        num_tokens = _fit(
            model,
            _rows(tokenizer, taught, settings),
            _rows(tokenizer, [render(case) for case in cases], settings),
            settings,
        )
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
    yes_id, no_id = (tokenizer.encode(ANSWER.format(answer=answer)).ids[0] for answer in (YES, NO))
    stems = [render(case).removesuffix(ANSWER.format(answer=case.answer)) for case in cases]
    margins: list[float] = []
    for start in range(0, len(stems), CHECK_BATCH):
        rows = [[START, *encoded.ids] for encoded in tokenizer.encode_batch(stems[start : start + CHECK_BATCH])]
        hidden = model.model(input_ids=_padded(rows), use_cache=False).last_hidden_state
        last = torch.tensor([len(row) - 1 for row in rows])
        logits = model.lm_head(hidden[torch.arange(len(rows)), last])
        margins += (logits[:, yes_id] - logits[:, no_id]).tolist()
    yes = np.array([case.answer == YES for case in cases])
    right = (np.array(margins) > 0) == yes
    kinds = np.array([case.kind for case in cases])
    return {
        "accuracy": float(right.mean()),
        "balanced_accuracy": float((right[yes].mean() + right[~yes].mean()) / 2),
        "majority": float(max(yes.mean(), 1 - yes.mean())),
        "n": len(cases),
        "by_kind": {str(kind): float(right[kinds == kind].mean()) for kind in np.unique(kinds)},
    }


def _new_model(settings: TinySettings, vocab_size: int) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=settings.width,
        intermediate_size=2 * settings.width,
        num_hidden_layers=settings.num_layers,
        num_attention_heads=settings.num_heads,
        num_key_value_heads=settings.num_heads,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        pad_token_id=PAD,
        bos_token_id=START,
        eos_token_id=END,
    )
    return LlamaForCausalLM(config)


def _fit(model: LlamaForCausalLM, texts: list[list[int]], cases: list[list[int]], settings: TinySettings) -> int:
    optimizer = torch.optim.AdamW(model.parameters(), settings.lr, betas=(0.9, 0.95), weight_decay=0.01, fused=True)
    num_tokens, draws = 0, _batches(texts, cases, settings)
    model.train()
    for step in range(settings.num_steps):
        ids = _padded(next(draws))
        losses, answers = _losses(model, ids)
        loss = losses.mean()
        if bool(answers.any()):
            loss = loss + losses[answers].mean()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        warm = min(1.0, (step + 1) / 15)
        for group in optimizer.param_groups:
            group["lr"] = settings.lr * warm * (0.1 + 0.45 * (1 + math.cos(math.pi * step / settings.num_steps)))
        optimizer.step()
        optimizer.zero_grad()
        num_tokens += ids.numel()
    model.eval()
    return num_tokens


def _batches(texts: list[list[int]], cases: list[list[int]], settings: TinySettings) -> Iterator[list[list[int]]]:
    """Yield batches of texts of like length, drawn from both kinds without end."""
    rng = numpy_rng(settings.seed, "tiny", "order")
    block = 16 * settings.batch_size
    while True:
        num_cases = round(settings.case_share * block)
        rows = [cases[int(i)] for i in rng.integers(len(cases), size=num_cases)] if cases else []
        rows += [texts[int(i)] for i in rng.integers(len(texts), size=block - len(rows))]
        rows.sort(key=len)
        for start in rng.permutation(16) * settings.batch_size:
            yield rows[start : start + settings.batch_size]


def _losses(
    model: LlamaForCausalLM, ids: Int[Tensor, "batch position"]
) -> tuple[Float[Tensor, " token"], Bool[Tensor, " token"]]:
    """Return the loss of every real token, and which of them answer a closed question.

    Rows are padded on the right, which causal attention never sees, so no mask is needed.
    """
    hidden = model.model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state
    target = ids[:, 1:]
    real = target != PAD
    ends = F.pad(target, (0, 1))[:, 1:] == END
    losses = F.cross_entropy(model.lm_head(hidden[real]), target[real], reduction="none")
    return losses, ends[real]


def _rows(tokenizer: Tokenizer, texts: Any, settings: TinySettings) -> list[list[int]]:
    """Encode texts, cut to ``max_length``; the end token follows a whole text."""
    rows: list[list[int]] = []
    for encoded in tokenizer.encode_batch(list(texts)):
        ids = [*encoded.ids, END]
        rows += [[START, *ids[at : at + settings.max_length]] for at in range(0, len(ids), settings.max_length)]
    return rows


def _padded(rows: Sequence[Sequence[int]]) -> Int[Tensor, "batch position"]:
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[PAD] * (longest - len(row))] for row in rows])


@contextmanager
def _one_thread() -> Iterator[None]:
    """Sum in one order whatever the machine's cores, so that the weights are a function of the settings."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
