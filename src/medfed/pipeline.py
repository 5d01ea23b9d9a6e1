"""START HERE. A run from top to bottom: data → partition → federate → inject → evaluate → report.

FedKIM (Wang et al. 2024), Figure 1: every round the clients train, the server aggregates (Eq. 3) and injects (Eq. 4,
5), and the updated encoders go back. The *federated-only* arm is the same federation without injection: the
baseline that injection has to beat.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medfed.arm import Arm, build_model
from medfed.errors import RunError
from medfed.evaluation.cards import example_cards
from medfed.evaluation.evaluate import Role, TaskPredictions, prediction_records, predictions_from_records, score_rows
from medfed.evaluation.predict import HeadPredictor, InjectedPredictor, Predictor
from medfed.injection.foundation import load_foundation
from medfed.injection.inject import Injector
from medfed.prepare import Sources, decode_all, divide, find_sources
from medfed.progress import Reporter
from medfed.provenance import data_facts, now, provenance
from medfed.report.html import write_report
from medfed.report.tables import summary_table
from medfed.rundir import RunDir
from medfed.serving import LoadedRun
from medfed.study import Study
from medfed.tasks.base import Task
from medfed.tasks.cohort import Cohort


@dataclass(frozen=True)
class Places:
    """Where a run finds and leaves things; none of it changes a number, or the run's hash says so.

    Attributes:
        runs: run folders go here.
        cache: twins and the tiny LLM are kept here.
        data_root: datasets in native layout; None writes synthetic twins.
        corpus: text to pre-train the tiny LLM on, in place of the package's own.
        foundation: folder of a Hugging Face causal LM.
        skip_bad: leave unreadable examples out.
        show_examples: write pictures and traces of a few test examples even of real data.
    """

    runs: Path
    cache: Path
    data_root: Path | None = None
    corpus: Path | None = None
    foundation: Path | None = None
    skip_bad: bool = False
    show_examples: bool = False


def run_study(
    study: Study, places: Places, reporter: Reporter, *, dry_run: bool = False, report: Path | None = None
) -> Path:
    """Run ``study`` end to end, or go on where it stopped, and return its run folder.

    Raises:
        MedfedError: an input is wrong; everything computed before stays, and the same command goes on from there.
    """
    torch.set_num_threads(1)
    sources = find_sources(study, places.data_root, places.cache, reporter)
    run = RunDir(folder_of(study, places, sources))
    if dry_run:
        _describe(study, sources, run, reporter)
        return run.root
    if run.done:
        reporter.say(f"finished before: {run.root}")
    else:
        _compute(study, places, sources, run, reporter)
    reporter.console.print(summary_table(run.root))
    written = run.root / "report.html"
    if report is not None:
        shutil.copyfile(written, report)
        written = report
    reporter.say(f"report: {written}")
    return run.root


def folder_of(study: Study, places: Places, sources: Sources) -> Path:
    """Return the run's folder: its name is a hash of settings, data and foundation, so other input is another run."""
    facts = [f"{name}:{checksum}" for name, checksum in sorted(sources.checksums.items())]
    facts += [f"corpus:{places.corpus.resolve()}"] if places.corpus else []
    facts += [f"foundation:{places.foundation.resolve()}"] if places.foundation else []
    return places.runs / study.name / f"{study.hash(*facts)}-seed{study.seed}"


