"""The package's own parts, by name. Plugins and users add theirs by :func:`medfed.register`."""

from __future__ import annotations

import sys
import tomllib
from functools import cache
from importlib import resources
from traceback import walk_stack
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from medfed.core.code import MAIN
from medfed.core.errors import StudyError
from medfed.core.plugins import Plugin, load_installed, origin_of
from medfed.core.registry import Registry

if TYPE_CHECKING:
    from medfed.datasets.base import Dataset
    from medfed.modalities.base import Modality
    from medfed.study.algorithms import AlgorithmSettings
    from medfed.study.parts import EncoderSpec, ModelSpec
    from medfed.tasks.base import Task


@cache
def task_definitions() -> dict[str, dict[str, Any]]:
    """Return name → fields of every task that the package declares, as its TOML files have them."""
    files = sorted(path.name for path in resources.files("medfed.tasks").iterdir() if path.name.endswith(".toml"))
    tables = [tomllib.loads((resources.files("medfed.tasks") / name).read_text(encoding="utf-8")) for name in files]
    return {name: fields for table in reversed(tables) for name, fields in table.items()}


class TaskFacts(NamedTuple):
    """The facts that a study must know of a task before anything large is imported."""

    dataset: str
    modalities: tuple[str, ...]
    trainable: bool
    injectable: bool


INJECTABLE_KINDS = frozenset({"classification", "visual_question"})
UNTRAINABLE_KINDS = frozenset({"question_answering"})


def task_facts(name: str) -> TaskFacts:
    """Return the facts of a registered task; one that the package declares is not imported for it."""
    fields = task_definitions().get(name)
    if fields is None:
        task = TASKS[name]
        return TaskFacts(task.dataset, task.modalities, task.trainable, task.injectable)
    facts = (fields["kind"] not in UNTRAINABLE_KINDS, fields["kind"] in INJECTABLE_KINDS)
    return TaskFacts(fields["dataset"], tuple(fields["modalities"]), *facts)


def _by_module(package: str, **names: str) -> dict[str, str]:
    """Return name → module of ``package``, given the names of the parts in each module."""
    return {name: f"medfed.{package}.{module}" for module, listed in names.items() for name in listed.split()}


TASKS: Registry[Task] = Registry("task", dict.fromkeys(task_definitions(), "medfed.tasks.declared"))
_DATASETS = (
    "covid-radiography rsna-pneumonia chexpert chestxray14 pneumoniamnist ptbxl yaib-mortality yaib-sepsis yaib-aki "
    "vqa-rad vqa-rad-closed slake slake-zh ecg-qa symile-mimic brats mimic-cxr covid19-repository mimic-iv eicu "
    "path-vqa ehrxqa"
)
_SHARED = _by_module(
    "datasets",
    medmnist="pneumoniamnist",
    yaib="yaib-mortality yaib-sepsis yaib-aki",
    vqa_rad="vqa-rad-closed",
    slake="slake-zh",
)
"""Every other dataset has the module of its name."""
DATASETS: Registry[Dataset] = Registry(
    "dataset", {name: _SHARED.get(name, f"medfed.datasets.{name.replace('-', '_')}") for name in _DATASETS.split()}
)
_MODALITIES = _by_module(
    "modalities",
    image="image",
    signal="ecg",
    timeseries="vitals labs input output covid-labs person lab-percentiles",
    text="question report ehr",
    volume="t1 t1c t2 flair tumour",
)
MODALITIES: Registry[Modality] = Registry("modality", _MODALITIES)
_ENCODERS = "deit-tiny vit-mini resnet resnet-mini conv1d transformer text-mini bert labs-mlp"
ENCODERS: Registry[type[EncoderSpec]] = Registry("encoder", _by_module("study", encoders=_ENCODERS))
_MODELS = "multimodal symile rfnet blip blip-base"
MODELS: Registry[type[ModelSpec]] = Registry("model", _by_module("study", models=_MODELS))
_ALGORITHMS = "fedavg fedprox scaffold fednova moon creamfl fedadagrad fedadam fedyogi fedams fedper fedbn ditto pfedme"
ALGORITHMS: Registry[type[AlgorithmSettings]] = Registry("algorithm", _by_module("study", algorithms=_ALGORITHMS))
REGISTRIES: tuple[Registry[Any], ...] = (TASKS, DATASETS, MODALITIES, ENCODERS, MODELS, ALGORITHMS)
_BASES: dict[str, Registry[Any]] = {
    "medfed.tasks.base:Task": TASKS,
    "medfed.datasets.base:Dataset": DATASETS,
    "medfed.modalities.base:Modality": MODALITIES,
    "medfed.study.parts:EncoderSpec": ENCODERS,
    "medfed.study.parts:ModelSpec": MODELS,
    "medfed.study.algorithms:AlgorithmSettings": ALGORITHMS,
}
"""Base class of a part → its registry; settings are registered as classes, all else as objects."""
P = TypeVar("P")


def register(part: P) -> P:
    """Add a part of your own under its ``name``, and return it; a class may be decorated with this. ``part`` is a task,
    a dataset or a modality: an object, or a class that needs no arguments. Of an ``EncoderSpec``, a ``ModelSpec`` or an
    ``Algorithm`` it is the class. Raises StudyError if it is none of these, it has no name, or another part has the
    name."""
    kind = part if isinstance(part, type) else type(part)
    origin = origin_of(_caller())
    for base, registry in _BASES.items():
        if _is_a(kind, base):
            made = kind if base.startswith("medfed.study.") else _made(part, registry)
            if not isinstance(getattr(made, "name", None), str):
                raise StudyError(f"the {registry.kind} {made!r} has no name", hint='give it a name: name = "mine"')
            registry.register(made, origin)
            return part
    known = "a task, a dataset, a modality, or the class of an encoder's settings, a model's settings or an algorithm"
    raise StudyError(f"cannot register {part!r}", hint=f"register {known}")


def registered_plugins() -> list[Plugin]:
    """Return the plugins of all parts that are not the package's; see :meth:`Registry.origin`."""
    load_installed()
    return [plugin for registry in REGISTRIES for plugin in registry.origins()]


def _caller() -> str:
    """Return the module that calls the package."""
    names = [str(frame.f_globals.get("__name__", MAIN[0])) for frame, _ in walk_stack(sys._getframe(1))]
    return next((name for name in names if name.partition(".")[0] not in ("medfed", "jaxtyping")), names[-1])


def _is_a(kind: type, base: str) -> bool:
    """Whether ``kind`` is a class below ``base``; nothing is imported for it."""
    module, _, name = base.partition(":")
    root = getattr(sys.modules.get(module), name, None)
    return root is not None and issubclass(kind, root)


def _made(part: Any, registry: Registry[Any]) -> Any:
    if not isinstance(part, type):
        return part
    try:
        return part()
    except (TypeError, ValueError) as error:
        what = f"cannot make a {registry.kind} of the class {part.__qualname__}: {error}"
        hint = f"register the {registry.kind} itself: register({part.__name__}(…))"
        raise StudyError(what, hint=hint) from error
