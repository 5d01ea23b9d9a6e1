"""A hospital's process: it calls out to the server, and answers with what its own people allow to leave.

The code is the hospital's own installed medfed. A message brings a study as JSON, which must be of registered parts.
Its named tensors must be those of the model the study describes. The policy is consulted before data is read and before
anything leaves. The audit log holds every payload's size and hash before it leaves.
"""

from __future__ import annotations

import json
import traceback
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pydantic import ValidationError
from rich.console import Console

from medfed.core.errors import DataError, MedfedError, PolicyError, RunError, SiteError, StudyError
from medfed.core.progress import Reporter
from medfed.core.types import Broadcast
from medfed.data import sites
from medfed.data.cache import DecodedCache
from medfed.data.decode import Reading
from medfed.data.sites import SiteData, load_site, moments_of, public_sets, site_client
from medfed.data.sources import find_site
from medfed.federated.client import Client
from medfed.federated.exchange import Trainer
from medfed.federated.gate import check_broadcast
from medfed.federated.memory import DiskMemory
from medfed.federated.wire import broadcast_of, update_bytes
from medfed.runs.federation import build_model
from medfed.runs.sites import evaluate_at
from medfed.sites.audit import Facts, tensor_names
from medfed.sites.credentials import load_node_key
from medfed.sites.folder import STATE, SiteFolder
from medfed.sites.invitation import versions
from medfed.sites.policy import study_sha256
from medfed.sites.remote import PROTOCOL, Greeting, Message, clipped
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


class SiteHandler:
    """Answers the server's messages, one at a time; ``reporter`` is given lines for the site's own people. Decoded data
    is kept in ``cache``; None keeps none on disk."""

    def __init__(self, folder: SiteFolder, reporter: Reporter, cache: DecodedCache | None = None) -> None:
        self._folder, self._reporter, self._reading = folder, reporter, Reading(reporter, cache=cache)
        self._runs: dict[str, _Run] = {}
        self._sites: dict[str, SiteData] = {}
        self.finished = False

    def __call__(self, message: Message) -> Message:
        """Answer ``message``; an error is an answer too."""
        answers = {"hello": self._hello, "train": self._train, "evaluate": self._evaluate, "bye": self._bye}
        try:
            check_protocol(message)
            if message.kind not in answers:
                what = f"a message of kind {clipped(message.kind, 40)!r}"
                raise RunError(what, where="the server", hint="compare versions")
            return answers[message.kind](message)
        except MedfedError as error:
            self._reporter.say(str(error))
            return self._failure(message, _reason(error))
        except Exception as error:  # a bug here must not end the site's part in the federation
            self._reporter.say(traceback.format_exc())
            return self._failure(message, f"a bug at the site: {type(error).__name__}")

    def _hello(self, message: Message) -> Message:
        run = self._run(message)
        count, moments = run.data.num_examples, sites.moments_json(sites.moments_at(run.study, run.data))
        classes = sites.class_counts(run.data) if self._folder.policy.class_counts else None
        greeting = Greeting(num_examples=count, moments=moments, versions=versions(), counts=classes)
        self._reporter.say(f"study {run.study.name!r}: {count} training examples here")
        return self._leaving("greeting", greeting.model_dump_json().encode(), message, run, num_examples=count)

    def _train(self, message: Message) -> Message:
        run = self._run(message)
        client, _ = self._client(message, run)
        broadcast = self._broadcast(message, run)
        self._reporter.say(f"round {broadcast.round}: training")
        update = run.trainer.update(client, broadcast)
        self._folder.policy.check_update(update)
        facts = {"tensors": tensor_names(update), "num_examples": update.num_examples, "metrics": update.metrics}
        return self._leaving("update", update_bytes(update), message, run, **facts)

    def _evaluate(self, message: Message) -> Message:
        run = self._run(message)
        _, tests = self._client(message, run)
        broadcast, private = self._broadcast(message, run), run.trainer.client_state(self._folder.name)
        scores = evaluate_at(run.study, build_model(run.study), tests, broadcast, private)
        self._folder.policy.check_scores(scores)
        return self._leaving("scores", json.dumps(scores).encode(), message, run, metrics=scores)

    def _bye(self, message: Message) -> Message:
        self.finished = True
        self._reporter.say("the run is over")
        return Message("bye", {}, b"")

    def _run(self, message: Message) -> _Run:
        """Return the run that the message belongs to; policy and data are looked at when it is new."""
        name = message.facts.get("run", "")
        if name not in self._runs:
            try:
                study = Study.model_validate_json(message.facts.get("study", ""))
            except ValidationError as error:
                first = error.errors()[0]
                what = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
                raise StudyError(what, where="the server's study", hint="compare versions") from error
            self._folder.policy.check_study(study)
            memory = DiskMemory(self._folder.root / STATE / quote(name, safe="").replace(".", "%2E"))
            dtype = study.rounds.upload_dtype
            trainer = Trainer(build_model(study), study.algorithm, study.client, study.seed, memory, dtype)
            self._runs = {name: _Run(study, self._site_data(study), trainer)}  # one at a time: memory stays flat
        return self._runs[name]

    def _site_data(self, study: Study) -> SiteData:
        digest = study_sha256(study)
        if digest not in self._sites:
            policy, name = self._folder.policy, self._folder.name
            roots = find_site(study, name, self._folder.settings.data_root, policy.allowed_tasks)
            data = load_site(study, name, roots, self._reading, policy.allowed_tasks)
            policy.check_counts({task: len(rows) for task, rows in data.train.items()})
            self._sites = {digest: data}
        return self._sites[digest]

    def _client(self, message: Message, run: _Run) -> tuple[Client, Mapping[str, TaskSet]]:
        """Return the site as a client of the run, and its test examples, normalised by the message's moments."""
        given = message.facts.get("moments", "{}")
        if run.client is None or run.tests is None or run.moments != given:
            pooled = moments_of(json.loads(given))
            root = self._folder.settings.public_root if run.study.algorithm.uses_public else None
            public = None if root is None else public_sets(run.study, root, pooled, self._reading)
            run.client, run.tests = site_client(run.study, run.data, pooled, public)
            run.moments = given
        return run.client, run.tests

    def _broadcast(self, message: Message, run: _Run) -> Broadcast:
        broadcast = broadcast_of(message.payload)
        check_broadcast(broadcast, run.study.algorithm.build().shared(run.trainer.initial))
        check_round(message, broadcast, run.study.rounds.num_rounds)
        return broadcast

    def _leaving(self, kind: str, payload: bytes, message: Message, run: _Run, **facts: Any) -> Message:
        """Write an entry with ``facts`` for what is about to leave, and only then let it."""
        self._folder.audit.append(kind, payload, replace(_facts(message, run), **facts))
        return Message(kind, {}, payload)

    def _failure(self, message: Message, reason: str) -> Message:
        with suppress(MedfedError):  # a broken audit log is itself the reason, which must leave
            self._folder.audit.append("failure", reason.encode(), _facts(message))
        return Message("failure", {"phase": message.kind, "reason": reason}, b"")


