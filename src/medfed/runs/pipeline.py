"""START HERE. A run from top to bottom: data → partition → federate → inject → evaluate → report.

FedKIM (Wang et al. 2024), Figure 1: every round the clients train, the server aggregates (Eq. 3) and injects (Eq. 4,
5), and the updated encoders go back. Beside it stand the baselines that injection has to beat
(:mod:`medfed.runs.baselines`), and ``heads``: the injected federation's own aggregated heads, which cost nothing more.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from medfed.core.errors import RunError
from medfed.core.progress import Reporter
from medfed.data.cache import DecodedCache
from medfed.data.cohort import Cohort
from medfed.data.prepare import Sources, cohort_of, decode_all, find_sources
from medfed.datasets.decoded import Decoded
from medfed.injection.inject import Injector
from medfed.llm.foundation import load_foundation
from medfed.report.html import write_report
from medfed.report.scores import score_table, write_scores
from medfed.report.tables import summary_table
from medfed.runs.baselines import Federation, federations, train_baselines
from medfed.runs.benchmark import benchmark
from medfed.runs.cards import example_cards
from medfed.runs.cost import llm_lines
from medfed.runs.federation import Arm, Connect, build_model, build_multimodal, in_process, in_workers
from medfed.runs.folder import RunDir
from medfed.runs.loaded import LoadedRun
from medfed.runs.predictions import answer_task, predict_task, role_of, score_predictions
from medfed.runs.predictors import HeadPredictor, InjectedPredictor, Predictor
from medfed.runs.provenance import data_facts, now, provenance
from medfed.runs.sites import put_beside
from medfed.study.foundation import HuggingFaceSettings
from medfed.study.study import Study
from medfed.tasks.base import ClosedTask
from medfed.tasks.question_answering import QuestionAnswering


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
        workers: processes that train clients; 1 trains them in the run's own.
        keep_decoded: keep decoded data in the cache, so that the next run need not decode it.
    """

    runs: Path
    cache: Path
    data_root: Path | None = None
    corpus: Path | None = None
    foundation: Path | None = None
    skip_bad: bool = False
    show_examples: bool = False
    workers: int = 1
    keep_decoded: bool = True

    def decoded(self, reporter: Reporter) -> DecodedCache | None:
        """Return where decoded data is kept, if it is."""
        return DecodedCache(self.cache, reporter.say) if self.keep_decoded else None


@dataclass(frozen=True)
class Party:
    """Who the clients of a run are, where their data lies, and the way to them.

    Attributes:
        sources: finds the data that this process reads.
        cohort: divides what was decoded; of sites elsewhere it knows what they tell.
        connect: opens the exchange of a federation.
    """

    sources: Callable[[Study, Places, Reporter], Sources]
    cohort: Callable[[Study, Sources, Mapping[str, Decoded], RunDir, Places, Reporter], Cohort]
    connect: Connect


def here(num_workers: int = 1) -> Party:
    """Return the parties of a run on one machine: all data is here, clients train in ``num_workers`` processes."""

    def sources(study: Study, places: Places, reporter: Reporter) -> Sources:
        return find_sources(study, places.data_root, places.cache, reporter)

    def cohort(
        study: Study,
        sources: Sources,
        data: Mapping[str, Decoded],
        run: RunDir,
        places: Places,
        reporter: Reporter,
    ) -> Cohort:
        return cohort_of(study, sources, data, places.skip_bad, reporter, places.decoded(reporter))

    return Party(sources, cohort, in_workers(num_workers) if num_workers > 1 else in_process)


def run_study(
    study: Study,
    places: Places,
    reporter: Reporter,
    *,
    dry_run: bool = False,
    report: Path | None = None,
    party: Party | None = None,
) -> Path:
    """Run ``study`` end to end, or go on where it stopped, and return its run folder.

    Args:
        study: what to run.
        places: where things are.
        reporter: told of the progress.
        dry_run: say what would be done, and do nothing.
        report: copy the report here as well.
        party: who the clients are; by default parties on this machine, in ``places.workers`` processes.

    Raises:
        MedfedError: an input is wrong; everything computed before stays, and the same command goes on from there.
    """
    torch.set_num_threads(1)
    party = party or here(places.workers)
    sources = party.sources(study, places, reporter)
    run = RunDir(folder_of(study, places, sources))
    if dry_run:
        _describe(study, places, sources, run, reporter)
        return run.root
    if run.done:
        reporter.say(f"finished before: {run.root}")
        if places.show_examples:
            reporter.say("its example cards stay as they were written; --show-examples counts when a run is made")
    elif study.job == "benchmark":
        _benchmark(study, places, sources, run, reporter, party)
    else:
        _compute(study, places, sources, run, reporter, party)
    reporter.console.print(score_table(run.root) if study.job == "benchmark" else summary_table(run.root))
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
    pinned = isinstance(study.foundation, HuggingFaceSettings) and study.foundation.sha256 is not None
    facts += [f"foundation:{places.foundation.resolve()}"] if places.foundation and not pinned else []
    return places.runs / study.name / f"{study.hash(*facts)}-seed{study.seed}"


def _benchmark(study: Study, places: Places, sources: Sources, run: RunDir, reporter: Reporter, party: Party) -> None:
    data = decode_all(study, sources, places.skip_bad, reporter, places.decoded(reporter))
    cohort = party.cohort(study, sources, data, run, places, reporter)
    benchmark(study, cohort, data, sources, places.runs, run, reporter, party.connect)
    write_scores(run.root, run.root / "report.html")
    run.finish()


