"""The LLM's input: modality tokens and the question, and the answers that are compared (FedKIM, step 1 of Sec. 2.3.2).

h = [e_t; p_t]: the paper puts the modality tokens first; ``task_first`` puts the question before them, so that its
prefix could be cached, and must be trained that way. A start token, where the tokenizer has one, comes before both.

All answers of a task stand behind one shared prefix: an answer attends to the prefix and to itself, and its positions
count from the end of the prefix. What an answer's *last* token would predict is never asked, so it is left out; answers
of one token therefore add nothing. Batches of several tasks are padded on the left: what is asked stands at the end.

Deviation: the answers are asked as the tokenizer writes them after a space; where one is the beginning of another, all
end with the end-of-text token, so that the shorter one is not favoured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from medfed.core.errors import StudyError
from medfed.study.injection import Order
from medfed.tasks.base import Task

QUESTION = " Question: {question}"
CUE = " Answer:"
ANSWER = " {answer}"


@runtime_checkable
class TextTokenizer(Protocol):
    """What a prompt needs of a tokenizer."""

    bos: int | None
    eos: int | None

    def encode(self, text: str) -> list[int]:
        """Return the ids of ``text``, without special tokens."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ``ids``."""
        ...


@dataclass(frozen=True)
class Prompt:
    """A task's texts as token ids.

    Attributes:
        before: ids before the modality tokens.
        after: ids behind them, ending with the answer cue.
        answers: ids by class index.
    """

    before: tuple[int, ...]
    after: tuple[int, ...]
    answers: tuple[tuple[int, ...], ...]

    @property
    def appended(self) -> tuple[int, ...]:
        """Ids of all answers behind the prefix, each without its last token."""
        return tuple(token for answer in self.answers for token in answer[:-1])


def build_prompt(task: Task, tokenizer: TextTokenizer, order: Order) -> Prompt:
    """Render ``task`` for the LLM.

    Raises:
        StudyError: two answers are the same text, or an answer is empty.
    """
    answers = tuple(_continuation(tokenizer, ANSWER.format(answer=answer)) for answer in task.answers)
    if not all(answers) or len(set(answers)) < len(answers):
        raise StudyError(f"answers must be non-empty and distinct, got {task.answers}", where=f"task {task.name!r}")
    if any(a != b and b[: len(a)] == a for a in answers for b in answers) and tokenizer.eos is not None:
        answers = tuple((*answer, tokenizer.eos) for answer in answers)
    start = () if tokenizer.bos is None else (tokenizer.bos,)
    question = tuple(tokenizer.encode(QUESTION.format(question=task.question)))
    cue = tuple(tokenizer.encode(CUE))
    if order == "modality_first":
        return Prompt(start, question + cue, answers)
    return Prompt(start + question, cue, answers)


def _continuation(tokenizer: TextTokenizer, text: str) -> tuple[int, ...]:
    """Encode ``text`` as it follows the cue: some tokenizers put a space of their own before an isolated text."""
    cue, whole = tokenizer.encode(CUE), tokenizer.encode(CUE + text)
    return tuple(whole[len(cue) :] if whole[: len(cue)] == cue else tokenizer.encode(text))


@dataclass(frozen=True)
class Sequences:
    """Examples of one task, ready for the LLM.

    Attributes:
        embeddings: of every position.
        allowed: whether query position i may attend to key j: a position, or one that was read before the first.
        positions: position numbers; absent tokens take none.
        num_asked: trailing positions whose predictions are read.
        read: position numbers of what was read before the first position; None if nothing was.
    """

    embeddings: Float[Tensor, "batch position width"]
    allowed: Bool[Tensor, "batch position key"]
    positions: Int[Tensor, "batch position"]
    num_asked: int
    read: Int[Tensor, "batch read"] | None = None

    @property
    def keys(self) -> Int[Tensor, "batch key"]:
        """Position numbers of all keys."""
        return self.positions if self.read is None else torch.cat([self.read, self.positions], 1)


