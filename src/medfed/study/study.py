"""A study: one frozen tree of settings read from TOML, hashed, and overridden on the command line with ``--set a.b=c``.

Paths are not science: data roots, caches and a foundation's folder are flags, never part of a study.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import operator
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field, SerializeAsAny, ValidationError, model_validator

from medfed.core import catalog
from medfed.core.catalog import ALGORITHMS, DATASETS, ENCODERS, MODALITIES, MODELS, TASKS, TaskFacts, task_facts
from medfed.core.errors import MedfedError, StudyError
from medfed.core.plugins import Plugin
from medfed.core.registry import Registry, implementation, unknown
from medfed.study.algorithms import AlgorithmSettings, composition_of, plain_mean
from medfed.study.data import MissingSettings, PartitionSettings, SplitSettings, TwinSpec
from medfed.study.evaluation import EvaluationSettings
from medfed.study.federation import ClientSettings, RoundSettings
from medfed.study.foundation import FoundationSettings, TinySettings
from medfed.study.injection import RECIPES, InjectionSettings
from medfed.study.models import MultimodalSpec
from medfed.study.parts import EncoderSpec, ModelSpec, SettingsModel
from medfed.study.words import PictureSettings, WordsSettings, with_places

if TYPE_CHECKING:
    from medfed.modalities.base import Modality
    from medfed.tasks.base import Task

__all__ = ["Study", "find_study", "load_study", "study_of"]

PICTURE = "medfed.tasks.pictures:picture_task"
QUICK = "quick"
"""The table of a study file that ``--quick`` lays over it; see :mod:`medfed.study.sweep`."""
Baseline = Literal["federated", "local", "centralised", "lora"]
"""A model trained next to the injected LLM; see :mod:`medfed.runs.baselines`."""


def _settings_of(registry: Registry[Any], value: object) -> object:
    """Build the registered settings that ``value`` names: ``"fedavg"`` or ``{name = "fedprox", mu = 0.01}``."""
    if isinstance(value, str):
        value = {"name": value}
    if isinstance(value, BaseModel) and not type(value).__module__.startswith("medfed."):
        registry.adopt(type(value))
    if not isinstance(value, Mapping):
        return value
    fields = dict(value)
    if "name" not in fields:
        raise ValueError(f"name the {registry.kind}: one of {', '.join(sorted(registry))}")
    try:
        chosen: type[BaseModel] = registry.lookup(str(fields.pop("name")))
    except MedfedError as error:
        raise ValueError(str(error)) from error
    return chosen.model_validate(fields)


def _task_names(value: object) -> object:
    """Let tasks stand among names: they are registered, and their names taken."""
    if not isinstance(value, list | tuple):
        return value
    return tuple(TASKS.adopt(item) if isinstance(item, BaseModel) else item for item in value)


def _algorithm(value: object) -> object:
    return _settings_of(ALGORITHMS, composition_of(value))


def _kind(value: object) -> object:
    return {"kind": "tiny", **value} if isinstance(value, Mapping) else value


def foundation_overrides(dtype: str | None, load_in_4bit: bool, device_map: str | None) -> list[str]:
    """Return the overrides that stand for ``--dtype``, ``--load-in-4bit`` and ``--device-map``."""
    given = {"dtype": dtype, "device_map": device_map}
    texts = [f"foundation.{key}={json.dumps(value)}" for key, value in given.items() if value is not None]
    return [*texts, *(["foundation.load_in_4bit=true"] if load_in_4bit else [])]


TaskNames = Annotated[tuple[str, ...], BeforeValidator(_task_names)]
EncoderField = Annotated[SerializeAsAny[EncoderSpec], BeforeValidator(partial(_settings_of, ENCODERS))]
PluginHash = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]


class Study(SettingsModel):
    """Everything that decides a run's numbers."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]  # folder and title of the run
    description: str = ""  # one sentence for the report
    seed: Annotated[int, Field(ge=0)] = 0  # the root of all randomness
    train: Annotated[TaskNames, Field(min_length=1)]  # tasks by registry name; in Python also the tasks themselves
    unseen: TaskNames = ()  # tasks that only the injected LLM answers
    # the content of plugins that must be loaded; a run adds those whose parts it uses
    plugins: tuple[PluginHash, ...] = Field(default=(), exclude_if=operator.not_)
    # `inject` trains the clients and injects into the LLM (FedKIM); `benchmark` compares their models (Med-MMFL);
    # `words` trains the clients, and the LLM says what findings mean: no patient enters it
    job: Literal["inject", "benchmark", "words"] = "inject"
    federate: bool = True  # False trains no client: the server injects from public data alone (FedKIM_pub)
    baselines: tuple[Baseline, ...] = ("federated",)  # trained next to the injected LLM on the same data
    twins: TwinSpec | None = None  # synthetic data to write when no `--data-root` is given; by default none is
    twin_sizes: dict[str, int] = Field(default={})  # patients per dataset where it differs from `twins.num_patients`
    split: SplitSettings = SplitSettings()
    partition: PartitionSettings = PartitionSettings()
    missing: MissingSettings = MissingSettings()
    model: Annotated[SerializeAsAny[ModelSpec], BeforeValidator(partial(_settings_of, MODELS))] = MultimodalSpec()
    modalities: dict[str, dict[str, Any]] = Field(default={})
    encoders: dict[str, EncoderField] = Field(default={})
    algorithm: Annotated[SerializeAsAny[AlgorithmSettings], BeforeValidator(_algorithm)]
    rounds: RoundSettings = RoundSettings()
    client: ClientSettings = ClientSettings()
    foundation: Annotated[FoundationSettings, Field(discriminator="kind"), BeforeValidator(_kind)] = TinySettings()
    injection: InjectionSettings = InjectionSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    # findings and clinical pictures that the LLM is asked about
    words: WordsSettings | None = Field(default=None, exclude_if=operator.not_)

    @model_validator(mode="before")
    @classmethod
    def _plugins_are_loaded(cls, given: object) -> object:
        wanted = set(given.get("plugins", ())) if isinstance(given, Mapping) else set()
        if wanted and (missing := wanted - {plugin.sha256 for plugin in catalog.registered_plugins()}):
            hint = "pass --plugin FILE_OR_MODULE; where a notebook defined the part, run its cell first"
            what = f"a plugin is not loaded, or has another content: {', '.join(sorted(missing))}"
            raise ValueError(f"{what}\n  next step: {hint}")
        return given

    @model_validator(mode="before")
    @classmethod
    def _recipe_of_the_paper_takes_its_mean(cls, given: object) -> object:
        """Let every client count as one (FedKIM Sec. 3.4) where the recipe is the paper's or the released code's."""
        if not isinstance(given, Mapping) or "algorithm" not in given:
            return given
        injection = given.get("injection")
        recipe = injection.get("recipe") if isinstance(injection, Mapping) else getattr(injection, "recipe", None)
        printed = isinstance(recipe, str) and bool(RECIPES.get(recipe))
        return {**given, "algorithm": plain_mean(given["algorithm"])} if printed else given

    @model_validator(mode="after")
    def _names_are_known(self) -> Study:
        for name in (*self.train, *self.unseen):
            _known(TASKS, name)
        if both := set(self.train) & set(self.unseen):
            raise ValueError(f"task {sorted(both)[0]!r} is both trained and unseen; a task is one or the other")
        trained = [task_facts(name) for name in self.train]
        every: list[TaskFacts | PictureSettings] = [*trained, *map(task_facts, self.unseen), *self.pictures]
        if taken := {picture.name for picture in self.pictures} & {*self.train, *self.unseen}:
            raise ValueError(f"the picture {sorted(taken)[0]!r} has the name of a task; rename it")
        for name in (*(facts.dataset for facts in every), *self.twin_sizes):
            _known(DATASETS, name)
        for name in (*self.modalities, *self.encoders):
            _known(MODALITIES, name)
        encoded = {modality for facts in trained for modality in facts.modalities}
        for name in sorted({modality for facts in every for modality in facts.modalities}):
            if name not in self.encoders and self.model.needs_encoders:
                raise ValueError(f"a task reads the modality {name!r}; add encoders.{name}")
            if name not in encoded:
                raise ValueError(f"no trained task reads the modality {name!r}, so its encoder would stay untrained")
        return self

    @model_validator(mode="after")
    def _parts_fit(self) -> Study:
        for name in self.train:
            facts = task_facts(name)
            if not (facts.injectable if self.job == "inject" else facts.trainable):
                if facts.trainable:
                    what = "has no one question with one answer to teach an LLM"
                    raise ValueError(f'{name!r} {what}; use job = "benchmark" for it')
                raise ValueError(f"the clients cannot train {name!r}, an open question; list it under unseen")
        if self.job == "inject" and not isinstance(self.model, MultimodalSpec):
            raise ValueError(f"injection reads encoders and heads of the model 'multimodal', not {self.model.name!r}")
        if self.job != "inject" and "lora" in self.baselines:
            job = "a benchmark" if self.job == "benchmark" else "the job 'words'"
            raise ValueError(f"the baseline 'lora' is an injected LLM, and {job} has none")
        if self.job == "words" and self.words is None:
            raise ValueError('the job "words" needs findings: add [words] with findings = ["icu"], say')
        if self.job == "benchmark" and self.words is not None:
            raise ValueError('[words] asks an LLM, and a benchmark has none; use job = "words"')
        if self.job == "benchmark" and self.unseen:
            raise ValueError("a benchmark has trained tasks only: its models have no answer to an unseen one")
        try:
            self.algorithm.check(self.client)
        except MedfedError as error:
            raise ValueError(str(error)) from error
        return self

    @model_validator(mode="after")
    def _sites_are_possible(self) -> Study:
        if self.partition.scheme != "sites":
            return self
        held = {task_facts(name).dataset for name in self.train}
        for site, names in self.partition.holdings.items():
            for name in names:
                _known(DATASETS, name)
                if name not in held:
                    what = f"partition.holdings: {site!r} is to hold {name!r}, which no trained task reads"
                    raise ValueError(f"{what}; allowed are {', '.join(sorted(held))}")
        if self.missing.by == "client" and self.missing.share > 0:
            raise ValueError(
                'missing.by = "client" draws among all clients, and a site knows itself only; '
                'use missing.by = "example", or say what a site holds in partition.holdings'
            )
        return self

    @property
    def train_tasks(self) -> tuple[Task, ...]:
        """The trained tasks."""
        return tuple(TASKS[name] for name in self.train)

    @property
    def tasks(self) -> tuple[Task, ...]:
        """All tasks, trained first, clinical pictures last."""
        return (*(TASKS[name] for name in (*self.train, *self.unseen)), *self.picture_tasks)

    @property
    def pictures(self) -> tuple[PictureSettings, ...]:
        """The clinical pictures, which are unseen tasks."""
        return self.words.pictures if self.words else ()

    @property
    def measured_modalities(self) -> frozenset[str]:
        """The modalities that findings, or rules of clinical pictures, are read off."""
        read = {finding.modality for finding in self.words.findings} if self.words else set()
        return frozenset(read.union(*(picture.modalities for picture in self.pictures if picture.reads_measures)))

    @cached_property
    def picture_tasks(self) -> tuple[Task, ...]:
        """The clinical pictures as tasks."""
        return tuple(implementation(PICTURE)(picture) for picture in self.pictures)

    @property
    def dataset_names(self) -> tuple[str, ...]:
        """The datasets the tasks read, sorted."""
        return tuple(sorted({task.dataset for task in self.tasks}))

    @property
    def modality_names(self) -> tuple[str, ...]:
        """All modalities that the datasets of the tasks hold (truths too) or an encoder is named for, sorted."""
        datasets = [DATASETS[name] for name in self.dataset_names]
        held = {modality for dataset in datasets for modality in (*dataset.modalities, *dataset.truths)}
        return tuple(sorted(held | self.encoders.keys()))

    def modality(self, name: str) -> Modality:
        """Return the modality with this study's settings."""
        default = MODALITIES[name]
        return type(default).model_validate({**default.model_dump(), **self.modalities.get(name, {})})

    def twin_spec(self, dataset: str) -> TwinSpec:
        """Return the spec of a dataset's twin. Raises StudyError if the study is for real data only."""
        if self.twins is None:
            what = f"the study {self.name!r} has no [twins], so it runs on real data only"
            raise StudyError(what, hint="pass --data-root DIR")
        size = self.twin_sizes.get(dataset, self.twins.num_patients)
        return self.twins.model_copy(update={"num_patients": size})

    @property
    def extensions(self) -> tuple[Plugin, ...]:
        """The plugins whose parts this study uses; a part that a notebook or script defines counts as one."""
        used: list[tuple[Registry[Any], Iterable[str]]] = [
            (TASKS, (*self.train, *self.unseen)),
            (DATASETS, self.dataset_names),
            (MODALITIES, self.modality_names),
            (ENCODERS, [spec.name for spec in self.encoders.values()]),
            (MODELS, [self.model.name]),
            (ALGORITHMS, self.algorithm.part_names),
        ]
        origins = {registry.origin(name) for registry, names in used for name in names if name in registry}
        return tuple(sorted(filter(None, origins), key=lambda plugin: (plugin.name, plugin.source)))

    def hash(self, *facts: str) -> str:
        """Return eight hex digits of the settings (but name, seed, description) and of ``facts`` (data checksums)."""
        settings = self.resolved()
        del settings["seed"], settings["description"], settings["name"]
        return hashlib.sha256(json.dumps([settings, facts], sort_keys=True).encode()).hexdigest()[:8]

    def resolved(self) -> dict[str, Any]:
        """Return all settings, defaults included, as JSON values; registry names stand with their fields."""
        settings: dict[str, Any] = self.model_dump(mode="json")
        settings["algorithm"]["name"] = self.algorithm.label
        settings["model"]["name"] = self.model.name
        for name, spec in self.encoders.items():
            settings["encoders"][name]["name"] = spec.name
        if contents := {*self.plugins, *(plugin.sha256 for plugin in self.extensions)}:
            settings["plugins"] = sorted(contents)
        return settings


