"""A closed question by one forward pass against asking the LLM to write 128 tokens.

The random LLM is made to answer. Two rows of its head are set so that yes and no are the likeliest words after the
cue. The patient decides which of the two is likelier.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from benchmarks.patients import Server, patients, server
from benchmarks.plain import generated
from benchmarks.rows import Row, Target, counted, peaks
from benchmarks.timing import Bench, Versus
from medfed.core.types import Batch
from medfed.llm.prompt import ANSWER
from medfed.tasks.base import Task

BATCH, SURE = 16, 60.0


def scoring_rows(bench: Bench) -> Iterator[Row]:
    """Time a batch of 16, and compare the answers to 1,000 questions."""
    width, layers, vocabulary, items, tokens = (64, 2, 2000, 40, 8) if bench.quick else (512, 6, 32_000, 1000, 128)
    here = server(width, layers, vocabulary)
    _teach_to_answer(here)
    task = here.tasks[0]
    batch = patients(task, BATCH).batch(np.arange(BATCH))
    scored, written = "one forward", f"generate, {tokens} tokens"
    variants = {
        scored: lambda: _scored(here, task, batch),
        written: lambda: _written(here, task, batch, tokens),
    }
    setting = f"Llama {width}×{layers}, vocabulary {vocabulary:,}, batch {BATCH}"
    pairs = [Versus(written, scored, Target("≥", 3.5), same=True)]
    yield from bench.race("scoring", setting, variants, pairs, seconds=30.0)
    yield peaks("scoring", setting, variants, written, scored)
    equal, num_yes = _equal_answers(here, items)
    note = f"{equal:,} of {items:,} equal, {num_yes:,} of them yes; greedy: what follows the answer cannot change it"
    over, under = ("answers equal to those of generate", equal), ("questions", items)
    yield counted("scoring", f"{setting}, four tasks", over, under, measure="count", target=Target("≥", 1.0), note=note)


def _scored(here: Server, task: Task, batch: Batch) -> list[str]:
    return [task.answers[best] for best in here.injector.score(task, batch).argmax(-1).tolist()]


def _written(here: Server, task: Task, batch: Batch, num_tokens: int) -> list[str]:
    """Return the answer that is written: the first token, for the answers are of one."""
    return [text.strip() for text in generated(here, task, batch, num_tokens, read=1)]


def _equal_answers(here: Server, items: int) -> tuple[int, int]:
    """Return how many of ``items`` answers are equal, and how many of those are yes."""
    equal = yes = 0
    share = items // len(here.tasks)
    for task in here.tasks:
        for batch in patients(task, share, seed=1).batches(50):
            both = zip(_scored(here, task, batch), _written(here, task, batch, 2), strict=True)
            agreed = [one for one, other in both if one == other]
            equal += len(agreed)
            yes += agreed.count("Yes")
    return equal, yes


@torch.no_grad()
def _teach_to_answer(here: Server) -> None:
    """Set the head's rows of the answers: common to both what all patients share, opposite where patients differ."""
    hidden = torch.cat([_hidden(here, task) for task in here.tasks])
    centre = hidden.mean(0)
    spread = hidden - centre
    across = torch.linalg.svd(spread, full_matrices=False).Vh[0]
    across = across - centre * (across @ centre) / centre.square().sum()
    common = SURE * centre / centre.square().sum()
    opposite = 5.0 * across / (spread @ across).std()
    foundation = here.injector.injected.foundation
    no, yes = (foundation.tokenizer.encode(ANSWER.format(answer=answer))[0] for answer in here.tasks[0].answers)
    head = foundation.model.get_output_embeddings().weight  # type: ignore[operator]
    head[yes], head[no] = common + opposite, common - opposite


def _hidden(here: Server, task: Task) -> Tensor:
    """Return what the head reads behind the cue ``[patient, width]``."""
    states: list[Tensor] = []
    head = here.llm.get_output_embeddings()  # type: ignore[operator]
    hook = head.register_forward_pre_hook(lambda _, given: states.append(given[0][:, -1]))
    here.injector.score(task, patients(task, 24, seed=2).batch(np.arange(24)))
    hook.remove()
    return torch.cat(states)
