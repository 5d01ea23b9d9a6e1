"""`medfed federation …` and `medfed site …` from empty folders to where the network begins, and every wrong way."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType

import pytest

from medfed.core import diagnosis
from medfed.core.errors import RunError, SiteError, TooFewSitesError
from medfed.records.folder import RunFolder
from medfed.records.schema import Round
from medfed.sites.audit import Facts
from medfed.sites.credentials import write_trial
from medfed.sites.federation import FederationFolder
from medfed.sites.folder import SiteFolder
from medfed.sites.invitation import Invitation, invited_study
from medfed.sites.status import SiteFailure, StatusFile, is_held, only_one, read_status
from support.site_toys import HOST, STUDY, federation, medfed, site, study_file

Shell = Callable[..., int]
Answer = Callable[..., None]


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch) -> Shell:
    return lambda *words: medfed(monkeypatch, *words)


def test_from_nothing_to_a_site_that_could_join(
    tmp_path: Path, shell: Shell, capsys: pytest.CaptureFixture[str]
) -> None:
    fed, hospital, data = tmp_path / "fed", tmp_path / "hospital", tmp_path / "data"
    data.mkdir()
    assert shell("federation", "init", fed, "--study", study_file(tmp_path), "--host", HOST, "--port", 9092) == 0
    assert shell("federation", "invite", fed) == 0
    words = ("site", "init", hospital, "--name", "site-0", "--data-root", data, "--invitation", fed / "invitation")
    assert shell(*words, "--may-leave", "encoders", "--may-leave", "buffers") == 0
    told = capsys.readouterr().out
    assert "the study sends heads (tensor heads.ead" in told
    made = SiteFolder.load(hospital)
    assert made.public_key.read_text().strip() in told
    assert told.count(made.settings.ca_fingerprint) == 2
    assert shell("federation", "add", fed, "site-0", made.public_key) == 0
    fingerprint = capsys.readouterr().out.split("\n")[1].strip()
    assert fingerprint in told
    assert list(FederationFolder.load(fed).sites) == ["site-0"]
    assert shell("site", "doctor", hospital, "--offline", "--skip-data") == 1
    assert "PROBLEM  policy" in capsys.readouterr().out
    policy = hospital / "policy.toml"
    policy.write_text(policy.read_text().replace('["encoders", ', '["heads", "encoders", '))
    assert shell("site", "doctor", hospital, "--offline", "--skip-data") == 0


def test_an_invitation_holds_no_secret(tmp_path: Path) -> None:
    fed = federation(tmp_path)
    bundle = fed.invite()
    assert {path.name for path in bundle.iterdir()} == {"ca.pem", "invitation.toml", "study.toml"}
    for path in bundle.iterdir():
        assert "PRIVATE" not in path.read_text()
        assert str(tmp_path) not in path.read_text()


def test_private_files_are_their_owners_alone(tmp_path: Path) -> None:
    fed = federation(tmp_path)
    hospital = site(tmp_path, fed)
    for path in (fed.certificates.key, hospital.private_key):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    for root in (fed.root, hospital.root):
        assert stat.S_IMODE(root.stat().st_mode) == 0o700


def test_ones_own_certificate_is_checked_before_anything_is_written(
    tmp_path: Path, shell: Shell, capsys: pytest.CaptureFixture[str]
) -> None:
    own = write_trial(tmp_path / "own", HOST)
    words = ("federation", "init", tmp_path / "fed", "--study", study_file(tmp_path), "--host")
    files = ("--own-certificate", own.certificate, "--own-key", own.key, "--own-ca", own.ca)
    assert shell(*words, HOST, *files[:4]) == 1
    assert "--own-certificate, --own-key and --own-ca" in capsys.readouterr().err
    assert shell(*words, "other.example.org", *files) == 1
    assert "not for 'other.example.org'" in capsys.readouterr().err
    assert not (tmp_path / "fed").exists()
    assert shell(*words, HOST, *files) == 0
    made = FederationFolder.load(tmp_path / "fed")
    assert made.certificates.certificate.read_bytes() == own.certificate.read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (('scheme = "sites"', 'scheme = "iid"'), "partition.scheme is 'iid'"),
        (("[twins]", 'baselines = ["local"]\n[twins]'), "'local' needs the sites' data in one place"),
        (('"ead"', '"eda"'), "unknown task"),
    ],
)
def test_a_study_that_hospitals_cannot_run_is_refused_at_once(
    tmp_path: Path, shell: Shell, capsys: pytest.CaptureFixture[str], change: tuple[str, str], message: str
) -> None:
    study = study_file(tmp_path, STUDY.replace(*change))
    assert shell("federation", "init", tmp_path / "fed", "--study", study, "--host", HOST) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "fed").exists()


def test_a_folder_that_holds_something_is_left_alone(
    tmp_path: Path, shell: Shell, capsys: pytest.CaptureFixture[str]
) -> None:
    fed = federation(tmp_path)
    site(tmp_path, fed)
    study = study_file(tmp_path)
    assert shell("federation", "init", fed.root, "--study", study, "--host", "other.example.org") == 1
    assert "not an empty folder" in capsys.readouterr().err
    words = ("--name", "b", "--data-root", tmp_path / "data-site-0", "--invitation", fed.root / "invitation")
    assert shell("site", "init", tmp_path / "site-0", *words) == 1
    assert "not an empty folder" in capsys.readouterr().err
    assert SiteFolder.load(tmp_path / "site-0").name == "site-0"


def test_one_name_and_one_key_a_site(tmp_path: Path) -> None:
    fed = federation(tmp_path)
    first, second = site(tmp_path, fed), site(tmp_path, fed, "site-1")
    fed.add("site-0", first.public_key)
    fed = FederationFolder.load(fed.root)
    with pytest.raises(SiteError, match="a site of this name"):
        fed.add("site-0", second.public_key)
    with pytest.raises(SiteError, match="registered already, as 'site-0'"):
        fed.add("site-1", first.public_key)
    with pytest.raises(SiteError, match="PRIVATE key"):
        fed.add("site-1", second.private_key)
    for name in ("../x", "server", "", ".hidden", "a b"):
        with pytest.raises(SiteError, match="not a site's name"):
            fed.add(name, second.public_key)
    with pytest.raises(SiteError, match=r"no such site\n.*registered are: site-0"):
        fed.remove("site-1")
    fed.remove("site-0")
    assert FederationFolder.load(fed.root).sites == {}


def test_a_bundle_that_was_exchanged_on_its_way_is_refused(
    tmp_path: Path, shell: Shell, capsys: pytest.CaptureFixture[str]
) -> None:
    fed = federation(tmp_path)
    bundle = fed.invite()
    words = ("site", "init", tmp_path / "a", "--name", "a", "--data-root", tmp_path, "--invitation", bundle)
    assert shell(*words, "--ca-fingerprint", "AB:CD") == 1
    assert "what you passed says AB:CD" in capsys.readouterr().err
    shutil.copy(write_trial(tmp_path / "stranger", HOST).ca, bundle / "ca.pem")
    assert shell(*words) == 1
    assert "the invitation says" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()


def test_a_study_that_was_changed_after_the_invitation_is_refused(tmp_path: Path) -> None:
    bundle = federation(tmp_path).invite()
    study = bundle / "study.toml"
    study.write_text(study.read_text().replace("toy", "toy2"))
    with pytest.raises(SiteError, match=r"the invitation says.*\n.*get a new invitation"):
        invited_study(bundle, Invitation.load(bundle))
    study.unlink()
    with pytest.raises(SiteError, match=r"no study\.toml"):
        Invitation.load(bundle)


@pytest.mark.parametrize(
    ("file", "line", "message"),
    [
        ("site.toml", 'data_rot = "/data"', "unknown key 'data_rot'.*\n.*did you mean 'data_root'"),
        ("site.toml", "retries = 3", "unknown key 'retries'"),
        ("policy.toml", "min_example = 3", "unknown key 'min_example'.*\n.*did you mean 'min_examples'"),
        ("invitation.toml", "[version]", "unknown key 'version'.*\n.*did you mean 'versions'"),
    ],
)
def test_an_unknown_setting_of_a_site_is_named(tmp_path: Path, file: str, line: str, message: str) -> None:
    made = site(tmp_path, federation(tmp_path))
    with (made.root / file).open("a") as settings:
        settings.write(line + "\n")
    with pytest.raises(SiteError, match=message) as told:
        SiteFolder.load(made.root)
    assert told.value.where == made.root / file


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("port = 9092", "prt = 9092", "port: Field required|unknown key 'prt'"),
        ("port = 9092", "port = 99999", "port: .*less than or equal to 65535"),
        ("train_seconds", "trian_seconds", "unknown key 'deadlines.trian_seconds'.*\n.*'train_seconds'"),
        ("train_seconds = 3600.0", "train_seconds = -1", "deadlines.train_seconds: .*greater than 0"),
    ],
)
def test_a_wrong_setting_of_a_federation_is_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = federation(tmp_path).root / "federation.toml"
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(SiteError, match=message) as told:
        FederationFolder.load(path.parent)
    assert told.value.where == path


def test_joining_looks_at_policy_key_data_and_log_before_it_calls_out(
    tmp_path: Path, shell: Shell, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    called = answering(monkeypatch, "medfed.sites.client", "join", lambda folder, once, keep_decoded: None)
    made = site(tmp_path, federation(tmp_path))
    assert shell("site", "join", made.root) == 0
    assert called == [made.name]
    made.private_key.chmod(0o644)
    assert shell("site", "join", made.root) == 1
    made.private_key.chmod(0o600)
    (made.root / "policy.toml").chmod(0o666)
    assert shell("site", "join", made.root) == 1
    (made.root / "policy.toml").chmod(0o644)
    made.settings.data_root.rmdir()
    assert shell("site", "join", made.root) == 1
    made.settings.data_root.mkdir()
    made.audit.path.write_text("nonsense\n")
    assert shell("site", "join", made.root) == 1
    told = capsys.readouterr().err
    for message in ("chmod 600", "chmod go-w", "data root is not a folder", "audit log is broken"):
        assert message in told
    assert called == [made.name]


def answering(monkeypatch: pytest.MonkeyPatch, module: str, name: str, answer: Answer) -> list[str]:
    """Put a function in the place of the network's, and return the list of folders it is called for."""
    called: list[str] = []

    def function(folder: SiteFolder | FederationFolder, **options: bool) -> None:
        called.append(folder.root.name)
        answer(folder, **options)

    stand_in = ModuleType(module)
    setattr(stand_in, name, function)
    monkeypatch.setitem(sys.modules, module, stand_in)
    return called


