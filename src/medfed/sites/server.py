"""What the server of a federation runs: wait for the sites, greet them, then the very pipeline a single machine runs.

Only the exchange and the cohort differ from a run in one process: the clients are sites elsewhere, and of their data
the server knows their number of examples and their moments. Both are filed in the run's folder at the first greeting,
so a server that was killed goes on with the same federation and ends with the same bits.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from medfed.core.errors import DataError, RunError, TooFewSitesError
from medfed.core.progress import Reporter
from medfed.core.types import Failure
from medfed.data.cohort import Cohort, server_cohort, with_reports
from medfed.data.layout import sampled_modalities
from medfed.data.sites import moments_json, moments_of, pool
from medfed.data.sources import Sources, server_sources
from medfed.datasets.decoded import Decoded
from medfed.federated.exchange import ClientExchange
from medfed.records.folder import RunFolder
from medfed.records.schema import GreetingFile, Round
from medfed.runs.context import Participants, RunContext, RunPaths
from medfed.runs.pipeline import run_study
from medfed.runs.sites import scores_of
from medfed.sites.federation import FederationFolder, check_study
from medfed.sites.invitation import versions
from medfed.sites.remote import Envelope, Greeting, Post, RemoteExchange, greet
from medfed.sites.status import SiteFailure, StatusFile
from medfed.study.study import Study

POLL_SECONDS = 0.2
BYE_SECONDS = 5.0
RETURN_SECONDS = 15.0
"""A site looks at least every ten seconds whether its server is back."""


class Hospitals:
    """The sites of a run, as the pipeline sees them.

    Args:
        folder: the federation's.
        post: the way to the sites.
        reporter: is given lines for the log.
    """

    def __init__(self, folder: FederationFolder, post: Post, reporter: Reporter) -> None:
        self._folder, self._post, self._reporter = folder, post, reporter
        self._greetings: dict[str, Greeting] = {}
        self._moments: dict[str, Any] = {}
        self._status = StatusFile(folder.root)
        self._status.update()  # what an earlier start left is over

    def participants(self) -> Participants:
        """Return what the pipeline needs of the sites."""
        return Participants(self.sources, self.cohort, self.connect)

    def sources(self, study: Study, paths: RunPaths, reporter: Reporter) -> Sources:
        """Find the server's own data."""
        return server_sources(study, paths.data_root, paths.cache, reporter)

    def cohort(self, context: RunContext, data: Mapping[str, Decoded]) -> Cohort:
        """Greet the sites, or those of the first greeting, and lay the server's data out by their pooled moments.

        Raises:
            TooFewSitesError: not enough came, or were willing, in time.
            RunError: a site's data is not what it was at the first greeting.
        """
        study, run = context.study, context.run
        filed = run.read(GreetingFile).sites if run.exists(GreetingFile.NAME) else {}
        self._wait(set(filed) or set(self._folder.sites))
        facts = self._facts(study, run)
        asked = self._post.online() & set(filed or self._folder.sites)
        self._status.update(state="hello", num_rounds=study.rounds.num_rounds)
        answers = greet(self._post, asked, facts, self._folder.deadlines.hello_seconds)
        answers = {site: _checked(site, study, answer) for site, answer in answers.items()}
        willing = {site: answer for site, answer in answers.items() if isinstance(answer, Greeting)}
        for failure in _failures(answers):
            self.note_failure(failure)
        self._check_versions(willing)
        if len(willing) < self._folder.min_sites:
            raise self._too_few(len(willing), [(found.client, found.reason) for found in _failures(answers)])
        if filed:
            willing = _as_filed(filed, willing)
        else:
            run.write(GreetingFile(sites={site: found.model_dump() for site, found in sorted(willing.items())}))
        self._greetings = dict(sorted(willing.items()))
        pooled = pool({site: moments_of(found.moments) for site, found in self._greetings.items()})
        self._moments = moments_json(pooled)
        sizes = {site: found.num_examples for site, found in self._greetings.items()}
        counts = {site: found.counts for site, found in self._greetings.items()}
        return with_reports(server_cohort(study, data, pooled), sizes, counts)

    def connect(self, study: Study, cohort: Cohort, run: RunFolder) -> ClientExchange:
        """Return the exchange of one federation of the run."""
        registered = {site: found.num_examples for site, found in self._greetings.items()}
        facts = {**self._facts(study, run), "moments": json.dumps(self._moments)}
        self._status.update(state="training", run=str(run.root))
        return RemoteExchange(
            self._post,
            registered,
            facts,
            train_seconds=self._folder.deadlines.train_seconds,
            evaluate_seconds=self._folder.deadlines.evaluate_seconds,
            before_round=partial(self._before_round, run),
            read_scores=partial(scores_of, study=study),
            tell=self.note_failure,
        )

    def goodbye(self) -> None:
        """Tell the sites that the run is over; after a restart they have a moment to come back and hear it."""
        limit = time.monotonic() + (0 if self._greetings else RETURN_SECONDS)
        while set(self._folder.sites) - self._post.online() and time.monotonic() < limit:
            time.sleep(POLL_SECONDS)
        letters = {site: Envelope("bye", {}, b"") for site in self._post.online()}
        for _ in self._post.ask(letters, BYE_SECONDS):
            pass

    def note_failure(self, failure: Failure) -> None:
        """Say and file that a site gave no usable answer."""
        self._reporter.say(f"{failure.client}, round {failure.round}, {failure.phase}: {failure.reason}")
        told = SiteFailure(site=failure.client, round=failure.round, phase=failure.phase, reason=failure.reason)
        self._status.failed(told)

    def _before_round(self, run: RunFolder, round: int) -> None:
        self._status.update(round=round)
        self._tell_refused(run, round - 1)
        self._wait(set(self._greetings))

    def _tell_refused(self, run: RunFolder, round: int) -> None:
        """Tell of the updates of ``round`` that the gate refused."""
        for line in run.lines(Round):
            for found in line.failures if line.round == round else ():
                if found.phase == "gate":
                    self.note_failure(Failure(found.client, round, "gate", found.reason))

    def _wait(self, wanted: set[str]) -> None:
        """Wait until all ``wanted`` sites are there; after the deadline those that are must be enough."""
        limit, said = time.monotonic() + self._folder.deadlines.wait_for_sites_seconds, False
        while wanted - (there := self._post.online()):
            enough = len(there & wanted) >= self._folder.min_sites
            if time.monotonic() > limit and not enough:
                raise self._too_few(len(there & wanted), [(site, "not there") for site in sorted(wanted - there)])
            if time.monotonic() > limit or (enough and self._greetings):
                return
            if not said:
                self._reporter.say(f"waiting for {', '.join(sorted(wanted - there))}")
                said = True
            time.sleep(POLL_SECONDS)
        for site in sorted(self._post.online()):
            self._status.seen(site)

    def _too_few(self, count: int, told: list[tuple[str, str]]) -> TooFewSitesError:
        listed = "".join(f"\n  {site}: {reason}" for site, reason in told)
        return TooFewSitesError(
            f"{count} sites, {self._folder.min_sites} are needed{listed}",
            where=f"federation {self._folder.root}",
            hint="see to those sites and start again: finished rounds are kept; or lower min_sites",
        )

    def _check_versions(self, willing: Mapping[str, Greeting]) -> None:
        for site, found in sorted(willing.items()):
            for package, version in versions().items():
                theirs = found.versions.get(package)
                if theirs != version:
                    self._reporter.say(f"{site}: has {package} {theirs}, the server {version}: bits may differ")

    def _facts(self, study: Study, run: RunFolder) -> dict[str, str]:
        return {
            "study": json.dumps(study.resolved()),
            "run": f"{run.root.parent.name}/{run.root.name}",
        }