def join(folder: SiteFolder, *, once: bool = False, keep_decoded: bool = False) -> None:
    """Take part in the federation until Ctrl-C or SIGTERM, or, with ``once``, until a run is over. Raises MedfedError
    if the server refuses this site, is not who it should be, or cannot be reached for too long. With ``keep_decoded``
    decoded data of patients stays in the site's folder, so that a restart need not decode again."""
    from medfed.sites.network import NetworkSite  # noqa: PLC0415  (the network is an optional extra)

    reporter, settings = Reporter(Console()), folder.settings
    handler = SiteHandler(folder, reporter, DecodedCache(folder.root / CACHE, reporter.say) if keep_decoded else None)
    key, address = load_node_key(folder.private_key), f"{settings.host}:{settings.port}"
    site = NetworkSite(address, folder.ca_pem, key, folder.root / "network.log")

    def answer(message: Message) -> Message:
        reply = handler(message)
        if handler.finished and once:
            site.stop()
        return reply

    site.serve(answer, reporter.say, patience_seconds=settings.patience_seconds)


def check_protocol(message: Message) -> None:
    """Raise RunError, naming both forms, for a message of a server of another version: it might be misread."""
    if message.protocol != PROTOCOL:
        what = f"its messages have form {clipped(message.protocol, 10)}, this site's {PROTOCOL}"
        hint = "install the same version of medfed on both sides"
        raise RunError(f"it runs another version of medfed: {what}", where="the server", hint=hint)


def check_round(message: Message, broadcast: Broadcast, last: int) -> None:
    """Raise RunError for a broadcast of another round than the message's, or of none of the study's: it would spoil the
    memory."""
    if broadcast.round != _round(message) or not 1 <= broadcast.round <= last:
        model = f"a model of round {str(broadcast.round)[:20]}, of {last} rounds"
        what = f"a message of round {_round(message)} with {model}"
        raise RunError(what, where="the server", hint="leave the federation and ask its people")


def _reason(error: MedfedError) -> str:
    """Return what the server learns of ``error``: nothing that names a file, an example or a patient."""
    if isinstance(error, DataError):
        return SCRUBBED
    private = isinstance(error, SiteError) and not isinstance(error, PolicyError)
    return OWN_FILES if private or isinstance(error.where, Path) else str(error)


def _facts(message: Message, run: _Run | None = None) -> Facts:
    """Return what the audit log says of any answer to ``message``."""
    return Facts(message.facts.get("run", ""), study_sha256(run.study) if run else "", _round(message))


def _round(message: Message) -> int:
    text = message.facts.get("round", "0")
    return int(text) if text.isdecimal() and len(text) < 10 else 0
