"""How well the last model does at every site, by the site's own held-out patients: ``sites.json``.

A site counts on its own examples and reports metrics and their number, no prediction. The mean over sites is weighted
by that number. The record also names the worst site, which a mean hides.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from pydantic import TypeAdapter, ValidationError

from medfed.core.errors import MedfedError, UpdateRejectedError
from medfed.core.types import Broadcast, Failure, Params
from medfed.data.cohort import Cohort
from medfed.evaluation.responses import MEMBER
from medfed.evaluation.score import worst_of
from medfed.evaluation.scorers import SCORERS
from medfed.evaluation.scorers.base import MetricInfo
from medfed.federated.exchange import ClientExchange, SiteScores
from medfed.federated.state import Weights, load_weights
from medfed.models.base import FederatedModel
from medfed.records.folder import RunFolder
from medfed.records.schema import FailedClient, SiteFile, SiteRow
from medfed.runs.predictors import responses
from medfed.study.study import Study
from medfed.tasks.base import TaskSet, trainable

Answers = Mapping[str, SiteScores | Failure]
"""Site → its scores, or why there are none."""
_SCORES = TypeAdapter(dict[str, dict[str, float | None]])


def site_scores(model: FederatedModel, tests: Mapping[str, TaskSet]) -> SiteScores:
    """Return task → metric → value on the site's own test examples, with their number under ``n``.

    A metric that is not defined on them (AUROC of one class) is None.
    """
    scores: dict[str, dict[str, float | None]] = {}
    for name, examples in sorted(tests.items()):
        task = trainable(examples.task)
        values = SCORERS[task.metric_kind].points(task.truths(examples), responses(model, examples))
        scores[name] = {**values, "n": float(len(examples))}
    return scores


def evaluate_at(
    study: Study, model: FederatedModel, tests: Mapping[str, TaskSet], broadcast: Broadcast, kept: Params
) -> SiteScores:
    """Return the scores of the model that is deployed at a site, on its ``tests``; ``model`` takes its weights.

    ``broadcast`` holds the last global weights, ``kept`` what the algorithm keeps at the site (``Trainer.own``).
    """
    load_weights(model, study.algorithm.build().deployed(Weights(broadcast.params, broadcast.buffers), kept))
    return site_scores(model, tests)


def scores_of(value: object, site: str, study: Study) -> SiteScores:
    """Check the scores that a site sent.

    Raises UpdateRejectedError if they are no finite numbers by task and metric of the study, or ``n`` is missing.
    """
    try:
        scores = _SCORES.validate_python(value)
    except ValidationError as error:
        raise _refused(site, "they are not numbers by task and metric") from error
    for task, values in scores.items():
        known = {metric.name for metric in _metrics(study, task)} | {"n"} if task in study.train else set()
        if unknown := sorted(values.keys() - known):
            raise _refused(site, f"the study has no metric {unknown[0]!r} of a task {task!r}")
        number = values.get("n")
        finite = all(value is None or math.isfinite(value) for value in values.values())
        if not finite or number is None or number < 1 or number != int(number):
            raise _refused(site, f"the numbers of task {task!r} are not finite, or n is no count")
    return scores


def scores_here(
    study: Study, model: FederatedModel, cohort: Cohort, broadcast: Broadcast, clients: ClientExchange
) -> dict[str, SiteScores | Failure]:
    """Return the scores of every site whose folder is on this machine, sorted by site; ``model`` takes their weights.

    ``clients`` trained the sites; one that does not train scores the global model of the last ``broadcast``.
    """
    scores: dict[str, SiteScores | Failure] = {}
    for site, tests in sorted(cohort.site_tests.items()):
        try:
            kept = clients.client_state(site) if site in clients.registered else {}
            scores[site] = evaluate_at(study, model, tests, broadcast, kept)
        except MedfedError as error:
            scores[site] = Failure(site, broadcast.round, "evaluate", str(error))
    return scores


def site_file(study: Study, answers: Mapping[str, Answers]) -> SiteFile:
    """Return ``sites.json``: scores by model and site, a row per metric with mean and worst, failures.

    Answers are model → site → scores; ``local/site-0`` is the model ``local`` at ``site-0``.
    """
    scores: dict[str, dict[str, SiteScores]] = {}
    failures = []
    for model, sites in sorted(answers.items()):
        group = scores.setdefault(model.partition(MEMBER)[0], {})
        for site, answer in sorted(sites.items()):
            if isinstance(answer, Failure):
                failures.append(FailedClient(model=model, client=site, phase=answer.phase, reason=answer.reason))
            else:
                group[site] = answer
    rows = [
        _row(task, model, metric, primary=primary, sites=sites)
        for task in study.train
        for model, sites in scores.items()
        for metric, primary in _metrics(study, task).items()
        if any(task in by_task for by_task in sites.values())
    ]
    return SiteFile(scores=scores, rows=tuple(rows), failures=tuple(failures))


def add_sites_of(study: Study, run: RunFolder, baselines: Iterable[RunFolder]) -> None:
    """Add the sites' scores of the ``baselines`` to the run's own; done twice it changes nothing."""
    if not run.exists(SiteFile.NAME):
        return
    answers: dict[str, dict[str, SiteScores | Failure]] = {}
    failures: list[FailedClient] = []
    for place in (run, *baselines):
        record = place.read(SiteFile)
        for model, sites in record.scores.items():
            answers.setdefault(model, {}).update(sites)
        failures += [failure for failure in record.failures if failure not in failures]
    run.write(site_file(study, answers).model_copy(update={"failures": tuple(failures)}))


def _row(task: str, model: str, metric: MetricInfo, *, primary: bool, sites: Mapping[str, SiteScores]) -> SiteRow:
    values = {site: by_task[task].get(metric.name) for site, by_task in sites.items() if task in by_task}
    counts = {site: int(sites[site][task]["n"] or 0) for site in values}
    known = {site: value for site, value in values.items() if value is not None}
    n = sum(counts[site] for site in known)
    mean = sum(counts[site] * value for site, value in known.items()) / n if n else None
    worst, place = worst_of(values, higher_is_better=metric.higher_is_better)
    about = {"title": metric.title, "higher_is_better": metric.higher_is_better, "primary": primary}
    numbers = {"pooled": mean, "n": n, "sites": values, "site_n": counts, "worst": worst, "worst_site": place}
    return SiteRow.model_validate({"task": task, "model": model, "metric": metric.name, **about, **numbers})


def _metrics(study: Study, task: str) -> dict[MetricInfo, bool]:
    """Return the metrics of a trained task, and whether each is the primary one."""
    (named,) = (trainable(one) for one in study.train_tasks if one.name == task)
    scorer = SCORERS[named.metric_kind]
    return {metric: metric.name == scorer.primary for metric in scorer.metrics}


def _refused(site: str, what: str) -> UpdateRejectedError:
    return UpdateRejectedError(f"scores: {what}", where=f"site {site!r}", hint="both sides must run the same version")
