"""START HERE. A run from top to bottom: data → federations → predictors → scores → report.

All jobs take this one path. ``inject`` has the steps of Wang et al. 2024, Figure 1. Every round the clients train,
the server aggregates (Eq. 3) and injects (Eq. 4, 5), and the updated encoders go back. With ``injection.schedule =
"last"`` it injects once, after the last round. ``benchmark`` is the same federation without an LLM, tested client by
client (Med-MMFL). ``words`` trains the clients as ``inject`` does and injects nothing: the LLM says what findings mean
(:mod:`medfed.findings`). All train the baselines of :mod:`medfed.runs.baselines`. Everything that responds to a test
example is a predictor of :mod:`medfed.runs.predictors`. Those that need no training are in :mod:`medfed.runs.controls`.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medfed.core.errors import RunError
from medfed.core.progress import Reporter
from medfed.core.torch_rng import one_thread
from medfed.data.cohort import Cohort
from medfed.data.decode import decode_all
from medfed.data.sites import moments_json
from medfed.evaluation.controls import LORA, WORDS
from medfed.evaluation.pictures import picture_means
from medfed.evaluation.responses import MEMBER, TaskResponses
from medfed.evaluation.score import score_run
from medfed.federated.state import load_weights
from medfed.llm.obtain.cached import named_folder
from medfed.models.base import FederatedModel
from medfed.records.folder import RunFolder, prediction_file
from medfed.records.schema import (
    Development,
    NormalisationFile,
    PartitionFile,
    Prediction,
    Retained,
    Round,
    ScoreFile,
    StudyFile,
    TaskFacts,
    WordsFile,
)
from medfed.report.controls import run_tables
from medfed.report.page import write_report
from medfed.runs.baselines import Baseline, baselines_of, train_baselines
from medfed.runs.cards import example_cards
from medfed.runs.context import (
    Participants,
    RunContext,
    RunPaths,
    check_workers,
    examinations,
    folder_of,
    here,
    settled,
)
from medfed.runs.controls import control_file, control_predictors, reused_heads
from medfed.runs.federation import FederationRun, Trainee, build_model, build_multimodal
from medfed.runs.predictors import (
    DEPLOYED,
    HEADS,
    INJECTED,
    AtClients,
    InjectedPredictor,
    ModelPredictor,
    Predictor,
    constants,
    predict,
    task_facts,
)
from medfed.runs.provenance import cost_of, data_facts, now, provenance
from medfed.runs.sites import add_sites_of
from medfed.study.foundation import HuggingFaceSettings
from medfed.study.study import Study
from medfed.tasks.base import ClosedTask, TaskSet

if TYPE_CHECKING:
    from medfed.findings.predictors import Words
    from medfed.injection.inject import Injector
    from medfed.injection.retention import Retention
    from medfed.llm.foundation import Foundation
    from medfed.llm.knowledge import Chosen


@one_thread()
def run_study(
    study: Study,
    paths: RunPaths,
    reporter: Reporter,
    *,
    dry_run: bool = False,
    report: Path | None = None,
    participants: Participants | None = None,
) -> Path:
    """Run ``study`` end to end, or go on where it stopped, and return its run folder.

    Raises MedfedError if an input is wrong; everything computed before stays, and the same command goes on from there.

    Args:
        study, paths, reporter: what to run, where things are, and what shows the progress.
        dry_run: say what would be done, and do nothing.
        report: copy the report here as well.
        participants: who the clients are; by default they are on this machine, in ``paths.workers`` processes.
    """
    check_workers(study, paths.workers)
    study, tried = settled(study, paths)
    participants = participants or here(paths.workers)
    sources = participants.sources(study, paths, reporter)
    run = RunFolder(folder_of(study, paths, sources))
    run.check_version()
    context = RunContext(study, paths, sources, run, reporter, tried)
    if dry_run:
        _describe(context)
        return run.root
    if run.done:
        reporter.say(f"finished before: {run.root}")
        if paths.show_examples:
            reporter.say("its example cards stay as they were written; --show-examples counts when a run is made")
    else:
        _compute(context, participants)
    reporter.console.print(*run_tables(run.root))
    written = run.root / "report.html"
    if report is not None:
        shutil.copyfile(written, report)
    reporter.say(f"report: {report or written}")
    return run.root


def _compute(context: RunContext, participants: Participants) -> None:
    study, run, paths, reporter = context.study, context.run, context.paths, context.reporter
    facts = provenance(study)
    if study.job != "benchmark" and isinstance(study.foundation, HuggingFaceSettings):
        named_folder(paths.foundation, study.foundation.model, paths.cache)  # a missing one is said before the decoding
        if study.job == "inject":
            _say_cost(context)
    examined = examinations(study, paths)
    data = decode_all(study, context.sources.roots, paths.reading(reporter))
    cohort = participants.cohort(context, data)
    run.write(StudyFile(**study.resolved()))
    run.write(PartitionFile.model_validate(cohort.partition))
    run.write(NormalisationFile.model_validate({"moments": moments_json(cohort.moments)}))

    foundation = foundation_of(study, paths, reporter) if study.job != "benchmark" else None
    before = foundation.fingerprint() if foundation else ""

    def build(chosen: Study, name: str) -> Trainee:
        return replace(trainee_of(chosen, foundation), name=name)

    baselines = baselines_of(study, cohort, context.sources.checksums, paths.runs, build)
    models = train_baselines(baselines, reporter, participants.connect)
    trainee = trainee_of(study, foundation if study.job == "inject" else None, examined, paths.cache)
    federation = FederationRun(run, study, cohort, trainee, participants.connect)
    federation.run(reporter, _title(study))
    if foundation is not None:
        facts = facts.model_copy(update={"foundation": _frozen(context, foundation, before)})
    if trainee.injector is not None:
        _keep_injection(context, cohort, trainee.injector, baselines)

    trained = [_predictor(study, cohort, baseline, models[baseline.model]) for baseline in baselines]
    words = _words(context, cohort, foundation)
    if study.job == "benchmark":
        predictors = _deployed_predictors(study, federation, [it for it in trained if isinstance(it, ModelPredictor)])
    else:
        predictors = [*_server_predictors(study, cohort, trainee, trained), *words]
    tasks = study.train_tasks if study.job == "benchmark" else study.tasks
    with reporter.phase("evaluate") as advance:
        for number, task in enumerate(tasks, start=1):
            predict(run, task, _tests(study, cohort, task.name), predictors)
            advance(number, len(tasks))
    answers = [(task.name, task_facts(study, task), run.predictions(task.name)) for task in tasks]
    scores = score_run(answers, study.seed, study.evaluation)
    run.write(scores if trainee.retention is None else scores.joined(_kept(run, study, trainee.retention)))
    if words:
        run.write(_meanings(study, run, words[0], answers))
    if study.job != "benchmark":
        run.write(control_file(study, run, cohort, trainee.injector, reused_heads(study, trainee.model)))
    if trainee.injector is not None:
        modalities = {name: study.modality(name) for name in study.encoders}
        run.write(example_cards(run, study.tasks, cohort, modalities, study.seed, show=paths.show_examples))
    add_sites_of(study, run, [baseline.run for baseline in baselines if baseline.model != LORA])
    more = {
        "data": data_facts(data, context.sources.checksums),
        "finished": now(),
        "cost": cost_of(run),
        "federations": {baseline.model: baseline.run.root.name for baseline in baselines},
        "corpus": str(paths.corpus.resolve()) if paths.corpus else None,
        "titles": {name: facts.title for name, facts in run.read(ScoreFile).tasks.items()},
    }
    run.write(facts.model_copy(update=more))
    write_report(run.root, run.root / "report.html")
    run.finish()


def _say_cost(context: RunContext) -> None:
    """Say what the LLM will take, before anything is computed; a run that goes on says nothing again."""
    if not context.run.exists(StudyFile.NAME):
        from medfed.runs.forecast.cost import llm_lines  # noqa: PLC0415 (a benchmark needs no LLM's libraries)

        for line in llm_lines(context):
            context.reporter.say(line)


def foundation_of(study: Study, paths: RunPaths, reporter: Reporter) -> Foundation:
    """Return the study's LLM; a tiny one is pre-trained unless the cache has it."""
    from medfed.llm.foundation import load_foundation  # noqa: PLC0415 (a benchmark needs no LLM's libraries)

    with reporter.phase("foundation"):
        return load_foundation(study.foundation, cache=paths.cache, corpus=paths.corpus, path=paths.foundation)


