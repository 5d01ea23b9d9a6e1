"""A site's policy: what this hospital lets leave, and for whom. Read from ``policy.toml`` in the site's own folder.

Nobody but the site's people can change it: no study, no server, no message. It is consulted before anything leaves, and
it refuses whole studies rather than drop parts of them silently.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationInfo, field_validator

from medfed.core.catalog import ALGORITHMS, TASKS
from medfed.core.errors import PolicyError
from medfed.core.registry import Registry, unknown
from medfed.core.types import Update
from medfed.federated.state import persistent_buffers, trainable_params
from medfed.runs.federation import build_model
from medfed.sites.settings import checked, read_settings, toml
from medfed.study.parts import SettingsModel
from medfed.study.study import Study

Part = Literal["encoders", "heads", "decoders", "buffers", "state"]
"""A part of an update: encoders, heads, other weights ("decoders": fusion too), buffers, the algorithm's tensors.

Buffers are normalisation statistics, which are means of patients' features."""

ANY = "any"
Names = Annotated[tuple[str, ...], Field(min_length=1)]
Contents = tuple[Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")], ...]
NO_POLICY = "make the site's folder with `medfed site init`"
HEADER = """\
# What this site lets leave. Only the site's people change this file: no study and no server can.
# A study that asks for more is refused as a whole, with the reason.
"""
FEWEST = "no task with fewer training examples, no score of fewer test examples"
PARTS = "of: encoders, heads, decoders (all other weights), buffers, state (the algorithm's own tensors)"


class Policy(SettingsModel):
    """The rules for what may leave a site. ``policy.toml`` holds each field's description above its value."""

    tasks: Names = Field(description='tasks that may be trained on our patients, or ["any"]')
    algorithms: Names = Field(description='federated algorithms, or ["any"]')
    studies: Names = Field(description='SHA-256 of the studies we agreed to, or ["any"]')
    min_examples: int = Field(10, ge=1, description=FEWEST)
    max_rounds: int = Field(default=100, ge=1, description="most rounds of one study")
    may_leave: tuple[Part, ...] = Field(("encoders",), description=PARTS)
    class_counts: bool = Field(default=False, description="may the number of examples per class be sent?")
    scores: bool = Field(default=True, description="may the final model's scores on our own test patients be sent?")
    plugins: Contents = Field(default=(), description="SHA-256 of the plugins that may run here, as sha256:…")

    @field_validator("tasks", "algorithms")
    @classmethod
    def _known(cls, names: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        registry: Registry[Any] = ALGORITHMS if info.field_name == "algorithms" else TASKS
        for name in set(names) - {ANY}:
            if name not in registry:
                raise ValueError(str(unknown(registry, name, registry.kind)))
        return names

    @field_validator("studies")
    @classmethod
    def _hashes(cls, hashes: tuple[str, ...]) -> tuple[str, ...]:
        if not all(re.fullmatch(r"any|[0-9a-f]{64}", value) for value in hashes):
            raise ValueError('a study is named by the 64 hex digits of its SHA-256, or by "any"')
        return hashes

    @classmethod
    def load(cls, path: Path) -> Policy:
        """Read a policy file. Raises SiteError if it is absent, not TOML, or has an unknown key or a wrong value."""
        return read_settings(path, cls, NO_POLICY)

    @property
    def allowed_tasks(self) -> tuple[str, ...] | None:
        """The tasks that may be trained; None for any."""
        return None if ANY in self.tasks else self.tasks

    def as_toml(self) -> str:
        """Return the policy file, with a comment for every setting."""
        values, fields = self.model_dump(mode="json"), type(self).model_fields.items()
        return HEADER + "".join(f"\n# {field.description}\n{toml({name: values[name]})}" for name, field in fields)

    def check_study(self, study: Study) -> None:
        """Refuse a study that asks for more than the policy allows, before any data is read. Raises PolicyError, naming
        the policy's field and what the site's data officer may change."""
        digest, rounds = study_sha256(study), study.rounds.num_rounds
        if not _allows(self.studies, digest):
            raise _refusal("studies", f"the study {study.name!r} ({digest}) is not one this site agreed to", digest)
        if not any(_allows(self.tasks, task) for task in study.train):
            raise _refusal("tasks", f"the study trains {', '.join(study.train)}, none of which is allowed here")
        for name in study.algorithm.part_names:
            if not _allows(self.algorithms, name):
                raise _refusal("algorithms", f"the study's algorithm {name!r} is not allowed here")
        for plugin in study.extensions:
            if plugin.sha256 not in self.plugins:
                raise _refusal("plugins", f"the study uses the plugin {plugin}", plugin.sha256)
        if rounds > self.max_rounds:
            raise _refusal("max_rounds", f"the study has {rounds} rounds, allowed are {self.max_rounds}")
        for part, tensor in parts_sent(study).items():
            if part not in self.may_leave:
                raise _refusal("may_leave", f"the study's clients send {part} (tensor {tensor!r})", part)

    def check_counts(self, examples: Mapping[str, int]) -> None:
        """Raise PolicyError for a task that is not allowed, or has so few training examples here that an update reveals
        single patients."""
        for task, count in sorted(examples.items()):
            if count and not _allows(self.tasks, task):
                what = f"the task {task!r} is not allowed here, and its data lies in the data root"
                raise _refusal("tasks", what, task)
            if 0 < count < self.min_examples:
                what = f"the task {task!r} has fewer training examples here than {self.min_examples}"
                raise _refusal("min_examples", what)

    def check_update(self, update: Update) -> None:
        """Raise PolicyError for an update that holds what may not leave, before it is packed."""
        if update.round > self.max_rounds:
            raise _refusal("max_rounds", f"this is round {update.round}, allowed are {self.max_rounds}")
        if update.num_examples < self.min_examples:
            raise _refusal("min_examples", f"the update is of fewer than {self.min_examples} examples")
        for name in sorted((*update.delta, *update.scales)):
            if (part := part_of(name)) not in self.may_leave:
                raise _refusal("may_leave", f"the tensor {name!r} is one of the {part}", part)
        for private, tensors in (("buffers", update.buffers), ("state", update.state)):
            if tensors and private not in self.may_leave:
                raise _refusal("may_leave", f"the update holds {private} (tensor {min(tensors)!r})", private)

    def check_scores(self, scores: Mapping[str, Mapping[str, float | int | None]]) -> None:
        """Raise PolicyError for scores (task → metric → value) that may not leave, or are of too few examples ``n``."""
        if scores and not self.scores:
            raise _refusal("scores", "the site's scores may not leave")
        for task, values in sorted(scores.items()):
            if 0 < (values.get("n") or 0) < self.min_examples:
                raise _refusal("min_examples", f"the scores of {task!r} are of fewer than {self.min_examples} examples")


class _AllowedPlugins(BaseModel):
    plugins: Contents = ()


def allowed_plugins(path: Path) -> tuple[str, ...]:
    """Return the content of the plugins that a policy file allows; names in it may be those of their parts. Raises
    SiteError if the file is absent, not TOML, or names no content."""
    return read_settings(path, _AllowedPlugins, NO_POLICY).plugins


def policy_for(study: Study, may_leave: Sequence[str], min_examples: int) -> Policy:
    """Return a policy that agrees to ``study`` alone, and to no more than ``may_leave`` of it. Raises SiteError if
    ``may_leave`` names no part of an update."""
    agreed = {"tasks": study.train, "algorithms": study.algorithm.part_names, "studies": (study_sha256(study),)}
    limits = {"min_examples": min_examples, "max_rounds": study.rounds.num_rounds, "may_leave": tuple(may_leave)}
    plugins = tuple(sorted({plugin.sha256 for plugin in study.extensions}))
    return checked(Policy, {**agreed, **limits, "plugins": plugins})


def study_sha256(study: Study) -> str:
    """Return the SHA-256 in hex of all of a study's settings, defaults, seed and name included."""
    return hashlib.sha256(json.dumps(study.resolved(), sort_keys=True).encode()).hexdigest()


def part_of(tensor: str) -> Part:
    """Return which part of a model a weight belongs to: ``encoders.image.blocks.0.weight`` → ``encoders``."""
    first = tensor.partition(".")[0]
    return "encoders" if first == "encoders" else "heads" if first == "heads" else "decoders"


def parts_sent(study: Study) -> dict[Part, str]:
    """Return what a client of ``study`` sends: part → the first of its tensors; the model is built for it."""
    model = build_model(study)
    params, buffers, algorithm = trainable_params(model), persistent_buffers(model), study.algorithm.build()
    stay = algorithm.private({name: value.detach() for name, value in params.items()}, buffers)
    parts: dict[Part, str] = {}
    for name in sorted(params.keys() - stay):
        parts.setdefault(part_of(name), name)
    for name in sorted(buffers.keys() - stay):
        parts.setdefault("buffers", name)
    if algorithm.sends_state:
        parts["state"] = f"{study.algorithm.label}'s own"
    return parts


def _allows(names: tuple[str, ...], name: str) -> bool:
    return ANY in names or name in names


def _refusal(field: str, what: str, add: str | None = None) -> PolicyError:
    change = f"add {add!r} to {field}" if add else f"change {field}"
    return PolicyError(what, where=f"policy.toml, {field}", hint=f"the site's data officer may {change} in policy.toml")
