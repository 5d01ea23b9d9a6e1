"""A tiny finished run with all modalities that one can ask about, and files to ask it about: seconds to make."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import polars as pl
from rich.console import Console

from medfed.core.progress import Reporter
from medfed.runs.context import RunPaths
from medfed.runs.loaded import LoadedRun
from medfed.runs.pipeline import run_study
from medfed.study.study import study_of

STUDY = {
    "name": "quick",
    "train": ["lod", "ead", "mp"],
    "unseen": ["ped", "mr"],
    "baselines": [],
    "algorithm": "fedavg",
    "twins": {"num_patients": 30},
    "partition": {"num_clients": 1},
    "rounds": {"num_rounds": 1},
    "encoders": {"image": "vit-mini", "ecg": "conv1d"}
    | dict.fromkeys(("vitals", "labs", "input", "output"), "transformer"),
    "foundation": {"kind": "tiny", "num_steps": 2, "width": 32, "num_layers": 1, "vocab_size": 400},
    "injection": {"num_experts": 4, "rank": 2, "num_epochs": 1},
    "evaluation": {"num_resamples": 10, "max_new_tokens": 4},
}


class QuickRun(NamedTuple):
    """A run's folder, the cache with its LLM, and files of the twins by modality."""

    folder: Path
    cache: Path
    images: list[Path]
    ecgs: list[Path]
    icu: Path

    def load(self) -> LoadedRun:
        """The run in memory."""
        return LoadedRun(self.folder, self.cache, None)


def quick_run(place: Path) -> QuickRun:
    """Run the study in ``place``."""
    cache, quiet = place / "cache", Reporter(Console(quiet=True))
    run_study(study_of(STUDY, "quick"), RunPaths(place / "runs", cache), quiet)
    (folder,) = (place / "runs" / "quick").iterdir()
    stays = pl.read_parquet(next(cache.rglob("mortality24/*/dyn.parquet")))
    stay = stays.filter(pl.col("stay_id") == stays["stay_id"][0]).head(24).drop("stay_id", "time")
    stay.write_csv(place / "stay.csv")
    return QuickRun(folder, cache, sorted(cache.rglob("*.dcm")), sorted(cache.rglob("*.hea")), place / "stay.csv")