def _words(context: RunContext, cohort: Cohort, foundation: Foundation | None) -> list[Words]:
    """Ask the LLM what the study's findings mean, and return the predictor by them; none without ``[words]``."""
    if context.study.words is None or foundation is None:
        return []
    from medfed.findings.asking import words_of  # noqa: PLC0415 (a benchmark needs no LLM's libraries)

    return [words_of(context.study, cohort, foundation, context.paths.cache, context.reporter)]


def _meanings(
    study: Study, run: RunFolder, words: Words, answers: Sequence[tuple[str, TaskFacts, Sequence[Prediction]]]
) -> WordsFile:
    """Return ``words.json``: weights, and the means over the clinical pictures."""
    pictures = {picture.name for picture in study.pictures}
    scored = [TaskResponses.of(*parts) for parts in answers if parts[0] in pictures]
    name = study.foundation.model if isinstance(study.foundation, HuggingFaceSettings) else study.foundation.kind
    llms = {WORDS: name or "", **{f"{WORDS}/{other}": other for other in study.words.also}} if study.words else {}
    return words.record(llms).model_copy(update={"means": picture_means(scored, study.seed, study.evaluation)})


def trainee_of(
    study: Study, foundation: Foundation | None, examined: Sequence[Chosen] = (), cache: Path | None = None
) -> Trainee:
    """Return the model of a federation; its LLM is examined on the sets ``examined``, if any."""
    if foundation is None:
        return Trainee(DEPLOYED, build_model(study))
    from medfed.injection.inject import Injector  # noqa: PLC0415 (a benchmark needs no LLM's libraries)
    from medfed.injection.retention import Retention  # noqa: PLC0415

    model = build_multimodal(study)
    injector = Injector(foundation, model, study.tasks, study.injection, study.seed, alone=not study.federate)
    injector.check_texts()
    retention = Retention(injector.injected, examined, study.evaluation.retention, cache)
    return Trainee(INJECTED, model, injector, retention if examined else None)


