"""What a hostile or broken party can put into a message: it is that party's failure, and nobody else's."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from medfed.core.errors import RunError, UpdateRejectedError
from medfed.core.types import Broadcast, Failure, Update
from medfed.federated.gate import MOST_STEPS, Gate, Manifest
from medfed.federated.wire import pack, unpack, update_bytes
from medfed.runs.sites import scores_of
from medfed.sites.remote import Conduct, Greeting, Message, NoAnswer, RemoteExchange, greet
from medfed.study.study import Study, load_study

STUDIES = Path(__file__).parents[2] / "studies"
GOOD = Update("north", 1, "base", {"encoders.a.w": torch.ones(2)}, 10, 3, examples={"encoders.a": 10})


class Answers:
    """A post whose sites answer as told."""

    def __init__(self, answers: dict[str, Message | NoAnswer]) -> None:
        self._answers = answers

    def online(self) -> set[str]:
        return set(self._answers)

    def ask(self, letters: dict[str, Message], seconds: float):
        yield from ((site, self._answers[site]) for site in letters)

    def late(self) -> list[tuple[str, str]]:
        return []


def exchange(answers: dict[str, Message | NoAnswer], told: list[Failure] | None = None) -> RemoteExchange:
    conduct = Conduct(
        train_seconds=1.0,
        evaluate_seconds=1.0,
        before_round=lambda number: None,
        read_scores=lambda value, site: scores_of(value, site, benchmark()),
        report=(told if told is not None else []).append,
    )
    return RemoteExchange(Answers(answers), dict.fromkeys(answers, 10), {}, conduct)


def benchmark() -> Study:
    return load_study(STUDIES / "scaffold-3sites.toml")


def of_facts(text: str) -> bytes:
    """Bytes in the form of :func:`pack` whose facts are any text."""
    whole = pack({"delta/encoders.a.w": torch.ones(1)}, {})
    size = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + size])
    header["__metadata__"]["facts"] = text
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    return len(raw).to_bytes(8, "little") + raw + whole[8 + size :]


@pytest.mark.parametrize(
    "facts",
    ["[" * 100_000, "{", "[]", "7", '{"client": 1}', json.dumps({"client": "north", "round": "1"})],
    ids=["nested", "cut", "list", "number", "wrong type", "text for a number"],
)
def test_facts_that_are_none_are_a_failure_of_the_site(facts: str) -> None:
    answers = {"north": Message("update", {}, of_facts(facts)), "south": Message("update", {}, update_bytes(GOOD))}
    broadcast = Broadcast(1, "base", {"encoders.a.w": torch.zeros(2)})
    found = dict(exchange(answers)(1, dict.fromkeys(answers, broadcast)))
    assert isinstance(found["north"], Failure)
    assert found["north"].phase == "network"
    assert isinstance(found["south"], Update)


def test_deeply_nested_facts_are_unreadable() -> None:
    with pytest.raises(RunError, match="unreadable"):
        unpack(of_facts("[" * 100_000))


@pytest.mark.parametrize(
    "scores",
    [
        '{"mp": {"auroc": 0.5, "n": Infinity}}',
        '{"mp": {"auroc": NaN, "n": 10}}',
        '{"mp": {"auroc": 0.5, "n": 1e400}}',
        '{"mp": {"auroc": 0.5}}',
        '{"mp": {"made-up": 0.5, "n": 10}}',
        '{"other": {"auroc": 0.5, "n": 10}}',
        "[" * 100_000,
        "no JSON",
    ],
)
def test_scores_that_are_none_are_a_failure_of_the_site(scores: str) -> None:
    good = Message("scores", {}, b'{"mp": {"auroc": 0.5, "n": 10}}')
    found = exchange({"north": Message("scores", {}, scores.encode()), "south": good}).evaluate(Broadcast(1, "b", {}))
    assert isinstance(found["north"], Failure)
    assert found["south"] == {"mp": {"auroc": 0.5, "n": 10.0}}


def test_a_number_of_steps_beyond_all_measure_is_refused() -> None:
    """FedNova computes with the square of the number, which 400 digits would break."""
    params = {"encoders.a.w": torch.zeros(2)}
    for steps in (10**400, MOST_STEPS + 1):
        gate = Gate(Manifest.of(params, {}, {}), {"north": 10}, 1, "base")
        with pytest.raises(UpdateRejectedError, match="num_steps") as refused:
            gate.check("north", replace(GOOD, num_steps=steps))
        assert len(str(refused.value)) < 300
    Gate(Manifest.of(params, {}, {}), {"north": 10}, 1, "base").check("north", GOOD)


def test_what_a_site_says_of_its_failure_is_printable_short_and_in_no_other_phase() -> None:
    reason = "\x1b[2J\x07" + "x" * 10**6
    answers: dict[str, Message | NoAnswer] = {"north": Message("failure", {"phase": "gate", "reason": reason}, b"")}
    told: list[Failure] = []
    (found,) = dict(exchange(answers, told)(1, {"north": Broadcast(1, "b", {})})).values()
    assert isinstance(found, Failure)
    assert found.phase == "site", "the gate is the server's"
    assert found.reason.isprintable()
    assert len(found.reason) < 1100
    assert told == [found]


def moments(study: Study, change: Callable[[dict], None]) -> Message:
    from medfed.data.layout import sampled_modalities

    values = {
        name: {
            "count": [1.0] * one.num_channels,
            "total": [1.0] * one.num_channels,
            "squares": [1.0] * one.num_channels,
        }
        for name, one in sampled_modalities(study).items()
    }
    values = json.loads(json.dumps(values))
    change(values)
    return Message("greeting", {}, json.dumps({"num_examples": 10, "moments": values}).encode())


@pytest.mark.parametrize(
    "change",
    [
        lambda values: values["labs"]["total"].__setitem__(0, math.nan),
        lambda values: values["labs"]["count"].__setitem__(0, -1.0),
        lambda values: values["labs"]["total"].append(1.0),
        lambda values: values.pop("labs"),
        lambda values: values.update(made_up=values["labs"]),
        lambda values: [part.pop() for part in values["labs"].values()],
    ],
    ids=["NaN", "negative", "ragged", "missing", "unknown", "too few channels"],
)
def test_moments_that_are_not_the_studys_keep_that_site_out(change: Callable[[dict], None]) -> None:
    pytest.importorskip("cryptography")
    from medfed.sites.server import _checked

    study = benchmark()
    answers = {"north": moments(study, change), "south": moments(study, lambda values: None)}
    found = greet(Answers(answers), set(answers), {}, 1.0)
    checked = {site: _checked(site, study, answer) for site, answer in found.items()}
    assert isinstance(checked["north"], Failure)
    assert isinstance(checked["south"], Greeting)


@pytest.mark.parametrize(
    ("said", "inside"), [("1", 2), ("1000000000", 10**9), ("0", 0), ("-5", -5), ("4", 4), ("9" * 5000, 1)]
)
def test_a_round_that_is_not_the_letters_or_not_of_the_study_is_not_trained(said: str, inside: int) -> None:
    """A site files what it keeps by round: a round of any number would drop the real ones."""
    pytest.importorskip("cryptography")
    from medfed.sites.client import check_round

    with pytest.raises(RunError, match="the server"):
        check_round(Message("train", {"round": said}, b""), Broadcast(inside, "b", {}), last=3)
    check_round(Message("train", {"round": "3"}, b""), Broadcast(3, "b", {}), last=3)


def test_a_site_and_a_server_of_other_versions_refuse_each_other() -> None:
    """What version 1 sent has no form in it; either side says which version the other runs."""
    pytest.importorskip("cryptography")
    from medfed.sites.client import check_protocol

    answers: dict[str, Message | NoAnswer] = {"north": Message("update", {}, update_bytes(GOOD), protocol="1")}
    (failure,) = dict(exchange(answers)(1, {"north": Broadcast(1, "base", {})})).values()
    assert isinstance(failure, Failure)
    assert "another version of medfed: its messages have form 1, the server's 2" in failure.reason
    with pytest.raises(RunError, match=r"the server: it runs another version of medfed.*form 1, this site's 2"):
        check_protocol(Message("train", {}, b"", protocol="1"))
    check_protocol(Message("train", {}, b""))
