"""The network itself, on loopback: letters, deadlines, restarts, and who is refused."""

from __future__ import annotations

import datetime
import re
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from medfed.core.errors import RunError
from medfed.sites.remote import Message, NoAnswer
from support.clocks import BOUND, Hurry, until
from support.lazily import lazily

pytestmark = pytest.mark.skipif(find_spec("flwr") is None, reason="the extra flower is not installed")
network, transport = lazily("medfed.sites.network"), lazily("medfed.sites.transport")
httpx = lazily("httpx")

from medfed.sites.credentials import (  # noqa: E402
    Certificates,
    public_bytes,
    write_trial,
)

SITES = ("north", "south")
Handler = Callable[[Message], Message]


def echo(letter: Message) -> Message:
    return Message(f"re:{letter.kind}", letter.facts, letter.payload)


@pytest.fixture(scope="module")
def keys() -> dict[str, ec.EllipticCurvePrivateKey]:
    return {site: ec.generate_private_key(ec.SECP384R1()) for site in SITES}


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return write_trial(tmp_path_factory.mktemp("certificates"), "127.0.0.1")


@dataclass
class Net:
    """A listening server, and what is needed to join it."""

    server: network.NetworkServer
    files: Certificates
    keys: Mapping[str, ec.EllipticCurvePrivateKey]
    folder: Path

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server.port}"

    def site(self, key: ec.EllipticCurvePrivateKey, ca: bytes | None = None) -> network.NetworkSite:
        return network.NetworkSite(self.address, ca or self.files.ca.read_bytes(), key, self.folder / "site.log")

    @contextmanager
    def joined(self, handlers: Mapping[str, Handler], said: list[str] | None = None) -> Iterator[None]:
        """Let the sites in ``handlers`` serve in threads while the block runs."""
        sites = {name: self.site(self.keys[name]) for name in handlers}
        lines = [] if said is None else said
        threads = [
            threading.Thread(target=site.serve, args=(handlers[name], lines.append), kwargs={"patience_seconds": BOUND})
            for name, site in sites.items()
        ]
        for thread in threads:
            thread.start()
        try:
            until(lambda: self.server.online() >= set(handlers))
            yield
        finally:
            for site in sites.values():
                site.stop()
            for thread in threads:
                thread.join(BOUND)
            assert not any(thread.is_alive() for thread in threads), "a site did not stop"


def listening(
    certificates: Certificates,
    keys: Mapping[str, ec.EllipticCurvePrivateKey],
    port: int,
    log: Path,
    host: str = "127.0.0.1",
):
    public = {site: public_bytes(key.public_key()) for site, key in keys.items()}
    server = network.NetworkServer(host, port, certificates, public, log)
    server.start()
    return server


@pytest.fixture
def net(certificates: Certificates, keys: dict[str, ec.EllipticCurvePrivateKey], tmp_path: Path) -> Iterator[Net]:
    server = listening(certificates, keys, 0, tmp_path / "server.log")
    yield Net(server, certificates, keys, tmp_path)
    server.stop()


def asked(net: Net, letters: Mapping[str, Message], seconds: float = BOUND) -> dict[str, Message | NoAnswer]:
    return dict(net.server.ask(letters, seconds))


def test_letters_reach_their_site_and_come_back_whole(net: Net) -> None:
    """12 MB are three of Flower's chunks; the bytes differ from place to place, so order is checked too."""
    payload = bytes(range(256)) * (12 * 4096)
    with net.joined(dict.fromkeys(SITES, echo)):
        answers = asked(net, {site: Message("hello", {"to": site}, payload + site.encode()) for site in SITES})
    for site in SITES:
        answer = answers[site]
        assert isinstance(answer, Message)
        assert answer.kind == "re:hello"
        assert answer.facts == {"to": site}
        assert answer.payload == payload + site.encode()


def test_an_empty_payload_travels(net: Net) -> None:
    with net.joined({"north": echo}):
        assert asked(net, {"north": Message("bye", {}, b"")}) == {"north": Message("re:bye", {}, b"")}