def _kept(run: RunFolder, study: Study, retention: Retention) -> ScoreFile:
    """Write what the LLM answered without patients, look by look, and return its scores."""
    from medfed.injection.retention import score_retention  # noqa: PLC0415 (a benchmark needs no LLM's libraries)

    tasks = retention.tasks(run.lines(Retained))
    for name, _, lines in tasks:
        run.write_lines(lines, prediction_file(name))
    return score_retention(tasks, study.seed, study.evaluation)


def _title(study: Study) -> str:
    if study.job != "inject":
        return f"federate: {study.algorithm.label}"
    if study.injection.schedule == "last":
        return "federate, then inject once" if study.federate else "inject once from public data alone"
    return "federate and inject" if study.federate else "inject from public data alone"


def _frozen(context: RunContext, foundation: Foundation, before: str) -> dict[str, Any]:
    """Return the foundation's facts. Raises RunError if its weights changed."""
    after = foundation.fingerprint()
    if after != before:
        what = "the frozen foundation changed during injection"
        raise RunError(what, where=context.run.root, hint="report this as a bug")
    return {**foundation.info, **context.trial, "fingerprint_before": before, "fingerprint_after": after}


def _keep_injection(context: RunContext, cohort: Cohort, injector: Injector, baselines: Sequence[Baseline]) -> None:
    """Calibrate untrained tasks, if the study says so; write the adapter and the logs of the federated-only model."""
    study, run = context.study, context.run
    _calibrate(study, cohort, injector)
    injector.save(run.root / "injection")
    for baseline in baselines:
        if baseline.model == DEPLOYED:
            for kind in (Round, Development):
                run.write_lines(baseline.run.lines(kind), f"federated-only/{kind.NAME}")


