"""The package's own parts, by name. Plugins and users add theirs by :func:`medfed.register`."""

from __future__ import annotations

import sys
import tomllib
from functools import cache
from importlib import resources
from types import FrameType
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
    """What a study must know of a task before anything large is imported."""

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
    kind = fields["kind"]
    facts = (kind not in UNTRAINABLE_KINDS, kind in INJECTABLE_KINDS)
    return TaskFacts(fields["dataset"], tuple(fields["modalities"]), *facts)


TASKS: Registry[Task] = Registry("task", "TASKS", dict.fromkeys(task_definitions(), "medfed.tasks.declared"))
DATASETS: Registry[Dataset] = Registry(
    "dataset",
    "DATASETS",
    {
        "covid-radiography": "medfed.datasets.covid_radiography",
        "rsna-pneumonia": "medfed.datasets.rsna_pneumonia",
        "chexpert": "medfed.datasets.chexpert",
        "chestxray14": "medfed.datasets.chestxray14",
        "pneumoniamnist": "medfed.datasets.medmnist",
        "ptbxl": "medfed.datasets.ptbxl",
        "yaib-mortality": "medfed.datasets.yaib",
        "yaib-sepsis": "medfed.datasets.yaib",
        "vqa-rad": "medfed.datasets.vqa_rad",
        "vqa-rad-closed": "medfed.datasets.vqa_rad",
        "slake": "medfed.datasets.slake",
        "slake-zh": "medfed.datasets.slake",
        "ecg-qa": "medfed.datasets.ecg_qa",
        "symile-mimic": "medfed.datasets.symile_mimic",
        "brats": "medfed.datasets.brats",
        "mimic-cxr": "medfed.datasets.mimic_cxr",
        "covid19-repository": "medfed.datasets.covid19_repository",
        "mimic-iv": "medfed.datasets.mimic_iv",
        "eicu": "medfed.datasets.eicu",
        "path-vqa": "medfed.datasets.path_vqa",
        "ehrxqa": "medfed.datasets.ehrxqa",
    },
)
MODALITIES: Registry[Modality] = Registry(
    "modality",
    "MODALITIES",
    {
        "image": "medfed.modalities.image",
        "ecg": "medfed.modalities.signal",
        "vitals": "medfed.modalities.timeseries",
        "labs": "medfed.modalities.timeseries",
        "input": "medfed.modalities.timeseries",
        "output": "medfed.modalities.timeseries",
        "covid-labs": "medfed.modalities.timeseries",
        "person": "medfed.modalities.timeseries",
        "question": "medfed.modalities.text",
        "report": "medfed.modalities.text",
        "ehr": "medfed.modalities.text",
        "lab-percentiles": "medfed.modalities.labs",
        "t1": "medfed.modalities.volume",
        "t1c": "medfed.modalities.volume",
        "t2": "medfed.modalities.volume",
        "flair": "medfed.modalities.volume",
        "tumour": "medfed.modalities.volume",
    },
)
ENCODERS: Registry[type[EncoderSpec]] = Registry(
    "encoder",
    "ENCODERS",
    {
        "deit-tiny": "medfed.study.encoders",
        "vit-mini": "medfed.study.encoders",
        "resnet": "medfed.study.encoders",
        "resnet-mini": "medfed.study.encoders",
        "conv1d": "medfed.study.encoders",
        "transformer": "medfed.study.encoders",
        "text-mini": "medfed.study.encoders",
        "bert": "medfed.study.encoders",
        "labs-mlp": "medfed.study.encoders",
    },
)
MODELS: Registry[type[ModelSpec]] = Registry(
    "model",
    "MODELS",
    {
        "multimodal": "medfed.study.models",
        "symile": "medfed.study.models",
        "rfnet": "medfed.study.models",
        "blip": "medfed.study.models",
        "blip-base": "medfed.study.models",
    },
)
ALGORITHMS: Registry[type[AlgorithmSettings]] = Registry(
    "algorithm",
    "ALGORITHMS",
    {
        "fedavg": "medfed.study.algorithms",
        "fedprox": "medfed.study.algorithms",
        "scaffold": "medfed.study.algorithms",
        "fednova": "medfed.study.algorithms",
        "moon": "medfed.study.algorithms",
        "creamfl": "medfed.study.algorithms",
        "fedadagrad": "medfed.study.algorithms",
        "fedadam": "medfed.study.algorithms",
        "fedyogi": "medfed.study.algorithms",
        "fedams": "medfed.study.algorithms",
        "fedper": "medfed.study.algorithms",
        "fedbn": "medfed.study.algorithms",
        "ditto": "medfed.study.algorithms",
        "pfedme": "medfed.study.algorithms",
    },
)
REGISTRIES: tuple[Registry[Any], ...] = (TASKS, DATASETS, MODALITIES, ENCODERS, MODELS, ALGORITHMS)
_OF_OBJECTS: dict[str, Registry[Any]] = {
    "medfed.tasks.base:Task": TASKS,
    "medfed.datasets.base:Dataset": DATASETS,
    "medfed.modalities.base:Modality": MODALITIES,
}
_OF_CLASSES: dict[str, Registry[Any]] = {
    "medfed.study.parts:EncoderSpec": ENCODERS,
    "medfed.study.parts:ModelSpec": MODELS,
    "medfed.study.algorithms:AlgorithmSettings": ALGORITHMS,
}
P = TypeVar("P")


def register(part: P) -> P:
    """Add a part of your own under its ``name``, and return it; a class may be decorated with this.

    Args:
        part: a task, a dataset or a modality: an object, or a class that needs no arguments. An ``EncoderSpec``, a
            ``ModelSpec`` or an ``Algorithm``: the class.

    Raises:
        StudyError: it is none of these, it has no name, or another part has the name.
    """
    kind = part if isinstance(part, type) else type(part)
    origin = origin_of(_caller())
    for base, registry in {**_OF_OBJECTS, **_OF_CLASSES}.items():
        if not _is_a(kind, base):
            continue
        if base in _OF_CLASSES:
            _check_name(kind, registry)
            registry.register(kind, origin)
        else:
            made = _made(part, registry)
            _check_name(made, registry)
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
    frame = sys._getframe(1)
    while frame.f_back is not None and _module(frame).partition(".")[0] in ("medfed", "jaxtyping"):
        frame = frame.f_back
    return _module(frame)


def _module(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", MAIN[0]))


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
        raise StudyError(
            f"cannot make a {registry.kind} of the class {part.__qualname__}: {error}",
            hint=f"register the {registry.kind} itself: register({part.__name__}(…))",
        ) from error


def _check_name(part: Any, registry: Registry[Any]) -> None:
    if not isinstance(getattr(part, "name", None), str):
        raise StudyError(f"the {registry.kind} {part!r} has no name", hint='give it a name: name = "mine"')
