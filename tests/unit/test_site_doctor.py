"""`medfed site doctor`: every line against a server on the loopback with a trial's certificate, or without one."""

from __future__ import annotations

import shutil
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

from medfed.core.catalog import DATASETS
from medfed.core.diagnosis import Check
from medfed.core.progress import Reporter
from medfed.datasets.base import write_twin
from medfed.sites.credentials import Certificates, write_trial
from medfed.sites.doctor import data_checks, local_checks, server_checks
from medfed.sites.folder import SiteFolder
from medfed.study.data import TwinSpec
from support.site_toys import federation, shift_clock, site


@contextmanager
def server(files: Certificates | None, ahead_seconds: float | None = 0) -> Iterator[int]:
    """Answer HTTP on the loopback, over TLS if there are certificates, with a clock that is ahead; yield the port."""

    class Answers(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response_only(404)
            if ahead_seconds is not None:
                self.send_header("Date", formatdate(time.time() + ahead_seconds, usegmt=True))
            self.end_headers()

        def log_message(self, *words: object) -> None:
            pass

    class Quiet(HTTPServer):
        def handle_error(self, *error: object) -> None:
            pass

    listening = Quiet(("127.0.0.1", 0), Answers)
    if files is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(files.certificate, files.key)
        listening.socket = context.wrap_socket(listening.socket, server_side=True)
    thread = Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield listening.server_address[1]
    finally:
        listening.shutdown()
        listening.server_close()
        thread.join()


@pytest.fixture
def folder(tmp_path: Path) -> SiteFolder:
    return site(tmp_path, federation(tmp_path, host="localhost"))


def at(folder: SiteFolder, port: int, host: str = "localhost") -> SiteFolder:
    return replace(folder, settings=folder.settings.model_copy(update={"port": port, "host": host}))


def trial(folder: SiteFolder) -> Certificates:
    """The certificate files of the federation that invited ``folder``."""
    certificates = folder.root.parent / "fed" / "certificates"
    return Certificates(certificates / "ca.pem", certificates / "server.pem", certificates / "server.key")


def failed(checks: list[Check]) -> list[str]:
    return [check.name for check in checks if not check.ok]


def test_the_server_of_the_invitation_passes(folder: SiteFolder) -> None:
    with server(trial(folder)) as port:
        checks = list(server_checks(at(folder, port)))
    assert [check.name for check in checks] == ["DNS", "TCP port", "TLS", "clock"]
    assert failed(checks) == []


def test_an_unknown_name_stops_at_dns(folder: SiteFolder) -> None:
    checks = list(server_checks(at(folder, 9, host="no-such-host.invalid")))
    assert failed(checks) == [checks[-1].name] == ["DNS"]
    assert "no-such-host.invalid" in checks[-1].hint


def test_a_closed_port_stops_there_and_tells_what_the_firewall_must_let_through(folder: SiteFolder) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
    checks = list(server_checks(at(folder, port)))
    assert failed(checks) == [checks[-1].name] == ["TCP port"]
    assert f"localhost:{port}" in checks[-1].hint
    assert "firewall" in checks[-1].hint


def test_a_server_with_a_certificate_of_another_ca_is_not_to_be_joined(folder: SiteFolder, tmp_path: Path) -> None:
    with server(write_trial(tmp_path / "stranger", "localhost")) as port:
        checks = list(server_checks(at(folder, port)))
    assert failed(checks) == [checks[-1].name] == ["TLS"]
    assert "certificate is refused" in checks[-1].value
    assert "do not join" in checks[-1].hint


def test_a_certificate_for_another_name_is_refused(folder: SiteFolder) -> None:
    with server(trial(folder)) as port:
        checks = list(server_checks(at(folder, port, host="127.0.0.2")))
    assert failed(checks) in (["TLS"], ["TCP port"])  # some systems answer at 127.0.0.1 alone


def test_an_expired_certificate_of_the_server_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as earlier:
        shift_clock(earlier, -400)
        folder = site(tmp_path, federation(tmp_path, host="localhost"))
    with server(trial(folder)) as port:
        checks = [*local_checks(folder, Reporter.silent(), data=False), *server_checks(at(folder, port))]
    assert failed(checks) == ["CA certificate", "TLS"]
    assert all("expired" in check.value for check in checks if not check.ok)


def test_a_server_without_tls_is_refused(folder: SiteFolder) -> None:
    with server(None) as port:
        checks = list(server_checks(at(folder, port)))
    assert failed(checks) == [checks[-1].name] == ["TLS"]
    assert checks[-1].value.startswith("no TLS")


def test_another_ca_in_the_folder_than_people_compared_is_refused(folder: SiteFolder, tmp_path: Path) -> None:
    stranger = write_trial(tmp_path / "stranger", "localhost")
    shutil.copy(stranger.ca, folder.root / "ca.pem")
    with server(stranger) as port:
        checks = [*local_checks(folder, Reporter.silent(), data=False), *server_checks(at(folder, port))]
    assert failed(checks) == ["CA certificate", "TLS"]
    assert "fingerprint" in next(check.value for check in checks if not check.ok)


@pytest.mark.parametrize(
    ("ahead", "problem"), [(0, []), (-2, []), (30, ["clock"]), (-30, ["clock"]), (None, ["clock"])]
)
def test_clocks_apart_are_found(folder: SiteFolder, ahead: float | None, problem: list[str]) -> None:
    with server(trial(folder), ahead) as port:
        checks = list(server_checks(at(folder, port)))
    assert failed(checks) == problem
    if ahead:
        told = float(checks[-1].value.split()[0])
        assert abs(told + ahead) < 3


def test_local_lines_need_no_server_and_name_what_is_wrong(folder: SiteFolder) -> None:
    assert failed(list(local_checks(folder, Reporter.silent(), data=False))) == []
    folder.private_key.chmod(0o644)
    (folder.root / "policy.toml").chmod(0o666)
    folder.audit.append("update", b"")
    folder.audit.path.write_bytes(b"changed\n")
    behind = folder.invitation.model_copy(update={"versions": {"medfed": "0.0.1", "torch": "missing"}})
    checks = list(local_checks(replace(folder, invitation=behind), Reporter.silent(), data=False))
    assert failed(checks) == ["policy", "node key", "audit log", "version of medfed", "version of torch"]
    hints = {check.name: check.hint for check in checks}
    assert "chmod go-w" in hints["policy"]
    assert "chmod 600" in hints["node key"]
    assert "egress-report" in hints["audit log"]
    assert "the server has 0.0.1" in hints["version of medfed"]
    assert "pip install" not in hints["version of medfed"]


def test_a_study_that_the_policy_refuses_is_a_problem_of_the_policy(tmp_path: Path) -> None:
    strict = site(tmp_path, federation(tmp_path), may_leave=("encoders", "buffers"))
    (check,) = [check for check in local_checks(strict, Reporter.silent(), data=False) if not check.ok]
    assert check.name == "policy"
    assert "heads" in check.value
    assert "data officer" in check.hint


def test_too_little_disk_is_a_problem(folder: SiteFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    full = shutil.disk_usage(folder.root)._replace(free=2**20)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    assert failed(list(local_checks(folder, Reporter.silent(), data=False))) == ["free disk"]


def test_every_file_of_the_studys_data_is_opened(folder: SiteFolder) -> None:
    def looked() -> list[Check]:
        return list(data_checks(folder, Reporter.silent()))

    assert "empty" in looked()[0].value
    (folder.settings.data_root / "notes.txt").touch()
    assert "ptbxl" in looked()[0].value
    assert str(folder.settings.data_root) in looked()[0].hint
    write_twin(DATASETS["ptbxl"], folder.settings.data_root / "ptbxl", TwinSpec(num_patients=6))
    (good,) = looked()
    assert (good.name, good.ok) == ("data: ptbxl", True)
    broken = next((folder.settings.data_root / "ptbxl").rglob("*.dat"))
    broken.write_bytes(b"")
    (bad,) = looked()
    assert not bad.ok
    assert "1 problem" in bad.value
    assert broken.stem in bad.hint
    shutil.rmtree(folder.settings.data_root)
    assert not looked()[0].ok
