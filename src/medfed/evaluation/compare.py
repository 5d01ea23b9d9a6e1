"""Compare runs over seeds: means, intervals and paired differences with Holm's correction.

A table of one seed says how well one federation went. The spread over seeds (partition, initial weights, batches) is as
large as many an effect. A value here is the mean over seeds. Its interval is a bootstrap with two crossed levels: the
seeds, and the patients. A patient who is tested at several seeds, or by several tasks, is drawn once for all (Owen
2007). All models are scored on the same draws, so differences are paired. With one seed only patients are drawn.

Holm's family is all differences of one metric (and part of the questions) within one comparison. Those against bounds,
which nobody claims to beat, have no p. A difference is called significant only below :data:`LEVEL` after Holm and with
at least :data:`MIN_SEEDS` seeds.

Deviation: the FedKIM paper compares single runs, without intervals.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from medfed.core.errors import RunError
from medfed.evaluation.bootstrap import holm, interval, over_seeds, resample_weights, two_sided_p
from medfed.evaluation.controls import BOUNDS, INJECTED, JUDGED
from medfed.evaluation.responses import TaskResponses
from medfed.evaluation.score import LIKELIHOOD_METRICS, likelihoods
from medfed.evaluation.scorers.base import Replicates
from medfed.evaluation.scorers.words import BEST, Questions
from medfed.records.folder import RunFolder
from medfed.records.schema import (
    AnswerCheck,
    ComparedAnswers,
    ComparedDifference,
    ComparedRow,
    ComparisonFile,
    ControlFile,
    Routing,
    ScoreFile,
    StudyFile,
)
from medfed.study.evaluation import BootstrapSettings

MIN_SEEDS = 5
LEVEL = 0.05
BASELINES = (*JUDGED, *BOUNDS, BEST)
"""Models that the injected LLM of one run is compared with; differences against others are in the run's scores."""
Row = dict[str, Any]
C = TypeVar("C", ComparedRow, ComparedDifference)
ByRound = dict[str, dict[int, tuple[float, ...]]]
"""Label → round → value by run."""


class Measure(NamedTuple):
    """A metric, and the part of the questions it looks at (None: all examples)."""

    metric: str
    part: str | None
    higher_is_better: bool


class SeedRun(NamedTuple):
    """One finished run: its label, seed, what its models responded to every task, and what its LLM's answers follow.

    ``choices`` are the yes/no questions of tasks in words, by the likelihood of either answer.
    """

    label: str
    seed: int
    tasks: dict[str, TaskResponses]
    choices: dict[str, TaskResponses]
    checks: tuple[AnswerCheck, ...] = ()


class Outcome(NamedTuple):
    """One model on one task (or mean over tasks) at one seed; ``range`` is the metric's."""

    value: float | None
    replicates: Replicates
    sample: str
    num_examples: int
    num_patients: int
    single_class: bool
    reason: str | None
    range: tuple[float, float]


Key = tuple[str, str, str]
"""(label, model, task)."""
Outcomes = dict[Key, dict[int, Outcome]]
"""By key and seed."""


def compare_runs(
    folders: Sequence[Path],
    labels: Sequence[str],
    settings: BootstrapSettings | None = None,
    pairs: Sequence[tuple[str, str]] | None = None,
) -> ComparisonFile:
    """Compare finished runs: a row per label, model, task, metric and part, and paired differences.

    The tasks ``mean-trained`` and ``mean-unseen`` are means over the closed tasks of a role. Yes/no among open
    questions are judged by their text, and by the likelihood of either answer. The differences are those of the
    injected LLM against :data:`BASELINES`. Raises RunError if a run is not finished, or two runs of one label have the
    same seed.

    The runs of one label differ in their seed. By default there are 10,000 resamples where a label has
    :data:`MIN_SEEDS` seeds, which Holm's correction needs, else 1,000. ``pairs`` are labels (a, b) whose injected LLMs
    are compared; by default the first label with every other.
    """
    runs = [_read(folder, label) for folder, label in zip(folders, labels, strict=True)]
    names = list(dict.fromkeys(labels))
    pairs = [(names[0], other) for other in names[1:]] if pairs is None else pairs
    seeds = {name: sorted(run.seed for run in runs if run.label == name) for name in names}
    for name, chosen in seeds.items():
        if len(set(chosen)) < len(chosen):
            what, hint = f"two runs have one seed of {chosen}", "give each a label of its own"
            raise RunError(what, where=f"label {name!r}", hint=hint)
    enough = max(map(len, seeds.values())) >= MIN_SEEDS
    settings = settings or BootstrapSettings(num_resamples=10_000 if enough else 1_000)
    rows, differences = _compared(runs, names, pairs, settings)
    choices = [run._replace(tasks=run.choices) for run in runs]
    more_rows, more = _compared(choices, names, pairs, settings, LIKELIHOOD_METRICS)
    rows += _yes_or_no(more_rows)
    differences += _yes_or_no(more)
    by_label = {name: tuple(chosen) for name, chosen in seeds.items()}
    head = {"labels": tuple(names), "seeds": by_label, **_mixtures(folders, labels)}
    return ComparisonFile(**head, rows=tuple(rows), differences=tuple(differences), answers=tuple(_answers(runs)))


