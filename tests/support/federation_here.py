"""A federation in this process, without a network, and the same study with a site that is not heard."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator, Mapping

from rich.console import Console

from medfed.core.progress import Reporter
from medfed.core.types import Broadcast
from medfed.data.cohort import Cohort
from medfed.federated.exchange import Answer, ClientExchange
from medfed.records.folder import RunFolder
from medfed.records.schema import Round
from medfed.runs.context import Participants, RunPaths, here
from medfed.runs.pipeline import run_study
from medfed.sites.client import SiteHandler
from medfed.sites.federation import FederationFolder
from medfed.sites.remote import Message, NoAnswer
from medfed.sites.server import Hospitals
from medfed.study.study import Study
from support.federation_trial import Trial

Meddle = Callable[[str, Message, Message], Message]
"""(site, letter, its answer) → the answer that arrives."""


class InProcessTransport:
    """The transport between a server and the sites of ``trial``; it keeps all that left the sites, and may meddle."""

    def __init__(self, trial: Trial, meddle: Meddle = lambda site, message, answer: answer) -> None:
        self._output = {site: io.StringIO() for site in trial.sites}
        self._handlers = {
            site: SiteHandler(trial.folder(site), Reporter(Console(file=self._output[site], width=500)))
            for site in trial.sites
        }
        self._meddle = meddle
        self.left: list[tuple[str, Message]] = []

    def output(self, site: str) -> str:
        """Return what ``site`` told its own people."""
        return self._output[site].getvalue()

    def online(self) -> set[str]:
        return set(self._handlers)

    def ask(self, letters: Mapping[str, Message], seconds: float) -> Iterator[tuple[str, Message | NoAnswer]]:
        for site, letter in sorted(letters.items()):
            answer = self._meddle(site, letter, self._handlers[site](letter))
            self.left.append((site, answer))
            yield site, answer

    def late(self) -> list[tuple[str, str]]:
        return []


def run_over(trial: Trial, transport: InProcessTransport) -> RunFolder:
    """Run the study of ``trial`` over ``transport`` as its server does."""
    folder, reporter = FederationFolder.load(trial.server_folder), Reporter.silent()
    hospitals = Hospitals(folder, transport, reporter)
    return RunFolder(run_study(trial.study, folder.paths, reporter, participants=hospitals.participants()))


class Deaf:
    """An exchange of which one client is not heard in some rounds; it may not even be asked."""

    def __init__(self, inner: ClientExchange, client: str, rounds: set[int], *, asked: bool) -> None:
        self._inner, self._client, self._rounds, self._asked = inner, client, rounds, asked

    def __getattr__(self, name: str) -> object:
        return getattr(self._inner, name)

    def __call__(self, round: int, broadcasts: Mapping[str, Broadcast]) -> Iterator[Answer]:
        deaf = {self._client} if round in self._rounds else set()
        asked = {name: sent for name, sent in broadcasts.items() if self._asked or name not in deaf}
        yield from ((name, answer) for name, answer in self._inner(round, asked) if name not in deaf)


def weights_without(trial: Trial, client: str, rounds: set[int], *, asked: bool) -> str:
    """Return the final weights' sha256 of a run in this process in which ``client`` is not heard in ``rounds``."""
    local = here()

    def connect(study: Study, cohort: Cohort, run: RunFolder) -> ClientExchange:
        return Deaf(local.connect(study, cohort, run), client, rounds, asked=asked)  # type: ignore[return-value]

    paths = RunPaths(trial.root / "here", trial.root / "cache", trial.data)
    participants = Participants(local.sources, local.cohort, connect)
    return weights(RunFolder(run_study(trial.study, paths, Reporter.silent(), participants=participants)))


def weights(run: RunFolder) -> str:
    newest = sorted((run.root / "checkpoints").glob("[0-9]*"))[-1]
    return hashlib.sha256((newest / "state.safetensors").read_bytes()).hexdigest()


def failures(trial: Trial) -> dict[int, list[tuple[str, str, str]]]:
    """Return round → (site, phase, reason) as ``rounds.jsonl`` has them."""
    return {
        line.round: [(failure.client, failure.phase, failure.reason) for failure in line.failures]
        for line in trial.run.lines(Round)
    }


def sites_and_phases(told: Mapping[int, list[tuple[str, str, str]]]) -> dict[int, list[tuple[str, str]]]:
    return {number: [(site, phase) for site, phase, _ in found] for number, found in told.items()}