def serve(folder: FederationFolder, console: Console | None = None) -> Path:
    """Run the federation's study to its end, or go on where it stopped; return the run's folder.

    Raises:
        TooFewSitesError: not enough sites came in time, at the start or later.
        MedfedError: an input is wrong; finished rounds are kept, and the same command goes on from there.
    """
    from medfed.sites.flower import FlowerServer  # noqa: PLC0415

    study, reporter, files = folder.study(), Reporter(console or Console()), folder.certificates
    check_study(study, folder.study_path)
    log, listen = folder.root / "server.log", folder.settings.listen
    server = FlowerServer(listen, folder.port, files.certificate, files.key, folder.sites, log)
    hospitals = Hospitals(folder, server, reporter)
    server.start()
    reporter.say(f"listening on {listen}:{server.port} for {', '.join(folder.sites)}")
    try:
        paths = RunPaths(folder.runs, folder.cache, folder.data_root)
        found = run_study(study, paths, reporter, participants=hospitals.participants())
        hospitals.goodbye()
    finally:
        server.stop()
    return found


def _checked(site: str, study: Study, answer: Greeting | Failure) -> Greeting | Failure:
    """Return a greeting whose moments are finite and of the study's modalities and channels, else a failure."""
    if isinstance(answer, Failure):
        return answer
    try:
        given = {name: len(one.count) for name, one in moments_of(answer.moments).items()}
    except DataError as error:
        return Failure(site, 0, "hello", f"its moments are none: {error.what}")
    if given != {name: one.num_channels for name, one in sampled_modalities(study).items()}:
        return Failure(site, 0, "hello", "its moments are not of the study's modalities and channels")
    return answer


def _failures(answers: Mapping[str, Greeting | Failure]) -> list[Failure]:
    """Return why some sites take no part, sorted by site."""
    return [found for _, found in sorted(answers.items()) if isinstance(found, Failure)]


def _as_filed(filed: Mapping[str, Any], found: Mapping[str, Greeting]) -> dict[str, Greeting]:
    """Return the first greetings; a site that greets again must say the same.

    Raises:
        RunError: its data changed.
    """
    first = {site: Greeting.model_validate(value) for site, value in filed.items()}
    for site, again in found.items():
        same = again.num_examples == first[site].num_examples and again.moments == first[site].moments
        if not same:
            raise RunError(
                "its data is not what it was when the run began",
                where=f"site {site!r}",
                hint="bring the old data back, or start a new run: remove the run's folder",
            )
    return first