def _compared(
    runs: Sequence[SeedRun],
    names: Sequence[str],
    pairs: Sequence[tuple[str, str]],
    settings: BootstrapSettings,
    metrics: Sequence[str] = (),
) -> tuple[list[ComparedRow], list[ComparedDifference]]:
    """Compare by every measure that the tasks of ``runs`` have, or by ``metrics``, in the order of ``names``."""
    rows: list[ComparedRow] = []
    differences: list[ComparedDifference] = []
    roles = {name: task.facts.role for run in runs for name, task in run.tasks.items()}
    roles |= {"mean-trained": "trained", "mean-unseen": "unseen"}
    known = dict.fromkeys(measure for run in runs for task in run.tasks.values() for measure in measures(task))
    for measure in [measure for measure in known if not metrics or measure.metric in metrics]:
        outcomes = _outcomes(runs, measure, settings.num_resamples)
        outcomes |= _means(outcomes, runs)
        ordered = sorted(outcomes, key=lambda key: (names.index(key[0]), list(roles).index(key[2])))
        outcomes = {key: outcomes[key] for key in ordered}
        facts = measure._asdict()
        for (label, model, task), by_seed in outcomes.items():
            head = {"label": label, "model": model, "task": task, "role": roles[task], **facts}
            rows.append(ComparedRow(**head, **_summary(by_seed, settings)))
        family = []
        for a, b in _pairs(outcomes, pairs):
            head = {"label": a[0], "model": a[1], "baseline_label": b[0], "baseline_model": b[1], "task": a[2]}
            tested = _difference(outcomes[a], outcomes[b], settings) | ({"p": None} if b[1] in BOUNDS else {})
            family.append({**head, "role": roles[a[2]], **facts, **tested})
        _correct(family)
        differences += [ComparedDifference(**row) for row in family]
    return rows, differences


def _yes_or_no(rows: Sequence[C]) -> list[C]:
    """Return what is known of yes/no among open questions, as their part; means over tasks are left out."""
    return [row.model_copy(update={"part": "closed"}) for row in rows if not row.task.startswith("mean-")]


def measures(task: TaskResponses) -> list[Measure]:
    """Return what the task's models can be compared by."""
    metrics = task.scorer.metrics
    return [Measure(metric.name, part, metric.higher_is_better) for part in task.scorer.parts for metric in metrics]


def _read(folder: Path, label: str) -> SeedRun:
    run = RunFolder(folder)
    run.require_done()
    study, scored = run.read(StudyFile), run.read(ScoreFile).tasks
    tasks = [task for task in (*study.train, *study.unseen) if task in scored]
    responses = {task: TaskResponses.of(task, scored[task], run.predictions(task)) for task in tasks}
    checks = run.read(ControlFile).answers if run.exists(ControlFile.NAME) else ()
    worded = {task: one for task, one in responses.items() if isinstance(one.scorer, Questions)}
    choices = {task: choice for task, one in worded.items() if (choice := likelihoods(one)) is not None}
    return SeedRun(label, study.seed, responses, choices, checks)


def _answers(runs: Sequence[SeedRun]) -> list[ComparedAnswers]:
    """Return, of every label and task, the means over seeds of what the LLM's answers follow."""
    held: dict[tuple[str, str], list[AnswerCheck]] = {}
    for run in runs:
        for check in run.checks:
            held.setdefault((run.label, check.task), []).append(check)
    made = []
    for (label, task), checks in held.items():
        names = dict.fromkeys(name for check in checks for name in check.rank_correlation)
        means = {name: _known_mean([check.rank_correlation.get(name) for check in checks]) for name in names}
        made.append(
            ComparedAnswers(
                label=label,
                task=task,
                num_seeds=len(checks),
                n=checks[0].n,
                rank_correlation=means,
                negation=_known_mean([check.negation for check in checks]),
                paraphrases=_known_mean([check.paraphrases for check in checks]),
            )
        )
    return made


