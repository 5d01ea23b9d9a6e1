"""A site that is away when its letter is sent, or leaves with it, gets it again when it is back; it answers once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from medfed.sites.credentials import public_bytes, write_trial
from medfed.sites.remote import Message, NoAnswer
from support.clocks import BOUND, Hurry, until
from support.lazily import lazily

pytestmark = pytest.mark.skipif(find_spec("flwr") is None, reason="the extra flower is not installed")
network, transport = lazily("medfed.sites.network"), lazily("medfed.sites.transport")


class Site:
    """A site in a thread that answers a letter with its kind in capitals, or as ``answer`` says."""

    def __init__(self, server: network.NetworkServer, folder: Path, key: ec.EllipticCurvePrivateKey) -> None:
        self._address, self._ca, self._log = (
            f"127.0.0.1:{server.port}",
            (folder / "ca.pem").read_bytes(),
            folder / "log",
        )
        self._key, self.asked = key, list[str]()

    def start(self, answer: Callable[[], None] = lambda: None) -> None:
        def reply(letter: Message) -> Message:
            self.asked.append(letter.kind)
            answer()
            return Message(letter.kind.upper(), {}, letter.payload)

        self._site = network.NetworkSite(self._address, self._ca, self._key, self._log)
        serve = lambda: self._site.serve(reply, lambda line: None, patience_seconds=BOUND)  # noqa: E731
        self._thread = threading.Thread(target=serve, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._site.stop()
        self._thread.join(BOUND)
        assert not self._thread.is_alive()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[network.NetworkServer, Site]]:
    files, key = write_trial(tmp_path, "127.0.0.1"), ec.generate_private_key(ec.SECP384R1())
    keys = {"north": public_bytes(key.public_key())}
    found = network.NetworkServer("127.0.0.1", 0, files, keys, tmp_path / "server.log")
    found.start()
    site = Site(found, tmp_path, key)
    site.start()
    until(lambda: found.online() == {"north"})
    yield found, site
    site.stop()
    found.stop()


LETTER = Message("train", {"round": "1"}, b"payload")
ANSWER = Message("TRAIN", {}, b"payload")


def test_a_site_that_is_away_when_its_letter_is_sent_gets_it_when_it_is_back(
    server: tuple[network.NetworkServer, Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "HEARTBEAT_SECONDS", BOUND)  # so long it may stay away
    post, site = server
    site.stop()
    assert post.online() == set()
    threading.Timer(1.0, site.start).start()
    assert list(post.ask({"north": LETTER}, BOUND)) == [("north", ANSWER)]


def test_a_site_that_leaves_with_its_letter_gets_it_again_and_answers_once(
    server: tuple[network.NetworkServer, Site],
) -> None:
    post, site = server
    site.stop()

    def lose() -> None:
        if len(site.asked) == 1:
            raise OSError("the connection breaks before the answer is sent")

    site.start(lose)
    until(lambda: post.online() == {"north"})
    assert list(post.ask({"north": LETTER}, BOUND)) == [("north", ANSWER)]
    assert site.asked == ["train", "train"]
    assert list(post.ask({"north": LETTER._replace(kind="bye")}, BOUND)) == [("north", ANSWER._replace(kind="BYE"))]
    assert post.late() == []


def test_a_site_that_never_came_is_not_waited_for(
    server: tuple[network.NetworkServer, Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    post, site = server
    site.stop()
    clock = Hurry(monkeypatch)
    clock.times = 1000
    ((_, answer),) = post.ask({"north": LETTER}, BOUND)
    assert isinstance(answer, NoAnswer)
    assert f"no answer within {BOUND:g} s" in answer.reason
    clock.times = 1
    site.start()
    until(lambda: post.online() == {"north"})
    assert list(post.ask({"north": LETTER._replace(kind="next")}, BOUND)) == [("north", ANSWER._replace(kind="NEXT"))]
    assert site.asked == ["next"], "a letter whose time is over is taken back"
