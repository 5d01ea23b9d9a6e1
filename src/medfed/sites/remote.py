"""Messages between the server and its sites, and the exchange that carries broadcasts and updates in them.

A message brings the study too, so a site that was restarted needs nothing from before but its own memory. Sites keep
what the algorithm keeps at clients; the server never sees it.

========  =====================================================  ==================================================
kind      the server sends                                       a site answers
========  =====================================================  ==================================================
hello     study                                                  its number of examples and its moments
train     study, pooled moments, round; the broadcast            its update
evaluate  study, pooled moments, round; the final broadcast      its own scores of the model, if its policy lets it
bye       the run is over                                        nothing
========  =====================================================  ==================================================

Any answer may be ``failure`` instead: phase and reason.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeVar, runtime_checkable

from pydantic import Field

from medfed.core.errors import RunError, UpdateRejectedError
from medfed.core.types import Broadcast, Failure, Params, Update
from medfed.federated.exchange import Answer, SiteScores
from medfed.federated.wire import broadcast_bytes, update_of
from medfed.study.parts import SettingsModel

Parsed = TypeVar("Parsed")
PROTOCOL = "2"
"""The form of the messages; it is raised when sites and servers of earlier versions would misread them."""
PHASES = ("hello", "train", "evaluate", "bye")
"""Phases in which a site can fail."""


class Message(NamedTuple):
    """One message: its ``kind`` ("hello", "train", …), a few ``facts``, the ``payload``, and the form it has."""

    kind: str
    facts: Mapping[str, str]
    payload: bytes
    protocol: str = PROTOCOL


class NoAnswer(NamedTuple):
    """A site gave no answer, and why."""

    reason: str


@runtime_checkable
class Transport(Protocol):
    """The server's way to its sites; it vouches for who answers."""

    def online(self) -> set[str]:
        """Return the sites that are connected now."""

    def ask(self, messages: Mapping[str, Message], seconds: float) -> Iterator[tuple[str, Message | NoAnswer]]:
        """Send every site its message and yield the answers as they come, at most ``seconds`` long."""

    def late(self) -> list[tuple[str, str]]:
        """Return (site, kind) of answers that came after their time since the last call; they are refused."""


class Greeting(SettingsModel):
    """The answer of a site to the first message.

    Attributes:
        num_examples: training examples; no update may claim more.
        moments: modality → sums for normalisation, see ``modalities/moments.py``.
        versions: of medfed and torch; other versions may give other bits.
        counts: task → class → examples, if the site's policy lets them leave.
    """

    num_examples: int = Field(gt=0)
    moments: dict[str, dict[str, list[float]]]
    versions: Mapping[str, str] = {}
    counts: dict[str, dict[str, int]] | None = None


def greet(
    transport: Transport, sites: set[str], facts: Mapping[str, str], seconds: float
) -> dict[str, Greeting | Failure]:
    """Ask every one of ``sites`` what it brings to the study."""
    messages = dict.fromkeys(sites, Message("hello", facts, b""))
    return {site: _greeting(site, answer) for site, answer in transport.ask(messages, seconds)}


@dataclass(frozen=True)
class Conduct:
    """How the server deals with its sites; it waits ``train_seconds`` for an update.

    Attributes:
        before_round: called with the round's number before anything is sent; it may wait for sites, or raise.
        read_scores: checks the scores that a site sent, given (scores, site).
        report: is given every failure, late answers too, which are refused.
    """

    train_seconds: float
    evaluate_seconds: float
    before_round: Callable[[int], None]
    read_scores: Callable[[object, str], SiteScores]
    report: Callable[[Failure], None]


