"""A federation in one process, without a network: the server's letters go straight to the desks of its sites."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping

from rich.console import Console

from federation_trial import Trial
from medfed.core.progress import Reporter
from medfed.runs.folder import RunDir
from medfed.runs.pipeline import Places, run_study
from medfed.sites.client import SiteHandler
from medfed.sites.federation import FederationFolder
from medfed.sites.remote import Message, NoAnswer
from medfed.sites.server import Hospitals

Meddle = Callable[[str, Message, Message], Message]
"""(site, letter, its answer) → the answer that arrives."""


class DeskPost:
    """The post between a server and the sites of ``trial``; it keeps all that left the sites, and may meddle."""

    def __init__(self, trial: Trial, meddle: Meddle = lambda site, letter, answer: answer) -> None:
        self._said = {site: io.StringIO() for site in trial.sites}
        self._desks = {
            site: SiteHandler(trial.folder(site), Reporter(Console(file=self._said[site], width=500)))
            for site in trial.sites
        }
        self._meddle = meddle
        self.left: list[tuple[str, Message]] = []

    def said(self, site: str) -> str:
        """Return what ``site`` told its own people."""
        return self._said[site].getvalue()

    def online(self) -> set[str]:
        return set(self._desks)

    def ask(self, letters: Mapping[str, Message], seconds: float) -> Iterator[tuple[str, Message | NoAnswer]]:
        for site, letter in sorted(letters.items()):
            answer = self._meddle(site, letter, self._desks[site](letter))
            self.left.append((site, answer))
            yield site, answer

    def late(self) -> list[tuple[str, str]]:
        return []


def run_over(trial: Trial, post: DeskPost) -> RunDir:
    """Run the study of ``trial`` over ``post`` as its server does."""
    folder, reporter = FederationFolder.load(trial.server_folder), Reporter.silent()
    places = Places(folder.runs, folder.cache, folder.settings.data_root)
    hospitals = Hospitals(folder, post, reporter)
    return RunDir(run_study(trial.study, places, reporter, party=hospitals.party()))
