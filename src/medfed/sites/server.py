"""The server of a federation: it waits for the sites, greets them, and runs the very pipeline of a single machine.

Only the exchange and the cohort differ from a run in one process. The clients are sites elsewhere; the server knows
their numbers of examples and their moments. Both are filed in the run's folder at the first greeting. So a server that
was killed goes on with the same federation and ends with the same bits.
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
from medfed.sites.invitation import STUDY, versions
from medfed.sites.remote import Conduct, Greeting, Message, RemoteExchange, Transport, greet
from medfed.sites.status import SiteFailure, StatusFile
from medfed.study.study import Study

POLL_SECONDS = 0.2
BYE_SECONDS = 5.0
RETURN_SECONDS = 15.0
"""A site looks at least every ten seconds whether its server is back."""


class Hospitals:
    """The sites of a run, as the pipeline sees them."""

    def __init__(self, folder: FederationFolder, transport: Transport, reporter: Reporter) -> None:
        self._folder, self._transport, self._reporter = folder, transport, reporter
        self._deadlines = folder.settings.deadlines
        self._greetings: dict[str, Greeting] = {}
        self._moments: dict[str, Any] = {}
        self._status = StatusFile(folder.root)
        self._status.update()  # what an earlier start left is over

    def participants(self) -> Participants:
        """Return what the pipeline needs of the sites: their cohort, the way to them, and the server's own data."""
        return Participants(_sources, self.cohort, self.connect)

    def cohort(self, context: RunContext, data: Mapping[str, Decoded]) -> Cohort:
        """Greet the sites, or those of the first greeting, and lay the server's data out by their pooled moments.
        Raises TooFewSitesError if not enough came, or were willing, in time. Raises RunError if a site's data is not
        what it was at the first greeting."""
        study, run = context.study, context.run
        filed = run.read(GreetingFile).sites if run.exists(GreetingFile.NAME) else {}
        first = {site: Greeting.model_validate(greeting) for site, greeting in filed.items()}
        willing = self._greeted(study, run, set(first) or set(self._folder.sites))
        if first:
            _check_unchanged(first, willing)
        else:
            run.write(GreetingFile(sites={site: greeting.model_dump() for site, greeting in sorted(willing.items())}))
        self._greetings = dict(sorted((first or willing).items()))
        pooled = pool({site: moments_of(greeting.moments) for site, greeting in self._greetings.items()})
        self._moments = moments_json(pooled)
        counts = {site: greeting.counts for site, greeting in self._greetings.items()}
        return with_reports(server_cohort(study, data, pooled), self._sizes(), counts)

    def connect(self, study: Study, cohort: Cohort, run: RunFolder) -> ClientExchange:
        """Return the exchange of one federation of the run."""
        self._status.update(state="training", run=str(run.root))
        facts = {**_facts(study, run), "moments": json.dumps(self._moments)}
        limits = self._deadlines.train_seconds, self._deadlines.evaluate_seconds
        conduct = Conduct(*limits, partial(self._before_round, run), partial(scores_of, study=study), self.report)
        return RemoteExchange(self._transport, self._sizes(), facts, conduct)

    def goodbye(self) -> None:
        """Let the sites know that the run is over; after a restart they have a moment to come back for it."""
        limit = time.monotonic() + (0 if self._greetings else RETURN_SECONDS)
        while set(self._folder.sites) - self._transport.online() and time.monotonic() < limit:
            time.sleep(POLL_SECONDS)
        for _ in self._transport.ask(dict.fromkeys(self._transport.online(), Message("bye", {}, b"")), BYE_SECONDS):
            pass

    def report(self, failure: Failure) -> None:
        """Print and file that a site gave no usable answer."""
        site, number, phase, reason = failure.client, failure.round, failure.phase, failure.reason
        self._reporter.say(f"{site}, round {number}, {phase}: {reason}")
        self._status.failed(SiteFailure(site=site, round=number, phase=phase, reason=reason))

    def _sizes(self) -> dict[str, int]:
        return {site: greeting.num_examples for site, greeting in self._greetings.items()}

    def _greeted(self, study: Study, run: RunFolder, wanted: set[str]) -> dict[str, Greeting]:
        """Wait for the ``wanted`` sites, greet those that came, and return the greetings of those that are willing."""
        self._wait(wanted)
        self._status.update(state="hello", num_rounds=study.rounds.num_rounds)
        here = self._transport.online() & wanted
        answers = greet(self._transport, here, _facts(study, run), self._deadlines.hello_seconds)
        willing: dict[str, Greeting] = {}
        reasons = {}
        for site, answer in sorted(answers.items()):
            checked = _checked(site, study, answer)
            if isinstance(checked, Failure):
                reasons[site] = checked.reason
                self.report(checked)
            else:
                willing[site] = checked
        self._compare_versions(willing)
        if len(willing) < self._folder.min_sites:
            raise self._too_few(len(willing), reasons)
        return willing

    def _before_round(self, run: RunFolder, round: int) -> None:
        """Report the updates of the last round that the gate refused, and wait for the sites."""
        self._status.update(round=round)
        for line in run.lines(Round):
            for failure in line.failures if line.round == round - 1 else ():
                if failure.phase == "gate":
                    self.report(Failure(failure.client, round - 1, "gate", failure.reason))
        self._wait(set(self._greetings))

    def _wait(self, wanted: set[str]) -> None:
        """Wait until all ``wanted`` sites are connected; after the deadline those that are must be enough."""
        limit, announced = time.monotonic() + self._deadlines.wait_for_sites_seconds, False
        while missing := sorted(wanted - self._transport.online()):
            count = len(wanted) - len(missing)
            enough, over = count >= self._folder.min_sites, time.monotonic() > limit
            if over and not enough:
                raise self._too_few(count, dict.fromkeys(missing, "not there"))
            if enough and (over or self._greetings):
                return
            if not announced:
                self._reporter.say(f"waiting for {', '.join(missing)}")
                announced = True
            time.sleep(POLL_SECONDS)
        for site in sorted(self._transport.online()):
            self._status.seen(site)

    def _too_few(self, count: int, reasons: Mapping[str, str]) -> TooFewSitesError:
        listed = "".join(f"\n  {site}: {reason}" for site, reason in reasons.items())
        what = f"{count} sites, {self._folder.min_sites} are needed{listed}"
        hint = "see to those sites and start again: finished rounds are kept; or lower min_sites"
        return TooFewSitesError(what, where=f"federation {self._folder.root}", hint=hint)

    def _compare_versions(self, willing: Mapping[str, Greeting]) -> None:
        for site, greeting in willing.items():
            for package, version in versions().items():
                theirs = greeting.versions.get(package)
                if theirs != version:
                    self._reporter.say(f"{site}: has {package} {theirs}, the server {version}: bits may differ")