def _known_mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _mixtures(folders: Sequence[Path], labels: Sequence[str]) -> dict[str, ByRound]:
    """Return distance between, and mean entropy of, the tasks' mixtures of experts, for labels with a router."""
    distances: ByRound = {}
    entropies: ByRound = {}
    for folder, label in zip(folders, labels, strict=True):
        for line in RunFolder(folder).lines(Routing):
            known = [value for value in line.entropy.values() if value is not None]
            mean = sum(known) / len(known) if known else None
            for table, value in ((distances, line.total_variation), (entropies, mean)):
                if value is not None:
                    by_round = table.setdefault(label, {})
                    by_round[line.round] = (*by_round.get(line.round, ()), value)
    return {"distances": distances, "entropies": entropies}


def _outcomes(runs: Sequence[SeedRun], measure: Measure, num_resamples: int) -> Outcomes:
    """Score every model on every task and resample, tasks and seeds that share patients jointly."""
    outcomes: Outcomes = {}
    samples: dict[str, list[tuple[SeedRun, TaskResponses]]] = {}
    for run in runs:
        for task in run.tasks.values():
            if measure in measures(task):
                samples.setdefault(f"{run.seed}/{task.task}/{task.sample}", []).append((run, task))
    for names in _components({name: held[0][1].patients for name, held in samples.items()}):
        replicates = _resampled({name: samples[name] for name in names}, measure, num_resamples)
        for name, (run, task) in ((sample, one) for sample in names for one in samples[sample]):
            for model in _models(task, measure):
                outcome = _outcome(task, model, measure, name, replicates[name, task.key(model, measure.part)])
                outcomes.setdefault((run.label, model, task.task), {})[run.seed] = outcome
    return outcomes


def _models(task: TaskResponses, measure: Measure) -> list[str]:
    return [model for model, part in task.models if part == measure.part]


def _outcome(task: TaskResponses, model: str, measure: Measure, sample: str, replicates: Replicates) -> Outcome:
    metric, part, _ = measure
    patients, value = task.patients_of(part), task.score(model, part, metric)
    sizes, stuck = (len(patients), len(set(patients))), task.single_class(model, part)
    limits = task.scorer.range_of(metric, task.num_answers)
    return Outcome(value.value, replicates, sample, *sizes, stuck, value.reason, limits)


def _resampled(
    samples: dict[str, list[tuple[SeedRun, TaskResponses]]], measure: Measure, num_resamples: int
) -> dict[tuple[str, str], Replicates]:
    """Return (sample, model's key) → replicates; models with the same predictions are computed once."""
    metric, part, _ = measure
    ends = np.cumsum([len(held[0][1].patients) for held in samples.values()])
    patients = [patient for held in samples.values() for patient in held[0][1].patients]
    parts: dict[tuple[str, str], list[Replicates]] = {}
    for weights in resample_weights(patients, num_resamples, "compare", *samples):
        for (name, held), drawn in zip(samples.items(), np.hsplit(weights, ends[:-1]), strict=True):
            fresh = {task.key(model, part): (task, model) for _, task in held for model in _models(task, measure)}
            for key, (task, model) in fresh.items():
                parts.setdefault((name, key), []).append(task.weighted(model, part, metric, drawn))
    return {key: np.concatenate(chunks) for key, chunks in parts.items()}


def _components(patients: dict[str, Sequence[str]]) -> list[list[str]]:
    """Return groups of samples that share patients, directly or through another sample."""
    groups: list[tuple[list[str], set[str]]] = []
    for name, ids in patients.items():
        touching = [part for part in groups if not part[1].isdisjoint(ids)]
        names = sorted([name, *(member for part in touching for member in part[0])])
        groups = [part for part in groups if part not in touching]
        groups.append((names, set(ids).union(*(part[1] for part in touching))))
    return [names for names, _ in groups]


