"""What a hospital runs: it calls out to the server, and answers with what its own people allow to leave.

The code is the hospital's own installed medfed. A letter brings a study as JSON, which must be of registered parts, and
named tensors, which must be those of the model the study describes. The policy is asked before data is read and before
anything leaves, and what leaves stands in the audit log first.
"""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pydantic import ValidationError
from rich.console import Console

from medfed.core.errors import DataError, MedfedError, PolicyError, RunError, SiteError, StudyError
from medfed.core.progress import Reporter
from medfed.core.types import Broadcast
from medfed.data.cache import DecodedCache
from medfed.data.decode import Reading
from medfed.data.sites import (
    SiteData,
    class_counts,
    load_site,
    moments_at,
    moments_json,
    moments_of,
    public_sets,
    site_client,
)
from medfed.data.sources import find_site
from medfed.federated.client import Client
from medfed.federated.exchange import Trainer
from medfed.federated.gate import check_broadcast
from medfed.federated.memory import DiskMemory
from medfed.federated.wire import broadcast_of, update_bytes
from medfed.modalities.moments import Moments
from medfed.runs.federation import build_model
from medfed.runs.sites import evaluate_at
from medfed.sites.audit import tensor_names
from medfed.sites.folder import SiteFolder
from medfed.sites.invitation import versions
from medfed.sites.keys import load_node_key
from medfed.sites.policy import ANY, study_sha256
from medfed.sites.remote import Envelope, Greeting
from medfed.study.study import Study
from medfed.tasks.base import TaskSet

SCRUBBED = "its data cannot be used; the site's own log says which file"
"""All the server learns of a mistake in a site's data: such messages name files, examples and patients."""
OWN_FILES = "its own files (audit log, state) cannot be read or written; the site's own log says which, and why"
"""Likewise of its folder."""
CACHE = "cache"
"""In a site's folder, where its decoded data lies if it is to be kept."""


@dataclass
class _Run:
    """A run the site takes part in."""

    study: Study
    data: SiteData
    trainer: Trainer
    moments: str = ""
    client: Client | None = None
    tests: Mapping[str, TaskSet] | None = None


class SiteDesk:
    """Answers the server's letters, one at a time.

    Args:
        folder: the site's.
        reporter: is given lines for the site's own people.
        cache: where the site's decoded data is kept; None keeps none on disk.
    """

    def __init__(self, folder: SiteFolder, reporter: Reporter, cache: DecodedCache | None = None) -> None:
        self._folder, self._reporter, self._reading = folder, reporter, Reading(reporter, cache=cache)
        self._runs: dict[str, _Run] = {}
        self._sites: dict[str, SiteData] = {}
        self.finished = False

    def __call__(self, letter: Envelope) -> Envelope:
        """Answer ``letter``; what goes wrong is an answer too."""
        answers: dict[str, Callable[[Envelope], Envelope]] = {
            "hello": self._hello,
            "train": self._train,
            "evaluate": self._evaluate,
            "bye": self._bye,
        }
        try:
            if letter.kind not in answers:
                raise RunError(f"a letter of kind {letter.kind!r}", where="the server", hint="compare versions")
            return answers[letter.kind](letter)
        except MedfedError as error:
            self._reporter.say(str(error))
            return self._failure(letter, _told(error))
        except Exception as error:  # a bug here must not end the site's part in the federation
            self._reporter.say(traceback.format_exc())
            return self._failure(letter, f"a bug at the site: {type(error).__name__}")

    def _hello(self, letter: Envelope) -> Envelope:
        run = self._run(letter)
        greeting = Greeting(
            num_examples=run.data.num_examples,
            moments=moments_json(moments_at(run.study, run.data)),
            versions=versions(),
            counts=class_counts(run.data) if self._folder.policy.class_counts else None,
        )
        self._reporter.say(f"study {run.study.name!r}: {run.data.num_examples} training examples here")
        return self._sent(letter, "greeting", greeting.model_dump_json().encode(), run, run.data.num_examples)

    def _train(self, letter: Envelope) -> Envelope:
        run = self._run(letter)
        client, _ = self._party(letter, run)
        broadcast = self._broadcast(letter, run)
        self._reporter.say(f"round {broadcast.round}: training")
        answer = run.trainer.update(client, broadcast)
        self._folder.policy.check_update(answer)
        return self._sent(
            letter, "update", update_bytes(answer), run, answer.num_examples, tensor_names(answer), answer.metrics
        )

    def _evaluate(self, letter: Envelope) -> Envelope:
        run = self._run(letter)
        _, tests = self._party(letter, run)
        broadcast, own = self._broadcast(letter, run), run.trainer.own(self._folder.name)
        scores = evaluate_at(run.study, build_model(run.study), tests, broadcast, own)
        self._folder.policy.check_scores(scores)
        payload = json.dumps(scores).encode()
        return self._sent(letter, "scores", payload, run, metrics=scores)

    def _bye(self, letter: Envelope) -> Envelope:
        self.finished = True
        self._reporter.say("the run is over")
        return Envelope("bye", {}, b"")

    def _run(self, letter: Envelope) -> _Run:
        """Return the run that the letter belongs to; policy and data are looked at when it is new."""
        name = letter.facts.get("run", "")
        if name not in self._runs:
            study = _study(letter)
            self._folder.policy.check_study(study)
            memory, dtype = self._memory(name), study.rounds.upload_dtype
            trainer = Trainer(build_model(study), study.algorithm, study.client, study.seed, memory, dtype)
            self._runs = {name: _Run(study, self._site_data(study), trainer)}  # one at a time: memory stays flat
        return self._runs[name]

    def _site_data(self, study: Study) -> SiteData:
        digest = study_sha256(study)
        if digest not in self._sites:
            policy = self._folder.policy
            allowed = None if ANY in policy.tasks else policy.tasks
            roots = find_site(study, self._folder.name, self._folder.data_root, allowed)
            data = load_site(study, self._folder.name, roots, self._reading, allowed)
            policy.check_counts({name: len(rows) for name, rows in data.train.items()})
            self._sites = {digest: data}
        return self._sites[digest]

    def _memory(self, run: str) -> DiskMemory:
        return DiskMemory(self._folder.state_folder / quote(run, safe="").replace(".", "%2E"))

    def _party(self, letter: Envelope, run: _Run) -> tuple[Client, Mapping[str, TaskSet]]:
        """Return the site as a client of the run, and its test examples, normalised by the letter's moments."""
        given = letter.facts.get("moments", "{}")
        if run.client is None or run.tests is None or run.moments != given:
            pooled = moments_of(json.loads(given))
            run.client, run.tests = site_client(run.study, run.data, pooled, self._public(run, pooled))
            run.moments = given
        return run.client, run.tests

    def _public(self, run: _Run, pooled: Mapping[str, Moments]) -> Mapping[str, TaskSet] | None:
        root = self._folder.public_root
        if not run.study.algorithm.uses_public or root is None:
            return None
        return public_sets(run.study, root, pooled, self._reading)

    def _broadcast(self, letter: Envelope, run: _Run) -> Broadcast:
        broadcast = broadcast_of(letter.payload)
        check_broadcast(broadcast, run.study.algorithm.build().shared(run.trainer.initial))
        check_round(letter, broadcast, run.study.rounds.num_rounds)
        return broadcast

    def _sent(
        self,
        letter: Envelope,
        kind: str,
        payload: bytes,
        run: _Run,
        num_examples: int | None = None,
        tensors: tuple[str, ...] = (),
        metrics: Mapping[str, Any] | None = None,
    ) -> Envelope:
        """Write down what is about to leave, and only then let it."""
        self._folder.audit.append(
            kind,
            payload,
            run=letter.facts.get("run", ""),
            study=study_sha256(run.study),
            round=_round(letter),
            tensors=tensors,
            num_examples=num_examples,
            metrics=metrics,
        )
        return Envelope(kind, {}, payload)

    def _failure(self, letter: Envelope, reason: str) -> Envelope:
        with suppress(MedfedError):  # a broken audit log is itself the reason, and must be told
            run = letter.facts.get("run", "")
            self._folder.audit.append("failure", reason.encode(), run=run, round=_round(letter))
        return Envelope("failure", {"phase": letter.kind, "reason": reason}, b"")


