"""The LLM's input: modality tokens, the question, and the answers that are compared (FedKIM, step 1 of Sec. 2.3.2).

h = [e_t; p_t]: the paper puts the modality tokens first. ``task_first`` puts the question before them, so that the keys
and values of its prefix can be cached, and must be trained that way. A start token, where the tokenizer has one, comes
before both.

All answers of a task follow one shared prefix. An answer attends to the prefix and to itself, and its positions count
on from the end of the prefix. Nothing reads the prediction of an answer's *last* token, so that token is left out;
answers of one token add nothing. Batches of several tasks are padded on the left: the answer positions are the last.

In the form of a chat template the modality tokens and the question are the user's turn. An answer ends as its own turn
does. An LLM without a template reads ``Question: … Answer:``.

Deviation: behind ``Answer:``, the answers are encoded as the tokenizer writes them after a space. Where one answer is
the beginning of another, all end with the end-of-text token, so that the shorter one is not favoured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from medfed.core.errors import StudyError
from medfed.study.injection import Order

QUESTION = " Question: {question}"
CUE = " Answer:"
ANSWER = " {answer}"


@runtime_checkable
class TextTokenizer(Protocol):
    """The part of a tokenizer that prompts and conversations need."""

    starts: tuple[int, ...]
    """Ids that the tokenizer itself puts before a text."""
    eos: int | None
    ends: frozenset[int]
    """Ids that end an answer."""
    has_template: bool
    """Whether the LLM has a chat template."""

    def encode(self, text: str) -> list[int]:
        """Return the ids of ``text``, without special tokens."""

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ``ids``."""

    def turns(self, system: str | None = None) -> Turns:
        """Return the ids around a user's turn and behind the answer; ``system`` replaces the template's own text."""


class Turns(NamedTuple):
    """Ids of a conversation: before the user's text, between it and the answer, and behind the answer."""

    opening: tuple[int, ...]
    between: tuple[int, ...]
    end: tuple[int, ...]


@dataclass(frozen=True)
class Prompt:
    """A task's texts as token ids: ``before`` and ``after`` the modality tokens, and the answers by class index."""

    before: tuple[int, ...]
    after: tuple[int, ...]
    answers: tuple[tuple[int, ...], ...]

    @property
    def appended(self) -> tuple[int, ...]:
        """Ids of all answers behind the prefix, each without its last token."""
        return tuple(token for answer in self.answers for token in answer[:-1])


class Inquiry(Protocol):
    """A question with its answers: a task, or one without patients."""

    @property
    def name(self) -> str:
        """Its name, for errors."""

    @property
    def question(self) -> str:
        """The question."""

    @property
    def answers(self) -> tuple[str, ...]:
        """The answers that are compared."""


def build_prompt(task: Inquiry, tokenizer: TextTokenizer, order: Order) -> Prompt:
    """Render ``task`` for the LLM; raise StudyError if two answers are the same text, or an answer is empty."""
    if tokenizer.has_template:
        start, cue, end = tokenizer.turns()
        question = tuple(tokenizer.encode(task.question))
        answers = tuple(tuple(tokenizer.encode(answer)) for answer in task.answers)
    else:
        start, end = tokenizer.starts, () if tokenizer.eos is None else (tokenizer.eos,)
        question, cue = (tuple(tokenizer.encode(text)) for text in (QUESTION.format(question=task.question), CUE))
        answers = tuple(_continuation(tokenizer, ANSWER.format(answer=answer)) for answer in task.answers)
    if not all(answers) or len(set(answers)) < len(answers):
        raise StudyError(f"answers must be non-empty and distinct, got {task.answers}", where=f"task {task.name!r}")
    if tokenizer.has_template or any(a != b and b[: len(a)] == a for a in answers for b in answers):
        answers = tuple((*answer, *end) for answer in answers)
    parts = (start, question + cue) if order == "modality_first" else (start + question, cue)
    return Prompt(*parts, answers)


def _continuation(tokenizer: TextTokenizer, text: str) -> tuple[int, ...]:
    """Encode ``text`` as it follows the cue: some tokenizers put a space of their own before an isolated text."""
    cue, whole = tokenizer.encode(CUE), tokenizer.encode(CUE + text)
    return tuple(whole[len(cue) :] if whole[: len(cue)] == cue else tokenizer.encode(text))


