"""Studies: every setting that decides a run's numbers, read from TOML. Nothing here imports torch."""

from medfed.study.study import Study, load_study
from medfed.study.sweep import Cell, Plan, load_plan

__all__ = ["Cell", "Plan", "Study", "load_plan", "load_study"]
