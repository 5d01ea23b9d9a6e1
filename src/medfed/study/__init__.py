"""Studies: every setting that decides a run's numbers, read from TOML. Nothing here imports torch.

The packages below take single settings from here (:mod:`medfed.study.data`), so :class:`Study` is imported on demand.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from medfed.study.study import Study, load_study
    from medfed.study.sweep import Cell, Plan, load_plan

__all__ = ["Cell", "Plan", "Study", "load_plan", "load_study"]

_HOMES = {"Study": "study", "load_study": "study", "Cell": "sweep", "Plan": "sweep", "load_plan": "sweep"}


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(import_module(f"medfed.study.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
