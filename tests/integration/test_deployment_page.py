"""docs/deployment.md is true: followed block by block in fresh folders, it leads to the weights of one process."""

from __future__ import annotations

import hashlib
import re
import socket
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from medfed.core.progress import Reporter
from medfed.sites.audit import AuditLog
from medfed.sites.status import read_status
from medfed.study.study import load_study
from medfed.twins.writing import write_folders
from support.page_walk import FINGERPRINT, PAGE, Said, Walk, bash, blocks, in_this_process

STUDY = PAGE.parents[1] / "studies" / "scaffold-3sites.toml"
SITES = ("site-0", "site-1", "site-2")
TEXT = PAGE.read_text(encoding="utf-8")
BLOCKS = blocks(TEXT)
KNOWN = {
    "server",
    "site",
    "server, for every site",
    "server, goes on",
    "site, goes on",
    "server, when it is over",
    "site, when it is over",
    "server, with a signed certificate",
    "server, next study",
    "site, next study",
    "not run: fetches packages",
    "not run: RUN is a run of your own",
    "not run: needs vLLM and a GPU",
    "not run: fetches more than a gigabyte",
    "not run: needs an LLM in the cache",
}


def test_every_block_says_who_runs_it_and_is_bash() -> None:
    python = TEXT.count("```python\n")  # followed by test_export.py
    assert len(BLOCKS) == TEXT.count("```bash\n") == TEXT.count("```") / 2 - python
    assert {block.who for block in BLOCKS} == KNOWN
    for block in BLOCKS:
        checked = subprocess.run(["bash", "-n", "-c", block.text], capture_output=True, text=True, check=False)
        assert checked.returncode == 0, f"{block}: {checked.stderr}"


def test_every_variable_of_the_blocks_is_explained() -> None:
    used = {name for block in BLOCKS for name in re.findall(r"\$(\w+)", block.text)}
    told = set(re.findall(r"`\$?([A-Z_]+)`", TEXT))
    assert used <= told
    assert used == {"HOST", "PORT", "STUDY", "DATA", "SITE", "FINGERPRINT", "NEXT_STUDY"}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_folders(load_study(STUDY), tmp_path / "data", Reporter.silent())
    return tmp_path / "data"


@pytest.fixture(params=[in_this_process, pytest.param(bash, marks=pytest.mark.slow)])
def walk(request: pytest.FixtureRequest, tmp_path: Path, data: Path) -> Iterator[Walk]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (tmp_path / "next.toml").write_text(STUDY.read_text().replace("num_rounds = 3", "num_rounds = 2"))
    variables = {"HOST": "localhost", "PORT": str(port), "STUDY": str(STUDY), "NEXT_STUDY": str(tmp_path / "next.toml")}
    walk = Walk(tmp_path / "walk", data, SITES, variables, request.param)
    yield walk
    walk.end()


@pytest.mark.timeout(1200)
def test_the_page_followed_word_for_word_gives_the_weights_of_one_process(walk: Walk, data: Path) -> None:
    told: list[Said] = []
    for who, text in BLOCKS:
        if "when it is over" in who and not (walk.server / "over").exists():
            together = walk.at_server(f'medfed run "$STUDY" --data-root "{data}" --runs here')
            assert together.status == 0, together.output
            for name, said in walk.over().items():
                assert said.status == 0, f"{name}: {said.output}"
            (walk.server / "over").touch()
        told += follow(walk, who, text)
    printed = "\n".join(said.output for said in told)
    check_fingerprints(walk, printed)
    status = read_status(walk.server / "federation")
    assert status.state == "done"
    assert not status.failures
    run = walk.server / status.run
    assert (run / "DONE").exists()
    (here,) = (walk.server / "here" / run.parent.name).iterdir()
    assert final_weights(run) == final_weights(here)
    for site, folder in walk.sites.items():
        found = AuditLog(folder / "hospital" / "egress.jsonl").verify()
        assert found.ok, f"{site}: {found.reason}"
        kinds = [entry["kind"] for entry in found.entries]
        assert kinds == ["greeting", "update", "update", "update", "scores"], site
        assert found.last in printed
        assert (folder / "hospital-backup.tgz").stat().st_mode & 0o077 == 0


def follow(walk: Walk, who: str, text: str) -> list[Said]:
    """Do what the page says here."""
    if who.startswith("not run"):
        return []
    if who == "server, goes on":
        walk.go_on(text, walk.server)
        walk.wait_until("listening on", walk.server)
        return []
    if who == "site, goes on":
        for site, folder in walk.sites.items():
            walk.go_on(text, folder, walk.site_env(site))
        return []
    if who == "server, with a signed certificate":
        sign(walk.server)
    if who == "site, next study":
        refused = walk.at_sites(text).values()
        assert all(said.status == 1 and "studies" in said.output for said in refused), refused
        for folder in walk.sites.values():
            agree(folder)
    if who == "server, for every site":
        said = [walk.at_server(text, SITE=site) for site in SITES]
    elif who.startswith("server"):
        said = [walk.at_server(text)]
    else:
        said = list(walk.at_sites(text).values())
    for one in said:
        assert one.status == 0, f"{who}: {text}{one.output}"
    return said


def check_fingerprints(walk: Walk, printed: str) -> None:
    """The telephone: what a hospital prints of its key is what the server prints of it."""
    assert re.fullmatch(FINGERPRINT, walk.fingerprint)
    at_sites = re.findall(rf"its fingerprint:\n  ({FINGERPRINT})\n", printed)
    at_server = re.findall(rf"key fingerprint\n  ({FINGERPRINT})\n", printed)
    assert len(set(at_sites)) == len(SITES)
    assert at_sites == at_server


def agree(folder: Path) -> None:
    """The data officer adds the study of the invitation to those the hospital agreed to."""
    digest = re.findall(r'study_sha256 = "(\w+)"', (folder / "invitation" / "invitation.toml").read_text())[0]
    policy = folder / "hospital" / "policy.toml"
    policy.write_text(policy.read_text().replace("studies = [", f'studies = ["{digest}", '))


def sign(server: Path) -> None:
    """The institution's CA signs the request that the page had made."""
    request = x509.load_pem_x509_csr((server / "own.csr").read_bytes())
    key, now = ec.generate_private_key(ec.SECP384R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "an institution's CA")])
    blank = x509.CertificateBuilder().issuer_name(name).not_valid_before(now).not_valid_after(now + timedelta(days=9))
    names = request.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    root = blank.subject_name(name).public_key(key.public_key()).serial_number(1)
    root = root.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    own = blank.subject_name(request.subject).public_key(request.public_key()).serial_number(2)
    own = own.add_extension(names, critical=False)
    for path, builder in (("own-ca.pem", root), ("own.pem", own)):
        (server / path).write_bytes(builder.sign(key, hashes.SHA384()).public_bytes(Encoding.PEM))


def final_weights(run: Path) -> str:
    """Return the SHA-256 of the last checkpoint."""
    return hashlib.sha256(max(run.glob("checkpoints/*/state.safetensors")).read_bytes()).hexdigest()
