"""The exchange with hospitals elsewhere: broadcasts and updates as letters, and the greeting before the first round.

A letter carries the study too, so a site that was restarted needs nothing from before but its own memory. Sites keep
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

Letters between the server and its sites, whatever carries them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple, Protocol, runtime_checkable

from pydantic import BaseModel, ConfigDict, Field

from medfed.core.errors import RunError, UpdateRejectedError
from medfed.core.types import Broadcast, Failure, Params, Update
from medfed.federated.exchange import Answer, SiteScores
from medfed.federated.wire import broadcast_bytes, update_of

PHASES = ("hello", "train", "evaluate", "bye")
"""What a site may say it failed in."""


class Greeting(BaseModel):
    """What a site says of itself before the first round.

    Attributes:
        num_examples: training examples; no update may claim more.
        moments: modality → sums for normalisation, see ``modalities/moments.py``.
        versions: of medfed and torch; other versions may give other bits.
        counts: task → class → examples, if the site's policy lets them leave.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_examples: int = Field(gt=0)
    moments: dict[str, dict[str, list[float]]]
    versions: dict[str, str] = {}
    counts: dict[str, dict[str, int]] | None = None


def greet(post: Post, sites: set[str], facts: Mapping[str, str], seconds: float) -> dict[str, Greeting | Failure]:
    """Ask every one of ``sites`` what it brings to the study."""
    letters = {site: Envelope("hello", facts, b"") for site in sites}
    return {site: _greeting(site, answer) for site, answer in post.ask(letters, seconds)}


class RemoteExchange:
    """Clients are sites elsewhere.

    Args:
        post: the way to them.
        registered: site → its training examples.
        facts: what every letter says: study, pooled moments, run.
        train_seconds: how long to wait for an update.
        evaluate_seconds: how long to wait for scores.
        before_round: called with the round's number before anything is sent; it may wait for sites, or raise.
        read_scores: checks what a site says its scores are, given (scores, site).
        tell: is given every failure, late answers too, which are refused.
    """

    def __init__(
        self,
        post: Post,
        registered: Mapping[str, int],
        facts: Mapping[str, str],
        *,
        train_seconds: float,
        evaluate_seconds: float,
        before_round: Callable[[int], None],
        read_scores: Callable[[object, str], SiteScores],
        tell: Callable[[Failure], None],
    ) -> None:
        self._post, self._facts, self._tell, self._before_round = post, dict(facts), tell, before_round
        self._read_scores = read_scores
        self._train_seconds, self._evaluate_seconds = train_seconds, evaluate_seconds
        self._registered = dict(sorted(registered.items()))

    @property
    def registered(self) -> Mapping[str, int]:
        """Site → training examples, sorted by site."""
        return self._registered

    def __call__(self, round: int, broadcasts: Mapping[str, Broadcast]) -> Iterator[Answer]:
        """Ask the named sites to train; every one gives an update or a failure before the deadline is over."""
        self._tell_late(round)
        self._before_round(round)
        letters = _letters("train", broadcasts, {**self._facts, "round": str(round)})
        for site, answer in self._post.ask(letters, self._train_seconds):
            found = _update(site, round, answer)
            if isinstance(found, Failure):
                self._tell(found)
            yield site, found

    def evaluate(self, broadcast: Broadcast) -> dict[str, SiteScores | Failure]:
        """Return what every site says of the model on its own held-out patients."""
        self._tell_late(broadcast.round)
        facts = {**self._facts, "round": str(broadcast.round)}
        letters = _letters("evaluate", dict.fromkeys(self._registered, broadcast), facts)
        answers = self._post.ask(letters, self._evaluate_seconds)
        found = {site: self._scores(site, broadcast.round, answer) for site, answer in answers}
        return dict(sorted(found.items()))

    def _tell_late(self, round: int) -> None:
        for site, kind in self._post.late():
            self._tell(Failure(site, round, "late", f"an answer to {kind!r} came after its deadline: refused as stale"))

    def _scores(self, site: str, round: int, answer: Envelope | Lost) -> SiteScores | Failure:
        payload = _payload(site, round, answer, "scores")
        if isinstance(payload, Failure):
            return payload
        try:
            return self._read_scores(json.loads(payload), site)
        except (ValueError, RecursionError) as error:
            return Failure(site, round, "network", f"unreadable scores: {clipped(str(error))}")
        except UpdateRejectedError as error:
            return Failure(site, round, "gate", str(error))

    def client_state(self, client: str) -> Params:
        """Return nothing: what the algorithm keeps at a site stays there."""
        return {}

    def forget_after(self, round: int) -> None:
        """Nothing to do: a site that is asked for a round again starts from what it kept before that round."""

    def close(self) -> None:
        """Nothing is held; the post goes on serving."""


def _letters(kind: str, broadcasts: Mapping[str, Broadcast], facts: Mapping[str, str]) -> dict[str, Envelope]:
    packed = {id(broadcast): broadcast for broadcast in broadcasts.values()}
    payloads = {key: broadcast_bytes(broadcast) for key, broadcast in packed.items()}
    return {site: Envelope(kind, facts, payloads[id(broadcast)]) for site, broadcast in broadcasts.items()}


def _update(site: str, round: int, answer: Envelope | Lost) -> Update | Failure:
    payload = _payload(site, round, answer, "update")
    if isinstance(payload, Failure):
        return payload
    try:
        return update_of(payload)
    except RunError as error:
        return Failure(site, round, "network", str(error))


def _greeting(site: str, answer: Envelope | Lost) -> Greeting | Failure:
    payload = _payload(site, 0, answer, "greeting")
    if isinstance(payload, Failure):
        return payload
    try:
        return Greeting.model_validate_json(payload)
    except ValueError as error:
        return Failure(site, 0, "hello", f"unreadable greeting: {clipped(str(error))}")


def _payload(site: str, round: int, answer: Envelope | Lost, wanted: str) -> bytes | Failure:
    """Return the payload of an answer of the kind ``wanted``, or why there is none."""
    if isinstance(answer, Lost):
        return Failure(site, round, "network", answer.reason)
    if answer.kind == "failure":
        phase = answer.facts.get("phase", "")
        reason = clipped(answer.facts.get("reason", "no reason given"))
        return Failure(site, round, phase if phase in PHASES else "site", reason)
    if answer.kind != wanted:
        return Failure(site, round, "network", f"it answered {clipped(answer.kind, 40)!r}, wanted {wanted!r}")
    return answer.payload


def clipped(text: str, longest: int = 1000) -> str:
    """Return what a site says as it may stand in a log: printable, and not too long."""
    kept = text[:longest] + ("…" if len(text) > longest else "")
    return "".join(letter if letter.isprintable() or letter == "\n" else "\N{REPLACEMENT CHARACTER}" for letter in kept)


class Envelope(NamedTuple):
    """One message: its ``kind`` ("hello", "train", …), a few ``facts`` and the ``payload``."""

    kind: str
    facts: Mapping[str, str]
    payload: bytes


class Lost(NamedTuple):
    """No answer, and why."""

    reason: str


@runtime_checkable
class Post(Protocol):
    """The server's way to its sites; it vouches for who answers."""

    def online(self) -> set[str]:
        """Return the sites that are there now."""
        ...

    def ask(self, letters: Mapping[str, Envelope], seconds: float) -> Iterator[tuple[str, Envelope | Lost]]:
        """Send every site its letter and yield the answers as they come, at most ``seconds`` long."""
        ...

    def late(self) -> list[tuple[str, str]]:
        """Return (site, kind) of answers that came after their time since the last call; they are refused."""
        ...