@pytest.mark.parametrize(
    ("error", "exit_status", "state"),
    [
        (None, 0, "done"),
        (RunError("broken"), 1, "failed"),
        (TooFewSitesError("1 site of 2"), 3, "too few sites"),
        (KeyboardInterrupt(), 130, "stopped"),
        (signal.SIGTERM, 143, "stopped"),
    ],
)
def test_how_a_server_ends_is_told_by_exit_status_and_status_file(
    tmp_path: Path,
    shell: Shell,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException | signal.Signals | None,
    exit_status: int,
    state: str,
) -> None:
    fed = federation(tmp_path)
    fed.add("site-0", site(tmp_path, fed).public_key)

    def serve(folder: FederationFolder) -> None:
        assert is_held(folder.root)
        status = StatusFile(folder.root)
        status.update(state="training", round=2, num_rounds=3, run="runs/toy/1234-seed0")
        status.seen("site-0")
        status.failed(SiteFailure(site="site-0", round=1, phase="train", reason="out of memory"))
        if isinstance(error, signal.Signals):
            os.kill(os.getpid(), error)
        elif error is not None:
            raise error

    answering(monkeypatch, "medfed.sites.server", "serve", serve)
    before = signal.getsignal(signal.SIGTERM)
    assert shell("federation", "start", fed.root) == exit_status
    assert signal.getsignal(signal.SIGTERM) is before
    assert not is_held(fed.root)
    assert (read_status(fed.root).state, read_status(fed.root).round) == (state, 2)
    capsys.readouterr()
    assert shell("federation", "status", fed.root) == 0
    told = capsys.readouterr().out
    assert told.startswith(state)
    for part in ("round 2 of 3", "site site-0: heard of", "failure in round 1: site-0 (train): out of memory", "1234"):
        assert part in told