def _compute(study: Study, places: Places, sources: Sources, run: RunDir, reporter: Reporter, party: Party) -> None:
    facts = provenance()
    data = decode_all(study, sources, places.skip_bad, reporter, places.decoded(reporter))
    cohort = party.cohort(study, sources, data, run, places, reporter)
    run.write_json("study.json", study.resolved())
    run.write_json("partition.json", cohort.partition)
    run.write_json("normalisation.json", {name: value.as_json() for name, value in cohort.moments.items()})
    with reporter.phase("foundation"):
        foundation = load_foundation(study.foundation, cache=places.cache, corpus=places.corpus, path=places.foundation)
    before = foundation.fingerprint()

    shared = federations(study, cohort, dict(sources.checksums), places.runs)
    baselines = train_baselines(shared, reporter, party.connect)
    _copy_logs(shared, run)
    model = build_multimodal(study)
    injector = Injector(foundation, model, study.tasks, study.injection, study.seed, alone=not study.federate)
    injected = Arm(run, study, cohort, model, injector, connect=party.connect)
    injected.run(reporter, "federate and inject" if study.federate else "inject from public data alone")

    if (after := foundation.fingerprint()) != before:
        raise RunError("the frozen foundation changed during injection", where=run.root, hint="report this as a bug")
    if study.injection.answer_calibration:
        untrained = [task for task in study.tasks if role_of(study, task) == "unseen" and isinstance(task, ClosedTask)]
        injector.calibrate(untrained, cohort.public)
    injector.save(run.root / "injection")
    asked = InjectedPredictor(injector)
    predictors: dict[str, Predictor] = {"fedkim": asked, **baselines}
    predictors |= {"heads": HeadPredictor(model)} if study.federate else {}
    with reporter.phase("evaluate") as advance:
        for number, task in enumerate(study.tasks):
            if isinstance(task, QuestionAnswering):
                answer_task(run, study, cohort, task, {"fedkim": asked})
            else:
                predict_task(run, study, cohort, task, predictors)
            advance(number + 1, len(study.tasks))
        scores = score_predictions(run, study)
    modalities = {name: study.modality(name) for name in study.encoders}
    cards = example_cards(run, study.tasks, cohort, modalities, study.seed, show=places.show_examples)
    run.write_json("cards.json", cards)
    run.write_json("scores.json", scores)
    put_beside(study, run, [federation.run for federation in shared])
    facts |= {"data": data_facts(data, sources.checksums), "finished": now()}
    facts |= {"federations": {federation.model: federation.run.root.name for federation in shared}}
    facts |= {"corpus": str(places.corpus.resolve()) if places.corpus else None}
    facts |= {"titles": {task.name: task.title for task in study.tasks}}
    facts |= {"foundation": {**foundation.info, "fingerprint_before": before, "fingerprint_after": after}}
    run.write_json("provenance.json", facts)
    write_report(run.root, run.root / "report.html")
    run.finish()


def _copy_logs(shared: list[Federation], run: RunDir) -> None:
    """Lay the logs of the shared federation into the run, where the report reads them."""
    for federation in shared:
        if federation.model == "federated":
            for name in ("rounds.jsonl", "development.jsonl"):
                run.write_records(f"federated-only/{name}", federation.run.read_records(name))


def evaluate_again(folder: Path, places: Places, reporter: Reporter) -> None:
    """Score a finished run anew from its last checkpoints and compare with the predictions it wrote.

    Raises:
        RunError: the run is not finished, or a prediction differs.
    """
    run = LoadedRun(folder, places.cache, places.foundation)
    study = run.study
    sources = find_sources(study, places.data_root, places.cache, reporter)
    cache = places.decoded(reporter)
    data = decode_all(study, sources, places.skip_bad, reporter, cache)
    cohort = cohort_of(study, sources, data, places.skip_bad, reporter, cache)
    written = RunDir(folder)
    predictor = InjectedPredictor(run.injector)
    for task in study.tasks:
        again, records = predictor(cohort.test[task.name]), written.read_records(f"predictions/{task.name}.jsonl")
        before = [record["scores"]["fedkim"] for record in records]
        same = np.allclose(again, np.array(before), atol=1e-6)
        if isinstance(task, QuestionAnswering):
            texts = predictor.answer(cohort.test[task.name], study.evaluation.max_new_tokens)
            same = same and texts == [record["answers"]["fedkim"] for record in records]
        if not same:
            raise RunError(
                f"the predictions of {task.name!r} differ", where=folder, hint="check data root and versions"
            )
        reporter.say(f"{task.name}: {len(before)} predictions, all as written")
    reporter.console.print(summary_table(folder))


def _describe(study: Study, places: Places, sources: Sources, run: RunDir, reporter: Reporter) -> None:
    """Say what a run would do."""
    reporter.say(f"study {study.name!r}: {study.algorithm.label}, {study.rounds.num_rounds} rounds, seed {study.seed}")
    for task in study.tasks:
        reporter.say(f"  {role_of(study, task)} task {task.name}: {task.title} on {sources.roots[task.dataset]}")
    sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in build_model(study).named_children()}
    listed = ", ".join(f"{size:,} in {name}" for name, size in sizes.items() if size)
    reporter.say(f"  parameters a client trains: {listed}")
    if study.job == "inject":
        for line in llm_lines(study, sources, places.foundation):
            reporter.say(f"  {line}")
    state = "finished" if run.done else "to be resumed" if run.exists("study.json") else "new"
    reporter.say(f"  run folder: {run.root} ({state})")