def join(folder: SiteFolder, *, once: bool = False, keep_decoded: bool = False, console: Console | None = None) -> None:
    """Take part in the federation until it is told to stop (Ctrl-C, SIGTERM), or, with ``once``, until a run is over.

    Args:
        folder: the site's.
        once: leave when a run is over.
        keep_decoded: keep decoded data of patients in the site's folder, so that a restart need not decode it again.
        console: where lines for the site's people go.

    Raises:
        MedfedError: the server refuses this site, is not who it should be, or cannot be reached for too long.
    """
    from medfed.sites.flower import FlowerSite  # noqa: PLC0415

    reporter = Reporter(console or Console())
    cache = DecodedCache(folder.root / CACHE, reporter.say) if keep_decoded else None
    desk = SiteDesk(folder, reporter, cache)
    key = load_node_key(folder.private_key)
    site = FlowerSite(f"{folder.host}:{folder.port}", folder.ca_pem, key, folder.root / "network.log")

    def answer(letter: Envelope) -> Envelope:
        reply = desk(letter)
        if desk.finished and once:
            site.stop()
        return reply

    site.serve(answer, reporter.say, patience_seconds=folder.settings.patience_seconds)


def check_round(letter: Envelope, broadcast: Broadcast, last: int) -> None:
    """Refuse a broadcast that is not of the letter's round, or of none of the study's: it would spoil the memory.

    Raises:
        RunError: naming both rounds.
    """
    if broadcast.round != _round(letter) or not 1 <= broadcast.round <= last:
        what = f"a letter of round {_round(letter)} with a model of round {str(broadcast.round)[:20]}, of {last} rounds"
        raise RunError(what, where="the server", hint="leave the federation and ask its people")


def _told(error: MedfedError) -> str:
    """Return what the server is told of ``error``: nothing that names a file, an example or a patient."""
    if isinstance(error, DataError):
        return SCRUBBED
    own = isinstance(error, SiteError) and not isinstance(error, PolicyError)
    return OWN_FILES if own or isinstance(error.where, Path) else str(error)


def _study(letter: Envelope) -> Study:
    try:
        return Study.model_validate_json(letter.facts.get("study", ""))
    except ValidationError as error:
        first = error.errors()[0]
        raise StudyError(
            f"{'.'.join(map(str, first['loc']))}: {first['msg']}", where="the server's study", hint="compare versions"
        ) from error


def _round(letter: Envelope) -> int:
    text = letter.facts.get("round", "0")
    return int(text) if text.isdecimal() and len(text) < 10 else 0