def test_the_status_of_a_killed_server_says_that_it_is_gone(
    tmp_path: Path, shell: Shell, capsys: pytest.CaptureFixture[str]
) -> None:
    fed = federation(tmp_path)
    assert shell("federation", "status", fed.root) == 1
    assert "never started" in capsys.readouterr().err
    StatusFile(fed.root).update(state="training", round=1)
    assert shell("federation", "status", fed.root) == 0
    assert "its process is gone" in capsys.readouterr().out
    with only_one(fed.root):
        assert shell("federation", "status", fed.root) == 0
    assert "gone" not in capsys.readouterr().out
    (fed.root / "status.json").write_text(json.dumps({"state": "sleeping"}))
    assert shell("federation", "status", fed.root) == 1


def test_rounds_of_an_earlier_start_count(tmp_path: Path, shell: Shell, capsys: pytest.CaptureFixture[str]) -> None:
    fed = federation(tmp_path)
    run = RunFolder(tmp_path / "run")
    run.append(Round, [Round(round=1), Round(round=2)])
    StatusFile(fed.root).update(state="done", num_rounds=2, run=str(run.root))
    assert shell("federation", "status", fed.root) == 0
    assert "round 2 of 2" in capsys.readouterr().out


def test_a_server_starts_with_enough_sites_a_good_certificate_and_alone(
    tmp_path: Path, shell: Shell, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    called = answering(monkeypatch, "medfed.sites.server", "serve", lambda folder: None)
    fed = federation(tmp_path)
    assert shell("federation", "start", fed.root) == 1
    assert "0 site(s) registered, needed are 1" in capsys.readouterr().err
    fed.add("site-0", site(tmp_path, fed).public_key)
    settings = fed.root / "federation.toml"
    text = settings.read_text()
    settings.write_text(text.replace("min_sites = 0", "min_sites = 2"))
    assert shell("federation", "start", fed.root) == 1
    assert "1 site(s) registered, needed are 2" in capsys.readouterr().err
    settings.write_text(text.replace(HOST, "moved.example.org"))
    assert shell("federation", "start", fed.root) == 1
    assert "not for 'moved.example.org'" in capsys.readouterr().err
    settings.write_text(text)
    with only_one(fed.root):
        assert shell("federation", "start", fed.root) == 1
    assert "another process runs on this folder" in capsys.readouterr().err
    assert called == []
    assert shell("federation", "start", fed.root) == 0
    assert called == ["fed"]


def test_the_egress_report_tells_what_left_and_whether_the_chain_holds(
    tmp_path: Path, shell: Shell, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    made = site(tmp_path, federation(tmp_path))
    for number in (1, 2):
        facts = Facts(run="toy/1", round=number, tensors=("heads.ead.w",), num_examples=21)
        made.audit.append("update", b"x" * 1500, facts)
    assert shell("site", "egress-report", made.root) == 0
    told = capsys.readouterr().out
    assert "3,000 bytes in 2 entries" in told
    assert made.audit.verify().last in told
    assert "heads.ead 1" in told
    made.audit.path.write_bytes(made.audit.path.read_bytes().replace(b"1500", b"1400", 1))
    assert shell("site", "egress-report", made.root) == 1
    assert "THE CHAIN IS BROKEN at line 1: changed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("package", "installed", "message"),
    [
        ("cryptography", None, "need cryptography, which is not installed"),
        ("flwr", None, "need flwr, which is not installed"),
        ("flwr", "1.20.0", "and flwr 1.20.0 is installed"),
        ("flwr", "9.0.0", "and flwr 9.0.0 is installed"),
    ],
)
def test_without_the_extra_or_with_another_flower_the_commands_say_what_to_install(
    tmp_path: Path,
    shell: Shell,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    package: str,
    installed: str | None,
    message: str,
) -> None:
    def version_of(name: str) -> str:
        if name != package:
            return version(name)
        if installed is None:
            raise PackageNotFoundError
        return installed

    monkeypatch.setattr(diagnosis, "version", version_of)
    for words in (("federation", "start"), ("federation", "invite"), ("site", "doctor"), ("site", "join")):
        assert shell(*words, tmp_path) == 1
        error = capsys.readouterr().err
        assert message in error
        assert "next step: pip install" in error
        assert "'flwr" in error
        assert "'medfed" not in error, "that name in a registry is not ours"