def shipped_studies() -> dict[str, Path]:
    """Return the studies and sweeps that come with the package, by name."""
    here = Path(__file__).parents[1] / "studies"  # in a wheel; a checkout has them at its root
    folder = here if here.is_dir() else Path(__file__).parents[3] / "studies"
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def find_study(given: str | Path) -> Path:
    """Return the file of a path or of a shipped study's name; raise StudyError if there is neither."""
    shipped, path = shipped_studies(), Path(given)
    if path.exists() or len(path.parts) != 1:
        return path
    name = path.name.removesuffix(".toml")
    if name in shipped:
        return shipped[name]
    raise StudyError("no such study file", where=path, hint=unknown(shipped, name, "study").hint or "")


def load_study(path: Path, overrides: Sequence[str] = ()) -> Study:
    """Read a study file and apply ``key.path=value`` overrides (TOML values; bare words are text).

    Raises StudyError, naming file and field, if the file is missing, not TOML, or has a wrong key or value.
    """
    return study_of(read_tree(path), path, overrides)


def read_tree(path: Path) -> dict[str, Any]:
    """Read a TOML file. Raises StudyError if the file is missing or not TOML."""
    try:
        return with_places(tomllib.loads(path.read_text(encoding="utf-8")), path.parent)
    except FileNotFoundError as error:
        hint = f"shipped are {', '.join(shipped_studies())}"
        raise StudyError("no such study file", where=path, hint=hint) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise StudyError(f"not valid TOML: {error}", where=path, hint="correct that line") from error


