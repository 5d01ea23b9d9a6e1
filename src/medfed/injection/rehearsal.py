"""Rehearsal against forgetting: in every step the LLM also reads pieces of medical text.

Two losses can be added on these pieces, each with its weight. One is the mean negative log-likelihood of their tokens
(experience replay). The other is KL(frozen LLM ‖ adapted LLM), the mean over their next tokens (Li and Hoiem 2016,
Learning without Forgetting, on texts). This direction counts the words of the frozen LLM that the adapted one lost.
The experts are mixed evenly, for a text has no task; the router learns nothing here. FedKIM has neither.

Where all trained questions have the answers yes and no, an LLM soon answers every question so. :class:`Words` puts open
questions about the step's examples as well. The target is the frozen LLM's own answer, without the example
(self-distillation of whole answers, Kim and Rush 2016).

All is drawn from (seed, round, epoch, start of the batch), so a resumed run draws what an uninterrupted one draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from medfed.core.errors import StudyError
from medfed.core.rng import numpy_rng
from medfed.injection.encode import Group
from medfed.injection.model import InjectedModel
from medfed.llm.forward import run
from medfed.llm.language_model import LanguageModel
from medfed.llm.prompt import PromptBatch
from medfed.llm.tiny.prepare import documents
from medfed.study.injection import InjectionSettings

Ids = tuple[int, ...]
_ANSWER_TOKENS = 16
QUESTIONS = (
    "What does this examination show?",
    "Which part of the body does this show?",
    "Which organ is affected here?",
    "How was this examination made?",
    "Where is the abnormality?",
    "How many findings can be seen?",
    "What is the most likely diagnosis?",
    "Which side is affected?",
    "What should be done next?",
    "Describe what can be seen here.",
    "Why was this examination made?",
    "Which finding is the most important one?",
    "What can be seen in the middle?",
    "Which of pain, fever and cough fits this best?",
    "What colour is the largest structure?",
    "When should this examination be repeated?",
)
"""Open questions that fit any modality; none is of a test set."""


class Rehearsal:
    """Adds the gradients of the rehearsed texts; texts are read at first use."""

    def __init__(self, injected: InjectedModel, settings: InjectionSettings, seed: int) -> None:
        self._injected, self._settings, self._seed = injected, settings, seed

    @cached_property
    def pieces(self) -> list[Ids]:
        """All texts, cut into pieces, each behind the tokenizer's start tokens.

        Raises:
            DataError: the folder cannot be read, or holds no text.
            StudyError: no text has two tokens.
        """
        tokenizer, rehearsal = self._injected.foundation.tokenizer, self._settings.rehearsal
        texts = documents(Path(rehearsal.texts) if rehearsal.texts else None)
        length, starts = rehearsal.max_length, tuple(tokenizer.starts)
        encoded = [tuple(tokenizer.encode(text)) for text in texts]
        cut = [(*starts, *ids[at : at + length]) for ids in encoded for at in range(0, len(ids), length)]
        if not (pieces := [piece for piece in cut if len(piece) > 1]):
            raise StudyError("no text of two tokens", where="injection.rehearsal.texts", hint="give longer texts")
        return pieces

    def backward(self, *key: int) -> dict[str, float]:
        """Add the gradients of the pieces drawn for ``key`` to the adapters', and return the losses, not weighted."""
        weights = {"nll": self._settings.rehearsal.weight, "kl": self._settings.kl_weight}
        losses = self.losses(self.drawn(*key))
        total = torch.stack([weight * losses[name] for name, weight in weights.items() if weight]).sum()
        total.backward()  # type: ignore[no-untyped-call]
        return {name: losses[name].item() for name, weight in weights.items() if weight}

    def drawn(self, *key: int) -> list[Ids]:
        """Return the pieces of one step."""
        count = min(self._settings.rehearsal.num_texts, len(self.pieces))
        rows = numpy_rng(self._seed, "rehearse", *key).choice(len(self.pieces), size=count, replace=False)
        return [self.pieces[int(row)] for row in rows]

    def losses(self, pieces: list[Ids]) -> dict[str, Tensor]:
        """Return the mean NLL of the tokens of ``pieces``, and the mean KL of their next tokens, in nats."""
        injected, foundation = self._injected, self._injected.foundation
        ids, real = padded(pieces, foundation.table.device)
        batch = PromptBatch(foundation.embed(ids.flatten().tolist()).view(*ids.shape, -1), *_causal(ids), ids.shape[1])
        with injected.mixing(injected.even()):
            adapted = run(injected.llm, foundation.windows, batch)[:, :-1][real].float().log_softmax(-1)
        losses = {"nll": -adapted.gather(-1, ids[:, 1:][real].unsqueeze(-1)).mean()}
        if self._settings.kl_weight:
            with torch.no_grad():
                frozen = run(foundation.model, foundation.windows, batch)[:, :-1][real].float().log_softmax(-1)
            losses["kl"] = (frozen.exp() * (frozen - adapted)).sum(-1).mean()
        return losses


