"""Federated multimodal learning for medicine: inject into a medical LLM what hospitals learn, or benchmark it.

The names in ``__all__`` are the public interface; each is imported when it is first used. To read the code, begin with
:mod:`medfed.runs.pipeline`, which runs top to bottom.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from medfed.api import Run, foundation, load_run, load_study, run
    from medfed.core.catalog import register
    from medfed.core.errors import DataError, MedfedError, StudyError
    from medfed.datasets.base import Card, Dataset
    from medfed.federated.algorithm import Algorithm
    from medfed.modalities.base import Modality
    from medfed.models.base import Encoder, FederatedModel
    from medfed.study.parts import EncoderSpec, ModelSpec
    from medfed.study.study import Study
    from medfed.tasks.base import ClosedTask, Task, TrainableTask
    from medfed.tasks.classification import Classification, VisualQuestion
    from medfed.tasks.generation import Generation
    from medfed.tasks.multilabel import MultiLabel
    from medfed.tasks.question_answering import QuestionAnswering
    from medfed.tasks.segmentation import Segmentation

__version__ = "0.1.0"
__all__ = [
    "Algorithm",
    "Card",
    "Classification",
    "ClosedTask",
    "DataError",
    "Dataset",
    "Encoder",
    "EncoderSpec",
    "FederatedModel",
    "Generation",
    "MedfedError",
    "Modality",
    "ModelSpec",
    "MultiLabel",
    "QuestionAnswering",
    "Run",
    "Segmentation",
    "Study",
    "StudyError",
    "Task",
    "TrainableTask",
    "VisualQuestion",
    "__version__",
    "foundation",
    "load_run",
    "load_study",
    "register",
    "run",
]
_HOMES = {
    "api": ("Run", "foundation", "load_run", "load_study", "run"),
    "core.catalog": ("register",),
    "core.errors": ("DataError", "MedfedError", "StudyError"),
    "datasets.base": ("Card", "Dataset"),
    "federated.algorithm": ("Algorithm",),
    "modalities.base": ("Modality",),
    "models.base": ("Encoder", "FederatedModel"),
    "study.parts": ("EncoderSpec", "ModelSpec"),
    "study.study": ("Study",),
    "tasks.base": ("ClosedTask", "Task", "TrainableTask"),
    "tasks.classification": ("Classification", "VisualQuestion"),
    "tasks.generation": ("Generation",),
    "tasks.multilabel": ("MultiLabel",),
    "tasks.question_answering": ("QuestionAnswering",),
    "tasks.segmentation": ("Segmentation",),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
