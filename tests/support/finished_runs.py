"""Finished runs in seconds: one trained a little, with files for questions, and one with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import torch
from rich.console import Console

from medfed.core.progress import Reporter
from medfed.federated.rounds import initial_state
from medfed.federated.state import join
from medfed.injection.inject import Injector
from medfed.llm.foundation import load_foundation
from medfed.records.folder import RunFolder
from medfed.records.schema import NormalisationFile, ProvenanceFile, StudyFile
from medfed.runs.checkpoints import Checkpoints
from medfed.runs.context import RunPaths
from medfed.runs.federation import build_multimodal
from medfed.runs.loaded import LoadedRun
from medfed.runs.pipeline import run_study
from medfed.study.study import Study, study_of
from support.fake_runs import fake_run
from support.llm_toys import language_model, write_tokenizer
from support.studies import QUICK


class QuickRun(NamedTuple):
    """A run's folder, the cache with its LLM, and files of the twins by modality."""

    folder: Path
    cache: Path
    images: list[Path]
    ecgs: list[Path]
    icu: Path

    @classmethod
    def at(cls, place: Path) -> QuickRun:
        """Return what :func:`quick_run` left in ``place``."""
        (folder,), cache = (place / "runs" / "quick").iterdir(), place / "cache"
        images, ecgs = sorted(cache.rglob("*.dcm")), sorted(cache.rglob("*.hea"))
        return cls(folder, cache, images, ecgs, place / "stay.csv")

    def load(self) -> LoadedRun:
        """The run in memory."""
        return LoadedRun(self.folder, self.cache, None)


def quick_run(place: Path) -> None:
    """Run the study in ``place``, and put an ICU stay beside it."""
    cache, quiet = place / "cache", Reporter(Console(quiet=True))
    run_study(study_of(QUICK, "quick"), RunPaths(place / "runs", cache), quiet)
    stays = pl.read_parquet(next(cache.rglob("mortality24/*/dyn.parquet")))
    stay = stays.filter(pl.col("stay_id") == stays["stay_id"][0]).head(24).drop("stay_id", "time")
    stay.write_csv(place / "stay.csv")


ENCODERS = {"image": "vit-mini", "ecg": "conv1d", "vitals": "transformer"}
ENCODERS |= dict.fromkeys(("labs", "input", "output"), "transformer")
UNTRAINED = "ped"
"""A task that the run was asked, did not train, and calibrated."""
OFFSETS = [-3.0, -2.5]


def llm_folder(root: Path, **sizes: Any) -> Path:
    """Write a random Llama with its tokenizer and return its folder."""
    folder = root / "llm"
    language_model(**sizes).save_pretrained(folder)
    return write_tokenizer(folder)


def finished_run(root: Path, llm: Path, *, learned: bool = True, model: str | None = None, **injection: Any) -> Path:
    """Write a run folder on the LLM in ``llm`` with random adapters, encoders and heads, and return it.

    Its experts are as they start unless they have ``learned``; its study says that the LLM is the Hub's ``model``.
    """
    folder = fake_run(root, num_resamples=20)
    study = _study(injection, model)
    run = RunFolder(folder)
    foundation = load_foundation(study.foundation, cache=root, path=llm)
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = build_multimodal(study)
        injector = Injector(foundation, model, study.tasks, study.injection, study.seed)
        for name, value in [*model.named_parameters(), *injector.injected.named_parameters()]:
            if name.startswith("heads.") or (learned and "lora_B" in name) or ".router." in name:
                torch.nn.init.normal_(value, std=0.3)
    injector.offsets = {f"{task.name}: {task.question}": OFFSETS for task in study.tasks if task.name == UNTRAINED}
    state = initial_state(model, study.algorithm)
    tensors = join({"federated": state.tensors(), "injector": injector.state()})
    Checkpoints(folder).save(1, tensors, {"round": 1, "finished": True})
    injector.save(folder / "injection")
    run.write(StudyFile(**study.resolved()))
    facts = {**foundation.info, "fingerprint_before": foundation.fingerprint()}
    run.write(run.read(ProvenanceFile).model_copy(update={"foundation": facts}))
    run.write(NormalisationFile(moments={name: _moments(study, name) for name in study.encoders}))
    run.finish()
    return folder


def _study(injection: dict[str, Any], model: str | None) -> Study:
    return Study.model_validate(
        {
            "name": "demo",
            "train": ["cd", "lod", "ead", "mp"],
            "unseen": ["ped", "ad", "ecd", "ebd", "sp"],
            "algorithm": "fedavg",
            "encoders": ENCODERS,
            "foundation": {"kind": "huggingface", "dtype": "float32", "model": model, "revision": model and "v1"},
            "injection": {"num_experts": 3, "rank": 2, **injection},
        }
    )


def _moments(study: Study, name: str) -> dict[str, list[float]]:
    rng = np.random.default_rng(len(name))
    channels = study.modality(name).num_channels
    mean, std, count = rng.uniform(0.2, 0.6, channels), rng.uniform(0.1, 0.3, channels), 100.0
    squares = count * (std**2 + mean**2)
    return {"count": [count] * channels, "total": (count * mean).tolist(), "squares": squares.tolist()}