def test_a_slow_site_is_lost_its_late_answer_told_once_and_the_next_letter_answered(
    net: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    hurry, hold = Hurry(monkeypatch), threading.Event()

    def slow(letter: Message) -> Message:
        if letter.kind == "train":
            hold.wait(BOUND)
        return echo(letter)

    with net.joined({"north": slow, "south": echo}):
        answers = net.server.ask({site: Message("train", {}, b"1") for site in SITES}, BOUND)
        assert next(answers) == ("south", Message("re:train", {}, b"1"))
        hurry()
        ((site, lost),) = answers
        assert site == "north"
        assert isinstance(lost, NoAnswer)
        assert f"no answer within {BOUND:g} s" in lost.reason
        assert net.server.late() == []
        hold.set()
        found: list[tuple[str, str]] = []
        until(lambda: bool(found.extend(net.server.late()) or found))
        assert found == [("north", "train")]
        assert net.server.late() == []
        assert isinstance(asked(net, {"north": Message("hello", {}, b"2")})["north"], Message)


def test_a_site_finds_a_server_that_was_started_again(net: Net, tmp_path: Path) -> None:
    said: list[str] = []
    with ExitStack() as servers, net.joined({"north": echo}, said):
        net.server.stop()
        again = listening(net.files, net.keys, net.server.port, tmp_path / "again.log")
        servers.callback(again.stop)  # after the site, which else does not hear that it is to stop
        until(lambda: again.online() == {"north"})
        assert isinstance(dict(again.ask({"north": Message("hello", {}, b"x")}, BOUND))["north"], Message)
    assert sum(line.startswith("connected") for line in said) == 2


def test_an_unknown_key_is_refused(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "REFUSED_SECONDS", 0.5)
    stranger = net.site(ec.generate_private_key(ec.SECP384R1()))
    with pytest.raises(RunError, match="does not know this site's key"):
        stranger.serve(echo, lambda line: None, patience_seconds=BOUND)
    assert net.server.online() == set()


def test_a_server_of_another_authority_is_refused_before_anything_is_sent(net: Net, tmp_path: Path) -> None:
    other = write_trial(tmp_path / "other", "127.0.0.1")
    called: list[Message] = []
    with pytest.raises(RunError, match="certificate"):
        net.site(net.keys["north"], other.ca.read_bytes()).serve(
            lambda letter: called.append(letter) or echo(letter), lambda line: None, patience_seconds=BOUND
        )
    assert called == []
    assert net.server.online() == set()


@pytest.mark.skipif(sys.platform != "linux", reason="127.0.0.2 is an address of this machine on Linux only")
def test_a_certificate_for_another_host_is_refused(net: Net, tmp_path: Path) -> None:
    """The trial certificate is for 127.0.0.1 and localhost, not for 127.0.0.2, where this server answers too."""
    everywhere = listening(net.files, net.keys, 0, tmp_path / "everywhere.log", host="0.0.0.0")  # noqa: S104
    called: list[Message] = []
    ca, log = net.files.ca.read_bytes(), tmp_path / "x.log"
    here, there = (
        network.NetworkSite(f"{host}:{everywhere.port}", ca, net.keys["north"], log)
        for host in ("127.0.0.1", "127.0.0.2")
    )
    try:
        with pytest.raises(RunError, match="certificate is refused"):
            there.serve(lambda letter: called.append(letter) or echo(letter), ignore, patience_seconds=BOUND)
        assert everywhere.online() == set()
        here.serve(echo, lambda line: here.stop(), patience_seconds=BOUND)
    finally:
        everywhere.stop()
    assert called == []


def ignore(line: str) -> None:
    """Take a line and say nothing."""


def test_an_upload_that_stops_half_way_holds_nobody_up(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    """North announces its answer and sends none of it for a while; south's comes at once, north's is told as late."""
    whole, go_on, hurry = transport.push_objects, threading.Event(), Hurry(monkeypatch)

    def stuck(objects: dict, push: Callable, **options: object) -> None:
        if any(b"from north" in part.deflate() for part in objects.values()):
            go_on.wait(BOUND)
        whole(objects, push, **options)

    monkeypatch.setattr(transport, "push_objects", stuck)
    handlers = {site: (lambda letter, site=site: Message("re", {}, f"from {site}".encode())) for site in SITES}
    with net.joined(handlers):
        answers = net.server.ask({site: Message("train", {}, b"") for site in SITES}, BOUND)
        assert next(answers) == ("south", Message("re", {}, b"from south")), "while north's is on its way"
        hurry()
        ((site, lost),) = answers
        assert (site, type(lost)) == ("north", NoAnswer)
        go_on.set()
        found: list[tuple[str, str]] = []
        until(lambda: bool(found.extend(net.server.late()) or found))
        assert found == [("north", "train")]


def test_plaintext_is_refused(net: Net) -> None:
    with pytest.raises(httpx.HTTPError):
        httpx.post(f"http://{net.address}/v1/fleet/activate-node", content=b"", timeout=BOUND)


def test_old_tls_is_refused(net: Net) -> None:
    context = ssl.create_default_context(cafile=str(net.files.ca))
    context.minimum_version = ssl.TLSVersion.TLSv1
    context.maximum_version = ssl.TLSVersion.TLSv1_1
    with (
        socket.create_connection(("127.0.0.1", net.server.port), BOUND) as plain,
        pytest.raises((ssl.SSLError, OSError)),
    ):
        context.wrap_socket(plain, server_hostname="127.0.0.1")


STRANGER = {
    "list runs": "/v1/control/list-runs",
    "run an app": "/v1/control/start-run",
    "register a node by the control interface": "/v1/control/register-node",
    "list nodes": "/v1/control/list-nodes",
    "take a task": "/v1/runtime/acquire-task",
    "push messages as the server": "/v1/runtime/push-messages",
    "read the documentation": "/docs",
    "read the interface": "/openapi.json",
}


@pytest.mark.parametrize("path", STRANGER.values(), ids=STRANGER.keys())
def test_a_stranger_finds_no_interface_to_run_anything(net: Net, path: str) -> None:
    with httpx.Client(verify=ssl.create_default_context(cafile=str(net.files.ca))) as client:
        for method in ("GET", "POST"):
            answer = client.request(
                method, f"https://{net.address}{path}", headers={"content-type": "application/protobuf"}, timeout=BOUND
            )
            assert answer.status_code == 404, f"{method} {path}"


def fleet_client(net: Net, key: ec.EllipticCurvePrivateKey | None):
    signed = [] if key is None else [transport.NodeAuthHttpInterceptor(key, key.public_key())]
    interceptors = [transport.RuntimeVersionHttpInterceptor(component_name="SuperNode"), *signed]
    return transport.FleetHttpClient.from_server_address(net.address, False, net.files.ca.read_bytes(), interceptors)


@pytest.mark.parametrize("known", [False, True], ids=["stranger", "site"])
def test_nobody_registers_a_node_from_outside(net: Net, known: bool) -> None:
    from flwr.proto.fleet_pb2 import RegisterNodeFleetRequest

    key = net.keys["north"] if known else ec.generate_private_key(ec.SECP384R1())
    with fleet_client(net, key) as client, pytest.raises(httpx.HTTPStatusError) as refused:
        client.RegisterNode(RegisterNodeFleetRequest(public_key=public_bytes(key.public_key())))
    assert 400 <= refused.value.response.status_code < 500


@pytest.mark.parametrize("who", ["nobody", "stranger", "south"])
def test_nobody_reads_the_letters_of_another_site(net: Net, who: str) -> None:
    from flwr.proto.fleet_pb2 import PullMessagesRequest
    from flwr.proto.node_pb2 import Node

    key = {"nobody": None, "stranger": ec.generate_private_key(ec.SECP384R1()), "south": net.keys["south"]}[who]
    with net.joined(dict.fromkeys(SITES, echo)):
        north = Node(node_id=net.server.nodes["north"])
        with fleet_client(net, key) as client, pytest.raises(httpx.HTTPStatusError) as refused:
            client.PullMessages(PullMessagesRequest(node=north))
        assert refused.value.response.status_code == 401


def test_a_taken_port_is_told_at_once(net: Net, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="cannot listen"):
        listening(net.files, net.keys, net.server.port, tmp_path / "second.log")


HOOK = """
import sys
def watch(event, args):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto"):
        place = args[1] if event != "socket.getaddrinfo" else (args[0], args[1])
        host = place[0] if isinstance(place, tuple) else place
        with open({log!r}, "a") as file:
            file.write(f"{{event}} {{host}}\\n")
sys.addaudithook(watch)
"""


def test_no_connection_leaves_loopback(net: Net, tmp_path: Path) -> None:
    """Every connection and every name lookup of server and site processes is on loopback: nothing phones home."""
    log = tmp_path / "connections"
    script = HOOK.format(log=str(log)) + (
        "import threading, time\n"
        "from pathlib import Path\n"
        "from medfed.sites import network\n"
        "from medfed.sites.remote import Message\n"
        "from medfed.sites.credentials import certificates_in\n"
        "from medfed.sites.credentials import load_node_key, public_bytes\n"
        f"files = certificates_in(Path({str(net.files.ca.parent)!r}))\n"
        f"key = load_node_key(Path({str(tmp_path)!r}) / 'k')\n"
        "public = {'north': public_bytes(key.public_key())}\n"
        f"log = Path({str(tmp_path)!r}) / 'inner.log'\n"
        "server = network.NetworkServer('127.0.0.1', 0, files, public, log)\n"
        "server.start()\n"
        "site = network.NetworkSite(f'127.0.0.1:{server.port}', files.ca.read_bytes(), key, log)\n"
        "serve = lambda: site.serve(lambda letter: letter, lambda line: None, patience_seconds=300.0)\n"
        "thread = threading.Thread(target=serve); thread.start()\n"
        "while not server.online(): time.sleep(0.05)\n"
        "print(dict(server.ask({'north': Message('hello', {}, b'x')}, 300)))\n"
        "site.stop(); thread.join(300); server.stop()\n"
    )
    from medfed.sites.credentials import write_node_key

    write_node_key(tmp_path / "k", tmp_path / "k.pub", "north")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=BOUND, check=False)
    assert done.returncode == 0, done.stderr
    assert "payload=b'x'" in done.stdout
    hosts = {line.split(" ", 1)[1] for line in log.read_text().splitlines()}
    assert hosts, "the hook saw the site's connection"
    assert hosts <= {"127.0.0.1", "localhost", "::1"}


def test_clocks_may_differ_by_what_flower_tolerates(net: Net) -> None:
    """A signature of yesterday is no key: a recorded request cannot be replayed tomorrow."""
    from base64 import b64encode

    from flwr.common.constant import TIMESTAMP_HEADER
    from flwr.proto.fleet_pb2 import ActivateNodeRequest
    from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
    from flwr.supercore.primitives.asymmetric import sign_message

    key = net.keys["north"]
    public = public_bytes(key.public_key())
    codes = []
    for age in (datetime.timedelta(0), datetime.timedelta(days=1)):
        stamp = (datetime.datetime.now(datetime.UTC) - age).isoformat()
        headers = {
            FLEET_HTTP_PUBLIC_KEY_HEADER: b64encode(public).decode(),
            TIMESTAMP_HEADER: stamp,
            FLEET_HTTP_SIGNATURE_HEADER: b64encode(sign_message(key, stamp.encode())).decode(),
            "content-type": "application/protobuf",
        }
        request = ActivateNodeRequest(public_key=public, heartbeat_interval=10)
        with httpx.Client(verify=ssl.create_default_context(cafile=str(net.files.ca))) as client:
            url = f"https://{net.address}/v1/fleet/activate-node"
            codes.append(client.post(url, content=request.SerializeToString(), headers=headers).status_code)
    assert codes[1] == 401
    assert codes[0] != 401


def test_one_file_alone_imports_flower() -> None:
    source = Path(network.__file__).parents[1]
    names = [
        str(path.relative_to(source))
        for path in sorted(source.rglob("*.py"))
        if re.search(r"^\s*(import|from) flwr\b", path.read_text(encoding="utf-8"), re.MULTILINE)
    ]
    assert names == ["sites/transport.py"]
