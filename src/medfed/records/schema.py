"""The files of a run: one frozen record for every JSON file and for every kind of line in a JSON-lines file.

Writers construct these records and readers get them back, through :class:`medfed.records.folder.RunFolder` alone.
A :class:`File` carries ``schema_version``; the lines of a run belong to the version of its ``study.json``.
The JSON Schema of all records is published in ``docs/schema``.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

SCHEMA_VERSION = "2"
"""Version 1 is every run without a ``schema_version``; :mod:`medfed.records.legacy` reads it."""

Role = Literal["trained", "unseen", "knowledge"]
"""Of a task: a trained one, one the injection never saw, or an examination without patients."""
Json = Any
"""A value that JSON can hold, whose form depends on the kind of answer (see :class:`Prediction`)."""


def finite(value: Json) -> Json:
    """Return a value without NaN and infinities, which become None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list):
        return [finite(part) for part in value]
    return {name: finite(part) for name, part in value.items()} if isinstance(value, dict) else value


Number = Annotated[float | None, BeforeValidator(finite)]
"""A finite number; None stands for null, NaN and infinities."""


class Record(BaseModel):
    """A frozen part of a run file; a field that it does not name is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Stored(Record):
    """A record with a file of its own; ``NAME`` is the file's path in the run folder."""

    NAME: ClassVar[str]

    def __init_subclass__(cls, path: str = "", **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.NAME = path


class File(Stored):
    """A JSON file of a run folder."""

    schema_version: str = SCHEMA_VERSION


class Line(Stored):
    """A line of a JSON-lines file."""


class StudyFile(File, path="study.json", extra="allow"):
    """``study.json``: the resolved settings of the run, as :class:`medfed.study.study.Study` reads them."""

    name: str = ""
    description: str = ""
    seed: int = 0
    train: tuple[str, ...] = ()
    unseen: tuple[str, ...] = ()
    job: str = "inject"

    @property
    def settings(self) -> dict[str, Any]:
        """The settings alone, as a study file has them."""
        return self.model_dump(mode="json", exclude={"schema_version"})


Ids = dict[str, dict[str, tuple[str, ...]]]
"""Client or server split → dataset → example ids."""
Counts = dict[str, dict[str, dict[str, int]]]
"""Client → task → class → examples."""


class PartitionFile(File, path="partition.json"):
    """``partition.json``: who holds what.

    Attributes:
        scheme: how the examples were divided.
        seed: seed of the division.
        hash: fingerprint of ``clients``.
        clients: the clients' training examples.
        server: the server's public, development and test examples.
        client_tests: the test examples that were dealt to the clients.
        site_tests: the sites' own test examples.
        counts: training examples by class; empty for a site that does not report classes.
        num_examples: training examples of such a site, by task.
        skipped: examples of a site that could not be decoded, by dataset.
        left_out: clients with too few examples to take part.
    """

    scheme: str = "unknown"
    seed: int | None = None
    hash: str = ""
    clients: Ids = {}
    server: Ids = {}
    client_tests: Ids = {}
    site_tests: Ids = {}
    counts: Counts = {}
    num_examples: dict[str, dict[str, int]] = {}
    skipped: dict[str, dict[str, int]] = {}
    left_out: tuple[str, ...] = ()


class ModalityMoments(Record):
    """Count, sum and sum of squares of one modality, per channel."""

    count: tuple[float, ...]
    total: tuple[float, ...]
    squares: tuple[float, ...]


class NormalisationFile(File, path="normalisation.json"):
    """``normalisation.json``: the pooled moments that every input is normalised by."""

    moments: dict[str, ModalityMoments] = {}


class ClientRound(Record):
    """One client in one round."""

    client: str
    losses: dict[str, Number] = {}
    num_examples: int = 0
    num_steps: int = 0
    bytes_up: int = 0
    bytes_down: int = 0


class FailedClient(Record):
    """A client that gave no usable answer; ``model`` names the federation where several are on record."""

    client: str
    phase: str = ""
    reason: str = ""
    model: str | None = None


class Round(Line, path="rounds.jsonl"):
    """A line of ``rounds.jsonl``.

    Attributes:
        round: from 1.
        clients: the clients that took part, by name.
        failures: those that did not, and why.
        base: fingerprint of the weights that were sent out; None where no client trains.
        upload_dtype: number format of the uploads.
        upload_error: relative error of the mean update by that format; None if no weight travels.
    """

    round: int
    clients: tuple[ClientRound, ...] = ()
    failures: tuple[FailedClient, ...] = ()
    base: str | None = None
    upload_dtype: str = "float32"
    upload_error: Number = None


class Timing(Line, path="timings.jsonl"):
    """A line of ``timings.jsonl``: how long a phase took, of one client or of the server."""

    round: int | None = None
    phase: str
    client: str | None = None
    seconds: float


class Development(Line, path="development.jsonl"):
    """A line of ``development.jsonl``: the watched metrics of one task after one round."""

    round: int
    model: str
    task: str
    values: dict[str, Number] = {}


class Step(Line, path="injection/steps.jsonl"):
    """A line of ``injection/steps.jsonl``: one step of the server's optimizer.

    Attributes:
        round: from 1.
        epoch, step: from 0, within the round.
        loss: mean over the batch.
        losses: mean by task.
        rehearsal: mean negative log-likelihood (``nll``) and KL (``kl``) of the rehearsed tokens, and of the answers in
            words (``words``), where they count.
        grad_norm: before clipping.
    """

    round: int
    epoch: int = 0
    step: int
    loss: Number = None
    losses: dict[str, Number] = {}
    rehearsal: dict[str, Number] = {}
    grad_norm: Number = None


class Retained(Line, path="injection/retention.jsonl"):
    """A line of ``injection/retention.jsonl``: the responses to one examination without patients, in one form.

    Attributes:
        round: after which the LLM answered; 0 is before the first injection.
        examination: the set.
        form: in which the questions were put.
        responses: a probability per answer, or the text's negative log-likelihood per token, question by question.
    """

    round: int
    examination: str
    form: str
    responses: tuple[Json, ...]


class Routing(Line, path="injection/routing.jsonl"):
    """A line of ``injection/routing.jsonl``: the router's weights by task, and how far tasks lie apart."""

    round: int
    alpha: dict[str, tuple[float, ...]] = {}
    entropy: dict[str, Number] = {}
    total_variation: Number = None


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


class Reuse(Record):
    """The trained heads that answered one task which nobody trained.

    Attributes:
        task: the task that they answered.
        nearest: the trained task whose text is nearest; labels have no part in it.
        best: the trained task with the highest score, in hindsight.
        similarity: trained task → cosine of the texts.
        left_out: trained task → why its head did not answer.
    """

    task: str
    nearest: str | None = None
    best: str | None = None
    similarity: dict[str, Number] = {}
    left_out: dict[str, str] = {}


class AnswerCheck(Record):
    """Whether the injected LLM's answers to one closed task follow the heads, and the question.

    Attributes:
        task: the task.
        rank_correlation: model → Spearman's rank correlation of its answers with the LLM's, over all test examples.
        n: test examples of the question in other words.
        negation: share of them where the negated question has the opposite answer.
        paraphrases: share of answers to paraphrases that equal that to the question.
        opposite, reworded: the questions.
    """

    task: str
    rank_correlation: dict[str, Number] = {}
    n: int = 0
    negation: Number = None
    paraphrases: Number = None
    opposite: str = ""
    reworded: tuple[str, ...] = ()


class ControlFile(File, path="controls.json"):
    """``controls.json``: which controls answered what, and what the LLM's own answers follow.

    Attributes:
        reuse: the heads that answered each unseen task.
        absent: task → control → why it has no answer there.
        answers: closed tasks, and whether the LLM's answers follow heads and question.
    """

    reuse: tuple[Reuse, ...] = ()
    absent: dict[str, dict[str, str]] = {}
    answers: tuple[AnswerCheck, ...] = ()


class View(Record):
    """A picture of one modality of an example: an 8-bit PNG in base64, or values over time."""

    kind: Literal["image", "trace", "line"]
    title: str = ""
    unit: str = ""
    png: Annotated[str, Field(pattern=r"^[A-Za-z0-9+/=]*$")] = ""
    seconds: float = 0.0
    values: tuple[Number, ...] = ()


class ExpertWeight(Record):
    """An expert, numbered from 1, and its share of the mixture."""

    expert: int
    weight: float


class ExampleCard(Record):
    """One test example: its views, its question, every model's response, and what is true.

    ``cut`` names the models whose answer in words was still running at its limit. ``withheld`` says why an example of
    real data shows nothing of this.
    """

    task: str
    example: str = ""
    question: str = ""
    gold: str = ""
    probabilities: dict[str, dict[str, Number]] = {}
    generated: dict[str, str] = {}
    cut: tuple[str, ...] = ()
    experts: tuple[ExpertWeight, ...] = ()
    views: tuple[View, ...] = ()
    withheld: str | None = None


class CardFile(File, path="cards.json"):
    """``cards.json``: test examples, and the rule that chose them."""

    rule: str = ""
    cards: tuple[ExampleCard, ...] = ()


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


class Skipped(Record):
    """An example that could not be decoded."""

    example: str = ""
    where: str = ""
    what: str = ""


class DataFacts(Record):
    """A run's knowledge of one dataset."""

    title: str = ""
    version: str = ""
    licence: str = "unknown"
    access: str = ""
    citation: str = ""
    note: str = ""
    synthetic: bool = False
    num_examples: int = 0
    num_patients: int = 0
    skipped: tuple[Skipped, ...] = ()
    checksum: str = ""


class Cost(Record):
    """The cost of a federation.

    Attributes:
        bytes_up, bytes_down: over all rounds and clients.
        upload_error: median over rounds of the mean update's relative error; None if no weight travels.
        train_seconds: at the clients.
        round_seconds: of the rounds.
        peak_memory_bytes: of the process.
    """

    bytes_up: int | float = 0
    bytes_down: int | float = 0
    upload_error: Number = None
    train_seconds: float = 0.0
    round_seconds: float = 0.0
    peak_memory_bytes: int | float = 0


class PluginFacts(Record):
    """Code from outside the package whose parts a run uses; see :class:`medfed.core.plugins.Plugin`."""

    name: str
    sha256: str
    source: str = ""


class ProvenanceFile(File, path="provenance.json"):
    """``provenance.json``: code, versions, machine and data behind a run. Wall-clock facts stand here.

    Attributes:
        data: dataset → facts.
        cost: of the federation.
        federations: baseline model → its folder in ``runs/federations``.
        corpus: text that the tiny LLM was pre-trained on, in place of the package's own.
        titles: task → title.
        foundation: facts of the LLM, with its fingerprint before and after.
        plugins: code from outside the package; a part that a notebook or script defines has no source.
    """

    medfed: str = "unknown"
    commit: str | None = None
    dirty: bool | None = None
    python: str = "unknown"
    platform: str = "unknown"
    processor: str = "unknown"
    versions: dict[str, str | None] = {}
    device: str = "unknown"
    threads: int | None = None
    started: str | None = None
    finished: str | None = None
    command: str | tuple[str, ...] = ""
    data: dict[str, DataFacts] = {}
    cost: Cost | None = None
    federations: dict[str, str] = {}
    corpus: str | None = None
    titles: dict[str, str] = {}
    foundation: dict[str, Json] = {}
    plugins: tuple[PluginFacts, ...] = ()


class InjectionFile(File, path="injection/injection.json"):
    """``injection/injection.json``: the LLM, how it was injected into, and what calibration adds to its answers."""

    foundation: str = ""
    settings: dict[str, Json] = {}
    offsets: dict[str, tuple[float, ...]]


class GreetingFile(File, path="greetings.json"):
    """``greetings.json``: what every site elsewhere reported of itself before the first round."""

    sites: dict[str, Json] = {}


class Compared(Record):
    """One model of one cell on one task, over the cell's seeds; ``part`` names a share of the task's questions."""

    label: str
    model: str
    task: str
    role: Role = "trained"
    metric: str
    part: str | None = None
    value: Number = None
    ci_low: Number = None
    ci_high: Number = None
    higher_is_better: bool = True
    num_seeds: int = 1
    reason: str | None = None


class ComparedRow(Compared):
    """A value: the mean over seeds, with the value of every seed."""

    per_seed: tuple[Number, ...] = ()
    n: int = 0
    single_class: bool = False


class ComparedDifference(Compared):
    """A paired difference between two cells or models; ``significant`` needs enough seeds and Holm's correction."""

    baseline_label: str
    baseline_model: str
    p: Number = None
    p_holm: Number = None
    significant: bool = False


class ComparisonFile(File, path="comparison.json"):
    """``comparison.json``: several runs compared over seeds.

    Attributes:
        name, description: of the sweep.
        paper: the tables of the paper that the sweep reproduces; empty means all.
        labels: cells; the runs of one label are its seeds.
        seeds: label → seeds.
        cells: label → axis → value.
        folders: the run folders.
    """

    name: str = ""
    description: str = ""
    paper: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    seeds: dict[str, tuple[int, ...]] = {}
    cells: dict[str, dict[str, str]] = {}
    folders: tuple[str, ...] = ()
    rows: tuple[ComparedRow, ...] = ()
    differences: tuple[ComparedDifference, ...] = ()


class Standing(Record):
    """One algorithm, or bound, in one block: mean and spread over seeds, its worst client, and mean costs."""

    mean: Number = None
    std: Number = None
    worst_client: Number = None
    seeds: dict[str, Number] = {}
    intervals: tuple[tuple[Number, Number], ...] = ()
    cost: Cost | None = None


class Block(Record):
    """One task under one partition."""

    name: tuple[str, ...]
    task: str
    metric: str
    title: str = ""
    higher_is_better: bool = True
    n: int = 0
    values: dict[str, Standing] = {}
    bounds: dict[str, Standing] = {}


class Rank(Record):
    """An algorithm's rank, on average and by block."""

    mean: Number = None
    by_block: tuple[float, ...] = ()


class LeaderboardFile(File, path="leaderboard.json"):
    """``leaderboard.json``: algorithms ranked over blocks.

    Attributes:
        num_blocks: blocks in which every algorithm has a value.
        num_left_out: the others.
        friedman_p: of Friedman's test; None where it has no statistic.
        critical_difference: Nemenyi's.
        groups: algorithms, best first, that do not differ.
    """

    name: str = ""
    description: str = ""
    algorithms: tuple[str, ...] = ()
    blocks: tuple[Block, ...] = ()
    num_blocks: int = 0
    num_left_out: int = 0
    ranks: dict[str, Rank] = {}
    friedman_p: Number = None
    critical_difference: Number = None
    groups: tuple[tuple[str, ...], ...] = ()
    folders: tuple[str, ...] = ()


FILES: tuple[type[File], ...] = tuple(File.__subclasses__())
LINES: tuple[type[Line], ...] = tuple(Line.__subclasses__())


def json_schemas() -> dict[str, dict[str, Any]]:
    """Return the JSON Schema of every file, and of every line of a JSON-lines file, by its name in the folder."""
    return {kind.NAME: kind.model_json_schema(mode="serialization") for kind in (*FILES, *LINES)}