class RemoteExchange:
    """An exchange whose clients are sites elsewhere: ``registered`` has their numbers of training examples. Every
    message states ``facts``: study, pooled moments, run."""

    def __init__(
        self, transport: Transport, registered: Mapping[str, int], facts: Mapping[str, str], conduct: Conduct
    ) -> None:
        self._transport, self._facts, self._conduct = transport, dict(facts), conduct
        self._registered = dict(sorted(registered.items()))

    @property
    def registered(self) -> Mapping[str, int]:
        """Site → training examples, sorted by site."""
        return self._registered

    def __call__(self, round: int, broadcasts: Mapping[str, Broadcast]) -> Iterator[Answer]:
        """Let the named sites train; every one gives an update or a failure before the deadline is over."""
        self._report_late(round)
        self._conduct.before_round(round)
        messages = _messages("train", broadcasts, {**self._facts, "round": str(round)})
        for site, answer in self._transport.ask(messages, self._conduct.train_seconds):
            result = _update(site, round, answer)
            if isinstance(result, Failure):
                self._conduct.report(result)
            yield site, result

    def evaluate(self, broadcast: Broadcast) -> dict[str, SiteScores | Failure]:
        """Return the scores of the model on every site's own held-out patients."""
        self._report_late(broadcast.round)
        facts = {**self._facts, "round": str(broadcast.round)}
        messages = _messages("evaluate", dict.fromkeys(self._registered, broadcast), facts)
        answers = self._transport.ask(messages, self._conduct.evaluate_seconds)
        return dict(sorted((site, self._scores(site, broadcast.round, answer)) for site, answer in answers))

    def _report_late(self, round: int) -> None:
        for site, kind in self._transport.late():
            reason = f"an answer to {kind!r} came after its deadline: refused as stale"
            self._conduct.report(Failure(site, round, "late", reason))

    def _scores(self, site: str, round: int, answer: Message | NoAnswer) -> SiteScores | Failure:
        return _read(site, round, answer, "scores", lambda data: self._conduct.read_scores(json.loads(data), site))

    def client_state(self, client: str) -> Params:
        """Return nothing: what the algorithm keeps at a site stays there."""
        return {}

    def forget_after(self, round: int) -> None:
        """Do nothing: a site that trains a round again starts from what it kept before that round."""

    def close(self) -> None:
        """Do nothing: the transport stays open for other federations of the run."""


def clipped(text: str, longest: int = 1000) -> str:
    """Return what a site says as it may stand in a log: printable, and not too long."""
    kept = text[:longest] + ("…" if len(text) > longest else "")
    return "".join(sign if sign.isprintable() or sign == "\n" else "\N{REPLACEMENT CHARACTER}" for sign in kept)


def _messages(kind: str, broadcasts: Mapping[str, Broadcast], facts: Mapping[str, str]) -> dict[str, Message]:
    """Return a message for every site; equal broadcasts are packed once."""
    packed = {id(broadcast): broadcast for broadcast in broadcasts.values()}
    payloads = {key: broadcast_bytes(broadcast) for key, broadcast in packed.items()}
    return {site: Message(kind, facts, payloads[id(broadcast)]) for site, broadcast in broadcasts.items()}


def _update(site: str, round: int, answer: Message | NoAnswer) -> Update | Failure:
    return _read(site, round, answer, "update", update_of)


def _greeting(site: str, answer: Message | NoAnswer) -> Greeting | Failure:
    return _read(site, 0, answer, "greeting", Greeting.model_validate_json)


def _read(
    site: str, round: int, answer: Message | NoAnswer, wanted: str, parse: Callable[[bytes], Parsed]
) -> Parsed | Failure:
    """Return what ``parse`` makes of an answer of the kind ``wanted``, or why there is nothing."""
    payload = _payload(site, round, answer, wanted)
    if isinstance(payload, Failure):
        return payload
    try:
        return parse(payload)
    except RunError as error:
        return Failure(site, round, "network", str(error))
    except UpdateRejectedError as error:
        return Failure(site, round, "gate", str(error))
    except (ValueError, RecursionError) as error:
        phase = "hello" if wanted == "greeting" else "network"
        return Failure(site, round, phase, f"unreadable {wanted}: {clipped(str(error))}")


def _payload(site: str, round: int, answer: Message | NoAnswer, wanted: str) -> bytes | Failure:
    """Return the payload of an answer of the kind ``wanted``, or why there is none."""
    if isinstance(answer, NoAnswer):
        return Failure(site, round, "network", answer.reason)
    if answer.protocol != PROTOCOL:
        theirs = clipped(answer.protocol, 10)
        what = f"it runs another version of medfed: its messages have form {theirs}, the server's {PROTOCOL}"
        return Failure(site, round, "network", f"{what}; install the server's version there")
    if answer.kind == "failure":
        phase = answer.facts.get("phase", "")
        reason = clipped(answer.facts.get("reason", "no reason given"))
        return Failure(site, round, phase if phase in PHASES else "site", reason)
    if answer.kind != wanted:
        return Failure(site, round, "network", f"it answered {clipped(answer.kind, 40)!r}, wanted {wanted!r}")
    return answer.payload