@dataclass(frozen=True)
class PromptBatch:
    """Embedded prompts, ready for the LLM, with their position numbers, of which absent tokens take none.

    ``allowed`` says whether query i may attend to key j: a cached position, or one of the batch. ``cached`` holds the
    position numbers of the keys in the key/value cache. The predictions of the last ``num_answer_positions`` are read.
    """

    embeddings: Float[Tensor, "batch position width"]
    allowed: Bool[Tensor, "batch position key"]
    positions: Int[Tensor, "batch position"]
    num_answer_positions: int
    cached: Int[Tensor, "batch cached"] | None = None

    @property
    def keys(self) -> Int[Tensor, "batch key"]:
        """Position numbers of all keys."""
        return self.positions if self.cached is None else torch.cat([self.cached, self.positions], 1)


def assemble(
    prompt: Prompt,
    before: Float[Tensor, "before width"],
    tokens: Float[Tensor, "batch tokens width"],
    present: Bool[Tensor, "batch tokens"],
    after: Float[Tensor, "after width"],
) -> PromptBatch:
    """Lay one task's examples out: ``tokens`` between the embeddings of its texts, ``after`` with ``prompt.appended``.

    No position attends to a token that is not ``present``: the example has not its modality.
    """
    size = len(tokens)
    embeddings = torch.cat([before.expand(size, -1, -1), tokens, after.expand(size, -1, -1)], 1)
    valid = F.pad(F.pad(present, (len(before), 0), value=True), (0, len(after)), value=True)
    length, tail = embeddings.shape[1], len(prompt.appended)
    tails = tuple(len(answer) - 1 for answer in prompt.answers)
    in_answer, offset, visible, diagonal = _static_layout(length, tails, tokens.device)
    positions = counted = valid.cumsum(1) - 1
    if tail:
        positions = torch.where(in_answer, counted[:, length - tail - 1 : length - tail] + offset, counted)
    allowed = (visible & valid.unsqueeze(1)) | diagonal
    return PromptBatch(embeddings, allowed, positions.clamp(min=0), num_answer_positions=1 + tail)


@lru_cache(maxsize=256)
def _static_layout(length: int, tails: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the part of a layout of ``length`` that no example changes; do not write into it.

    ``tails`` are the appended tokens of every answer. In order: whether a position is in an answer; its place there;
    whether query i may attend to key j, absent tokens aside; the diagonal.
    """
    prefix = length - sum(tails)
    owner = [0] * prefix + [number for number, tail in enumerate(tails, 1) for _ in range(tail)]
    offset = [0] * prefix + [place for tail in tails for place in range(1, tail + 1)]
    with torch.inference_mode(mode=False):  # scoring may make what training will read
        owners = torch.tensor(owner, device=device)
        causal = torch.ones(length, length, dtype=torch.bool, device=device).tril()
        visible = causal & ((owners == 0) | (owners == owners.unsqueeze(1)))
        diagonal = torch.eye(length, dtype=torch.bool, device=device)
        return owners > 0, torch.tensor(offset, device=device), visible, diagonal


def pad_left(batches: Sequence[PromptBatch]) -> PromptBatch:
    """Join the examples of several tasks into one batch, padded on the left to the longest."""
    if len(batches) == 1:
        return batches[0]
    length = max(part.positions.shape[1] for part in batches)
    padded = [_padded(part, length - part.positions.shape[1]) for part in batches]
    embeddings, allowed, positions = (torch.cat(parts) for parts in zip(*padded, strict=True))
    return PromptBatch(embeddings, allowed, positions, max(part.num_answer_positions for part in batches))


def _padded(batch: PromptBatch, gap: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return embeddings, mask and positions behind ``gap`` positions that attend to themselves alone."""
    eye = torch.eye(gap + batch.positions.shape[1], dtype=torch.bool, device=batch.allowed.device)
    padding = eye[:gap].expand(len(batch.allowed), -1, -1)
    allowed = torch.cat([padding, F.pad(batch.allowed, (gap, 0))], 1)
    return F.pad(batch.embeddings, (0, 0, gap, 0)), allowed, F.pad(batch.positions, (gap, 0))


def answer_log_likelihoods(
    prompt: Prompt, logits: Float[Tensor, "batch position vocabulary"]
) -> Float[Tensor, "batch answer"]:
    """Return the summed log-likelihood of every answer from the logits of the answer positions."""
    log_probabilities = logits[:, -1 - len(prompt.appended) :].float().log_softmax(-1)
    behind, totals = iter(range(1, log_probabilities.shape[1])), []
    for answer in prompt.answers:
        places = [0, *islice(behind, len(answer) - 1)]
        totals.append(log_probabilities[:, places, list(answer)].sum(-1))
    return torch.stack(totals, -1)