class Words:
    """Adds the gradients of answers in words to open questions about public examples."""

    def __init__(self, injected: InjectedModel, settings: InjectionSettings, seed: int) -> None:
        self._injected, self._settings, self._seed = injected, settings, seed

    @cached_property
    def answers(self) -> dict[str, str]:
        """Open question → the frozen LLM's answer to it without a patient; an empty answer is left out."""
        llm = LanguageModel(self._injected.foundation)
        given = {question: llm.answer(question, _ANSWER_TOKENS) for question in QUESTIONS}
        whole = {question: words.text.partition(". ")[0] for question, words in given.items()}
        return {question: text for question, text in whole.items() if text}

    def drawn(self, groups: Sequence[Group], *key: int) -> list[Group]:
        """Return some examples of ``groups``, each with an open question and its one answer."""
        rng = numpy_rng(self._seed, "words", *key)
        rows = [(group, row) for group in groups for row in range(len(group.batch))]
        count, made = min(self._settings.rehearsal.num_questions, len(rows)), []
        texts = list(self.answers.items())
        for place in rng.choice(len(rows), size=count, replace=False) if texts else ():
            group, row = rows[int(place)]
            question, answer = texts[int(rng.integers(len(texts)))]
            task = group.task.model_copy(update={"question": question, "answers": (answer,)})
            encoded = {name: tokens[row : row + 1].detach() for name, tokens in group.encoded.items()}
            made.append(Group(task, encoded, group.batch.row(row)))
        return made

    def backward(self, groups: Sequence[Group]) -> float:
        """Add the gradients of the answers in ``groups``; return their mean negative log-likelihood per token."""
        if not groups:
            return 0.0
        injected = self._injected
        lengths = [len(injected.prompt(group.task).answers[0]) for group in groups]
        with injected.mixing(injected.even()):
            parts = [-one.sum() / length for one, length in zip(injected(groups), lengths, strict=True)]
            loss = torch.stack(parts).mean()
            (self._settings.rehearsal.question_weight * loss).backward()  # type: ignore[no-untyped-call]
        return loss.item()


def padded(pieces: list[Ids], device: torch.device) -> tuple[Int[Tensor, "piece position"], Bool[Tensor, "piece next"]]:
    """Return ids padded on the right with 0, and which next tokens are real."""
    longest = max(map(len, pieces))
    ids = torch.tensor([[*piece, *(longest - len(piece)) * (0,)] for piece in pieces], device=device)
    lengths = torch.tensor([[len(piece)] for piece in pieces], device=device)
    return ids, torch.arange(1, longest, device=device) < lengths


def _causal(
    ids: Int[Tensor, "piece position"],
) -> tuple[Bool[Tensor, "piece position key"], Int[Tensor, "piece position"]]:
    """Return which positions see which, and their numbers; padding is behind all that is read."""
    size, length = ids.shape
    seen = torch.ones(length, length, dtype=torch.bool, device=ids.device).tril()
    return seen.expand(size, -1, -1), torch.arange(length, device=ids.device).expand(size, -1)
