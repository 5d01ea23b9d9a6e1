"""The page's server: it answers its own page on its own machine, keeps nothing, and says kindly what is wrong."""

from __future__ import annotations

import base64
import json
import re
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from medfed.ask.page import app as play_app
from medfed.ask.page.app import listen
from medfed.core.errors import RunError
from support.finished_runs import QuickRun
from support.play_server import Reply, asked, request, served
from support.processes import Process

EFFUSION = "Is there a pleural effusion?"


@pytest.fixture(scope="module")
def port(quick: QuickRun) -> Iterator[int]:
    with served(quick.load()) as number:
        yield number


def post(port: int, path: str, body: bytes, **headers: str) -> Reply:
    return request(port, "POST", path, body, **({"Origin": f"http://127.0.0.1:{port}"} | headers))


def test_everything_the_page_needs_comes_from_itself_under_a_strict_policy(port: int) -> None:
    page = request(port, "GET", "/")
    assert page.status == 200
    assert re.findall(r"https?://", page.text) == []
    for link in re.findall(r'(?:src|href)="([^"]+)"', page.text):
        assert request(port, "GET", link).status == 200, link
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy
    assert page.headers["cache-control"] == "no-store"


@pytest.mark.parametrize("host", ["evil.example", "evil.example:{port}", "127.0.0.1", "127.0.0.1:1", "localhost", ""])
def test_another_host_name_is_refused(port: int, host: str) -> None:
    for reply in (
        request(port, "GET", "/", Host=host.format(port=port)),
        post(port, "/ask", b"{}", Host=host.format(port=port)),
    ):
        assert reply.status == 403
        assert "Ask" not in reply.text


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "http://127.0.0.1:1", "https://127.0.0.1:{port}", None]
)
def test_another_pages_post_is_refused(port: int, quick: QuickRun, origin: str | None) -> None:
    body = asked(quick.images[:1], question=EFFUSION)
    headers = {} if origin is None else {"Origin": origin.format(port=port)}
    assert request(port, "POST", "/ask", body, **headers).status == 403
    assert post(port, "/ask", body).status == 200
    assert post(port, "/ask", body, Host=f"localhost:{port}", Origin=f"http://localhost:{port}").status == 200


def test_it_looks_and_answers_and_leaves_nothing_behind(
    port: int, quick: QuickRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    header = quick.ecgs[0]
    for files in (quick.images[:1], [header, header.with_suffix(".dat")], [quick.icu]):
        assert post(port, "/look", asked(files)).status == 200
        assert post(port, "/ask", asked(files, question=EFFUSION)).status == 200
    assert post(port, "/ask", asked([header], question=EFFUSION)).status == 422
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


def test_what_is_shown_is_escaped(port: int, quick: QuickRun) -> None:
    question = "<img src=x onerror=alert(1)> Is it?"
    reply = post(port, "/ask", asked(quick.images[:1], question=question, answers="<b>a</b>,b"))
    text = json.loads(reply.text)["answer"]
    assert "<img" not in text
    assert "<b>" not in text
    assert "&lt;img" in text


def test_a_mistake_is_told_without_paths_and_the_next_question_is_answered(
    port: int, quick: QuickRun, tmp_path: Path
) -> None:
    broken = tmp_path / "cut.dcm"
    broken.write_bytes(quick.images[0].read_bytes()[:2000])
    reply = post(port, "/look", asked([broken]))
    told = json.loads(reply.text)
    assert reply.status == 422
    assert told["what"].startswith("cut.dcm: ")
    assert tempfile.gettempdir() not in reply.text
    assert told["hint"]
    for body, status in ((b"not json", 400), (asked([]), 422), (asked(quick.images[:2]), 422)):
        assert post(port, "/ask", body).status == status
    assert post(port, "/ask", asked(quick.images[:1], question=EFFUSION)).status == 200


@pytest.mark.parametrize(
    "name",
    [
        "../../escape.dcm",
        "/etc/escape.dcm",
        "a\nb.dcm",
        ".hidden.dcm",
        "..",
        "x" * 300 + ".dcm",
        "漢" * 100 + ".dcm",
        "a.DCM",
    ],
)
def test_a_files_name_leads_nowhere(
    port: int, quick: QuickRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "deep" / "er"))
    content = json.loads(asked(quick.images[:1], question=EFFUSION))
    content["files"][0]["name"] = name
    assert post(port, "/ask", json.dumps(content).encode()).status == 200
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def dropped(*files: tuple[str, bytes]) -> bytes:
    sent = [{"name": name, "data": base64.b64encode(data).decode()} for name, data in files]
    return json.dumps({"files": sent, "task": "ead"}).encode()


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(
    ("header", "signal", "named"),
    [
        ("Müller, Hans.hea", "Müller, Hans.dat", "r1.dat"),
        ("r1.HEA", "r1.DAT", "r1.DAT"),
        ("r1.HEA", "r1.DAT", "r1.dat"),
        ("renamed.hea", "renamed.dat", "r1.dat"),
        ("renamed.hea", "r1.dat", "r1.dat"),
        ("漢" * 100 + ".hea", "漢" * 100 + ".dat", "größe.dat"),
    ],
)
def test_the_two_files_of_an_ecg_find_each_other(
    port: int, quick: QuickRun, header: str, signal: str, named: str, turned: bool
) -> None:
    head, data = quick.ecgs[0].read_text(encoding="utf-8"), quick.ecgs[0].with_suffix(".dat").read_bytes()
    wanted = post(port, "/ask", asked([quick.ecgs[0], quick.ecgs[0].with_suffix(".dat")], task="ead")).text
    files = [(header, head.replace(quick.ecgs[0].with_suffix(".dat").name, named).encode()), (signal, data)]
    reply = post(port, "/ask", dropped(*(reversed(files) if turned else files)))
    assert reply.status == 200, reply.text
    assert reply.text == wanted