def serve(folder: FederationFolder) -> Path:
    """Run the federation's study to its end, or go on where it stopped; return the run's folder. Raises
    TooFewSitesError if not enough sites came in time, at the start or later. Raises MedfedError if an input is wrong;
    finished rounds are kept, and the same command goes on from there."""
    from medfed.sites.network import NetworkServer  # noqa: PLC0415  (the network is an optional extra)

    study, reporter, settings = folder.study(), Reporter(Console()), folder.settings
    check_study(study, folder.root / STUDY)
    log = folder.root / "server.log"
    server = NetworkServer(settings.listen, settings.port, folder.certificates, folder.sites, log)
    hospitals = Hospitals(folder, server, reporter)
    server.start()
    reporter.say(f"listening on {settings.listen}:{server.port} for {', '.join(folder.sites)}")
    try:
        run = run_study(study, folder.paths, reporter, participants=hospitals.participants())
        hospitals.goodbye()
    finally:
        server.stop()
    return run


def _sources(study: Study, paths: RunPaths, reporter: Reporter) -> Sources:
    return server_sources(study, paths.data_root, paths.cache, reporter)


def _facts(study: Study, run: RunFolder) -> dict[str, str]:
    return {"study": json.dumps(study.resolved()), "run": f"{run.root.parent.name}/{run.root.name}"}


def _checked(site: str, study: Study, answer: Greeting | Failure) -> Greeting | Failure:
    """Return a greeting whose moments are finite and of the study's modalities and channels, else a failure."""
    if isinstance(answer, Failure):
        return answer
    try:
        channels = {name: len(moments.count) for name, moments in moments_of(answer.moments).items()}
    except DataError as error:
        return Failure(site, 0, "hello", f"its moments are unusable: {error.what}")
    if channels != {name: modality.num_channels for name, modality in sampled_modalities(study).items()}:
        return Failure(site, 0, "hello", "its moments are not of the study's modalities and channels")
    return answer


def _check_unchanged(first: Mapping[str, Greeting], again: Mapping[str, Greeting]) -> None:
    """Raise RunError for a site whose second greeting is of other data than its first."""
    for site, greeting in again.items():
        if (greeting.num_examples, greeting.moments) != (first[site].num_examples, first[site].moments):
            what = "its data is not what it was when the run began"
            hint = "bring the old data back, or start a new run: remove the run's folder"
            raise RunError(what, where=f"site {site!r}", hint=hint)
