"""A round's injection with encoder outputs kept from its first epoch on, and without: what frozen encoders save.

The models are the demo's: encoders, and an LLM as small as its own. The larger the LLM, the less there is to save.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from statistics import fmean
from unittest.mock import patch

from benchmarks.federation import DEMO, made_up
from benchmarks.llama import llama
from benchmarks.patients import BALANCED, tokenizer
from benchmarks.rows import Row
from benchmarks.server import STILL
from benchmarks.timing import Bench, Versus
from medfed.injection import inject
from medfed.injection.inject import Injector
from medfed.llm.foundation import Foundation
from medfed.runs.federation import build_multimodal
from medfed.study.injection import InjectionSettings
from medfed.study.study import load_study
from medfed.tasks.base import TaskSet

OFF, ON = "encoded step by step", "encoded once"


def cache_rows(bench: Bench) -> Iterator[Row]:
    """Two epochs over the public examples of the demo's tasks, encoders frozen."""
    study, each = load_study(DEMO), 4 if bench.quick else 100
    width, layers = (64, 2) if bench.quick else (128, 4)
    foundation = Foundation("random", llama(width, layers, vocabulary=2000), tokenizer(), {})
    settings = InjectionSettings.model_validate(
        {
            "recipe": "paper",
            "lr": STILL,
            "router_lr": STILL,
            "encoder_lr": 0.0,
            "dropout": 0.0,
            "num_epochs": 2,
            **BALANCED,
        }
    )
    injector = Injector(foundation, build_multimodal(study), study.train_tasks, settings, 0)
    public = {task.name: made_up(study, task, each, 0) for task in study.train_tasks}
    variants = {ON: _losses(injector, public), OFF: _without_cache(_losses(injector, public))}
    setting = f"two epochs of injection, Llama {width}×{layers}, the demo's encoders, {each} examples a task"
    yield from bench.race("server", setting, variants, [Versus(OFF, ON, same=True)], seconds=12.0)


def _losses(injector: Injector, public: Mapping[str, TaskSet]) -> Callable[[], float]:
    return lambda: fmean(record.loss for record in injector.inject(public, 1))


def _without_cache(run: Callable[[], float]) -> Callable[[], float]:
    """Return ``run`` as it is where the outputs would not fit into memory."""

    def bare() -> float:
        with patch.object(inject, "encode_ahead", lambda *_: None):
            return run()

    return bare