def test_files_that_do_not_belong_together_are_refused(port: int, quick: QuickRun) -> None:
    head, data = quick.ecgs[0].read_bytes(), quick.ecgs[1].with_suffix(".dat").read_bytes()
    film = [image.read_bytes() for image in quick.images[:2]]
    name = quick.ecgs[0].with_suffix(".dat").name
    outside = head.replace(name.encode(), b"../" + name.encode())
    for files, told in (
        ([("one.hea", head), ("two.dat", data)], f"the header belongs to {name}, not to two.dat"),
        ([("one.hea", head), ("two.hea", head), ("one.dat", data)], "two files of the kind ecg"),
        ([("film.dcm", film[0]), ("film.dcm", film[1])], "two files of the kind image"),
        ([("film.dcm", film[0]), ("FILM.DCM", film[1])], "two files of the kind image"),
        ([("one.hea", outside), ("one.dat", data)], "the header names a file in another folder"),
        ([("one.hea", head.replace(name.encode(), b"..")), ("one.dat", data)], "another folder"),
    ):
        reply = post(port, "/ask", dropped(*files))
        assert reply.status == 422, reply.text
        assert told in json.loads(reply.text)["what"]


def test_too_much_is_refused(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(play_app, "MAX_BYTES", 1000)
    assert post(port, "/ask", b" " * 1001).status == 413
    assert post(port, "/ask", b" " * 1000).status == 400


def test_what_nobody_foresaw_is_one_sentence_without_content(
    port: int, quick: QuickRun, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fails(*arguments: object) -> None:
        raise ZeroDivisionError("Mrs Miller")

    monkeypatch.setattr(play_app, "ask", fails)
    reply = post(port, "/ask", asked(quick.images[:1], question=EFFUSION))
    assert reply.status == 500
    assert "ZeroDivisionError" in reply.text
    assert "Miller" not in reply.text + "".join(capfd.readouterr())


def test_only_this_machine_is_listened_to_and_a_taken_port_is_said() -> None:
    with listen(0) as listening:
        host, number = listening.getsockname()
        assert host == "127.0.0.1"
        with pytest.raises(RunError, match=f"port {number} cannot be used"):
            listen(number)
    with listen(number) as again:  # as soon as it is given back
        assert again.getsockname() == (host, number)


def test_the_command_prints_its_address_and_ctrl_c_ends_it(quick: QuickRun, tmp_path: Path) -> None:
    process = Process(["play", quick.folder, "--cache", quick.cache], tmp_path / "log")
    try:
        process.wait_for("http://127.0.0.1:")
        address = re.search(r"http://127\.0\.0\.1:(\d+)/", process.text)
        assert address, process.told()
        assert request(int(address[1]), "GET", "/").status == 200
        process.send(signal.SIGINT)
        assert process.wait() == 0, process.told()
        assert process.text.endswith("\nended\n")
    finally:
        process.end()