def _calibrate(study: Study, cohort: Cohort, injector: Injector) -> None:
    if study.injection.answer_calibration:
        untrained = [task for task in study.tasks if task.name not in study.train and isinstance(task, ClosedTask)]
        injector.calibrate(untrained, cohort.public)


def _predictor(study: Study, cohort: Cohort, baseline: Baseline, trained: Trainee) -> Predictor:
    """Return a trained baseline as a predictor: of the tasks that it knows, or an injected LLM of all."""
    if trained.injector is None:
        return ModelPredictor(baseline.model, trained.model, baseline.tasks)
    _calibrate(study, cohort, trained.injector)
    return InjectedPredictor(trained.injector, study.evaluation.max_new_tokens, baseline.model)


def _deployed_predictors(
    study: Study, federation: FederationRun, baselines: Sequence[ModelPredictor]
) -> list[Predictor]:
    """Return everything that responds to a benchmark's test examples, in the order of the records."""
    model = build_model(study)

    def deployed(client: str | None) -> FederatedModel:
        load_weights(model, federation.deployed(client))
        return model

    local = {it.name.partition(MEMBER)[2]: it.model for it in baselines if MEMBER in it.name}
    whole = [it for it in baselines if MEMBER not in it.name and it.name != DEPLOYED]
    alone = [AtClients("local", lambda client: local.get(client or ""))] if local else []
    return [AtClients(DEPLOYED, deployed), *whole, *alone, constants]


def _server_predictors(study: Study, cohort: Cohort, trainee: Trainee, trained: Sequence[Predictor]) -> list[Predictor]:
    """Return the injected LLM, if there is one, the ``trained`` baselines, the aggregated heads, and the controls."""
    if trainee.injector is None:
        heads = ModelPredictor(DEPLOYED, trainee.model, study.train)
        return [heads, *trained, *control_predictors(study, cohort, None, trainee.model)]
    injected = InjectedPredictor(trainee.injector, study.evaluation.max_new_tokens)
    llm, *others = control_predictors(study, cohort, injected, trainee.model)
    aggregated = [ModelPredictor(HEADS, trainee.model, study.train)] if study.federate else []
    return [llm, *trained, *aggregated, *others]


def _tests(study: Study, cohort: Cohort, task: str) -> list[tuple[str | None, TaskSet]]:
    """Return (client, test examples); the client is None where all are tested in one place."""
    if study.job != "benchmark":
        return [(None, cohort.test[task])]
    return [(client, sets[task]) for client, sets in sorted(cohort.client_tests.items()) if task in sets]


def _describe(context: RunContext) -> None:
    """Say what a run would do."""
    study, run, reporter = context.study, context.run, context.reporter
    reporter.say(f"study {study.name!r}: {study.algorithm.label}, {study.rounds.num_rounds} rounds, seed {study.seed}")
    for task in study.tasks:
        role = task_facts(study, task).role
        reporter.say(f"  {role} task {task.name}: {task.title} on {context.sources.roots[task.dataset]}")
    sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in build_model(study).named_children()}
    listed = ", ".join(f"{size:,} in {name}" for name, size in sizes.items() if size)
    reporter.say(f"  parameters a client trains: {listed}")
    if study.job == "inject":
        from medfed.runs.forecast.cost import llm_lines  # noqa: PLC0415 (a benchmark needs no LLM's libraries)

        for line in llm_lines(context):
            reporter.say(f"  {line}")
    state = "finished" if run.done else "to be resumed" if run.exists(StudyFile.NAME) else "new"
    reporter.say(f"  run folder: {run.root} ({state})")