def _compute(study: Study, places: Places, sources: Sources, run: RunDir, reporter: Reporter) -> None:
    facts = provenance()
    data = decode_all(study, sources, places.skip_bad, reporter)
    cohort = divide(study, data)
    run.write_json("study.json", study.resolved())
    run.write_json("partition.json", cohort.partition)
    run.write_json("normalisation.json", {name: value.as_json() for name, value in cohort.moments.items()})
    with reporter.phase("foundation"):
        foundation = load_foundation(study.foundation, cache=places.cache, corpus=places.corpus, path=places.foundation)
    before = foundation.fingerprint()

    federated = Arm(RunDir(run.root / "federated-only"), study, cohort, build_model(study), None)
    federated.run(reporter, "federate, without injection")
    model = build_model(study)
    injector = Injector(foundation, model, study.tasks, study.injection, study.seed)
    injected = Arm(run, study, cohort, model, injector)
    injected.run(reporter, "federate and inject")

    if (after := foundation.fingerprint()) != before:
        raise RunError("the frozen foundation changed during injection", where=run.root, hint="report this as a bug")
    injector.save(run.root / "injection")
    heads, asked = HeadPredictor(federated.model), InjectedPredictor(injector)
    with reporter.phase("evaluate") as advance:
        for number, task in enumerate(study.tasks):
            predict_task(run, study, cohort, task, {"fedkim": asked, "federated": heads})
            advance(number + 1, len(study.tasks))
        scores = score_predictions(run, study)
    modalities = {name: study.modality(name) for name in study.encoders}
    cards = example_cards(run, study.tasks, cohort, modalities, study.seed, show=places.show_examples)
    run.write_json("cards.json", cards)
    run.write_json("scores.json", scores)
    facts |= {"data": data_facts(data, sources.checksums), "finished": now()}
    facts |= {"corpus": str(places.corpus.resolve()) if places.corpus else None}
    facts |= {"titles": {task.name: task.title for task in study.tasks}}
    facts |= {"foundation": {**foundation.info, "fingerprint_before": before, "fingerprint_after": after}}
    run.write_json("provenance.json", facts)
    write_report(run.root, run.root / "report.html")
    run.finish()


def predict_task(run: RunDir, study: Study, cohort: Cohort, task: Task, predictors: Mapping[str, Predictor]) -> None:
    """Write the predictions of one task's test examples, unless they are there."""
    name = f"predictions/{task.name}.jsonl"
    if run.exists(name):
        return
    examples = cohort.test[task.name]
    role = role_of(study, task)
    kept = {model: predictor for model, predictor in predictors.items() if role == "trained" or model != "federated"}
    scores = {model: predictor(examples) for model, predictor in kept.items()}
    predictions = TaskPredictions(
        task.name, role, task.answers, examples.examples, examples.patients, examples.targets.numpy(), scores
    )
    run.write_records(name, prediction_records(predictions, salt=run.root.name))


def role_of(study: Study, task: Task) -> Role:
    """Return whether the study trains on ``task``."""
    return "trained" if task.name in study.train else "unseen"


def score_predictions(run: RunDir, study: Study) -> dict[str, Any]:
    """Return the content of ``scores.json`` from the prediction files."""
    tasks = [
        predictions_from_records(
            task.name,
            role_of(study, task),
            task.answers,
            run.read_records(f"predictions/{task.name}.jsonl"),
        )
        for task in study.tasks
    ]
    return score_rows(tasks, study.seed, study.evaluation)


def evaluate_again(folder: Path, places: Places, reporter: Reporter) -> None:
    """Score a finished run anew from its last checkpoints and compare with the predictions it wrote.

    Raises:
        RunError: the run is not finished, or a prediction differs.
    """
    run = LoadedRun(folder, places.cache, places.foundation)
    study = run.study
    sources = find_sources(study, places.data_root, places.cache, reporter)
    cohort = divide(study, decode_all(study, sources, places.skip_bad, reporter))
    written = RunDir(folder)
    predictor = InjectedPredictor(run.injector)
    for task in study.tasks:
        again = predictor(cohort.test[task.name])
        before = [record["scores"]["fedkim"] for record in written.read_records(f"predictions/{task.name}.jsonl")]
        if not np.allclose(again, np.array(before), atol=1e-6):
            raise RunError(
                f"the predictions of {task.name!r} differ", where=folder, hint="check data root and versions"
            )
        reporter.say(f"{task.name}: {len(before)} predictions, all as written")
    reporter.console.print(summary_table(folder))


def _describe(study: Study, sources: Sources, run: RunDir, reporter: Reporter) -> None:
    """Say what a run would do."""
    reporter.say(f"study {study.name!r}: {study.algorithm.name}, {study.rounds.num_rounds} rounds, seed {study.seed}")
    for task in study.tasks:
        reporter.say(f"  {role_of(study, task)} task {task.name}: {task.title} on {sources.roots[task.dataset]}")
    sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in build_model(study).named_children()}
    reporter.say(f"  parameters a client trains: {sizes['encoders']:,} in encoders, {sizes['heads']:,} in heads")
    state = "finished" if run.done else "to be resumed" if run.exists("study.json") else "new"
    reporter.say(f"  run folder: {run.root} ({state})")