def study_of(tree: dict[str, Any], where: str | Path, overrides: Sequence[str] = ()) -> Study:
    """Build the study of a tree of settings, with ``overrides`` put into it; raise StudyError, naming ``where``."""
    settings = {key: value for key, value in tree.items() if key != QUICK}
    for override in overrides:
        _apply(settings, override)
    try:
        return Study.model_validate(settings)
    except ValidationError as error:
        raise explained(error, where, Study) from error


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``base`` with ``over`` laid on top, tables key by key.

    A table that names another part than the base's (``name`` or ``kind``) takes its place whole.
    """
    result = dict(base)
    for key, value in over.items():
        below = result.get(key)
        below = {"name": below} if isinstance(below, str) else below
        result[key] = value
        if isinstance(below, Mapping) and isinstance(value, Mapping):
            same = all(value.get(word, below.get(word)) == below.get(word) for word in ("name", "kind"))
            result[key] = merged(below, value) if same else value
    return result


def _apply(tree: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise StudyError(f"--set wants key=value, got {override!r}", hint="for example --set rounds.num_rounds=3")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    *parents, last = key.strip().split(".")
    node = tree
    for parent in parents:
        below = node.setdefault(parent, {})
        node[parent] = node = {"name": below} if isinstance(below, str) else below
    node[last] = value


def explained(error: ValidationError, where: str | Path, model: type[BaseModel]) -> StudyError:
    """Return the first problem of a settings tree as an error with the field, and the nearest known key."""
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"]) or "study"
    if first["type"] == "extra_forbidden":
        known = _fields_at(first["loc"][:-1], model)
        near = difflib.get_close_matches(str(first["loc"][-1]), known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else (f"known keys: {', '.join(known)}" if known else "remove it")
        return StudyError(f"unknown key {field!r}", where=where, hint=hint)
    what, _, step = first["msg"].removeprefix("Value error, ").partition("\n  next step: ")
    repeated = isinstance(first["input"], Mapping | BaseModel) or repr(first["input"]) in what
    given = "" if repeated else f" (got {first['input']!r})"
    return StudyError(f"{field}: {what}{given}", where=where, hint=step or "correct it in the file, or with --set")


def _fields_at(location: Sequence[int | str], root: type[BaseModel]) -> list[str]:
    fields = root.model_fields
    for part in location:
        if part not in fields:
            return []
        fields = getattr(fields[str(part)].annotation, "model_fields", {})
    return sorted(fields)


def _known(registry: Registry[Any], name: str) -> None:
    if name not in registry:
        raise ValueError(str(unknown(registry, name, registry.kind)))
