"""Texts as rows of token ids for the pre-training of the tiny LLM: running text in pieces, cases with their end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from tokenizers import Tokenizer

from medfed.injection.checks import END, START, Asked, stem
from medfed.injection.prompt import ANSWER


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


def case_rows(tokenizer: Tokenizer, cases: Sequence[Asked], max_length: int) -> list[Row]:
    """Encode cases, each with its end token; of one longer than ``max_length`` the beginning is cut off."""
    stems = tokenizer.encode_batch([stem(case) for case in cases])
    answers = tokenizer.encode_batch([ANSWER.format(answer=case.answer) for case in cases])
    rows: list[Row] = []
    for before, answer in zip(stems, answers, strict=True):
        ids = [*before.ids, *answer.ids, END]
        rows.append(Row([START, *ids[-max_length:]], min(len(answer.ids) + 1, max_length)))
    return rows
