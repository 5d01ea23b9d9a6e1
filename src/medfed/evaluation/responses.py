"""One task's test examples and every model's responses to them, counted by the task's scorer.

A model whose name has a slash, such as ``local/client-0``, is a member of the group before the slash, unless it is a
control (:mod:`medfed.evaluation.controls`). The group's value is the mean of its members' values. Constants are scored
as every model is; where the responses hold none of their own, the scorer adds its constants.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import compress

import numpy as np
from jaxtyping import Bool, Float

from medfed.core.errors import RunError
from medfed.core.registry import unknown
from medfed.evaluation.controls import is_control
from medfed.evaluation.metrics import Score
from medfed.evaluation.scorers import SCORERS
from medfed.evaluation.scorers.base import Replicates, Scored, Scorer, Weights
from medfed.evaluation.scorers.words import ScoredPart
from medfed.records.schema import Json, Prediction, TaskFacts

MEMBER, ABSENT = "/", object()
"""The sign between a group's name and its member's; the response of a model that gave none to an example."""


def is_constant(model: str) -> bool:
    """Whether ``model`` looks at nothing, by its name."""
    return model.startswith(("always-", "constant-", "majority"))


@dataclass(frozen=True)
class TaskResponses:
    """The test examples of one task, and what every model responded, or :data:`ABSENT`; ids may be hashed.

    ``clients`` says where every example was tested; None if every model answers every example.
    """

    task: str
    facts: TaskFacts
    examples: Sequence[str]
    patients: Sequence[str]
    clients: Sequence[str] | None
    truths: Sequence[Json]
    responses: Mapping[str, Sequence[Json]]

    @classmethod
    def of(cls, task: str, facts: TaskFacts, lines: Sequence[Prediction]) -> TaskResponses:
        """Return what the lines of a prediction file hold."""
        models = dict.fromkeys(model for line in lines for model in line.responses)
        examples, patients = [line.example for line in lines], [line.patient for line in lines]
        clients = [line.client for line in lines if line.client is not None]
        responses = {model: [line.responses.get(model, ABSENT) for line in lines] for model in models}
        return cls(task, facts, examples, patients, clients or None, [line.truth for line in lines], responses)

    def __post_init__(self) -> None:
        columns = {"patients": self.patients, "truths": self.truths, "clients": self.clients or self.examples}
        for name, column in {**columns, **self.responses}.items():
            if len(column) != len(self.examples):
                raise self._broken(f"{len(self.examples)} examples, but {len(column)} of {name}")
        for model, responses in self.responses.items():
            given = [response for response in responses if response is not ABSENT]
            if wrong := self.scorer.problem(self.truths, given, self.num_answers):
                raise self._broken(f"model {model}: {wrong}")

    @cached_property
    def scorer(self) -> Scorer:
        """The scorer of the task's kind of answer."""
        if self.facts.kind not in SCORERS:
            raise unknown(SCORERS, self.facts.kind, "kind of answer")
        return SCORERS[self.facts.kind]

    @cached_property
    def num_answers(self) -> int:
        """Answers of a closed question."""
        given = (response for column in self.responses.values() for response in column if isinstance(response, list))
        return len(self.facts.answers) or len(next(given, ()))

    @cached_property
    def constants(self) -> dict[tuple[str, str | None], Json]:
        """(constant, part) → its response to every example, of the constants that the scorer adds."""
        if any(map(is_constant, self.responses)):
            return {}
        constants: dict[tuple[str, str | None], Json] = {}
        for part, mask in self.masks.items():
            made = self.scorer.constants(list(compress(self.truths, mask)), self.num_answers, self.facts.answers)
            constants |= {(name, part): response for name, response in made.items()}
        return constants

    @cached_property
    def masks(self) -> dict[str | None, Bool[np.ndarray, " example"]]:
        """Part → the examples that belong to it."""
        return {part: self.scorer.mask(part, self.truths) for part in self.scorer.parts}

    @cached_property
    def leading(self) -> str | None:
        """The part that ranks models: of questions in words the open ones, unless there are none."""
        return next((part for part, mask in self.masks.items() if mask.any()), self.scorer.parts[0])

    @cached_property
    def scored(self) -> dict[tuple[str, str | None], Scored]:
        """(model, part) → its responses, counted; groups are not among the models."""
        rows = range(len(self.examples))
        wholes = {model: self._scored(column, rows) for model, column in self.responses.items()}
        made = {(model, part): whole for model, whole in wholes.items() for part in self.masks}
        made |= {key: self._scored([response] * len(rows), rows) for key, response in self.constants.items()}
        return {
            (name, part): whole if part is None else ScoredPart(whole, part, self.masks[part])
            for (name, part), whole in made.items()
        }

    @cached_property
    def groups(self) -> dict[str, list[str]]:
        """Group → its members."""
        members: dict[str, list[str]] = {}
        for model in self.responses:
            if MEMBER in model and not is_control(model):
                members.setdefault(model.partition(MEMBER)[0], []).append(model)
        return members

    @cached_property
    def models(self) -> dict[tuple[str, str | None], list[str]]:
        """(model, part) → the models behind it: itself, or a group's members. Groups come last."""
        members = {name for names in self.groups.values() for name in names}
        alone = {(model, part): [model] for model, part in self.scored if model not in members}
        return alone | {(group, part): names for group, names in self.groups.items() for part in self.masks}

    @cached_property
    def answered(self) -> dict[str, Bool[np.ndarray, " example"]]:
        """Model, group or constant → the examples that it (of a group, every member) responded to."""
        given = {model: [one is not ABSENT for one in column] for model, column in self.responses.items()}
        masks = {model: np.array(column, bool) for model, column in given.items()}
        masks |= {name: np.ones(len(self.examples), bool) for name, _ in self.constants}
        return masks | {group: np.all([masks[name] for name in names], axis=0) for group, names in self.groups.items()}

    @cached_property
    def by_client(self) -> dict[str, dict[str, dict[str, Score]]]:
        """Model → client → metric → value on the client's own examples, where examples are tested at clients."""
        places: dict[str, list[int]] = {}
        for row, client in enumerate(self.clients or ()):
            places.setdefault(client, []).append(row)
        values: dict[str, dict[str, dict[str, Score]]] = {}
        for model, column in self.responses.items():
            for client, rows in sorted(places.items()):
                if any(column[row] is not ABSENT for row in rows):
                    values.setdefault(model, {})[client] = self._scored(column, rows).points
        return values

    def score(self, model: str, part: str | None, metric: str) -> Score:
        """Return a metric's value on all examples; of a group, the mean of its members' values."""
        scores = [self.scored[name, part].points[metric] for name in self.models[model, part]]
        values = [one.value for one in scores if one.value is not None]
        reason = next((one.reason for one in scores if one.reason), None)
        return Score(sum(values) / len(values) if len(values) == len(scores) else None, reason)

    def weighted(self, model: str, part: str | None, metric: str, weights: Weights) -> Replicates:
        """Return a metric per row of example weights; NaN where it is not defined."""
        members = {name: self.scored[name, part] for name in self.models[model, part]}
        parts = [member.value(metric, self.weights_of(name, weights)) for name, member in members.items()]
        mean: Replicates = np.mean(parts, axis=0)
        return mean

    def weights_of(self, model: str, weights: Weights) -> Float[np.ndarray, "replicate answered"]:
        """Return the weights of the examples that the model responded to."""
        mask = self.answered[model]
        return weights if mask.all() else weights[:, mask]

    def single_class(self, model: str, part: str | None) -> bool:
        """Whether the model, or a member of the group, gives every example the same answer."""
        return any(self.scored[name, part].single_class for name in self.models[model, part])

    def patients_of(self, part: str | None) -> list[str]:
        """Return the patient of every example of the part."""
        return list(compress(self.patients, self.masks[part]))

    @cached_property
    def sample(self) -> str:
        """Fingerprint of examples and truths, in order; equal where two runs were tested on the same."""
        pairs = zip(self.examples, self.truths, strict=True)
        text = "\n".join(f"{example} {self.scorer.identity(truth)}" for example, truth in pairs)
        return hashlib.sha256(text.encode()).hexdigest()

    def key(self, model: str, part: str | None) -> str:
        """Return a fingerprint of the model's responses: equal ones are resampled once."""
        return "\n".join(self._digests[name, part] for name in self.models[model, part])

    @cached_property
    def _digests(self) -> dict[tuple[str, str | None], str]:
        dumped = {model: json.dumps(column, default=str) for model, column in self.responses.items()}
        texts = {(model, part): text for model, text in dumped.items() for part in self.masks}
        texts |= {key: f"constant {json.dumps(one)}" for key, one in self.constants.items()}
        return {key: hashlib.sha256(text.encode()).hexdigest() for key, text in texts.items()}

    def _scored(self, column: Sequence[Json], rows: Sequence[int]) -> Scored:
        """Count the responses of a column to those of the examples in ``rows`` that it has one for."""
        given = [row for row in rows if column[row] is not ABSENT]
        return self.scorer.scored([self.truths[row] for row in given], [column[row] for row in given])

    def _broken(self, what: str) -> RunError:
        hint = "give a patient, a truth and a response for every example, in one order"
        return RunError(what, where=f"predictions of task {self.task}", hint=hint)
