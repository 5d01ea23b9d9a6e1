"""Decoding: a batch gives what one example gives, the cache gives what no cache gives, and an answer ends where it should."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl
import pytest
import torch
from torch import Tensor

from injection_toys import BOTH, CARD, CHANNELS, federated_model, foundation, settings, tokenizer
from medfed.datasets.decode import Decoded
from medfed.errors import StudyError
from medfed.injection.decoding import answer_text, decode_greedily
from medfed.injection.inject import Injector
from medfed.injection.injected import Group, by_question, encode
from medfed.injection.prompt import Order, Sequences, build_prompt, pad_left
from medfed.tasks.base import TaskSet, closed
from medfed.tasks.question_answering import QuestionAnswering
from medfed.types import Batch

ORDERS: tuple[Order, ...] = ("modality_first", "task_first")
LENGTH = 6
ASKED = QuestionAnswering(
    name="asked",
    title="Asked",
    dataset="toy",
    modalities=("image", "sound"),
    task_description="Questions about things.",
    modality_description="Text, image and sound.",
)
QUESTIONS = ("Is it red?", "What colour is the long thing that hums in the round image?", "Shape?", "Is it round?")


def questions(absent: Sequence[tuple[str, int]] = ()) -> TaskSet:
    """Four questions of different length; ``absent`` names modality and row."""
    rng = np.random.default_rng(3)
    names = [f"q{number}" for number in range(len(QUESTIONS))]
    index = pl.DataFrame(
        {
            "example": names,
            "patient": names,
            "question": QUESTIONS,
            "answer": ["yes", "red", "a round shape", "No"],
            "closed": [True, False, False, True],
        }
    )
    samples = {name: rng.normal(size=(len(names), CHANNELS)).astype(np.float32) for name in ASKED.modalities}
    present = {name: np.ones(len(names), bool) for name in ASKED.modalities}
    for name, row in absent:
        present[name][row], samples[name][row] = False, 0.0
    return TaskSet(ASKED, Decoded("toy", CARD, index, samples, present), np.arange(len(names)))


def server(order: Order = "modality_first") -> Injector:
    """An injector whose experts are not zero."""
    made = Injector(foundation(), federated_model(), (BOTH, ASKED), settings(order=order), 0)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(1)
        for name, value in made.injected.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(value, std=0.3)
    return made


def token_ids(made: Injector, batch: Batch) -> list[list[int]]:
    model = made.injected
    groups = by_question(Group(ASKED, encode(federated_model().eval(), [(ASKED, batch)])[0], batch))
    laid = [model._laid_out(build_prompt_only(made, group), group) for group in groups]
    with torch.no_grad(), model.mixing(model.alpha([ASKED]).expand(len(batch), -1)):
        return decode_greedily(model.llm, model.foundation, pad_left(laid), LENGTH)


def build_prompt_only(made: Injector, group: Group):  # type: ignore[no-untyped-def]
    return made.injected.prompt_without_answers(group.task)
