"""The server's training step against the plain one: every example padded to the longest, and logits of all positions.

Both take the same examples through the same weights with the same optimizer, and their mean loss is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from statistics import fmean

import numpy as np
import torch
from torch import nn

from benchmarks.bytes import saved_bytes
from benchmarks.patients import Server, patients, server
from benchmarks.plain import Examples, step_loss
from benchmarks.rows import Row, Target, of_memory, peaks
from benchmarks.timing import Bench, Versus
from medfed.core.rng import numpy_rng
from medfed.injection.batching import epoch_order
from medfed.tasks.base import TaskSet

STILL = 1e-12
"""A learning rate that leaves the weights as they are, so that every turn computes the same."""
OURS, PLAIN = "server step", "padded, logits of all positions"
TASK_FIRST, MODALITY_FIRST = "scoring, task_first", "scoring, modality_first"


def step_rows(bench: Bench) -> Iterator[Row]:
    """A step over examples of the four trained tasks."""
    width, layers, vocabulary, each = (64, 2, 2000, 4) if bench.quick else (512, 6, 32_000, 4)
    here = server(width, layers, vocabulary, lr=STILL, router_lr=STILL, batch_size=16)
    public = {task.name: patients(task, each) for task in here.tasks}
    variants = {OURS: _injected(here, public), PLAIN: _by_hand(here, public)}
    pairs = [Versus(PLAIN, OURS, Target("≥", 3.0), same=True)]
    setting = f"Llama {width}×{layers}, vocabulary {vocabulary:,}, batch 16, prompts of 21 to 115 tokens"
    yield from bench.race("server", setting, variants, pairs, seconds=45.0, tolerance=1e-3)
    weights = [*here.injector.injected.parameters(), *here.model.parameters()]
    kept = {name: float(saved_bytes(run, weights)) for name, run in variants.items()}
    yield of_memory("server", setting, (PLAIN, kept[PLAIN]), (OURS, kept[OURS]), kind="bytes kept for backward")
    yield peaks("server", setting, variants, PLAIN, OURS)


def order_rows(bench: Bench) -> Iterator[Row]:
    """Scoring patients with the question behind the modalities, and before them, where a prefix can be cached."""
    width, layers, vocabulary, number = (64, 2, 2000, 8) if bench.quick else (512, 6, 32_000, 16)
    variants = {
        name: _scoring(server(width, layers, vocabulary, order=name.rpartition(" ")[2]), number)
        for name in (MODALITY_FIRST, TASK_FIRST)
    }
    setting = f"Llama {width}×{layers}, {number} patients of each of four tasks"
    yield from bench.race("server", setting, variants, [Versus(MODALITY_FIRST, TASK_FIRST)], seconds=20.0)


def _injected(here: Server, public: Mapping[str, TaskSet]) -> Callable[[], float]:
    return lambda: fmean(record.loss for record in here.injector.inject(public, 1))


def _by_hand(here: Server, public: Mapping[str, TaskSet]) -> Callable[[], float]:
    trained = [value for value in here.injector.injected.parameters() if value.requires_grad]

    def epoch() -> float:
        optimizer = torch.optim.AdamW(trained, lr=STILL, fused=True)
        losses = []
        for examples in _batches(public, 16):
            losses.append(step_loss(here, examples).item())
            nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad()
        return fmean(losses)

    return epoch


def _batches(public: Mapping[str, TaskSet], size: int) -> Iterator[Examples]:
    """Yield the examples in the injector's order."""
    targets = {name: examples.targets.numpy() for name, examples in public.items()}
    order = epoch_order(targets, numpy_rng(0, "inject", 1, 0))
    for start in range(0, len(order), size):
        drawn: dict[str, list[int]] = {}
        for name, position in order[start : start + size]:
            drawn.setdefault(name, []).append(position)
        yield [(public[name].task, public[name].batch(np.array(rows))) for name, rows in sorted(drawn.items())]


def _scoring(here: Server, number: int) -> Callable[[], list[torch.Tensor]]:
    batches = [(task, patients(task, number).batch(np.arange(number))) for task in here.tasks]
    return lambda: [here.injector.score(task, batch) for task, batch in batches]
