"""Responses to test examples and their scores: of models, of their differences, at the sites."""

from __future__ import annotations

from medfed.records.schema.base import File, Json, Line, Number, Record, Role
from medfed.records.schema.federation import FailedClient


class Prediction(Line, path="predictions/<task>.jsonl"):
    """A line of ``predictions/<task>.jsonl``: one test example, what is true of it, and every model's response.

    ============  =============================================  ===================================================
    kind          truth                                          response
    ============  =============================================  ===================================================
    choice        class index                                    probability of every answer
    multilabel    1, 0 or null per label                         probability of every label
    words         text; or ``{"reference", "closed", "target"}``  text; or ``{"text", "cut", "probabilities"}``
    mask          ``{"voxels", "diagonal_mm"}``                  metrics by region
    ranking       place of the right candidate                   ``{"rank", "candidates", …}``
    ============  =============================================  ===================================================

    Attributes:
        example, patient: hashed ids.
        client: where the example was tested; None if every model answers every example.
        question: the example's own question, where the task has none.
        truth: what is true.
        responses: model → response; a model without a response to this example is absent.
    """

    example: str
    patient: str
    client: str | None = None
    question: str | None = None
    truth: Json
    responses: dict[str, Json]


class TaskFacts(Record):
    """How a task was scored: its title, role, scorer, and the answers of a closed question by class index."""

    title: str = ""
    role: Role = "trained"
    kind: str = "classification"
    answers: tuple[str, ...] = ()


class Score(Record):
    """A metric of one model on one task, or of a difference between two models.

    Attributes:
        task, model, metric: what was measured.
        role: whether the task was trained on.
        part: which of the task's questions; None where a task has no parts.
        title: the metric's title.
        primary: whether the metric ranks models on this task.
        higher_is_better: the metric's direction.
        value: on all test examples together; None where the metric is not defined.
        ci_low, ci_high: its interval; None where there is none.
        n: test examples.
        num_patients: patients among them; None where it was not recorded.
        num_positive: examples of the positive class, of a task with two.
        reason: why a value or an interval is missing, or which convention made it a number.
        signature: sacreBLEU's signature.
    """

    task: str
    model: str
    role: Role = "trained"
    part: str | None = None
    metric: str
    title: str = ""
    primary: bool = False
    higher_is_better: bool = True
    value: Number = None
    ci_low: Number = None
    ci_high: Number = None
    n: int = 0
    num_patients: int | None = None
    num_positive: int | None = None
    reason: str | None = None
    signature: str | None = None


class ScoreRow(Score):
    """A row of ``scores.json``.

    Attributes:
        clients: client → value on its own test examples; empty where examples belong to no client.
        worst: the worst value of a client, or of a group's model.
        worst_client: the client it belongs to.
        single_class: whether the model gives every example the same answer.
        answer: the text of a constant.
    """

    clients: dict[str, Number] = {}
    worst: Number = None
    worst_client: str | None = None
    single_class: bool = False
    answer: str | None = None


class Difference(Score):
    """``value`` is the metric of ``model`` minus that of ``baseline``, on the same patients and resamples."""

    baseline: str


class ScoreFile(File, path="scores.json"):
    """``scores.json``: every model, metric and interval, in one form for every kind of answer."""

    tasks: dict[str, TaskFacts] = {}
    rows: tuple[ScoreRow, ...] = ()
    differences: tuple[Difference, ...] = ()

    def joined(self, other: ScoreFile) -> ScoreFile:
        """Return the tasks, rows and differences of both."""
        tasks, rows = {**self.tasks, **other.tasks}, (*self.rows, *other.rows)
        return self.model_copy(
            update={"tasks": tasks, "rows": rows, "differences": (*self.differences, *other.differences)}
        )

    def of(self, *, knowledge: bool) -> ScoreFile:
        """Return the tasks without patients, or all others."""
        names = {name for name, facts in self.tasks.items() if (facts.role == "knowledge") == knowledge}
        names |= {row.task for row in self.rows if (row.role == "knowledge") == knowledge}  # old files name no tasks
        rows, differences = (tuple(row for row in part if row.task in names) for part in (self.rows, self.differences))
        tasks = {name: facts for name, facts in self.tasks.items() if name in names}
        return self.model_copy(update={"tasks": tasks, "rows": rows, "differences": differences})

    def about(self, *, open_questions: bool) -> ScoreFile:
        """Return the rows of open questions (those with a part), or the others."""
        rows, differences = (
            tuple(row for row in part if (row.part is not None) == open_questions)
            for part in (self.rows, self.differences)
        )
        return self.model_copy(update={"rows": rows, "differences": differences})


class SiteRow(Record):
    """One model's value of one metric, site by site; ``pooled`` is weighted by the sites' examples."""

    task: str
    model: str
    metric: str
    title: str = ""
    higher_is_better: bool = True
    primary: bool = False
    pooled: Number = None
    n: int = 0
    sites: dict[str, Number] = {}
    site_n: dict[str, int] = {}
    worst: Number = None
    worst_site: str | None = None


class SiteFile(File, path="sites.json"):
    """``sites.json``: what every site scored on its own patients; ``scores`` is model → site → task → metric."""

    scores: dict[str, dict[str, dict[str, dict[str, Number]]]] = {}
    rows: tuple[SiteRow, ...] = ()
    failures: tuple[FailedClient, ...] = ()