def assemble(
    prompt: Prompt,
    before: Float[Tensor, "before width"],
    tokens: Float[Tensor, "batch tokens width"],
    present: Bool[Tensor, "batch tokens"],
    after: Float[Tensor, "after width"],
) -> Sequences:
    """Lay one task's examples out.

    Args:
        prompt: the task's texts.
        before: embeddings of ``prompt.before``.
        tokens: the projected tokens of all its modalities.
        present: whether a token belongs to a modality that the example has; others are seen by nobody.
        after: embeddings of ``prompt.after + prompt.appended``.
    """
    size = len(tokens)
    embeddings = torch.cat([before.expand(size, -1, -1), tokens, after.expand(size, -1, -1)], 1)
    valid = F.pad(F.pad(present, (len(before), 0), value=True), (0, len(after)), value=True)
    length, tail = embeddings.shape[1], len(prompt.appended)
    tails = tuple(len(answer) - 1 for answer in prompt.answers)
    owned, offset, visible, itself = _static_layout(length, tails, tokens.device)
    counted = valid.cumsum(1) - 1
    positions = counted
    if tail:
        positions = torch.where(owned, counted[:, length - tail - 1 : length - tail] + offset, counted)
    return Sequences(embeddings, (visible & valid.unsqueeze(1)) | itself, positions.clamp(min=0), num_asked=1 + tail)


@lru_cache(maxsize=256)
def _static_layout(length: int, tails: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What a layout has whatever the example; do not write into it.

    Args:
        length: of the whole sequence.
        tails: appended tokens of every answer.
        device: of the result.

    Returns:
        Which positions belong to an answer; their place within it; whether query i may attend to key j, absent tokens
        aside; the diagonal.
    """
    prefix = length - sum(tails)
    owner = [0] * prefix + [number for number, tail in enumerate(tails, 1) for _ in range(tail)]
    offset = [0] * prefix + [place for tail in tails for place in range(1, tail + 1)]
    with torch.inference_mode(mode=False):  # scoring may make what training will read
        owners = torch.tensor(owner, device=device)
        causal = torch.ones(length, length, dtype=torch.bool, device=device).tril()
        visible = causal & ((owners == 0) | (owners == owners.unsqueeze(1)))
        itself = torch.eye(length, dtype=torch.bool, device=device)
        return owners > 0, torch.tensor(offset, device=device), visible, itself


def pad_left(groups: Sequence[Sequences]) -> Sequences:
    """Join the examples of several tasks into one batch, padded on the left to the longest."""
    if len(groups) == 1:
        return groups[0]
    length = max(group.positions.shape[1] for group in groups)
    embeddings, allowed, positions = [], [], []
    for group in groups:
        gap = length - group.positions.shape[1]
        if not gap:
            embeddings.append(group.embeddings)
            allowed.append(group.allowed)
            positions.append(group.positions)
            continue
        embeddings.append(F.pad(group.embeddings, (0, 0, gap, 0)))
        padding = torch.eye(length, dtype=torch.bool, device=group.allowed.device)[:gap].expand(
            len(group.allowed), -1, -1
        )
        allowed.append(torch.cat([padding, F.pad(group.allowed, (gap, 0))], 1))
        positions.append(F.pad(group.positions, (gap, 0)))
    return Sequences(
        torch.cat(embeddings), torch.cat(allowed), torch.cat(positions), max(group.num_asked for group in groups)
    )


def answer_log_likelihoods(
    prompt: Prompt, logits: Float[Tensor, "batch asked vocabulary"]
) -> Float[Tensor, "batch answer"]:
    """Return the summed log-likelihood of every answer from the logits of the last ``num_asked`` positions."""
    asked = logits[:, -1 - len(prompt.appended) :].float().log_softmax(-1)
    totals, offset = [], 1
    for answer in prompt.answers:
        places = [0, *range(offset, offset + len(answer) - 1)]
        totals.append(asked[:, places, list(answer)].sum(-1))
        offset += len(answer) - 1
    return torch.stack(totals, -1)
