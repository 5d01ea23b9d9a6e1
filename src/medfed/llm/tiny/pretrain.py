"""Pre-training of the tiny LLM: a byte-pair tokenizer and a small Llama, on running text and on cases.

A case is a context, a question, and an answer that ends with the end-of-text token, so that greedy decoding stops after
it. Closed cases (``cases.py``) are answered yes or no, open ones (``open_cases.py``) by a few words.

Every number in the record is taken on text outside the training (``checks.py``). There are perplexities before and
after, closed questions about training and held-out findings, and open questions in held-out wordings.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM

from medfed.core.rng import numpy_rng
from medfed.core.torch_rng import one_thread, torch_seeded
from medfed.llm.prompt import ANSWER
from medfed.llm.tiny.cases import ClosedCase, compose_closed
from medfed.llm.tiny.checks import (
    END,
    PAD,
    START,
    Case,
    check_closed,
    check_open,
    padded,
    perplexity,
    render,
    stem,
    token_losses,
)
from medfed.llm.tiny.open_cases import OpenCase, compose_open
from medfed.study.foundation import TinySettings

SPECIAL = ("<pad>", "<s>", "</s>")
HELD_OUT_EVERY = 10
NUM_CHECKED = 300


class Pretrained(NamedTuple):
    """The outcome of pre-training."""

    model: Any
    tokenizer: Tokenizer
    info: dict[str, Any]


def pretrain(settings: TinySettings, documents: Sequence[str]) -> Pretrained:
    """Train tokenizer and model on ``documents`` and composed cases; a function of its arguments alone."""
    started, busy = time.monotonic(), time.process_time()
    training = [text for number, text in enumerate(documents) if number % HELD_OUT_EVERY]
    kept = [text for number, text in enumerate(documents) if number % HELD_OUT_EVERY == 0]
    closed, opened = training_cases(settings)
    cases: list[Case] = [*closed, *opened]
    tokenizer = train_tokenizer([*training, *map(render, cases)], settings.vocab_size)
    checked, never = (unseen_closed_cases(closed, settings.seed, held_out=held_out) for held_out in (False, True))
    questions = unseen_open_cases(opened, settings.seed)
    with one_thread(), torch_seeded(settings.seed, "tiny", "train"):
        model = _new_model(settings, tokenizer.get_vocab_size())
        held_out = {
            "text": text_rows(tokenizer, kept, settings.max_length),
            "closed": case_rows(tokenizer, checked, settings.max_length),
            "open": case_rows(tokenizer, questions, settings.max_length),
        }
        before = _perplexities(model, held_out)
        num_tokens = _fit(
            model,
            text_rows(tokenizer, training, settings.max_length),
            case_rows(tokenizer, cases, settings.max_length),
            settings,
        )
        after = _perplexities(model, held_out)
        info = {
            "kind": "tiny",
            "num_parameters": sum(parameter.numel() for parameter in model.parameters()),
            "num_steps": settings.num_steps,
            "num_tokens": num_tokens,
            "perplexity_before": before.pop("all"),
            "perplexity_after": after.pop("all"),
            "perplexity_by_text": {"before": before, "after": after},
            "closed_questions": {
                "taught_findings": check_closed(model, tokenizer, checked),
                "held_out_findings": check_closed(model, tokenizer, never),
            },
            "open_questions": check_open(model, tokenizer, questions),
            "seconds": time.monotonic() - started,
            "cpu_seconds": time.process_time() - busy,
        }
    return Pretrained(model, tokenizer, info)


def training_cases(settings: TinySettings) -> tuple[list[ClosedCase], list[OpenCase]]:
    """Draw the closed and the open cases that ``settings`` ask for."""
    number = math.ceil(settings.case_share * settings.num_steps * settings.batch_size)
    num_open = round(settings.open_share * number)
    rng = numpy_rng(settings.seed, "tiny", "cases")
    closed = [compose_closed(rng) for _ in range(number - num_open)]
    rng = numpy_rng(settings.seed, "tiny", "open cases")
    return closed, [compose_open(rng) for _ in range(num_open)]


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


def unseen_closed_cases(training: Sequence[ClosedCase], seed: int, *, held_out: bool) -> list[ClosedCase]:
    """Draw the cases of the check: none with context and question of a training case, none answered by chance."""
    known = {(case.context, case.question) for case in training}
    rng = numpy_rng(seed, "tiny", "check", int(held_out))
    drawn: list[ClosedCase] = []
    while len(drawn) < NUM_CHECKED:
        case = compose_closed(rng, held_out=held_out, vague=False)
        if (case.context, case.question) not in known:
            drawn.append(case)
    return drawn


def unseen_open_cases(training: Sequence[OpenCase], seed: int) -> list[OpenCase]:
    """Draw the open cases of the check: held-out wordings, none with the full context of a training case."""
    known = {case.context for case in training if case.detail == "full"}
    rng = numpy_rng(seed, "tiny", "open check")
    drawn: list[OpenCase] = []
    while len(drawn) < NUM_CHECKED:
        case = compose_open(rng, held_out=True)
        if case.context not in known:
            drawn.append(case)
    return drawn


def _new_model(settings: TinySettings, vocab_size: int) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=settings.width,
        intermediate_size=2 * settings.width,
        num_hidden_layers=settings.num_layers,
        num_attention_heads=settings.num_heads,
        num_key_value_heads=settings.num_heads,
        max_position_embeddings=2048,
        initializer_range=settings.width**-0.5,  # with the usual 0.02 so narrow a model attends to nothing for long
        tie_word_embeddings=True,
        pad_token_id=PAD,
        bos_token_id=START,
        eos_token_id=END,
    )
    return LlamaForCausalLM(config)


def _fit(model: LlamaForCausalLM, texts: list[Row], cases: list[Row], settings: TinySettings) -> int:
    optimizer = torch.optim.AdamW(model.parameters(), settings.lr, betas=(0.9, 0.95), weight_decay=0.01, fused=True)
    num_tokens, draws = 0, _batches(texts, cases, settings)
    model.train()
    for step in range(settings.num_steps):
        rows = next(draws)
        ids = padded([row.ids for row in rows])
        losses, real = token_losses(model, ids)
        answers = padded([[0] * (len(row.ids) - row.num_answer) + [1] * row.num_answer for row in rows])[:, 1:][real]
        loss = losses.mean()
        if bool(answers.any()):
            loss = loss + settings.answer_weight * losses[answers == 1].mean()
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


def _batches(texts: list[Row], cases: list[Row], settings: TinySettings) -> Iterator[list[Row]]:
    """Yield batches of texts of like length, drawn from both kinds without end."""
    rng = numpy_rng(settings.seed, "tiny", "order")
    block = 16 * settings.batch_size
    while True:
        num_cases = round(settings.case_share * block)
        rows = [cases[int(i)] for i in rng.integers(len(cases), size=num_cases)] if cases else []
        rows += [texts[int(i)] for i in rng.integers(len(texts), size=block - len(rows))]
        rows.sort(key=lambda row: len(row.ids))
        for start in rng.permutation(16) * settings.batch_size:
            yield rows[start : start + settings.batch_size]


def _perplexities(model: LlamaForCausalLM, groups: dict[str, list[Row]]) -> dict[str, float]:
    """Return the perplexity of every group of rows, and of all."""
    everything = {**groups, "all": [row for rows in groups.values() for row in rows]}
    return {name: perplexity(model, [row.ids for row in rows]) for name, rows in everything.items() if rows}


class Row(NamedTuple):
    """A text as token ids; the last ``num_answer`` of them are the answer of a case and its end."""

    ids: list[int]
    num_answer: int = 0


def text_rows(tokenizer: Tokenizer, texts: Sequence[str], max_length: int) -> list[Row]:
    """Encode running text, cut to ``max_length``; the end token follows a whole text."""
    rows: list[Row] = []
    for encoded in tokenizer.encode_batch(list(texts)):
        ids = [*encoded.ids, END]
        rows += [Row([START, *ids[at : at + max_length]]) for at in range(0, len(ids), max_length)]
    return rows


def case_rows(tokenizer: Tokenizer, cases: Sequence[Case], max_length: int) -> list[Row]:
    """Encode cases, each with its end token; of one longer than ``max_length`` the beginning is cut off."""
    stems = tokenizer.encode_batch([stem(case) for case in cases])
    answers = tokenizer.encode_batch([ANSWER.format(answer=case.answer) for case in cases])
    rows: list[Row] = []
    for before, answer in zip(stems, answers, strict=True):
        ids = [*before.ids, *answer.ids, END]
        rows.append(Row([START, *ids[-max_length:]], min(len(answer.ids) + 1, max_length)))
    return rows
