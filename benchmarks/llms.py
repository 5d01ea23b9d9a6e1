"""An LLM of the shape of Qwen2.5-1.5B, in bfloat16: a training step through it, and questions to it alone.

Its weights are random, its decoder has fewer layers than the original's 28: layers cost alike. ``make bench`` uses one
core; the ratio hardly depends on their number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import product

import torch
from torch import Tensor, nn
from transformers import Qwen2Config, Qwen2ForCausalLM

from benchmarks.adapters import RANK, Experts, P, using
from benchmarks.bytes import peak_bytes, size
from benchmarks.experts import fresh
from benchmarks.llama import sharing
from benchmarks.patients import tokenizer
from benchmarks.rows import Row, Target, counted
from benchmarks.timing import Bench, Versus
from medfed.llm.chat import Form
from medfed.llm.forward import windows_of
from medfed.llm.likelihood import log_likelihoods
from medfed.llm.trie import Continuation

LAYERS = 28
"""Of Qwen2.5-1.5B."""
BATCH, LENGTH = 16, 40
FROZEN, EXPERTS, LORA = "frozen layers", f"{P} experts of rank {RANK}", f"PEFT LoRA of rank {P * RANK}"
SHARED, PLAIN = "shared prefixes", "plain batches"
FINDINGS = [
    f"{degree} {name}" for degree in ("high", "low") for name in ("creatinine", "sodium", "lactate", "platelets")
]
PICTURES = (
    "kidney failure",
    "shock",
    "dehydration",
    "liver failure",
    "a heart attack",
    "acidosis",
    "sepsis",
    "anaemia",
)
SYSTEM = "You are a helpful assistant."
"""As a chat template puts it before every question."""
QUESTION = "Is {finding} a sign of {picture}? Answer yes or no."


def llm_rows(bench: Bench) -> Iterator[Row]:
    """Time a training step of 16 × 40 tokens, measure its memory, and time 64 questions."""
    base = qwen(64, 2) if bench.quick else qwen(1536, 4)
    yield from _step_rows(bench, base)
    yield from _asking_rows(bench, base)


def qwen(width: int, layers: int) -> Qwen2ForCausalLM:
    """Return a frozen Qwen2 with random weights: grouped attention, and an MLP 35/6 as wide as it."""
    heads = max(2, width // 128)
    config = Qwen2Config(
        vocab_size=4096,
        hidden_size=width,
        intermediate_size=width * 35 // 6 // 64 * 64,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=2,
        use_cache=False,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    return Qwen2ForCausalLM(config).to(torch.bfloat16).requires_grad_(False).eval()


def _step_rows(bench: Bench, base: Qwen2ForCausalLM) -> Iterator[Row]:
    width, layers = base.config.hidden_size, base.config.num_hidden_layers
    experts = Experts(base)
    x = torch.randn(BATCH, LENGTH, width, dtype=torch.bfloat16)
    alpha = experts.alpha.unsqueeze(0)
    models: dict[str, nn.Module] = {FROZEN: base, EXPERTS: experts.fused(), LORA: experts.lora(P * RANK)}
    steps: dict[str, Callable[[], object]] = {name: partial(_step, model, x) for name, model in models.items()}
    steps[EXPERTS] = partial(_mixed_step, models[EXPERTS], x, alpha)
    setting = f"Qwen2 {width}×{layers} bfloat16, {BATCH} × {LENGTH} tokens, forward + backward"
    pairs = [Versus(EXPERTS, FROZEN, Target("≤", 1.15)), Versus(LORA, FROZEN), Versus(EXPERTS, LORA)]
    yield from bench.race("llms", setting, steps, pairs, seconds=60.0)
    held = {name: peak_bytes(steps[name]) / layers for name in (EXPERTS, FROZEN)}
    yield counted(
        "llms",
        f"{setting}, for each layer",
        (EXPERTS, held[EXPERTS]),
        (FROZEN, held[FROZEN]),
        measure="peak bytes",
        takes=size(held[EXPERTS]),
        note=f"× {LAYERS} layers: {size(LAYERS * held[EXPERTS])}",
    )


def _step(model: nn.Module, x: Tensor) -> None:
    leaf = x.detach().requires_grad_()
    states: Tensor = fresh(lambda given: _hidden(model, given), model)(leaf)
    states.float().sum().backward()  # type: ignore[no-untyped-call]


def _mixed_step(model: nn.Module, x: Tensor, alpha: Tensor) -> None:
    with using(model, alpha.clone().requires_grad_()):
        _step(model, x)


def _hidden(model: nn.Module, x: Tensor) -> Tensor:
    """Return the last position's hidden states; the output layer is left out, so that no vocabulary counts."""
    inner = next(module for module in model.modules() if isinstance(module, Qwen2ForCausalLM)).model
    states: Tensor = inner(inputs_embeds=x, use_cache=False).last_hidden_state
    return states[:, -1]


def _asking_rows(bench: Bench, base: Qwen2ForCausalLM) -> Iterator[Row]:
    form, words = Form(system=SYSTEM), tokenizer()
    texts = [QUESTION.format(finding=finding, picture=picture) for finding, picture in product(FINDINGS, PICTURES)]
    prompts = [form.prompt(text, words) for text in texts]
    answers = [form.answer(answer, words)[0] for answer in ("Yes", "No")]
    wanted = [Continuation(prompt, (answer,)) for prompt in prompts for answer in answers]
    length = sum(map(len, prompts)) / len(prompts)
    variants = {
        SHARED: lambda: torch.tensor(log_likelihoods(base, windows_of(base), wanted)).view(-1, 2),
        PLAIN: lambda: _plain(sharing(base), prompts, answers),
    }
    shape = f"Qwen2 {base.config.hidden_size}×{base.config.num_hidden_layers} bfloat16"
    setting = f"{shape}, {len(texts)} questions of {length:.0f} tokens"
    pairs = [Versus(SHARED, PLAIN, Target("≤", 0.5), same=True)]
    yield from bench.race("llms", setting, variants, pairs, seconds=30.0, tolerance=0.05)


@torch.inference_mode()
def _plain(model: nn.Module, prompts: list[tuple[int, ...]], answers: list[int], size_of_batch: int = 32) -> Tensor:
    """Return log-likelihoods ``[question, answer]``: padded batches, and the logits of the last position."""
    parts = []
    for start in range(0, len(prompts), size_of_batch):
        some = prompts[start : start + size_of_batch]
        longest = max(map(len, some))
        ids = torch.tensor([[0] * (longest - len(one)) + list(one) for one in some])
        mask = torch.tensor([[0] * (longest - len(one)) + [1] * len(one) for one in some])
        states = model.model(input_ids=ids, attention_mask=mask).last_hidden_state[:, -1].contiguous()
        parts.append(model.lm_head(states).float().log_softmax(-1)[:, answers])
    return torch.cat(parts).double()