def _means(outcomes: Outcomes, runs: Sequence[SeedRun]) -> Outcomes:
    """Return the means over the closed tasks of a role, for models that were scored on all of them."""
    means: Outcomes = {}
    for run, role in product(runs, ("trained", "unseen")):
        tasks = [task for task in run.tasks.values() if task.facts.role == role and task.scorer.parts == (None,)]
        shared = [{model for model, _ in task.models} for task in tasks]
        for model in sorted(set.intersection(*shared)) if len(tasks) > 1 else ():
            parts = [outcomes.get((run.label, model, task.task), {}).get(run.seed) for task in tasks]
            held = [part for part in parts if part is not None]
            if len(held) == len(tasks):
                means.setdefault((run.label, model, f"mean-{role}"), {})[run.seed] = _mean(held)
    return means


def _mean(parts: Sequence[Outcome]) -> Outcome:
    values = [part.value for part in parts if part.value is not None]
    return Outcome(
        sum(values) / len(values) if len(values) == len(parts) else None,
        np.mean([part.replicates for part in parts], axis=0),
        " ".join(part.sample for part in parts),
        sum(part.num_examples for part in parts),
        min(part.num_patients for part in parts),
        any(part.single_class for part in parts),
        next((part.reason for part in parts if part.value is None), None),
        (min(part.range[0] for part in parts), max(part.range[1] for part in parts)),
    )


def _summary(by_seed: dict[int, Outcome], settings: BootstrapSettings) -> Row:
    held = [by_seed[seed] for seed in sorted(by_seed)]
    per_seed = [outcome.value for outcome in held]
    reason = next((outcome.reason for outcome in held if outcome.reason), None)
    row = {"per_seed": per_seed, "n": held[0].num_examples, "num_seeds": len(held)}
    row |= {"single_class": any(outcome.single_class for outcome in held), "reason": reason}
    values = [value for value in per_seed if value is not None]
    if len(values) < len(per_seed):
        return row
    replicates = over_seeds(np.stack([outcome.replicates for outcome in held]), sorted(by_seed), held[0].range)
    bounds = interval(replicates, min(outcome.num_patients for outcome in held), settings)
    row |= {"value": float(np.mean(values)), "ci_low": bounds.low, "ci_high": bounds.high}
    return {**row, "reason": reason or bounds.reason}


def _pairs(outcomes: Outcomes, pairs: Sequence[tuple[str, str]]) -> list[tuple[Key, Key]]:
    """Return which outcomes are compared."""
    wanted = []
    for label, model, task in outcomes:
        if model == INJECTED:
            wanted += [((label, model, task), (label, baseline, task)) for baseline in BASELINES]
            wanted += [((label, model, task), (b, INJECTED, task)) for a, b in pairs if a == label]
    return [(a, b) for a, b in wanted if b in outcomes]


def _difference(a: dict[int, Outcome], b: dict[int, Outcome], settings: BootstrapSettings) -> Row:
    """Compare on the seeds that both have, where both were tested on the same patients."""
    seeds = [seed for seed in sorted(a.keys() & b.keys()) if a[seed].sample == b[seed].sample]
    row: Row = {"p": None, "num_seeds": len(seeds)}
    if not seeds:
        return {**row, "reason": "not paired: no seed at which both were tested on the same patients"}
    values = [(a[seed].value, b[seed].value) for seed in seeds]
    gaps = [left - right for left, right in values if left is not None and right is not None]
    if len(gaps) < len(seeds):
        reasons = [outcome.reason for seed in seeds for outcome in (a[seed], b[seed]) if outcome.value is None]
        return {**row, "reason": reasons[0]}
    low, high = a[seeds[0]].range
    replicates = over_seeds(np.stack([a[seed].replicates - b[seed].replicates for seed in seeds]), seeds)
    replicates = replicates.clip(low - high, high - low)
    bounds = interval(replicates, min(a[seed].num_patients for seed in seeds), settings)
    p = None if bounds.low is None else two_sided_p(replicates)
    row |= {"value": float(np.mean(gaps)), "ci_low": bounds.low, "ci_high": bounds.high, "p": p}
    return {**row, "reason": bounds.reason}


def _correct(family: Sequence[Row]) -> None:
    """Add ``p_holm`` and ``significant`` to the differences of one family."""
    adjusted = iter(holm([row["p"] for row in family if row["p"] is not None]))
    for row in family:
        p = row["p_holm"] = None if row["p"] is None else next(adjusted)
        row["significant"] = p is not None and p < LEVEL and row["num_seeds"] >= MIN_SEEDS
